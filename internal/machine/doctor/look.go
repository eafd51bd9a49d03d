package doctor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/machine/agent"
	"github.com/hallmark-ssh/hallmark/internal/machine/cafile"
	"github.com/hallmark-ssh/hallmark/internal/machine/config"
	"github.com/hallmark-ssh/hallmark/internal/machine/findings"
	"github.com/hallmark-ssh/hallmark/internal/machine/handshake"
	"github.com/hallmark-ssh/hallmark/internal/machine/hostkey"
	"github.com/hallmark-ssh/hallmark/internal/machine/sshd"
	"github.com/hallmark-ssh/hallmark/internal/machine/sshdconf"
	"github.com/hallmark-ssh/hallmark/internal/machine/state"
)

// Machine is the machine to look at.
type Machine struct {
	ConfigFile, StateDir, RunDir, CAFile string
	// Server is the machine's sshd, or nil if none is installed.
	Server *sshd.Server
	// Root says that this process is root.
	Root  bool
	Now   func() time.Time
	units func(context.Context) (map[string]Unit, error)
	// selinux reports whether the kernel runs with SELinux.
	selinux func() bool
	// metadataEndpoint replaces the metadata service's usual address, if set.
	metadataEndpoint string
}

// ThisMachine returns the machine that this program runs on.
func ThisMachine() *Machine {
	server, _ := sshd.Find("/") // its absence is a finding
	return &Machine{
		ConfigFile: config.File, StateDir: state.Dir, RunDir: state.RuntimeDir(), CAFile: sshdconf.CAFile,
		Server: server, Root: os.Geteuid() == 0, Now: time.Now, units: showUnits,
		selinux: func() bool { _, err := os.Stat("/sys/fs/selinux/enforce"); return err == nil },
	}
}

// errLate says that a look took too long.
var errLate = errors.New("no answer in time")

// Look collects the facts that the machine itself has. It changes nothing, and returns when
// the context ends, whatever hangs.
func (m *Machine) Look(ctx context.Context) *Facts {
	f := m.newFacts()
	m.readFiles(f)
	m.lookAround(ctx, f)
	return f
}

func (m *Machine) newFacts() *Facts {
	return &Facts{
		Now: m.Now(), Root: m.Root, ConfigFile: m.ConfigFile, StateFile: state.Path(m.StateDir), CAFile: m.CAFile,
		LockFile: state.LockPath(m.StateDir),
	}
}

// lookAround asks systemd and sshd at the same time.
func (m *Machine) lookAround(ctx context.Context, f *Facts) {
	var looking sync.WaitGroup
	looking.Go(func() { f.Units, f.UnitsErr = within(ctx, m.units) })
	looking.Go(func() { m.lookAtSSHD(ctx, f) })
	looking.Wait()
}

