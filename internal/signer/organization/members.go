package organization

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/signer/node"
)

const (
	// Fresh is how long a process uses a list before it looks for another.
	Fresh = 30 * time.Second
	// pause is the time between two looks, if the first one failed.
	pause = 5 * time.Second
	// kept is how long a process uses a list while it cannot look: an account that left
	// must be refused soon.
	kept = 5 * time.Minute
)

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

	mu     sync.Mutex
	view   View
	digest string    // of the view's list
	looked time.Time // when the last good look began
	tried  time.Time // when the last look began
}

// errResting says that the last look failed, so the next one waits.
var errResting = errors.New("the list of the organization's accounts could not be read; retry in a few seconds")

// Current returns the accounts that may enroll instances, none if there is no list yet. It
// looks for another list at most every few seconds, however often it is called: strangers
// cause calls. One caller looks for all; the others get the view at hand, or an error.
func (m *Members) Current(ctx context.Context) (View, error) {
	now := m.Now().Round(0)
	view, digest, usable, due := m.atHand(now)
	if !due {
		if !usable {
			return View{}, errResting
		}
		return view, nil
	}
	found, sum, err := m.look(ctx, view, digest)
	if err != nil {
		if !usable {
			return View{}, err
		}
		m.Log.WarnContext(ctx, "the list of the organization's accounts could not be read again; using the last one", slog.Any("error", err))
		return view, nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.view, m.digest, m.looked = found, sum, now
	return found, nil
}

// atHand returns the view at hand, whether it may be used, and whether the caller must look
// for another.
func (m *Members) atHand(now time.Time) (view View, digest string, usable, due bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	usable = isYoung(m.looked, kept, now)
	due = !isYoung(m.looked, Fresh, now) && !isYoung(m.tried, pause, now)
	if due {
		m.tried = now
	}
	return m.view, m.digest, usable, due
}

func isYoung(t time.Time, limit time.Duration, now time.Time) bool {
	age := now.Sub(t)
	return age >= 0 && age < limit
}

// look reads the state, and the list if it is another one.
func (m *Members) look(ctx context.Context, view View, digest string) (View, string, error) {
	st, err := m.Store.loadState(ctx)
	switch {
	case err != nil:
		return View{}, "", err
	case st.Current == nil:
		return View{}, "", nil
	case st.Current.Digest == digest:
		return View{view.members, st.Current.Read}, digest, nil
	}
	l, err := m.Store.loadList(ctx, *st.Current)
	if err != nil {
		return View{}, "", err
	}
	return View{l.Members(m.Scope), st.Current.Read}, st.Current.Digest, nil
}

// Knows reports whether the account was a member when Current last looked. It calls nobody.
func (m *Members) Knows(a ec2ref.Account) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.view.Has(a)
}
