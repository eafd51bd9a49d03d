package organization

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/signer/cached"
	"github.com/hallmark-ssh/hallmark/internal/signer/node"
)

// Fresh is how long a process uses a list before it looks for another.
const Fresh = 30 * time.Second

// kept is how long a process uses a list while it cannot look: an account that left must be
// refused soon.
const kept = 5 * time.Minute

// pause is the time between two looks, if the first one failed.
const pause = 5 * time.Second

func rule() cached.Rule {
	return cached.Rule{What: "the list of the organization's accounts", Fresh: Fresh, Kept: kept, Pause: pause}
}

// View is the accounts that may enroll instances, according to the last good list.
type View struct {
	members members
	read    time.Time
}

// NewView returns a view of these members, as Organizations listed them at that time.
func NewView(m map[ec2ref.Account]Member, read time.Time) View { return View{m, read} }

// Has reports whether the account is a member.
func (v View) Has(a ec2ref.Account) bool {
	_, ok := v.members[a]
	return ok
}

// Accounts returns the members, sorted.
func (v View) Accounts() []ec2ref.Account { return slices.Sorted(maps.Keys(v.members)) }

// IsStale reports whether the list is too old for a first enrollment.
func (v View) IsStale(now time.Time) bool {
	age := now.Sub(v.read)
	return age > MaxAge || age < -MaxAge // a list from the future is no fresher
}

// Read is when Organizations last returned the list.
func (v View) Read() time.Time { return v.read }

// Describe adds what the list says about the instance's account and the image's owner.
func (v View) Describe(f *node.Facts) {
	m := v.members[f.Account]
	f.AccountName, f.AccountPath = m.Name, m.Path
	f.ImageOwnerMember = f.ImageOwner != "" && v.Has(f.ImageOwner)
}

// Members reads the stored list. It may be used by several goroutines at once.
type Members struct {
	Store Store
	Scope Scope
	Log   *slog.Logger
	Now   func() time.Time

	seen cached.Value[seen]
}

// seen is what a look found.
type seen struct {
	view   View
	digest string // of the view's list
}

// Current returns the accounts that may enroll instances, none if there is no list yet. It
// looks for another list at most every few seconds, however often it is called: strangers
// cause calls.
func (m *Members) Current(ctx context.Context) (View, error) {
	now := func() time.Time { return m.Now().Round(0) }
	found, err := m.seen.Get(rule(), now, func(last seen, usable bool) (seen, error) {
		found, err := m.look(ctx, last)
		if err != nil && usable {
			m.Log.WarnContext(ctx, "the list of the organization's accounts could not be read again; using the last one", slog.Any("error", err))
		}
		return found, err
	})
	if err != nil {
		return View{}, err
	}
	return found.view, nil
}

// look reads the state, and the list if it is another one.
func (m *Members) look(ctx context.Context, last seen) (seen, error) {
	st, err := m.Store.loadState(ctx)
	switch {
	case err != nil:
		return seen{}, err
	case st.Current == nil:
		return seen{}, nil
	case st.Current.Digest == last.digest:
		return seen{View{last.view.members, st.Current.Read}, last.digest}, nil
	}
	l, err := m.Store.loadList(ctx, *st.Current)
	if err != nil {
		return seen{}, err
	}
	return seen{View{l.Members(m.Scope), st.Current.Read}, st.Current.Digest}, nil
}

// Knows reports whether the account was a member when Current last looked. It calls nobody.
func (m *Members) Knows(a ec2ref.Account) bool { return m.seen.Last().view.Has(a) }
