package install

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/machine/config"
	"github.com/hallmark-ssh/hallmark/internal/machine/fault"
	"github.com/hallmark-ssh/hallmark/internal/machine/loaded"
	"github.com/hallmark-ssh/hallmark/internal/machine/replace"
	"github.com/hallmark-ssh/hallmark/internal/machine/sshd"
	"github.com/hallmark-ssh/hallmark/internal/machine/sshdconf"
	"github.com/hallmark-ssh/hallmark/internal/machine/state"
	"github.com/hallmark-ssh/hallmark/internal/machine/wayin"
)

// RemoveOptions allow what Remove would otherwise refuse.
type RemoveOptions struct {
	// Force removes Hallmark even if no login is certain to work afterwards.
	Force bool
	// Offline does not ask the signer: the node stays in Teleport until its lease expires.
	Offline bool
	// ActivatePending reloads sshd even if that activates somebody's pending change to its
	// configuration.
	ActivatePending bool
}

// Leave asks the signer to delete this machine's node. It returns a line that says what the
// signer did, or an error if the node may still be there.
type Leave func(ctx context.Context, conf *sshd.Effective) (outcome string, err error)

// liveServer is the running sshd.
type liveServer interface {
	loaded.Server
	Effective(ctx context.Context) (*sshd.Effective, error)
	Running(ctx context.Context, conf *sshd.Effective) (*sshd.Running, error)
	Reload(ctx context.Context, pidFile string) error
	Start(ctx context.Context) error
}

// unitControl stops and disables hallmark's timers and its service.
type unitControl interface {
	Stop(ctx context.Context) (start func(ctx context.Context) error, err error)
	Disable(ctx context.Context) error
	Forget(ctx context.Context) error
}

// Remover takes hallmark off the machine that it runs on.
type Remover struct {
	*Installer
	live   liveServer
	units  unitControl
	leave  Leave // nil if there is no configuration, which names the signer
	runDir string
	settle time.Duration // how long sshd may take to answer after a reload
}

// NewRemover returns a remover. leave is nil if there is no configuration.
func NewRemover(leave Leave, log func(format string, args ...any)) (*Remover, error) {
	in, err := New("/", log)
	if err != nil {
		return nil, err
	}
	live, err := sshd.Find("/")
	if err != nil {
		return nil, fault.Newf(fault.Failed, "", "%w", err)
	}
	const settle = 15 * time.Second // far more than a reload takes
	return &Remover{Installer: in, live: live, units: machineUnits{}, leave: leave, runDir: state.RuntimeDir(), settle: settle}, nil
}

const (
	hintNothingChanged = "nothing was changed"
	hintOffline        = "pass --offline to restore this machine without telling the signer"
)

// removal is one run of Remove.
type removal struct {
	*Remover
	options RemoveOptions
	record  *record
	known   *state.State // nil if the machine is not enrolled
	conf    *sshd.Effective
	before  []sshd.Login
	to      restoration
	reloads bool            // whether sshd has to read its files again
	change  *replace.Change // of sshd's files
	changes []string
}

// Remove undoes Install and all enrollments, and returns a line for each file that it changed.
//
// It first checks everything and prepares sshd's files, then asks the signer, and only then
// changes anything. sshd's configuration changes before the files that it names go. A run that
// is killed leaves sshd working with the old or the new configuration, and the next run
// finishes. The timers stop before the signer is asked: a run of theirs would enroll the machine
// again.
func (r *Remover) Remove(ctx context.Context, o RemoveOptions) (changes []string, err error) {
	dir, err := r.path(state.Dir)
	if err != nil {
		return nil, err
	}
	unlock, err := state.Lock(dir, time.Now())
	if err != nil {
		return nil, err
	}
	defer unlock()
	run := &removal{Remover: r, options: o, change: &replace.Change{}}
	defer func() { err = errors.Join(err, run.change.Close()) }()
	if err := run.look(ctx, dir); err != nil {
		return nil, err
	}
	if err := run.check(ctx); err != nil {
		return nil, err
	}
	if err := run.endEnrollment(ctx); err != nil {
		return nil, err
	}
	if err := run.restoreSSHD(ctx); err != nil {
		return run.changes, err
	}
	err = run.cleanUp(ctx, dir)
	return run.changes, err
}

