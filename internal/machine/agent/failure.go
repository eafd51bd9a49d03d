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

	"github.com/hallmark-ssh/hallmark/internal/backoff"
	"github.com/hallmark-ssh/hallmark/internal/machine/fault"
	"github.com/hallmark-ssh/hallmark/internal/machine/replace"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
)

// failure is what a failed run leaves behind, so that the next ones do not ask the signer, or
// reload sshd, again too soon. Only Renew waits because of it: a caller of Enroll wants
// certificates now.
type failure struct {
	// Situation identifies what the run asked for. If the machine, its configuration or its
	// need has changed since, nothing has been tried yet.
	Situation string     `json:"situation"`
	Failures  int        `json:"failures"` // in a row
	NotBefore time.Time  `json:"notBefore"`
	Kind      fault.Kind `json:"kind"`
	Hint      string     `json:"hint"`
	Reason    string     `json:"reason"`
	// Rejected is why the signer's last answer was not used. It stays until an answer is used.
	Rejected *protocol.Rejection `json:"rejected,omitempty"`
	// Futile identifies the sshd, with its configuration, that did not present the
	// certificates even after a reload. It is empty if there was no such reload.
	Futile string `json:"futile,omitempty"`
}

// FailedRuns says how many runs have failed in a row, why the last one did, and until when the
// timer's runs wait.
type FailedRuns struct {
	Failures  int // in a row
	NotBefore time.Time
	Kind      fault.Kind
	// Reason is the error, and Hint what to do about it.
	Reason, Hint string
}

// LastFailedRuns returns what a folder of states says about them, or nil if the last run succeeded.
func LastFailedRuns(dir string) *FailedRuns {
	f := loadFailure(dir)
	if f == nil {
		return nil
	}
	return &FailedRuns{Failures: f.Failures, NotBefore: f.NotBefore, Kind: f.Kind, Reason: f.Reason, Hint: f.Hint}
}

const (
	// firstBackoff is the upper bound of the first wait. The unit's RestartSec makes each wait
	// at least as long, too.
	firstBackoff = 5 * time.Minute
	// longestBackoff is the upper bound of later waits: the timer runs that often anyway.
	longestBackoff = time.Hour
	// urgentBackoff is the upper bound for a machine that nobody can log in to through
	// Teleport, if only an outage is known to keep it from enrolling.
	urgentBackoff = 10 * time.Minute
)

// next returns what to save after another failure.
func (f *failure) next(need string, urgent bool, err error, now time.Time, random float64) *failure {
	n := &failure{Situation: need, Failures: 1, Reason: err.Error()}
	if f != nil && f.Situation == need {
		n.Failures = f.Failures + 1
	}
	if n.Rejected = rejectionIn(err); n.Rejected == nil && f != nil {
		n.Rejected = f.Rejected // this run had no answer
	}
	if futile, ok := errors.AsType[*futileReloadError](err); ok {
		n.Futile = futile.mark
	} else if f != nil {
		n.Futile = f.Futile
	}
	var asked time.Duration
	if e, ok := errors.AsType[*fault.Error](err); ok {
		n.Kind, n.Hint, asked = e.Kind, e.Hint, e.After
	}
	between := backoff.Growth{First: firstBackoff, Longest: longestBackoff}
	if urgent && n.Kind == fault.Temporary {
		between.Longest = urgentBackoff
	}
	n.NotBefore = now.Add(between.Pause(n.Failures, asked, random)).UTC().Truncate(time.Second)
	return n
}

// backOff returns an error if it is too early to ask again.
func (f *failure) backOff(need string, now time.Time) error {
	// A wait beyond the longest one comes from a clock that was wrong.
	if f == nil || f.Situation != need || !now.Before(f.NotBefore) || f.NotBefore.Sub(now) > backoff.LongestHonored+longestBackoff {
		return nil
	}
	return &fault.Error{
		Kind: f.Kind, Hint: f.Hint,
		Err: fmt.Errorf("waiting until %s; failed runs in a row: %d; the last error: %s", f.NotBefore.UTC().Format(time.RFC3339), f.Failures, f.Reason),
	}
}

// needOf identifies what the run asks for, and why.
func needOf(seen *observed, reason string) string {
	h := sha256.New()
	fmt.Fprintf(h, "%q %q %q", seen.instance, seen.config, reason)
	for _, key := range seen.keys {
		fmt.Fprintf(h, " %s", ssh.FingerprintSHA256(key.Public))
	}
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// maxFailureBytes bounds the file that loadFailure reads.
const maxFailureBytes = 64 << 10

func failurePath(dir string) string { return filepath.Join(dir, "setback.json") }

// loadFailure returns nil if there is no readable failure: asking once more does little harm.
func loadFailure(dir string) *failure {
	data, err := os.ReadFile(failurePath(dir))
	var s failure
	if err != nil || len(data) > maxFailureBytes || json.Unmarshal(data, &s) != nil || s.Failures < 1 {
		return nil
	}
	return &s
}

// save writes the failure.
func (f *failure) save(dir string) (err error) {
	data, err := json.MarshalIndent(f, "", "  ")
	if err != nil {
		return fmt.Errorf("encode: %w", err)
	}
	return replace.File(failurePath(dir), append(bytes.TrimSpace(data), '\n'))
}

// removeFailure removes what an earlier run left behind.
func removeFailure(dir string) error {
	if err := os.Remove(failurePath(dir)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
