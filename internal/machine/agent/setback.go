package agent

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/machine/fault"
	"github.com/hallmark-ssh/hallmark/internal/machine/replace"
	"github.com/hallmark-ssh/hallmark/internal/machine/retry"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
)

// setback is what a run leaves behind that could not do what it had to, so that the
// next ones do not ask the signer, or reload sshd, again too soon. Only Renew heeds it, not Enroll, which somebody
// called who wants it now.
type setback struct {
	// Situation identifies what was asked for. Once the machine, its configuration or
	// its need is another, nothing has been tried yet.
	Situation string     `json:"situation"`
	Failures  int        `json:"failures"` // in a row
	NotBefore time.Time  `json:"notBefore"`
	Kind      fault.Kind `json:"kind"`
	Hint      string     `json:"hint"`
	Reason    string     `json:"reason"`
	// Rejected is why the last answer of the signer was not used, until another is.
	Rejected *protocol.Rejection `json:"rejected,omitempty"`
	// Futile identifies the sshd, with its configuration, that was reloaded and then did not
	// present the certificates all the same. It is empty if there was no such reload.
	Futile string `json:"futile,omitempty"`
}

const (
	// firstSetback is what the first wait is at most. The unit's RestartSec makes it
	// that at least, too.
	firstSetback = 5 * time.Minute
	// longestSetback is what later waits grow to: how often the timer comes anyway.
	longestSetback = time.Hour
	// urgentSetback is that for a machine on which nobody can log in by Teleport, and
	// of which nothing but an outage is known.
	urgentSetback = 10 * time.Minute
)

// waitAfter returns how long to leave the signer alone after a number of failed runs
// in a row: a random part of a time that doubles, on top of what the signer asked for.
func waitAfter(failures int, longest, asked time.Duration, random float64) time.Duration {
	limit := longest
	if failures <= 10 {
		limit = min(firstSetback<<(failures-1), longest)
	}
	return min(max(asked, 0), retry.LongestHonor) + time.Duration(random*float64(limit))
}

// next returns the setback after another failure.
func (s *setback) next(situation string, urgent bool, err error, now time.Time, random float64) *setback {
	n := &setback{Situation: situation, Failures: 1, Reason: err.Error()}
	if s != nil && s.Situation == situation {
		n.Failures = s.Failures + 1
	}
	if n.Rejected = rejectionIn(err); n.Rejected == nil && s != nil {
		n.Rejected = s.Rejected // this run had no answer
	}
	if f, ok := errors.AsType[*futileReloadError](err); ok {
		n.Futile = f.mark
	} else if s != nil {
		n.Futile = s.Futile
	}
	var asked time.Duration
	if e, ok := errors.AsType[*fault.Error](err); ok {
		n.Kind, n.Hint, asked = e.Kind, e.Hint, e.After
	}
	longest := longestSetback
	if urgent && n.Kind == fault.Temporary {
		longest = urgentSetback
	}
	n.NotBefore = now.Add(waitAfter(n.Failures, longest, asked, random)).UTC().Truncate(time.Second)
	return n
}

// holds returns an error if it is too early to ask again.
func (s *setback) holds(situation string, now time.Time) error {
	// One that is further off than any comes of a clock that was wrong.
	if s == nil || s.Situation != situation || !now.Before(s.NotBefore) || s.NotBefore.Sub(now) > retry.LongestHonor+longestSetback {
		return nil
	}
	return &fault.Error{
		Kind: s.Kind, Hint: s.Hint,
		Err: fmt.Errorf("waiting until %s after %d failed runs, the last with: %s", s.NotBefore.UTC().Format(time.RFC3339), s.Failures, s.Reason),
	}
}

// situation identifies what is asked for, and why.
func situation(seen observed, reason string) string {
	h := sha256.New()
	fmt.Fprintf(h, "%q %q %q", seen.instance, seen.config, reason)
	for _, key := range seen.keys {
		fmt.Fprintf(h, " %s", ssh.FingerprintSHA256(key.Public))
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// maxSetbackBytes bounds what is read.
const maxSetbackBytes = 64 << 10

func setbackPath(dir string) string { return filepath.Join(dir, "setback.json") }

// loadSetback returns nil if there is none that can be understood: asking once more
// does little harm.
func loadSetback(dir string) *setback {
	data, err := os.ReadFile(setbackPath(dir))
	var s setback
	if err != nil || len(data) > maxSetbackBytes || json.Unmarshal(data, &s) != nil || s.Failures < 1 {
		return nil
	}
	return &s
}

// save writes the setback.
func (s *setback) save(dir string) (err error) {
	data, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return fmt.Errorf("encode: %w", err)
	}
	return replace.File(setbackPath(dir), append(bytes.TrimSpace(data), '\n'))
}

// forgetSetback removes what an earlier run left behind.
func forgetSetback(dir string) error {
	if err := os.Remove(setbackPath(dir)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