// look reads what is there, and asks sshd about its settings before and after.
func (r *removal) look(ctx context.Context, dir string) (err error) {
	if r.conf, err = r.live.Effective(ctx); err == nil {
		r.before, err = r.server.Logins(ctx)
	}
	if errors.Is(err, sshd.ErrNoHostKeys) {
		return fault.Newf(fault.Failed, "run 'ssh-keygen -A' first", "read sshd's configuration: %w", err)
	}
	if err != nil {
		return fault.Newf(fault.Failed, "nothing was changed; run 'sshd -t' and correct what it says", "read sshd's configuration: %w", err)
	}
	if r.known, err = state.Load(dir); err != nil {
		return err
	}
	if r.record, err = r.readRecord(); err == nil && r.record == nil {
		r.record, err = r.assumedRecord()
	}
	if err != nil {
		return err
	}
	if r.to, err = r.restoration(r.record); err == nil {
		r.reloads, err = r.mayBeLoaded()
	}
	if err != nil {
		return fault.Newf(fault.Failed, hintNothingChanged, "%w", err)
	}
	return nil
}

// check refuses what would lock people out. It changes nothing.
func (r *removal) check(ctx context.Context) error {
	after, err := r.try(ctx, r.to.plan)
	if err == nil {
		err = r.verifyRestored(r.before, after)
	}
	if err != nil {
		return fault.Newf(fault.Failed, hintTrial(err), "restore sshd's settings: %w", err)
	}
	if !r.options.Force {
		if err := r.checkWayIn(after); err != nil {
			return err
		}
	}
	if r.options.ActivatePending || !r.reloads {
		return nil
	}
	pending, err := loaded.Tracker{Server: r.live, Dir: r.runDir, Log: r.log}.Pending(ctx, r.conf, r.before)
	if err != nil {
		return fault.Newf(fault.Failed, hintNothingChanged, "%w", err)
	}
	if pending != "" {
		return fault.Newf(fault.Failed, "nothing was changed; reload sshd once the change may take effect, or pass --reload",
			"sshd has to be reloaded, and a reload would also apply somebody's pending change: %s", pending)
	}
	return nil
}

// checkWayIn refuses if nobody could log in without Hallmark.
func (r *removal) checkWayIn(after []sshd.Login) error {
	accounts, err := r.server.Accounts()
	if err != nil {
		return fmt.Errorf("find the accounts that can log in: %w", err)
	}
	ways := wayin.Find(wayin.Machine{Root: r.root, Accounts: accounts, Logins: after, Now: time.Now()})
	if len(ways) > 0 {
		r.log("still able to log in: %s", strings.Join(ways, "; "))
		return nil
	}
	unknown := ""
	for _, keyword := range []string{"authorizedkeyscommand", "gssapiauthentication"} {
		if value := sshd.ParseSettings(after[0].Settings).Optional(keyword); value != "" && value != "no" {
			unknown += fmt.Sprintf("; hallmark cannot tell who gets in by %s %s", keyword, value)
		}
	}
	return fault.Newf(fault.Failed,
		"nothing was changed; put a key into an account's authorized_keys, or pass --force if there is another way in, such as Session Manager or the serial console",
		"nobody could log in to this machine anymore: without hallmark, sshd accepts no user's key, no password and no other CA%s", unknown)
}

