package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/machine/sshd"
)

// Waiting says that new certificates are in their files, but not in use: sshd would have to
// be reloaded for them, and a reload would put somebody's pending change into effect. They
// take effect at sshd's next reload or restart, whatever causes it.
type Waiting struct {
	Since time.Time `json:"since"`
	// AccessEnds is when the certificate ends that sshd presents meanwhile. It is zero if
	// sshd presents none: then nobody can log in through Teleport already.
	AccessEnds time.Time `json:"accessEnds,omitzero"`
	// Reason is what a reload would put into effect.
	Reason string `json:"reason"`
}

// urgent reports whether somebody has to act: less than half of the time is left that
// there was at first.
func (w *Waiting) urgent(now time.Time) bool {
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
	return fmt.Sprintf("new certificates wait until sshd is reloaded, because that would put somebody's pending change into effect: %s", w.Reason)
}

// wait returns what a state says about certificates that have to wait, given the state
// before. How long the old ones still last counts from when they first had to.
func wait(before *State, reason string, now time.Time) *Waiting {
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

// late returns an error if certificates have waited for too long.
func (e *Enroller) late(w *Waiting) error {
	if w == nil || !w.urgent(e.now()) {
		return nil
	}
	return failf(Misconfigured, "reload sshd once the change may take effect, or run 'hallmark enroll --reload'", "%s; %s", w, w.Access(e.now()))
}

// pending returns what a reload would put into effect beside hallmark's own settings, or
// "". It remembers what the running sshd has for as long as that does not change.
func (e *Enroller) pending(ctx context.Context, conf *sshd.Effective, logins []sshd.Login) (string, error) {
	facts, err := e.loadFacts(ctx, conf, logins)
	if err != nil {
		return "", err
	}
	e.remember(facts)
	return facts.Pending(), nil
}

func (e *Enroller) loadFacts(ctx context.Context, conf *sshd.Effective, logins []sshd.Login) (sshd.LoadFacts, error) {
	load, err := e.server.LastLoad(ctx, conf.PIDFile)
	if err != nil {
		return sshd.LoadFacts{}, fmt.Errorf("find out when sshd last read its configuration: %w", err)
	}
	facts := sshd.LoadFacts{Load: load, Snapshot: loadSnapshot(e.runDir)}
	facts.Files, facts.Changed = e.server.ViewOf(conf, logins)
	return facts, nil
}

// remember saves what the running sshd has, if that is known and not saved yet.
func (e *Enroller) remember(facts sshd.LoadFacts) {
	if facts.Load.Stamp == "" || facts.Snapshot != nil && facts.Snapshot.Stamp == facts.Load.Stamp {
		return
	}
	running, _ := facts.Running()
	if running == nil || e.runDir == "" {
		return
	}
	e.note("note what sshd has loaded", saveSnapshot(e.runDir, sshd.Snapshot{Stamp: facts.Load.Stamp, View: *running}))
}

// observe notes what sshd has loaded since its last start or reload, by whomever, while
// its files still say so.
func (e *Enroller) observe(ctx context.Context, conf *sshd.Effective) error {
	if e.runDir == "" {
		return nil
	}
	load, err := e.server.LastLoad(ctx, conf.PIDFile)
	if err != nil || load.Stamp == "" {
		return err
	}
	if known := loadSnapshot(e.runDir); known != nil && known.Stamp == load.Stamp {
		return nil
	}
	logins, err := e.server.Logins(ctx)
	if err != nil {
		return err
	}
	_, err = e.pending(ctx, conf, logins)
	return err
}

func snapshotPath(dir string) string { return filepath.Join(dir, "sshd.json") }

// maxSnapshotBytes bounds a snapshot: some kilobytes for each group of logins with settings
// of its own.
const maxSnapshotBytes = 4 << 20

// loadSnapshot returns nil if there is none that can be understood.
func loadSnapshot(dir string) *sshd.Snapshot {
	if dir == "" {
		return nil
	}
	data, err := os.ReadFile(snapshotPath(dir))
	var s sshd.Snapshot
	if err != nil || len(data) > maxSnapshotBytes || json.Unmarshal(data, &s) != nil || s.Stamp == "" {
		return nil
	}
	return &s
}

func saveSnapshot(dir string, s sshd.Snapshot) error {
	data, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("encode: %w", err)
	}
	if len(data) > maxSnapshotBytes {
		return errors.New("sshd's settings are too long to keep")
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return replaceFile(snapshotPath(dir), append(data, '\n'))
}
