package organization

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/signer/cached"
	"github.com/hallmark-ssh/hallmark/internal/signer/emf"
)

// The events of log lines about the list. The names of the alarms are in docs/operations.md.
const (
	EventUnread    = "organization_unread"
	EventHeld      = "organization_held"
	EventConfirmed = "organization_confirmed"
)

// Organization lists an organization's accounts. Reader implements it.
type Organization interface {
	Read(ctx context.Context) (List, error)
}

// Refresher reads the organization and stores the list. All fields are required.
type Refresher struct {
	Organization Organization
	Store        Store
	Scope        Scope
	// Audience is the signer's own name, for its metrics.
	Audience string
	Log      *slog.Logger
	Now      func() time.Time
}

// Report is the result of a reading.
type Report struct {
	// Accounts is how many accounts may enroll instances, by the list in force.
	Accounts int
	// Held says that the reading is not in force, and Change which change to confirm.
	Held   bool   `json:",omitempty"`
	Change string `json:",omitempty"`
}

// Refresh reads the organization once. The new list replaces the one in force unless an
// operator must confirm the change. A failure keeps the list in force. One log line sums up
// the reading.
func (r Refresher) Refresh(ctx context.Context) (Report, error) {
	start := r.Now()
	o, err := r.refresh(ctx)
	r.log(ctx, start, o, err)
	return Report{Accounts: o.accounts, Held: o.held != nil, Change: o.heldChange()}, err
}

// outcome is a verdict and what is in force after it.
type outcome struct {
	verdict
	accounts int
	read     time.Time // of the list in force; zero if there is none
}

func (o outcome) heldChange() string {
	if o.held == nil {
		return ""
	}
	return o.change
}

func (r Refresher) refresh(ctx context.Context) (outcome, error) {
	before, inForce, st, err := r.inForce(ctx)
	if err != nil {
		return outcome{}, err
	}
	o := outcome{accounts: len(before)}
	if inForce != nil {
		o.read = inForce.Read
	}
	// A change after this moment may be missing from the answers.
	now := r.Now().UTC().Round(0)
	read, err := r.read(ctx, before)
	if err != nil {
		return o, err
	}
	text, digest, err := read.encode()
	if err != nil {
		return o, err
	}
	v, err := r.save(ctx, st, text, digest, now)
	if err != nil {
		return o, err
	}
	after := read.Members(r.Scope)
	err = r.Store.update(ctx, func(st *state) error {
		if !sameVersion(st.Current, inForce) {
			return errOvertaken
		}
		o.verdict = st.accept(v, before, after, now)
		return nil
	})
	if errors.Is(err, errOvertaken) {
		return o, nil // the next reading compares with the other's list
	}
	if err != nil {
		return o, fmt.Errorf("store which accounts the organization has: %w", err)
	}
	if o.held == nil {
		o.accounts, o.read = len(after), now
	}
	return o, nil
}

// read reads the organization, and again if accounts seem to have left. An account that moves
// from a unit not read yet to one that was read is in neither: it must not be refused for that.
// If the second reading fails or lacks more accounts, the first one counts.
func (r Refresher) read(ctx context.Context, before members) (List, error) {
	first, err := r.Organization.Read(ctx)
	if err != nil {
		return List{}, err
	}
	gone := len(leaving(before, first.Members(r.Scope)))
	if gone == 0 {
		return first, nil
	}
	second, err := r.Organization.Read(ctx)
	if err != nil || len(leaving(before, second.Members(r.Scope))) > gone {
		return first, nil //nolint:nilerr // the first one is good
	}
	return second, nil
}

// errOvertaken says that another reading was stored meanwhile.
var errOvertaken = errors.New("another reading was stored meanwhile")

func sameVersion(a, b *version) bool {
	return a == b || a != nil && b != nil && a.Digest == b.Digest && a.Read.Equal(b.Read)
}

// inForce returns the members of the list in force. If the list cannot be loaded, nothing
// can be compared with it, so no reading may replace it.
func (r Refresher) inForce(ctx context.Context) (members, *version, state, error) {
	st, err := r.Store.loadState(ctx)
	if err != nil || st.Current == nil {
		return nil, nil, st, err
	}
	l, err := r.Store.loadList(ctx, *st.Current)
	if err != nil {
		return nil, nil, st, err
	}
	return l.Members(r.Scope), st.Current, st, nil
}