// endEnrollment prepares sshd's files, stops the timers and asks the signer. If it fails, everything
// is as before, and the timers run again.
func (r *removal) endEnrollment(ctx context.Context) (err error) {
	if err := r.prepare(); err != nil {
		return fault.Newf(fault.Failed, "nothing was changed; "+fault.FileHint(err), "restore sshd's files: %w", err)
	}
	start, err := r.units.Stop(ctx)
	if err == nil {
		err = r.askSigner(ctx)
	}
	if err != nil {
		return errors.Join(err, start(context.WithoutCancel(ctx)))
	}
	// From here on, the machine is no longer enrolled, whatever happens.
	if err := r.units.Disable(ctx); err != nil {
		return err
	}
	return r.remove(state.Path(state.Dir))
}

// prepare writes everything that needs space on the disk.
func (r *removal) prepare() error {
	if err := r.tidy(sshdconf.DropIn); err != nil {
		return err
	}
	if err := r.tidyMain(); err != nil {
		return err
	}
	if err := r.keepRecord(); err != nil {
		return err
	}
	return r.stageRestoration(making{r.change}, r.to)
}

// tidyMain removes the copy of sshd's main file that a killed run left, if it differs in
// Hallmark's block only. Any other copy may be somebody's, and stays.
func (r *removal) tidyMain() error {
	main, err := r.path(r.to.main)
	if r.to.main == "" || err != nil {
		return err
	}
	saved, err := os.ReadFile(replace.SavedCopy(main))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if rest, err := sshdconf.Restored(saved); err != nil || !bytes.Equal(rest, r.to.config) {
		return nil //nolint:nilerr // half a block is somebody's
	}
	return replace.RemoveLeftovers(main)
}

// keepRecord writes the record of an installation by a release that had none: once the
// configuration is gone, nothing shows what was installed.
func (r *removal) keepRecord() error {
	installed, err := r.readInstalled(config.File)
	if err != nil || installed == nil {
		return err
	}
	f, err := r.nextRecord(nil)
	if err != nil {
		return err
	}
	path, err := r.path(f.path)
	if err != nil {
		return err
	}
	if err := replace.RemoveLeftovers(path); err != nil {
		return err
	}
	return replace.File(path, f.data)
}

// askSigner asks unless that is not wanted, or an earlier run has done it: such a run removes
// the state first, then sshd's settings, and the configuration late.
func (r *removal) askSigner(ctx context.Context) error {
	switch {
	case r.options.Offline:
		r.log("warning: the signer was not asked; the node stays in Teleport until its lease expires%s", r.lastCertificate())
		return nil
	case r.leave != nil:
		outcome, err := r.leave(ctx, r.conf)
		if err != nil {
			return notGranted(err)
		}
		r.log("%s", outcome)
		return nil
	case r.known != nil || r.conf.TrustedUserCAKeys == sshdconf.CAFile:
		return fault.Newf(fault.Misconfigured, "nothing was changed; restore that file, or "+hintOffline, "%s is missing, so it is unknown which signer to ask", config.File)
	}
	return nil
}

func (r *removal) lastCertificate() string {
	if r.known == nil || r.known.End().IsZero() {
		return ""
	}
	return ", at the latest " + r.known.End().UTC().Format(time.RFC3339)
}

// notGranted says what to do if the signer did not delete the node.
func notGranted(err error) error {
	kind, hint := fault.KindOf(err), ""
	if e, ok := errors.AsType[*fault.Error](err); ok && kind != fault.Temporary {
		hint = e.Hint
	}
	switch {
	case kind == fault.Temporary:
		hint = "run it again later"
	case hint == "":
		hint = "look up the request id in the signer's log"
	}
	return fault.Newf(kind, "nothing was changed; "+hint+", or "+hintOffline, "ask the signer to delete the node: %w", err)
}

// remove removes a file of Hallmark's, and what a killed run left next to it.
func (r *removal) remove(path string) error {
	here, err := r.path(path)
	if err != nil {
		return err
	}
	return r.removeHere(here)
}

// removeHere removes a file that has its path on this system.
func (r *removal) removeHere(here string) error {
	if err := replace.RemoveLeftovers(here); err != nil {
		return err
	}
	err := os.Remove(here)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove hallmark's files: %w", err)
	}
	r.changes = append(r.changes, "removed "+here)
	return nil
}