// within returns what a function returns, or errLate once the context has ended. A function
// that ignores the context goes on alone, so it must share nothing.
func within[T any](ctx context.Context, look func(context.Context) (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	go func() {
		value, err := look(ctx)
		done <- result{value, err}
	}()
	select {
	case r := <-done:
		if r.err != nil && ctx.Err() != nil {
			r.err = fmt.Errorf("%w: %w", errLate, r.err)
		}
		return r.value, r.err
	case <-ctx.Done():
		var none T
		return none, errLate
	}
}

func (m *Machine) readFiles(f *Facts) {
	data, err := os.ReadFile(m.ConfigFile)
	if err == nil {
		f.Config, err = config.Parse(data)
	}
	f.ConfigErr = err
	f.State, f.StateErr = state.Load(m.StateDir)
	if info, err := os.Lstat(f.StateFile); f.State == nil && f.StateErr == nil && err == nil && info.Mode().IsRegular() {
		f.Damaged = true
	}
	f.FailedRuns = agent.LastFailedRuns(m.StateDir)
	if i, ok := agent.KnownInstance(m.RunDir); ok {
		f.Instance = &i
	}
	f.LockedSince = lockedSince(f.LockFile)
	f.CAs, f.CAsErr = os.ReadFile(m.CAFile)
	for _, folder := range []string{filepath.Dir(sshdconf.MainConfig), filepath.Dir(m.CAFile), m.StateDir} {
		f.Disk = append(f.Disk, statFolder(folder))
	}
	f.DirsFound = foldersAmong(append(f.certificatePaths(), f.StateFile, f.LockFile, m.CAFile, m.ConfigFile))
	f.Files = readCertificates(f.certificatePaths())
}

// certificatePaths returns where the certificates are, as far as that is known.
func (f *Facts) certificatePaths() (paths []string) {
	if f.State != nil {
		for _, c := range f.State.Certificates {
			paths = append(paths, c.Path)
		}
	}
	for _, key := range f.Keys {
		if path := key.CertificatePath(); !slices.Contains(paths, path) {
			paths = append(paths, path)
		}
	}
	if len(paths) == 0 { // without a state and without root: where Hallmark writes them by default
		paths, _ = filepath.Glob(filepath.Dir(sshdconf.MainConfig) + "/ssh_host_*_key" + hostkey.CertificateSuffix)
	}
	return paths
}

func foldersAmong(paths []string) (folders []string) {
	for _, path := range paths {
		if info, err := os.Lstat(path); err == nil && info.IsDir() {
			folders = append(folders, path)
		}
	}
	return folders
}

func readCertificates(paths []string) (files []File) {
	for _, path := range paths {
		f := File{Path: path}
		if _, err := os.Stat(path); err != nil {
			f.Err = err
		} else if f.Certificate = hostkey.ReadCertificate(path); f.Certificate == nil {
			f.Err = errors.New("damaged: it is not a certificate")
		}
		files = append(files, f)
	}
	return files
}

// settingsOf are what sshd says about its configuration.
type settingsOf struct {
	conf        *sshd.Effective
	keys        []hostkey.Key
	keysErr     error
	problems    []findings.Finding
	problemsErr error
	others      []string
}

// lookAtSSHD asks sshd for its settings, which only root can, and then connects to it.
func (m *Machine) lookAtSSHD(ctx context.Context, f *Facts) {
	if m.Server == nil {
		f.SettingsErr = sshd.ErrNoServer
		f.ListenersErr = sshd.ErrNoServer
		return
	}
	// A third of the time is left for the handshakes if sshd -T hangs.
	settingsCtx, cancel := part(ctx, 2, 3)
	defer cancel()
	selection := hostkey.Selection{State: f.State, Replace: f.Config.HostCertificate == config.ReplaceCertificate}
	want := findings.Want{CAFile: m.CAFile, MaxStartups: f.Config.SSHDOptions().MaxStartups, ProxySources: f.Config.ProxySources}
	if f.State != nil {
		want.CAs, _ = cafile.ParseKeys(f.State.OpenSSHCAs) // an old state may have none
		want.Node = f.State.Node.Address
	}
	if m.Root {
		seen, err := within(settingsCtx, func(ctx context.Context) (settingsOf, error) { return m.settings(ctx, selection, want) })
		f.SettingsErr = err
		f.Settings, f.Keys, f.KeysErr, f.Problems, f.ProblemsErr, f.Others = seen.conf, seen.keys, seen.keysErr, seen.problems, seen.problemsErr, seen.others
		f.Files = readCertificates(f.certificatePaths())
	}
	f.Listeners, f.ListenersErr = within(ctx, func(ctx context.Context) ([]Listener, error) { return m.listeners(ctx, f.Settings, f.Keys, f.Files) })
}

// part returns a context that ends after a part of the time that is left.
func part(ctx context.Context, numerator, denominator time.Duration) (context.Context, context.CancelFunc) {
	end, ok := ctx.Deadline()
	if !ok {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, time.Until(end)*numerator/denominator)
}

// settings runs sshd on a copy of the server: if it hangs, the copy goes on alone.
func (m *Machine) settings(ctx context.Context, selection hostkey.Selection, want findings.Want) (s settingsOf, err error) {
	server := *m.Server
	if s.conf, err = server.Effective(ctx); err != nil {
		return s, err
	}
	selection.Conf = s.conf
	s.keys, _, s.keysErr = selection.Find()
	s.others = othersIn(server.Lines(), s.keys, s.conf)
	logins, err := server.Logins(ctx)
	if err != nil {
		return s, err
	}
	s.problems, s.problemsErr = findings.Of(ctx, &server, logins, want)
	return s, nil
}

// othersIn returns the lines that name another CA, or another CA's certificate.
func othersIn(lines []sshd.Line, keys []hostkey.Key, conf *sshd.Effective) (others []string) {
	for _, l := range lines {
		value := strings.Join(l.Arguments, " ")
		switch {
		case l.Own:
		case l.Keyword == "trustedusercakeys" && !l.Sets(conf.TrustedUserCAKeys) && value != "none":
			others = append(others, fmt.Sprintf("%s: TrustedUserCAKeys %s", l, value))
		case l.Keyword == "hostcertificate" && !slices.ContainsFunc(keys, func(k hostkey.Key) bool { return l.Sets(k.CertificatePath()) }):
			others = append(others, fmt.Sprintf("%s: HostCertificate %s", l, value))
		}
	}
	return others
}

// listeners connects to sshd wherever it listens, and asks for the certificate of each host
// key. One connection at a time: hardened machines admit no more from one address.
func (m *Machine) listeners(ctx context.Context, conf *sshd.Effective, keys []hostkey.Key, files []File) ([]Listener, error) {
	if conf == nil {
		conf = &sshd.Effective{PIDFile: "/run/sshd.pid", Listen: usualListen()}
	}
	server := *m.Server
	running, err := server.Running(ctx, conf)
	if err != nil || running == nil {
		return nil, err
	}
	var all []Listener
	for _, address := range running.Listen {
		l := Listener{Address: address.String()}
		for _, file := range files {
			o := Offer{Path: file.Path}
			algorithms := algorithmsOf(file, keys, conf)
			if len(algorithms) == 0 {
				continue
			}
			var key ssh.PublicKey
			if key, o.Err = handshake.HostKey(ctx, address, algorithms); o.Err == nil {
				o.Certificate, _ = key.(*ssh.Certificate)
				o.Same = file.Certificate != nil && bytes.Equal(key.Marshal(), file.Certificate.Marshal())
			}
			l.Offers = append(l.Offers, o)
		}
		all = append(all, l)
	}
	return all, nil
}

// usualListen is where an sshd listens whose settings cannot be read.
func usualListen() []netip.AddrPort {
	const port = 22
	return []netip.AddrPort{
		netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), port),
		netip.AddrPortFrom(netip.IPv6Loopback(), port),
	}
}

// algorithmsOf returns the algorithms to ask sshd for, by the key of a certificate or by the
// certificate itself.
func algorithmsOf(file File, keys []hostkey.Key, conf *sshd.Effective) []string {
	for _, key := range keys {
		if key.CertificatePath() == file.Path {
			return key.Algorithms
		}
	}
	if file.Certificate == nil {
		return nil
	}
	return conf.CertAlgorithms(file.Certificate.Key.Type())
}

// isMissing says that a file does not exist.
func isMissing(err error) bool { return errors.Is(err, fs.ErrNotExist) }
