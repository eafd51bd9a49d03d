package ledger

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"
)

// Memory is a ledger that lives as long as its process. It is for tests, and for
// a signer of one process: two Lambda environments would each have their own, and
// each would let the other's host keys and names be taken. The zero value is
// empty and ready for use.
//
// It forgets nothing. Only instances that proved themselves get a record, of
// about a kilobyte, so the process ends long before its memory does.
type Memory struct {
	mu        sync.Mutex
	instances map[Instance]*record
	keys      map[string]Instance // by fingerprint
	names     map[string]nameRecord
}

// record is what is known of one instance.
type record struct {
	generation        uint64
	keys              []string
	confirmedHostname string
	ended             bool
}

type nameRecord struct {
	holder Instance
	// end is when the last certificate that names it has ended.
	end time.Time
}

// Claim records that the instance holds the keys and the name, if the rules of
// the package allow it, and changes nothing otherwise. Claiming again what one
// holds already is fine, at any time.
func (m *Memory) Claim(ctx context.Context, c Claim, now time.Time) (Grant, error) {
	if err := ctx.Err(); err != nil {
		return Grant{}, fmt.Errorf("claim host keys of %s: %w", c.Instance.ID, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.check(c, now); err != nil {
		return Grant{}, fmt.Errorf("claim host keys of %s: %w", c.Instance.ID, err)
	}
	return m.write(c), nil
}

func (m *Memory) check(c Claim, now time.Time) error {
	r := m.instances[c.Instance]
	if r != nil && r.ended {
		return ErrEnded
	}
	for _, fingerprint := range c.Fingerprints {
		if holder, held := m.keys[fingerprint]; held && holder != c.Instance {
			return fmt.Errorf("%w: %s is held by %s", ErrKeyInUse, fingerprint, holder.ID)
		}
	}
	if r != nil {
		if err := checkKeys(r.keys, c.Fingerprints); err != nil {
			return err
		}
	}
	if name, held := m.names[c.Hostname]; held && name.holder != c.Instance && !m.isFree(name, now) {
		return fmt.Errorf("%w: %s is held by %s", ErrNameInUse, c.Hostname, name.holder.ID)
	}
	return nil
}

func checkKeys(recorded, asked []string) error {
	known := func(fingerprint string) bool { return slices.Contains(recorded, fingerprint) }
	if !slices.ContainsFunc(asked, known) {
		return ErrKeyConflict
	}
	if n := len(union(recorded, asked)); n > MaxKeys {
		return fmt.Errorf("%w: with these it would have %d, more than %d", ErrKeyConflict, n, MaxKeys)
	}
	return nil
}

// isFree compares times itself: a holder that is gone may still have
// certificates out that name it.
func (m *Memory) isFree(name nameRecord, now time.Time) bool {
	holder := m.instances[name.holder]
	return (holder == nil || holder.ended) && now.After(name.end)
}

func (m *Memory) write(c Claim) Grant {
	r := m.record(c.Instance)
	r.keys = union(r.keys, c.Fingerprints)
	for _, fingerprint := range c.Fingerprints {
		m.keys[fingerprint] = c.Instance
	}
	end := c.End
	if name := m.names[c.Hostname]; name.holder == c.Instance && name.end.After(end) {
		end = name.end
	}
	m.names[c.Hostname] = nameRecord{holder: c.Instance, end: end}
	return Grant{Generation: r.generation, ConfirmedHostname: r.confirmedHostname}
}

// record returns the instance's record, a new one if there is none.
func (m *Memory) record(i Instance) *record {
	if m.instances == nil {
		m.instances = make(map[Instance]*record)
		m.keys = make(map[string]Instance)
		m.names = make(map[string]nameRecord)
	}
	if m.instances[i] == nil {
		m.instances[i] = &record{generation: 1}
	}
	return m.instances[i]
}

func union(a, b []string) []string {
	all := slices.Clone(a)
	for _, s := range b {
		if !slices.Contains(all, s) {
			all = append(all, s)
		}
	}
	return all
}

// Confirm says that what was claimed has been issued. It fails with ErrEnded if
// the instance was off-boarded meanwhile; then nothing may be handed out.
func (m *Memory) Confirm(ctx context.Context, c Claim, g Grant) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("confirm claim of %s: %w", c.Instance.ID, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	r := m.instances[c.Instance]
	switch {
	case r == nil:
		return fmt.Errorf("confirm claim of %s: %w", c.Instance.ID, ErrUnclaimed)
	case r.ended:
		return fmt.Errorf("confirm claim of %s: %w", c.Instance.ID, ErrEnded)
	case r.generation != g.Generation || m.names[c.Hostname].holder != c.Instance:
		return fmt.Errorf("confirm claim of %s: %w", c.Instance.ID, ErrUnclaimed)
	}
	r.confirmedHostname = c.Hostname
	return nil
}

// End records that the instance is gone for good. Nobody needs to have claimed
// anything for it: an event may come before the enrollment that it must stop.
func (m *Memory) End(ctx context.Context, i Instance) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("end %s: %w", i.ID, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.record(i).ended = true
	return nil
}
