package agent

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/sshd"
	"github.com/hallmark-ssh/hallmark/templates/systemd"
)

// Names of what Install reads in its folder.
const (
	installConfig   = "config.yaml"
	installCAs      = "openssh_ca.pub"
	installSignerCA = "signer_ca.pem"
)

const unitDir = "/etc/systemd/system"

// judge is sshd as far as an installation needs it.
type judge interface {
	Check(ctx context.Context) error
	Effective(ctx context.Context) (*sshd.Effective, error)
	Logins(ctx context.Context) ([]sshd.Login, error)
	Lines() []sshd.Line
	Findings(ctx context.Context, logins []sshd.Login, want sshd.Want) ([]sshd.Finding, error)
}

// Installer puts hallmark on a machine or into an image. It starts nothing.
type Installer struct {
	root   string
	self   string // path of the program to install
	server judge
	enable func(ctx context.Context) error
	log    func(format string, args ...any)
}

// NewInstaller returns an installer for the file system at root. log is told what
// somebody should know.
func NewInstaller(root string, log func(format string, args ...any)) (*Installer, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, fmt.Errorf("find the root folder: %w", err)
	}
	server, err := sshd.Find(root)
	if err != nil {
		return nil, failf(Failed, "install OpenSSH's server first", "%w", err)
	}
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	enable := func(ctx context.Context) error { return enableTimers(ctx, root) }
	return &Installer{root: root, self: self, server: server, enable: enable, log: log}, nil
}

// enableTimers has systemd start the timers at the next boot. It needs no running
// systemd.
func enableTimers(ctx context.Context, root string) error {
	args := []string{"enable", "hallmark.timer", "hallmark-renew.timer"}
	if root != "/" {
		args = append([]string{"--root=" + root}, args...)
	}
	output, err := exec.CommandContext(ctx, "systemctl", args...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("enable hallmark's timers: %w: %s", err, strings.TrimSpace(string(output)))
	}
	return nil
}

// Install copies this program, the configuration, the CAs and sshd's settings from
// the folder to their places, enables the timers, and has sshd judge the result. If
// sshd does not take it, everything is put back. It reports whether it changed
// anything.
func (in *Installer) Install(ctx context.Context, from string) (changed bool, err error) {
	files, options, authorities, err := in.read(from)
	if err != nil {
		return false, err
	}
	if err := in.checkTrust(ctx); err != nil {
		return false, err
	}
	before, err := in.server.Logins(ctx)
	if err != nil {
		return false, failf(Failed, hintBroken, "read sshd's configuration: %w", err)
	}
	if err := in.exemptProxies(ctx, &options, before); err != nil {
		return false, err
	}
	change := &sshd.Change{}
	defer func() { err = errors.Join(err, change.Close()) }()
	for _, f := range files {
		if err := in.stage(change, f); err != nil {
			return false, err
		}
	}
	if err := in.stageOptions(change, options); err != nil {
		return false, err
	}
	changed = change.Changed()
	if err := change.Commit(); err != nil {
		return false, err
	}
	after, err := in.verify(ctx, options, before)
	if err != nil {
		return false, failf(Failed, "everything was put back; see sshd_config and the files that it includes", "sshd does not take hallmark's settings: %w", err)
	}
	want := sshd.Want{CAFile: options.TrustedUserCAKeys, Authorities: authorities, MaxStartups: options.MaxStartups}
	if err := in.judge(ctx, after, want); err != nil {
		return false, err
	}
	if err := in.enable(ctx); err != nil {
		return false, err
	}
	change.Keep()
	return changed, nil
}

// judge refuses an sshd with which certificates can never work, and logs what else is found.
func (in *Installer) judge(ctx context.Context, logins []sshd.Login, want sshd.Want) error {
	findings, err := in.server.Findings(ctx, logins, want)
	if err != nil {
		return fmt.Errorf("judge sshd's settings: %w", err)
	}
	if blocking := sshd.Blocking(findings); len(blocking) > 0 {
		return failf(Failed, "nothing was changed; correct sshd's configuration as the message says, then install again",
			"no certificate of the cluster could log in: %w", joinFindings(blocking))
	}
	for _, f := range findings {
		in.log("warning: %s", f)
	}
	return nil
}

