package ledger

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
)

// Memory is a ledger that lives as long as its process. It is for tests, and for
// a signer of one process: two Lambda environments would each have their own, and
// each would let the other's host keys and names be taken. The zero value is
// empty and ready for use.
//
// It forgets nothing, not even records that have expired. Only instances that proved themselves, ended or had their tags
// changed get a record, of about a kilobyte at most, so the process ends long before
// its memory does.
type Memory struct {
	// Now is the clock by which records expire. Without it, they never do.
	Now func() time.Time

	mu        sync.Mutex
	instances map[ec2ref.Instance]record
	keys      map[string]ec2ref.Instance // by fingerprint
	names     map[string]ec2ref.Instance
}

// Clone returns a separate ledger with the same contents and no clock.
func (m *Memory) Clone() *Memory {
	m.mu.Lock()
	defer m.mu.Unlock()
	return &Memory{instances: maps.Clone(m.instances), keys: maps.Clone(m.keys), names: maps.Clone(m.names)}
}

// String returns all that the ledger holds. Two ledgers with the same text behave alike.
func (m *Memory) String() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	lines := make([]string, 0, len(m.instances)+len(m.keys)+len(m.names))
	for i, r := range m.instances {
		lines = append(lines, r.text(i))
	}
	for key, holder := range m.keys {
		lines = append(lines, keyPK(key)+" "+holder.String())
	}
	for name, holder := range m.names {
		lines = append(lines, namePK(name)+" "+holder.String())
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

func (m *Memory) clock() time.Time {
	if m.Now == nil {
		return time.Time{}
	}
	return m.Now()
}

// Lookup returns what is known of an instance, and the zero Record if nothing is.
func (m *Memory) Lookup(ctx context.Context, i ec2ref.Instance) (Record, error) {
	if err := ctx.Err(); err != nil {
		return Record{}, fmt.Errorf("look up %s: %w", i.ID, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.instances[i].exported(), nil
}

// Claim records that the instance holds the keys and the names, if the rules of
// the package allow it, and changes nothing otherwise. Claiming again what one
// holds already is fine, at any time. It fails with ErrKeyConflict, ErrKeyInUse,
// a *NameInUseError, ErrTooManyNames or ErrEnded.
func (m *Memory) Claim(ctx context.Context, c Claim, now time.Time) (Grant, error) {
	if err := ctx.Err(); err != nil {
		return Grant{}, fmt.Errorf("claim for %s: %w", c.Instance.ID, err)
	}
	if err := c.check(); err != nil {
		return Grant{}, fmt.Errorf("claim for %s: %w", c.Instance.ID, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	change, grant, err := m.view(c).claim(c, now)
	if err != nil {
		return Grant{}, fmt.Errorf("claim for %s: %w", c.Instance.ID, err)
	}
	if change.changes(m.instances[c.Instance]) {
		m.put(c.Instance, change)
	}
	return grant, nil
}

// view returns what the claim is decided on.
func (m *Memory) view(c Claim) view {
	v := view{record: m.instances[c.Instance], keys: make(map[string]ec2ref.Instance), names: make(map[string]tenure)}
	for _, fingerprint := range c.Fingerprints {
		if holder, held := m.keys[fingerprint]; held {
			v.keys[fingerprint] = holder
		}
	}
	for _, name := range c.allNames() {
		if holder, held := m.names[name]; held {
			v.names[name] = newTenure(name, holder, m.instances[holder])
		}
	}
	return v
}

func (m *Memory) put(i ec2ref.Instance, c change) {
	if m.instances == nil {
		m.instances = make(map[ec2ref.Instance]record)
		m.keys = make(map[string]ec2ref.Instance)
		m.names = make(map[string]ec2ref.Instance)
	}
	c.record.version++
	m.instances[i] = c.record
	for _, fingerprint := range c.keys {
		m.keys[fingerprint] = i
	}
	for name := range c.names {
		m.names[name] = i
	}
}

// LookupAll returns what is known of each of the instances.
func (m *Memory) LookupAll(ctx context.Context, instances []ec2ref.Instance) (map[ec2ref.Instance]Record, error) {
	records := make(map[ec2ref.Instance]Record, len(instances))
	for _, i := range instances {
		record, err := m.Lookup(ctx, i)
		if err != nil {
			return nil, err
		}
		records[i] = record
	}
	return records, nil
}

// Expired returns the records of instances that have not ended, although every
// certificate issued to them has, from a place that an earlier step named as Next.
func (m *Memory) Expired(ctx context.Context, from string, now time.Time) (Expired, error) {
	if err := ctx.Err(); err != nil {
		return Expired{}, fmt.Errorf("walk the expired records: %w", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	step := Expired{Records: make(map[ec2ref.Instance]Record)}
	ordered := slices.SortedFunc(maps.Keys(m.instances), func(a, b ec2ref.Instance) int { return cmp.Compare(instancePK(a), instancePK(b)) })
	for _, i := range ordered {
		if r := m.instances[i]; instancePK(i) > from && r.hasExpired(now) {
			if len(step.Records) == MaxExpired {
				return step, nil
			}
			step.Records[i], step.Next = r.exported(), instancePK(i)
		}
	}
	step.Next = ""
	return step, nil
}

// EndExpired is End for an instance whose certificates have all ended, and changes
// nothing if they have not. It reports whether the record ended.
func (m *Memory) EndExpired(ctx context.Context, i ec2ref.Instance, now time.Time) (bool, error) {
	ended := false
	_, err := m.amend(ctx, "end the expired record of", i, func(r record) (record, error) {
		next, err := r.endExpired(now, m.clock())
		ended = err == nil
		return next, err
	})
	return ended && err == nil, err
}

// Complete says that what was claimed has been issued, and returns the record as it
// is then. It fails with ErrEnded if the instance was off-boarded meanwhile, and with
// ErrUnclaimed if the claim no longer stands: it ran out, or the instance got other keys,
// names or another signer meanwhile. Then nothing may be handed out. If the
// record's version is more than one above the grant's, others have written meanwhile,
// and what was issued may be out of date.
func (m *Memory) Complete(ctx context.Context, c Claim, g Grant, now time.Time) (Record, error) {
	r, err := m.amend(ctx, "confirm claim of", c.Instance, func(r record) (record, error) { return r.confirm(c, g, now) })
	return r.exported(), err
}

// Confirm is Complete for callers that do not look at the record.
func (m *Memory) Confirm(ctx context.Context, c Claim, g Grant, now time.Time) error {
	_, err := m.Complete(ctx, c, g, now)
	return err
}

// End records that the instance is gone for good. Nobody needs to have claimed
// anything for it: an event may come before the enrollment that it must stop.
func (m *Memory) End(ctx context.Context, i ec2ref.Instance) error { return m.EndBy(ctx, i, "") }

// EndBy is End on the word of an operator, whom the record then names.
func (m *Memory) EndBy(ctx context.Context, i ec2ref.Instance, by string) error {
	_, err := m.amend(ctx, "end", i, func(r record) (record, error) {
		if r.ended {
			return record{}, errUnchanged
		}
		return r.end(by, m.clock()), nil
	})
	return err
}

// Release frees a name that an instance holds, although the instance has not ended,
// and returns who held it. It fails with ErrNotHeld if nobody does, and with
// ErrCertified while a certificate may name it.
func (m *Memory) Release(ctx context.Context, name, _ string, now time.Time) (ec2ref.Instance, error) {
	m.mu.Lock()
	holder, held := m.names[name]
	m.mu.Unlock()
	if !held {
		return ec2ref.Instance{}, fmt.Errorf("release %s: %w", name, ErrNotHeld)
	}
	_, err := m.amend(ctx, "amend", holder, func(r record) (record, error) { return r.release(name, holder, now) })
	if err != nil {
		return ec2ref.Instance{}, fmt.Errorf("release %s: %w", name, errors.Unwrap(err)) // as DynamoDB says it
	}
	return holder, nil
}

// Permit allows the instance to come with other host keys, once. It replaces a
// permit that is not used yet. It fails with ErrUnclaimed for an instance that is
// not known, and with ErrEnded.
func (m *Memory) Permit(ctx context.Context, i ec2ref.Instance, p Permit) error {
	_, err := m.amend(ctx, "permit re-key of", i, func(r record) (record, error) { return r.withPermit(p) })
	return err
}

// Announce notes that the instance's tags may have changed or that its node is about to
// be written, and returns the record after the note, in one step: an enrollment that
// claimed before finds the note when it confirms, and one that claims later changes the
// version. The record of an instance that ended is returned as it is. One that never
// enrolled has no generation; it keeps the note for an hour.
func (m *Memory) Announce(ctx context.Context, i ec2ref.Instance) (Record, error) {
	r, err := m.amend(ctx, "announce a write about", i, func(r record) (record, error) { return r.withNote(m.clock()) })
	return r.exported(), err
}

// SeeTags is Announce for callers that do not look at the record. The event's version
// decides nothing: whoever can write to the queue chooses it. It fails with ErrEnded,
// and with ErrSeen after the note for an instance that never enrolled.
func (m *Memory) SeeTags(ctx context.Context, i ec2ref.Instance, _ uint64) error {
	r, err := m.Announce(ctx, i)
	return seen(i, r, err)
}

func (m *Memory) amend(ctx context.Context, doing string, i ec2ref.Instance, decide func(record) (record, error)) (record, error) {
	if err := ctx.Err(); err != nil {
		return record{}, fmt.Errorf("%s %s: %w", doing, i.ID, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	next, err := decide(m.instances[i])
	if errors.Is(err, errUnchanged) {
		return m.instances[i], nil
	}
	if err != nil {
		return record{}, fmt.Errorf("%s %s: %w", doing, i.ID, err)
	}
	m.put(i, change{record: next})
	return m.instances[i], nil
}
