package organization

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
)

const (
	// MaxAge is how old the list may be for a first enrollment.
	MaxAge = 24 * time.Hour
	// guarded is the number of accounts from which a shrinking list is held.
	guarded = 20
	// window is the time in which at most a tenth of the accounts may leave. Without it,
	// many small steps would pass.
	window = 24 * time.Hour
	// MaxPermit is how long an operator's confirmation lasts.
	MaxPermit = time.Hour
)

// state is what is stored about the organization, beside the lists themselves.
type state struct {
	Current *version `json:"current,omitempty"` // the list in force
	Held    *held    `json:"held,omitempty"`    // the last reading, if it is not in force
	// Left says when accounts left, within window.
	Left   map[ec2ref.Account]time.Time `json:"left,omitempty"`
	Permit *permit                      `json:"permit,omitempty"`
}

// version is a stored list.
type version struct {
	Digest string `json:"digest"` // of the encoded list
	Parts  int    `json:"parts"`
	// Stored is when the parts were last written.
	Stored time.Time `json:"stored"`
	// Read is when Organizations last returned the list.
	Read time.Time `json:"read"`
}

// held is a reading that waits for an operator.
type held struct {
	version
	// Change identifies the accounts that would leave.
	Change  string    `json:"change"`
	Leaving int       `json:"leaving"`
	Since   time.Time `json:"since"`
}

// permit is an operator's confirmation of one change.
type permit struct {
	Change string    `json:"change"`
	By     string    `json:"by"`
	Until  time.Time `json:"until"`
}

// Members of a list, by account number.
type members = map[ec2ref.Account]Member

// leaving returns the accounts of before that after lacks, sorted.
func leaving(before, after members) []ec2ref.Account {
	var gone []ec2ref.Account
	for a := range before {
		if _, stays := after[a]; !stays {
			gone = append(gone, a)
		}
	}
	slices.Sort(gone)
	return gone
}

// changeOf identifies a set of accounts that leave. An operator confirms exactly this set;
// accounts that join meanwhile do not matter.
func changeOf(gone []ec2ref.Account) string {
	var text strings.Builder
	for _, a := range gone {
		fmt.Fprintln(&text, a)
	}
	return digestOf([]byte(text.String()))[:16]
}

// The reasons to keep the last good list.
var (
	errEmpty  = errors.New("no account of the organization may enroll instances")
	errShrunk = errors.New("more than a tenth of the accounts left within a day")
)

// judge says why a reading must not replace the list in force, or nil. It changes nothing.
func (s *state) judge(before, after members, now time.Time) error {
	if len(after) == 0 && (len(before) > 0 || s.Current == nil) {
		return errEmpty
	}
	gone := len(leaving(before, after))
	if gone == 0 {
		return nil
	}
	recent := 0
	for a, at := range s.Left {
		if _, back := after[a]; !back && now.Sub(at) < window {
			recent++
		}
	}
	if earlier := len(before) + recent; earlier >= guarded && (gone+recent)*10 > earlier {
		return errShrunk
	}
	return nil
}

// permits reports whether an operator has confirmed the change.
func (s *state) permits(gone []ec2ref.Account, now time.Time) bool {
	return s.Permit != nil && len(gone) > 0 && s.Permit.Change == changeOf(gone) && now.Before(s.Permit.Until)
}

// verdict is what became of a reading.
type verdict struct {
	// held is why the reading is not in force, or nil.
	held error
	// change and leaving describe the accounts that left, or would leave.
	change  string
	leaving int
	// confirmedBy is the operator whose confirmation was used, or empty.
	confirmedBy string
}

// accept puts the reading v into force or holds it, and returns what it did.
func (s *state) accept(v version, before, after members, now time.Time) verdict {
	gone := leaving(before, after)
	result := verdict{held: s.judge(before, after, now), change: changeOf(gone), leaving: len(gone)}
	if result.held != nil && s.permits(gone, now) {
		result.held, result.confirmedBy = nil, s.Permit.By
	}
	if s.Permit != nil && (result.confirmedBy != "" || !now.Before(s.Permit.Until)) {
		s.Permit = nil // once
	}
	if result.held != nil {
		since := now
		if s.Held != nil && s.Held.Change == result.change {
			since = s.Held.Since
		}
		s.Held = &held{version: v, Change: result.change, Leaving: len(gone), Since: since}
		return result
	}
	s.Held, s.Current = nil, &v
	maps.DeleteFunc(s.Left, func(a ec2ref.Account, at time.Time) bool {
		_, back := after[a]
		return back || now.Sub(at) >= window || result.confirmedBy != ""
	})
	if result.confirmedBy == "" && len(gone) > 0 {
		if s.Left == nil {
			s.Left = make(map[ec2ref.Account]time.Time)
		}
		for _, a := range gone {
			s.Left[a] = now
		}
	}
	return result
}