// joinFindings makes one error of findings.
func joinFindings(findings []sshd.Finding) error {
	var texts []string
	for _, f := range findings {
		texts = append(texts, f.String())
	}
	return errors.New(strings.Join(texts, "; also "))
}

// file is one file to install.
type file struct {
	path string
	data []byte
	mode fs.FileMode
}

// read reads and checks everything before anything is changed.
func (in *Installer) read(from string) ([]file, sshd.Options, []ssh.PublicKey, error) {
	program, err := os.ReadFile(in.self)
	if err != nil {
		return nil, sshd.Options{}, nil, fmt.Errorf("read this program: %w", err)
	}
	config, data, err := readInstallConfig(from)
	if err != nil {
		return nil, sshd.Options{}, nil, err
	}
	files := []file{
		{Program, program, 0o755},
		{ConfigFile, data, 0o644},
		{filepath.Join(unitDir, "hallmark.service"), systemd.Service, 0o644},
		{filepath.Join(unitDir, "hallmark.timer"), systemd.Timer, 0o644},
		{filepath.Join(unitDir, "hallmark-renew.timer"), systemd.RenewTimer, 0o644},
	}
	extra, authorities, err := readTrust(from, config)
	if err != nil {
		return nil, sshd.Options{}, nil, &Error{Kind: Misconfigured, Err: err}
	}
	return append(files, extra...), config.sshdOptions(), authorities, nil
}

func readInstallConfig(from string) (Config, []byte, error) {
	path := filepath.Join(from, installConfig)
	data, err := os.ReadFile(path)
	if err != nil {
		return Config{}, nil, failf(Misconfigured, "the folder given by --from must hold "+installConfig, "read the configuration: %w", err)
	}
	config, err := ParseConfig(data)
	if err != nil {
		return Config{}, nil, failf(Misconfigured, "", "%s: %w", path, err)
	}
	return config, data, nil
}

// readTrust reads the CAs. Without OpenSSH CAs the machine trusts none before it is
// enrolled, which is what "trust at enrollment" means.
func readTrust(from string, config Config) (files []file, authorities []ssh.PublicKey, err error) {
	extra, err := config.extraAuthorities()
	if err != nil {
		return nil, nil, err
	}
	data, err := os.ReadFile(filepath.Join(from, installCAs))
	switch {
	case err == nil:
		if authorities, err = parseAuthorityFile(data); err != nil {
			return nil, nil, fmt.Errorf("%s: %w", installCAs, err)
		}
		files = append(files, file{sshd.CAFile, renderAuthorities(authorities, extra...), 0o644})
	case errors.Is(err, fs.ErrNotExist) && len(extra) > 0:
		files = append(files, file{sshd.CAFile, renderAuthorities(nil, extra...), 0o644})
	case !errors.Is(err, fs.ErrNotExist):
		return nil, nil, err
	}
	data, err = os.ReadFile(filepath.Join(from, installSignerCA))
	switch {
	case err == nil && config.SignerCAFile != SignerCAFile:
		return nil, nil, fmt.Errorf("%s is given, but %s does not say signer_ca_file: %s", installSignerCA, installConfig, SignerCAFile)
	case err == nil:
		if err := checkCertificates509(data); err != nil {
			return nil, nil, fmt.Errorf("%s: %w", installSignerCA, err)
		}
		return append(files, file{SignerCAFile, data, 0o644}), authorities, nil
	case !errors.Is(err, fs.ErrNotExist):
		return nil, nil, err
	}
	return files, authorities, nil
}

// checkCertificates509 refuses PEM data without a certificate, and a private key
// that was given by mistake.
func checkCertificates509(data []byte) error {
	found := false
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			return fmt.Errorf("it holds a %s, not only certificates", block.Type)
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return err
		}
		found = true
	}
	if !found {
		return errors.New("it holds no PEM certificate")
	}
	return nil
}

const hintBroken = "run 'sshd -t' and correct what it says; with --root, mount /dev there first"