// save stores the parts of a reading, unless they are stored already.
func (r Refresher) save(ctx context.Context, st state, text []byte, digest string, now time.Time) (version, error) {
	for _, known := range []*version{st.Current, st.heldVersion()} {
		if known != nil && known.Digest == digest && cached.IsRecent(known.Stored, partsRenewed, now) {
			return version{Digest: digest, Parts: known.Parts, Stored: known.Stored, Read: now}, nil
		}
	}
	return r.Store.saveList(ctx, text, digest, now)
}

// log logs a reading, and raises an alarm if its list is not in force.
func (r Refresher) log(ctx context.Context, start time.Time, o outcome, err error) {
	switch {
	case err != nil:
		r.Log.ErrorContext(ctx, "the organization's accounts could not be read; keeping the last good list",
			slog.String("event", EventUnread), slog.Bool("alarm", true), slog.Any("error", err))
	case o.held != nil:
		r.Log.ErrorContext(ctx, "the organization's accounts changed too much; keeping the last good list; check the organization, then confirm the change",
			slog.String("event", EventHeld), slog.Bool("alarm", true), slog.Any("error", o.held),
			slog.Int("leaving", o.leaving), slog.Int("accounts", o.accounts), slog.String("change", o.change))
	case o.confirmedBy != "":
		r.Log.WarnContext(ctx, "an operator confirmed the change of the organization's accounts",
			slog.String("event", EventConfirmed), slog.Int("leaving", o.leaving), slog.Int("accounts", o.accounts),
			slog.String("change", o.change), slog.String("by", o.confirmedBy))
	}
	end := r.Now()
	m := emf.By("signer")
	m.Happened("organization_alarms", err != nil || o.held != nil)
	m.Count("organization_accounts", o.accounts)
	m.Milliseconds("organization_ms", end.Sub(start))
	if !o.read.IsZero() {
		m.Seconds("organization_age_s", end.Sub(o.read))
	}
	record := slog.NewRecord(end, slog.LevelInfo, "organization", 0)
	record.AddAttrs(slog.String("signer", r.Audience))
	record.AddAttrs(emf.Attrs(end, m)...)
	if r.Log.Enabled(ctx, slog.LevelInfo) {
		_ = r.Log.Handler().Handle(ctx, record) // there is nowhere to report a failure
	}
}

// ErrNoChange says that no change waits for an operator.
var ErrNoChange = errors.New("no change of the organization's accounts waits for confirmation")

// ErrOtherChange says that another change waits for an operator.
var ErrOtherChange = errors.New("another change of the organization's accounts waits for confirmation")

// Waiting is a change that waits for an operator.
type Waiting struct {
	Change string
	Since  time.Time
	// Before and After count the accounts that may enroll instances.
	Before, After int
	// Leaving are the accounts that would no longer be admitted.
	Leaving []Leaver
}

// Leaver is an account that would no longer be admitted.
type Leaver struct {
	Account string
	Member
}

// Waiting returns the change that waits for an operator. It fails with ErrNoChange.
func (s Store) Waiting(ctx context.Context, scope Scope) (Waiting, error) {
	st, err := s.loadState(ctx)
	if err != nil {
		return Waiting{}, err
	}
	if st.Held == nil {
		return Waiting{}, ErrNoChange
	}
	after, err := s.loadList(ctx, st.Held.version)
	if err != nil {
		return Waiting{}, err
	}
	var before members
	if st.Current != nil {
		l, err := s.loadList(ctx, *st.Current)
		if err != nil {
			return Waiting{}, err
		}
		before = l.Members(scope)
	}
	remaining := after.Members(scope)
	w := Waiting{Change: st.Held.Change, Since: st.Held.Since, Before: len(before), After: len(remaining)}
	for _, a := range leaving(before, remaining) {
		w.Leaving = append(w.Leaving, Leaver{string(a), before[a]})
	}
	return w, nil
}

// Confirm permits the waiting change, once and until that time. The next reading that finds
// the same accounts missing puts its list into force. It fails with ErrNoChange and
// ErrOtherChange.
func (s Store) Confirm(ctx context.Context, change, by string, until time.Time) error {
	return s.update(ctx, func(st *state) error {
		switch {
		case st.Held == nil:
			return ErrNoChange
		case st.Held.Change != change:
			return fmt.Errorf("%w: %s", ErrOtherChange, st.Held.Change)
		}
		st.Permit = &permit{Change: change, By: by, Until: until}
		return nil
	})
}
