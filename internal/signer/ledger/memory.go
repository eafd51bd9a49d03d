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

// Memory is a ledger that lives as long as its process. It is for tests and for a signer
// with a single process: two Lambda environments would each have their own ledger, and
// each would give away the other's host keys and names. The zero value is empty and ready
// to use.
//
// It forgets nothing, not even expired records. Only instances that proved their
// identity, were retired or changed their tags get a record of about a kilobyte, so the
// process ends long before it runs out of memory.
type Memory struct {
	// Now is the clock for the expiry of records. Without it, they never expire.
	Now func() time.Time

	mu        sync.Mutex
	instances map[ec2ref.Instance]record
	keys      map[string]ec2ref.Instance // by fingerprint
	names     map[string]ec2ref.Instance
	refusals  map[ec2ref.Instance]Refusal
}

// Clone returns a separate ledger with the same contents and no clock.
func (m *Memory) Clone() *Memory {
	m.mu.Lock()
	defer m.mu.Unlock()
	return &Memory{instances: maps.Clone(m.instances), keys: maps.Clone(m.keys), names: maps.Clone(m.names), refusals: maps.Clone(m.refusals)}
}

// String returns the ledger's whole content. Ledgers with the same text behave alike.
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

// Lookup returns the record of an instance, and the zero Record for an unknown one.
func (m *Memory) Lookup(ctx context.Context, i ec2ref.Instance) (Record, error) {
	if err := ctx.Err(); err != nil {
		return Record{}, fmt.Errorf("look up %s: %w", i.ID, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.instances[i].exported(), nil
}

// Claim records that the instance holds the keys and the names, if the rules of
// the package allow it, and changes nothing otherwise. An instance may repeat a claim at
// any time. Claim fails with ErrKeyConflict, ErrKeyInUse, a *NameInUseError,
// ErrTooManyNames, ErrLeft or ErrRetired.
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

// view returns the input of the decision on a claim.
func (m *Memory) view(c Claim) view {
	v := view{record: m.instances[c.Instance], keys: make(map[string]ec2ref.Instance), names: make(map[string]holding)}
	for _, fingerprint := range c.Fingerprints {
		if holder, held := m.keys[fingerprint]; held {
			v.keys[fingerprint] = holder
		}
	}
	for _, name := range c.allNames() {
		if holder, held := m.names[name]; held {
			v.names[name] = newHolding(name, holder, m.instances[holder])
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

// LookupAll returns the record of each instance.
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

// Each visits every record and every refusal, in no order. It stops at the visitor's first
// error and returns it.
func (m *Memory) Each(ctx context.Context, v Visitor) error {
	err := ctx.Err()
	m.mu.Lock()
	records, refusals := maps.Clone(m.instances), maps.Clone(m.refusals)
	m.mu.Unlock()
	for i, r := range records {
		if err == nil && r.isKnown() {
			err = v.Record(i, r.exported())
		}
	}
	for i, r := range refusals {
		if err == nil {
			err = v.Refusal(i, r)
		}
	}
	if err != nil {
		return fmt.Errorf("read all records: %w", err)
	}
	return nil
}

// NoteRefusal notes that a request of the instance was refused.
func (m *Memory) NoteRefusal(ctx context.Context, i ec2ref.Instance, r Refusal) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("note the refusal of %s: %w", i.ID, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if r = r.bounded(); !r.At.After(m.refusals[i].At) {
		return nil
	}
	if m.refusals == nil {
		m.refusals = make(map[ec2ref.Instance]Refusal)
	}
	m.refusals[i] = r
	return nil
}

// Expired returns records that are not retired although all their certificates have
// expired. From is the Next of an earlier step.
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

// RetireExpired is Retire for an instance whose certificates have all expired; otherwise
// it changes nothing. It reports whether it retired the record.
func (m *Memory) RetireExpired(ctx context.Context, i ec2ref.Instance, now time.Time) (bool, error) {
	retired := false
	_, err := m.amend(ctx, "retire the expired record of", i, func(r record) (record, error) {
		next, err := r.retireExpired(now, m.clock())
		retired = err == nil
		return next, err
	})
	return retired && err == nil, err
}

// Complete confirms a claim after its certificates were issued, and returns the new
// record. It fails with ErrRetired if the instance was off-boarded meanwhile, and with
// ErrUnclaimed if the claim no longer holds: it expired, or the instance got other keys,
// names or another signer meanwhile. The caller must then discard the certificates. If
// the record's version is more than one above the grant's, others have written since,
// and the node may be out of date.
func (m *Memory) Complete(ctx context.Context, c Claim, g Grant, now time.Time) (Record, error) {
	r, err := m.amend(ctx, "confirm claim of", c.Instance, func(r record) (record, error) { return r.confirm(c, g, now) })
	return r.exported(), err
}

// Confirm is Complete for callers that do not need the record.
func (m *Memory) Confirm(ctx context.Context, c Claim, g Grant, now time.Time) error {
	_, err := m.Complete(ctx, c, g, now)
	return err
}

// Retire records that the instance is gone for good. It needs no earlier claim: an event
// may arrive before the enrollment that it must stop.
func (m *Memory) Retire(ctx context.Context, i ec2ref.Instance) error { return m.RetireBy(ctx, i, "") }

// RetireBy is Retire by an operator. The record names the operator.
func (m *Memory) RetireBy(ctx context.Context, i ec2ref.Instance, by string) error {
	_, err := m.amend(ctx, "retire", i, func(r record) (record, error) {
		if r.retired {
			return record{}, errUnchanged
		}
		return r.retire(by, m.clock()), nil
	})
	return err
}

// Leave records that an instance left: it has no node until it enrolls again, and keeps its
// keys and names. The instance may leave again. Leave returns the new record, and fails with
// ErrRetired, ErrUnclaimed for an instance that never enrolled with the signer, ErrKeyConflict
// if no key is recorded, ErrOtherSigner, and ErrOldLeave.
func (m *Memory) Leave(ctx context.Context, l Leave, now time.Time) (Record, error) {
	r, err := m.amend(ctx, "leave of", l.Instance, func(r record) (record, error) { return r.leave(l, now) })
	return r.exported(), err
}

// Release frees a name that an instance holds, even if the instance still exists, and
// returns the former holder. It fails with ErrNotHeld if no instance holds the name, and
// with ErrCertified while a certificate with the name may be valid.
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

// Permit allows the instance to bring other host keys, once. It replaces an unused
// permit. It fails with ErrUnclaimed for an unknown instance, and with ErrRetired.
func (m *Memory) Permit(ctx context.Context, i ec2ref.Instance, p Permit) error {
	_, err := m.amend(ctx, "permit re-key of", i, func(r record) (record, error) { return r.withPermit(p) })
	return err
}

// Announce notes that the instance's tags may have changed or that its node is about to
// be written, and returns the record after the note, in one step: an enrollment that
// claimed before finds the note when it confirms, and one that claims later changes the
// version. A retired record is returned unchanged. The record of an instance that never
// enrolled has no generation, and keeps the note for an hour.
func (m *Memory) Announce(ctx context.Context, i ec2ref.Instance) (Record, error) {
	r, err := m.amend(ctx, "announce a write about", i, func(r record) (record, error) { return r.withNote(m.clock()) })
	return r.exported(), err
}

// SeeTags is Announce for callers that do not need the record. It ignores the event's
// version: anyone who can write to the queue chooses it. It fails with ErrRetired, and
// with ErrSeen after the note for an instance that never enrolled.
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