// checkTrust refuses a machine on which someone else's CA file is in effect: the
// first TrustedUserCAKeys wins, so installing would silently end those logins.
func (in *Installer) checkTrust(ctx context.Context) error {
	conf, err := in.server.Effective(ctx)
	if errors.Is(err, sshd.ErrNoHostKeys) {
		return failf(Failed, "run 'ssh-keygen -A' first, and 'hallmark seal' at the end", "read sshd's configuration: %w", err)
	}
	if err != nil {
		return failf(Failed, hintBroken, "read sshd's configuration: %w", err)
	}
	if conf.TrustedUserCAKeys == "" || conf.TrustedUserCAKeys == sshd.CAFile {
		return nil
	}
	where := strings.Join(in.find("trustedusercakeys"), ", ")
	if where == "" {
		where = "a file that " + sshd.MainConfig + " includes"
	}
	return failf(Failed, "remove that line; put its CAs into openssh_ca.pub if they are the cluster's, otherwise list their keys as extra_user_cas in config.yaml",
		"sshd already trusts the CAs in %s, set in %s", conf.TrustedUserCAKeys, where)
}

// find returns where a keyword is set, as "file:line".
func (in *Installer) find(keyword string) (places []string) {
	for _, l := range in.server.Lines() {
		if l.Keyword == keyword {
			places = append(places, l.String())
		}
	}
	return places
}

func (in *Installer) path(p string) string { return filepath.Join(in.root, p) }

func (in *Installer) stage(change *sshd.Change, f file) error {
	path := in.path(f.path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("make a folder: %w", err)
	}
	return change.Stage(path, f.data, f.mode)
}

// stageOptions writes the drop-in where it comes first, and otherwise one block at
// the top of the main configuration.
func (in *Installer) stageOptions(change *sshd.Change, options sshd.Options) error {
	main := in.path(sshd.MainConfig)
	config, err := os.ReadFile(main)
	if err != nil {
		return fmt.Errorf("read sshd's configuration: %w", err)
	}
	rest, err := sshd.WithoutBlock(config)
	if err != nil {
		return fmt.Errorf("%s: %w", main, err)
	}
	if sshd.IncludesFirst(rest, sshd.DropIn) {
		if err := change.Stage(main, rest, 0o600); err != nil {
			return err
		}
		return in.stage(change, file{sshd.DropIn, options.Render(), 0o644})
	}
	config, err = sshd.WithBlock(rest, options.Render())
	if err != nil {
		return fmt.Errorf("%s: %w", main, err)
	}
	if err := change.StageRemoval(in.path(sshd.DropIn)); err != nil {
		return err
	}
	return change.Stage(main, config, 0o600)
}

// verify asks sshd what its configuration now comes to: what was to be set is, and
// for everyone who can log in nothing else became different.
func (in *Installer) verify(ctx context.Context, want sshd.Options, before []sshd.Login) (after []sshd.Login, err error) {
	if err := in.server.Check(ctx); err != nil {
		return nil, err
	}
	got, err := in.server.Effective(ctx)
	if err != nil {
		return nil, err
	}
	if got.TrustedUserCAKeys != want.TrustedUserCAKeys {
		return nil, fmt.Errorf("TrustedUserCAKeys is %q, not %s", got.TrustedUserCAKeys, want.TrustedUserCAKeys)
	}
	for _, path := range want.HostCertificates {
		if !slices.Contains(got.HostCertificates, path) {
			return nil, fmt.Errorf("HostCertificate %s is not in effect", path)
		}
	}
	after, err = in.server.Logins(ctx)
	if err != nil {
		return nil, err
	}
	if exempt, _ := sshd.ExemptSources(after); want.PenaltyExempt != "" && exempt != want.PenaltyExempt {
		return nil, fmt.Errorf("PerSourcePenaltyExemptList is %q, not %s", exempt, want.PenaltyExempt)
	}
	if drift := sshd.Drift(before, after, "trustedusercakeys", "hostcertificate", "maxstartups", exemptKeyword); drift != "" {
		return nil, fmt.Errorf("another setting would change %s", drift)
	}
	return after, nil
}
