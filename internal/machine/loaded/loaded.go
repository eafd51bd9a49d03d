// Package loaded tracks what the running sshd has loaded, and so what a reload would change.
package loaded

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/hallmark-ssh/hallmark/internal/machine/replace"
	"github.com/hallmark-ssh/hallmark/internal/machine/sshd"
)

// Server is the OpenSSH server to track.
type Server interface {
	Logins(ctx context.Context) ([]sshd.Login, error)
	LastLoad(ctx context.Context, pidFile string) (sshd.Load, error)
	ViewOf(conf *sshd.Effective, logins []sshd.Login) (sshd.View, []sshd.Changed)
}

// Tracker tracks what the running sshd has loaded, and so what a reload would change.
type Tracker struct {
	Server Server
	Dir    string // in a folder that a boot empties, or "" without such a folder
	Log    func(format string, args ...any)
}

// Pending returns what a reload would activate besides Hallmark's own settings, or "". It
// saves what the running sshd has loaded, until sshd loads its files again.
func (t Tracker) Pending(ctx context.Context, conf *sshd.Effective, logins []sshd.Login) (string, error) {
	f, err := t.look(ctx, conf, logins)
	if err != nil {
		return "", err
	}
	t.remember(f)
	return f.pending(), nil
}

func (t Tracker) look(ctx context.Context, conf *sshd.Effective, logins []sshd.Login) (facts, error) {
	load, err := t.Server.LastLoad(ctx, conf.PIDFile)
	if err != nil {
		return facts{}, fmt.Errorf("find when sshd last read its configuration: %w", err)
	}
	f := facts{Load: load, Snapshot: LoadSnapshot(t.Dir)}
	f.Files, f.Changed = t.Server.ViewOf(conf, logins)
	return f, nil
}

// remember saves what the running sshd has loaded, if that is known and not saved yet.
func (t Tracker) remember(f facts) {
	if f.Load.Stamp == "" || f.Snapshot != nil && f.Snapshot.Stamp == f.Load.Stamp {
		return
	}
	running, _ := f.running()
	if running == nil || t.Dir == "" {
		return
	}
	if err := saveSnapshot(t.Dir, Snapshot{Stamp: f.Load.Stamp, View: *running}); err != nil {
		t.Log("save what sshd has loaded: %v", err)
	}
}

// Observe saves what sshd loaded at its last start or reload, whatever caused that, while its
// files still show it.
func (t Tracker) Observe(ctx context.Context, conf *sshd.Effective) error {
	if t.Dir == "" {
		return nil
	}
	load, err := t.Server.LastLoad(ctx, conf.PIDFile)
	if err != nil || load.Stamp == "" {
		return err
	}
	if known := LoadSnapshot(t.Dir); known != nil && known.Stamp == load.Stamp {
		return nil
	}
	logins, err := t.Server.Logins(ctx)
	if err != nil {
		return err
	}
	_, err = t.Pending(ctx, conf, logins)
	return err
}

// Path returns the file in a folder that records what sshd has loaded.
func Path(dir string) string { return filepath.Join(dir, "sshd.json") }

// maxSnapshotBytes bounds a snapshot: some kilobytes for each group of logins that has
// settings of its own.
const maxSnapshotBytes = 4 << 20

// LoadSnapshot returns nil if there is no readable snapshot.
func LoadSnapshot(dir string) *Snapshot {
	if dir == "" {
		return nil
	}
	data, err := os.ReadFile(Path(dir))
	var s Snapshot
	if err != nil || len(data) > maxSnapshotBytes || json.Unmarshal(data, &s) != nil || s.Stamp == "" {
		return nil
	}
	return &s
}

func saveSnapshot(dir string, s Snapshot) error {
	data, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("encode: %w", err)
	}
	if len(data) > maxSnapshotBytes {
		return errors.New("sshd's settings are too long to save")
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return replace.File(Path(dir), append(data, '\n'))
}
