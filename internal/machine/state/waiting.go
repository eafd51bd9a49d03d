package state

import (
	"fmt"
	"time"
)

// Waiting says that new certificates are in their files, but not in use: sshd would need a
// reload, and a reload would activate somebody's pending change. They take effect at sshd's
// next reload or restart, whatever causes it.
type Waiting struct {
	Since time.Time `json:"since"`
	// AccessEnds is when the certificate that sshd presents until then expires. It is zero if
	// sshd presents none: then nobody can log in through Teleport even now.
	AccessEnds time.Time `json:"accessEnds,omitzero"`
	// Reason is what a reload would activate.
	Reason string `json:"reason"`
}

// Urgent reports whether somebody has to act: less than half of the time is left that there
// was when the certificates first had to wait.
func (w *Waiting) Urgent(now time.Time) bool {
	return w.AccessEnds.IsZero() || !now.Before(w.Since.Add(w.AccessEnds.Sub(w.Since)/2))
}

// Access says until when people can log in.
func (w *Waiting) Access(now time.Time) string {
	switch {
	case w.AccessEnds.IsZero():
		return "sshd presents no certificate, so nobody can log in through Teleport"
	case !now.Before(w.AccessEnds):
		return "access through Teleport ended " + w.AccessEnds.UTC().Format(time.RFC3339)
	}
	return "access through Teleport ends " + w.AccessEnds.UTC().Format(time.RFC3339)
}

func (w *Waiting) String() string {
	return fmt.Sprintf("new certificates wait until sshd is reloaded, because a reload would also apply somebody's pending change: %s", w.Reason)
}

// NextWaiting returns what a state says about certificates that have to wait, given the
// previous state. How long the old ones last counts from when the new ones first had to wait.
func NextWaiting(before *State, reason string, now time.Time) *Waiting {
	w := &Waiting{Since: now.UTC().Truncate(time.Second), Reason: reason}
	switch {
	case before == nil:
	case before.Waiting != nil:
		w.Since, w.AccessEnds = before.Waiting.Since, before.Waiting.AccessEnds
	case before.Presented && before.End().After(now):
		w.AccessEnds = before.End()
	}
	return w
}
