// Package install puts hallmark on a machine or into an image, takes it off a machine, and seals
// images.
package install

import (
	"bytes"
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
	"syscall"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/machine/cafile"
	"github.com/hallmark-ssh/hallmark/internal/machine/config"
	"github.com/hallmark-ssh/hallmark/internal/machine/fault"
	"github.com/hallmark-ssh/hallmark/internal/machine/findings"
	"github.com/hallmark-ssh/hallmark/internal/machine/hostkey"
	"github.com/hallmark-ssh/hallmark/internal/machine/loaded"
	"github.com/hallmark-ssh/hallmark/internal/machine/replace"
	"github.com/hallmark-ssh/hallmark/internal/machine/rooted"
	"github.com/hallmark-ssh/hallmark/internal/machine/sshd"
	"github.com/hallmark-ssh/hallmark/internal/machine/sshdconf"
	"github.com/hallmark-ssh/hallmark/internal/machine/state"
	"github.com/hallmark-ssh/hallmark/internal/machine/systemd"
)

// Program is where Install puts hallmark, unless a package has brought it.
const Program = "/usr/local/bin/hallmark"

// Names of the files that Install reads in its folder.
const (
	installConfig   = "config.yaml"
	installCAs      = "openssh_ca.pub"
	installSignerCA = "signer_ca.pem"
)

const unitDir = "/etc/systemd/system"

// judge is the part of sshd that an installation needs.
type judge interface {
	findings.Server
	Logins(ctx context.Context) ([]sshd.Login, error)
	LoginsWith(ctx context.Context, name string) ([]sshd.Login, error)
	Trial(main, dropIn []byte) []byte
}

// Installer puts hallmark on a machine or into an image. It starts nothing.
type Installer struct {
	root   string
	self   string // path of the program to install
	server judge
	// enable returns a line for each timer that it enabled.
	enable func(ctx context.Context) (changes []string, err error)
	// observe records what the running sshd has loaded, before its files change.
	observe func(ctx context.Context) error
	log     func(format string, args ...any)
}

// New returns an installer for the file system at root. log receives what an operator should
// know.
func New(root string, log func(format string, args ...any)) (*Installer, error) {
	root, err := filepath.Abs(root)
	if err != nil {
		return nil, fmt.Errorf("find the root folder: %w", err)
	}
	server, err := sshd.Find(root)
	if err != nil {
		return nil, fault.Newf(fault.Failed, "install OpenSSH's server first", "%w", err)
	}
	self, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find this program: %w", err)
	}
	if _, err := exec.LookPath("systemctl"); err != nil {
		return nil, fault.Newf(fault.Failed, "use a distribution with systemd", "there is no systemctl in PATH: hallmark's timers need systemd")
	}
	enable := func(ctx context.Context) ([]string, error) { return enableTimers(ctx, root) }
	in := &Installer{root: root, self: self, server: server, enable: enable, observe: func(context.Context) error { return nil }, log: log}
	if root == "/" {
		in.observe = observer(server, log)
	}
	return in, nil
}

// observer returns the function that lets a first enrollment know which settings were pending
// already.
func observer(server *sshd.Server, log func(string, ...any)) func(context.Context) error {
	t := loaded.Tracker{Server: server, Dir: state.RuntimeDir(), Log: log}
	return func(ctx context.Context) error {
		conf, err := server.Effective(ctx)
		if err != nil {
			return err
		}
		return t.Observe(ctx, conf)
	}
}

// enableTimers makes systemd start the timers at the next boot. It works without a running
// systemd.
func enableTimers(ctx context.Context, root string) (changes []string, err error) {
	disabled := timersToEnable(root)
	args := []string{enableVerb(root), "hallmark.timer", "hallmark-renew.timer"}
	if root != "/" {
		args = append([]string{"--root=" + root}, args...)
	}
	if err := systemd.Run(ctx, args...); err != nil {
		return nil, fmt.Errorf("enable hallmark's timers: %w", err)
	}
	return prefixed("enabled ", disabled), nil
}

// Install puts this program (unless a package has) and the folder's configuration, CAs and sshd
// settings in place, and enables the timers. sshd checks the settings first. sshd's
// configuration changes last, with a single rename. Install returns a line for each file that it
// changed, and for each timer that it enabled.
func (in *Installer) Install(ctx context.Context, from string) (changes []string, err error) {
	lock := func() (func(), error) {
		dir, err := in.path(state.Dir)
		if err != nil {
			return nil, err
		}
		return state.Lock(dir, time.Now())
	}
	return in.checked(ctx, from, lock, func(files []file, p plan) ([]string, error) {
		if err := in.observe(ctx); err != nil {
			in.log("warning: save what sshd has loaded: %v", err)
		}
		return in.put(ctx, files, p)
	})
}

// Preview returns a line for each file that Install would change, and for each timer that it
// would enable. It fails if Install would fail before it changes anything. It asks sshd about
// a trial configuration as Install does, and changes nothing.
func (in *Installer) Preview(ctx context.Context, from string) (changes []string, err error) {
	lock := func() (func(), error) { return state.LockInside(in.root) }
	return in.checked(ctx, from, lock, func(files []file, p plan) ([]string, error) {
		record, err := in.recordOf(files, p)
		if err != nil {
			return nil, err
		}
		preview := &replace.Preview{}
		if err := in.stageAll(preview, append([]file{record}, files...), p); err != nil {
			return nil, err
		}
		return append(preview.Lines(), prefixed("would enable ", timersToEnable(in.root))...), nil
	})
}

// checked reads the folder, makes all checks with the lock, and passes on what to put in place.
func (in *Installer) checked(ctx context.Context, from string, lock func() (unlock func(), err error), put func([]file, plan) ([]string, error)) ([]string, error) {
	files, options, cas, err := in.read(from)
	if err != nil {
		return nil, err
	}
	unlock, err := lock()
	if err != nil {
		return nil, err
	}
	defer unlock()
	files, p, err := in.decide(ctx, files, options, cas)
	if err != nil {
		return nil, err
	}
	return put(files, p)
}

// decide makes all checks, and returns what to put in place.
func (in *Installer) decide(ctx context.Context, files []file, options sshdconf.Options, cas []ssh.PublicKey) ([]file, plan, error) {
	plan, certificates, err := in.decideSettings(ctx, options, cas)
	return append(files, unitFor(certificates)...), plan, err
}

// decideSettings decides how sshd's settings change, and returns the certificates that they
// name.
func (in *Installer) decideSettings(ctx context.Context, options sshdconf.Options, cas []ssh.PublicKey) (plan, []string, error) {
	before, err := in.server.Logins(ctx)
	if errors.Is(err, sshd.ErrNoHostKeys) {
		return plan{}, nil, fault.Newf(fault.Failed, "run 'ssh-keygen -A' first, and 'hallmark seal' at the end", "read sshd's configuration: %w", err)
	}
	if err != nil {
		return plan{}, nil, fault.Newf(fault.Failed, hintBroken, "read sshd's configuration: %w", err)
	}
	if err := in.checkTrust(before); err != nil {
		return plan{}, nil, err
	}
	if err := in.exemptProxies(ctx, &options, before); err != nil {
		return plan{}, nil, err
	}
	options.HostCertificates = certificatesFor(before, options.HostCertificates)
	p, err := in.plan(options)
	if err != nil {
		return plan{}, nil, err
	}
	after, err := in.try(ctx, p)
	if err == nil {
		err = verify(options, before, after)
	}
	if err != nil {
		return plan{}, nil, fault.Newf(fault.Failed, hintTrial(err), "set sshd's settings: %w", err)
	}
	want := findings.Want{
		CAFile: options.TrustedUserCAKeys, CAs: cas, MaxStartups: options.MaxStartups,
		ProxySources: options.ProxySources,
		Extra:        append(in.otherCertificates(before, options.HostCertificates), in.hiddenKeys(after)...),
	}
	if err := in.judge(ctx, after, want); err != nil {
		return plan{}, nil, err
	}
	return p, options.HostCertificates, nil
}

// otherCertificates are findings for HostCertificate lines that somebody else wrote. The keys
// of an image are not those of its machines, so which are certified shows there.
func (in *Installer) otherCertificates(logins []sshd.Login, own []string) (found []findings.Finding) {
	for _, path := range sshd.Values(logins[0].Settings, "hostcertificate") {
		f := findings.Finding{
			Keyword: "HostCertificate", Value: path,
			Consequence: "another CA has certified a host key, and a host key can have only one certificate; hallmark certifies the host keys that Teleport's proxy prefers to it",
			Remedy:      "make sure that there is an RSA host key for hallmark, or remove that line",
		}
		for _, line := range in.server.Lines() {
			if line.Keyword == "hostcertificate" && line.Sets(path) {
				f.Places = append(f.Places, line)
			}
		}
		if !slices.Contains(own, path) {
			found = append(found, f)
		}
	}
	return found
}

// hiddenKeys are findings for types of host keys that sshd may present without a certificate
// only, while it presents certificates for others: hallmark enroll refuses to hide such keys.
func (in *Installer) hiddenKeys(logins []sshd.Login) (found []findings.Finding) {
	value := strings.Join(sshd.Values(logins[0].Settings, "hostkeyalgorithms"), "")
	e := sshd.Effective{HostKeyAlgorithms: strings.Split(value, ",")}
	if value == "" || !strings.Contains(value, "-cert-v01@openssh.com") {
		return nil // then another finding says that there are no certificates
	}
	for _, path := range sshd.Values(logins[0].Settings, "hostkey") {
		keyType := usualTypes()[filepath.Base(path)]
		if keyType == "" || !e.PresentsPlain(keyType) || len(e.CertAlgorithms(keyType)) > 0 {
			continue
		}
		f := findings.Finding{
			Keyword: "HostKeyAlgorithms", Value: value, Blocks: true,
			Consequence: "certificates for the other host keys would lock out people whose known_hosts has " + path + " only, so hallmark enroll would refuse",
			Remedy:      "add " + keyType + "-cert-v01@openssh.com, or remove " + keyType,
		}
		for _, line := range in.server.Lines() {
			if line.Keyword == "hostkeyalgorithms" {
				f.Places = append(f.Places, line)
			}
		}
		found = append(found, f)
	}
	return found
}

// usualTypes are the types that clients prefer, by the files in which OpenSSH and cloud-init
// keep such keys. A sealed image has no keys, so the files themselves cannot show the types.
func usualTypes() map[string]string {
	return map[string]string{"ssh_host_ed25519_key": ssh.KeyAlgoED25519, "ssh_host_ecdsa_key": ssh.KeyAlgoECDSA256}
}

// put puts everything in place. Nothing of it affects sshd until sshd's settings are in place,
// which come last.
func (in *Installer) put(ctx context.Context, files []file, plan plan) (changes []string, err error) {
	for _, f := range append(files, file{path: sshdconf.DropIn}, file{path: recordFile}) { // their own folders, unlike the main file's
		if err := in.tidy(f.path); err != nil {
			return nil, err
		}
	}
	recorded, err := in.putRecord(files, plan)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, recorded.Close()) }()
	change := &replace.Change{}
	defer func() { err = errors.Join(err, change.Close()) }()
	if err := in.stageAll(making{change}, files, plan); err != nil {
		return nil, err
	}
	if err := change.Commit(); err != nil {
		return nil, err
	}
	enabled, err := in.enable(ctx)
	if err != nil {
		return nil, err
	}
	change.Keep()
	recorded.Keep()
	return slices.Concat(recorded.Lines(), change.Lines(), enabled), nil
}

// stageAll prepares everything but the record.
func (in *Installer) stageAll(change staging, files []file, plan plan) error {
	for _, f := range files {
		if err := in.stage(change, f); err != nil {
			return err
		}
	}
	if err := in.stageSuperseded(change); err != nil {
		return err
	}
	return in.stagePlan(change, plan)
}

// putRecord writes the record before anything else: after a kill, the next run could not tell
// what was there before.
func (in *Installer) putRecord(files []file, plan plan) (*replace.Change, error) {
	f, err := in.recordOf(files, plan)
	if err != nil {
		return nil, err
	}
	change := &replace.Change{}
	if err = in.stage(making{change}, f); err == nil {
		err = change.Commit()
	}
	if err != nil {
		return nil, errors.Join(err, change.Close())
	}
	return change, nil
}

// recordOf returns the record of what is there before the files are put in place.
func (in *Installer) recordOf(files []file, plan plan) (file, error) {
	paths := []string{plan.main}
	if len(plan.dropIn) > 0 {
		paths = append(paths, sshdconf.DropIn)
	}
	for _, f := range files {
		paths = append(paths, f.path)
	}
	return in.nextRecord(slices.DeleteFunc(paths, func(path string) bool { return path == "" }))
}

// tidy removes what a killed installation left beside a file.
func (in *Installer) tidy(path string) error {
	path, err := in.path(path)
	if err != nil {
		return err
	}
	if err := replace.RemoveLeftovers(path); err != nil {
		return fmt.Errorf("tidy up after an earlier installation: %w", err)
	}
	return nil
}

// certificatesFor adds HostCertificate lines for host keys that sshd has in other places. The
// files need not exist yet. A DSA key cannot have a certificate.
func certificatesFor(logins []sshd.Login, usual []string) []string {
	files := slices.Clone(usual)
	for _, path := range sshd.Values(logins[0].Settings, "hostkey") {
		if file := path + hostkey.CertificateSuffix; filepath.Base(path) != "ssh_host_dsa_key" && !slices.Contains(files, file) {
			files = append(files, file)
		}
	}
	return files
}

// unitFor lets the service write certificates if there are host keys outside /etc/ssh.
func unitFor(certificates []string) []file {
	var folders []string
	for _, path := range certificates {
		folder := filepath.Dir(path)
		if folder != "/etc/ssh" && !strings.HasPrefix(folder, "/etc/ssh/") && !slices.Contains(folders, folder) {
			folders = append(folders, folder)
		}
	}
	if len(folders) == 0 {
		return nil
	}
	text := "# hallmark install wrote this file, because sshd has host keys outside /etc/ssh.\n[Service]\n"
	for _, folder := range folders {
		text += fmt.Sprintf("ReadWritePaths=%q\n", "-"+folder)
	}
	return []file{{filepath.Join(unitDir, "hallmark.service.d", "host-keys.conf"), []byte(text), 0o644}}
}

// judge refuses an sshd with which certificates can never work, and logs what else is found.
func (in *Installer) judge(ctx context.Context, logins []sshd.Login, want findings.Want) error {
	found, err := findings.Of(ctx, in.server, logins, want)
	if err != nil {
		return fmt.Errorf("check sshd's settings: %w", err)
	}
	if blocking := findings.Blocking(found); len(blocking) > 0 {
		return fault.Newf(fault.Failed, "nothing was changed; correct sshd's configuration as the message says, then install again",
			"nobody could log in with a certificate of the cluster: %w", findings.Join(blocking))
	}
	for _, f := range found {
		in.log("warning: %s", f)
	}
	return nil
}

// file is one file to install.
type file struct {
	path string
	data []byte
	mode fs.FileMode
}

// read reads and checks everything before anything changes.
func (in *Installer) read(from string) ([]file, sshdconf.Options, []ssh.PublicKey, error) {
	program, err := os.ReadFile(in.self)
	if err != nil {
		return nil, sshdconf.Options{}, nil, fmt.Errorf("read this program: %w", err)
	}
	c, data, err := readInstallConfig(from)
	if err != nil {
		return nil, sshdconf.Options{}, nil, err
	}
	if err := checkNames(from); err != nil {
		return nil, sshdconf.Options{}, nil, err
	}
	files, err := in.programFiles(program)
	if err != nil {
		return nil, sshdconf.Options{}, nil, fmt.Errorf("find out whether a package brought this program: %w", err)
	}
	files = append(files, file{config.File, data, 0o644})
	extra, cas, err := readTrust(from, c)
	if err != nil {
		return nil, sshdconf.Options{}, nil, &fault.Error{Kind: fault.Misconfigured, Err: err}
	}
	if len(cas) == 0 {
		if err := in.checkStale(c); err != nil {
			return nil, sshdconf.Options{}, nil, err
		}
	}
	return append(files, extra...), c.SSHDOptions(), cas, nil
}

// checkNames refuses files with a name similar to those that install reads. A misspelled
// openssh_ca.pub would leave a machine that trusts no CA until it enrolls.
func checkNames(from string) error {
	entries, err := os.ReadDir(from)
	if err != nil {
		return fault.Newf(fault.Misconfigured, "check --from", "read the folder: %w", err)
	}
	known := []string{installConfig, installCAs, installSignerCA}
	for _, entry := range entries {
		switch filepath.Ext(entry.Name()) {
		case ".pub", ".pem", ".crt", ".cer", ".yaml", ".yml":
			if !slices.Contains(known, entry.Name()) {
				return fault.Newf(fault.Misconfigured, "rename it, or remove it from that folder",
					"%s is not one of the files that install reads: %s", filepath.Join(from, entry.Name()), strings.Join(known, ", "))
			}
		}
	}
	return nil
}

// checkStale refuses to leave an earlier bake's CAs on a machine that should trust none before
// it enrolls. Once it has enrolled, they come from the signer.
func (in *Installer) checkStale(c config.Config) error {
	extra, err := c.ExtraCAs()
	if err != nil {
		return err
	}
	file, err := in.path(sshdconf.CAFile)
	if err != nil {
		return err
	}
	enrolled, err := in.path(state.Path(state.Dir))
	if err != nil {
		return err
	}
	data, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) || err == nil && bytes.Equal(data, cafile.Render(nil, extra...)) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the trusted CAs: %w", err)
	}
	if _, err := os.Stat(enrolled); err == nil {
		return nil
	}
	return fault.Newf(fault.Misconfigured, "remove "+file+", or add "+installCAs+" to the folder given by --from",
		"without %s, the machine must trust no CA before it enrolls, but %s already exists", installCAs, file)
}

func readInstallConfig(from string) (config.Config, []byte, error) {
	path := filepath.Join(from, installConfig)
	data, err := os.ReadFile(path)
	if err != nil {
		return config.Config{}, nil, fault.Newf(fault.Misconfigured, "the folder given by --from must hold "+installConfig, "read the configuration: %w", err)
	}
	c, err := config.Parse(data)
	if err != nil {
		return config.Config{}, nil, fault.Newf(fault.Misconfigured, "", "%s: %w", path, err)
	}
	return c, data, nil
}

// readTrust reads the CAs. Without OpenSSH CAs, the machine trusts none until it enrolls: this
// is "trust at enrollment".
func readTrust(from string, c config.Config) (files []file, cas []ssh.PublicKey, err error) {
	extra, err := c.ExtraCAs()
	if err != nil {
		return nil, nil, err
	}
	data, err := os.ReadFile(filepath.Join(from, installCAs))
	switch {
	case err == nil:
		if cas, err = cafile.Parse(data); err != nil {
			return nil, nil, fmt.Errorf("%s: %w", installCAs, err)
		}
		files = append(files, file{sshdconf.CAFile, cafile.Render(cas, extra...), 0o644})
	case errors.Is(err, fs.ErrNotExist) && len(extra) > 0:
		files = append(files, file{sshdconf.CAFile, cafile.Render(nil, extra...), 0o644})
	case !errors.Is(err, fs.ErrNotExist):
		return nil, nil, err
	}
	data, err = os.ReadFile(filepath.Join(from, installSignerCA))
	switch {
	case err == nil && c.SignerCAFile != config.SignerCAFile:
		return nil, nil, fmt.Errorf("%s is given, but %s does not have signer_ca_file: %s", installSignerCA, installConfig, config.SignerCAFile)
	case err == nil:
		if err := checkCertificates509(data); err != nil {
			return nil, nil, fmt.Errorf("%s: %w", installSignerCA, err)
		}
		return append(files, file{config.SignerCAFile, data, 0o644}), cas, nil
	case !errors.Is(err, fs.ErrNotExist):
		return nil, nil, err
	}
	return files, cas, nil
}

// checkCertificates509 refuses PEM data without a certificate, or with a private key that
// somebody passed by mistake.
func checkCertificates509(data []byte) error {
	found := false
	for block, rest := pem.Decode(data); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			return fmt.Errorf("it contains a %s; only certificates are allowed", block.Type)
		}
		if _, err := x509.ParseCertificate(block.Bytes); err != nil {
			return err
		}
		found = true
	}
	if !found {
		return errors.New("it contains no PEM certificate")
	}
	return nil
}

const hintBroken = "run 'sshd -t' and correct what it says; with --root, mount /dev there first"

// hintTrial says what to do if a trial configuration fails: sshd may not accept it, or the disk.
func hintTrial(err error) string {
	if errors.Is(err, syscall.EROFS) || errors.Is(err, syscall.ENOSPC) {
		return hintNothingChanged + "; " + fault.FileHint(err)
	}
	return hintNothingChanged + "; check sshd_config and the files that it includes"
}

// checkTrust refuses a machine on which somebody else's CA file is in effect: sshd uses only
// the first TrustedUserCAKeys, so installing would silently end those logins.
func (in *Installer) checkTrust(logins []sshd.Login) error {
	trusted := strings.Join(sshd.Values(logins[0].Settings, "trustedusercakeys"), "")
	if trusted == "" || trusted == "none" || trusted == sshdconf.CAFile {
		return nil
	}
	where := strings.Join(in.find("trustedusercakeys"), ", ")
	if where == "" {
		where = "a file that " + sshdconf.MainConfig + " includes"
	}
	return fault.Newf(fault.Failed, "remove that line; put its CAs into openssh_ca.pub if they are the cluster's, otherwise list their keys as extra_user_cas in config.yaml",
		"sshd already trusts the CAs in %s, set in %s", trusted, where)
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

// path returns the path of a file in the root. It follows links inside the root.
func (in *Installer) path(p string) (string, error) {
	folder, err := rooted.Resolve(in.root, filepath.Dir(p))
	if err != nil {
		return "", fmt.Errorf("find %s: %w", p, err)
	}
	return filepath.Join(in.root, folder, filepath.Base(p)), nil
}

// staging prepares changes of files: a replace.Change, or a replace.Preview.
type staging interface {
	Stage(path string, data []byte, mode fs.FileMode) error
	StageRemoval(path string) error
}

// making is a Change that makes the folders of new files.
type making struct{ *replace.Change }

func (m making) Stage(path string, data []byte, mode fs.FileMode) error {
	if err := replace.MakeFolder(filepath.Dir(path)); err != nil {
		return fmt.Errorf("make a folder: %w", err)
	}
	return m.Change.Stage(path, data, mode)
}

func (in *Installer) stage(change staging, f file) error {
	path, err := in.path(f.path)
	if err != nil {
		return err
	}
	return change.Stage(path, f.data, f.mode)
}

// plan says how sshd's configuration should change.
type plan struct {
	// main is the path of the main file, behind any link, or empty to leave it unchanged.
	main string
	// config is the new content of main; dropIn is that of the drop-in, or empty for none.
	config, dropIn []byte
	// trial has the same effect, in one file.
	trial []byte
}

// plan chooses the drop-in if sshd reads it first, and otherwise one block at the top of the
// main configuration. It does not change SUSE's own main file: a file in /etc that includes it
// takes its place.
func (in *Installer) plan(options sshdconf.Options) (plan, error) {
	name := sshdconf.FindMainConfig(in.root)
	file, err := rooted.Resolve(in.root, name)
	if err != nil {
		return plan{}, fmt.Errorf("find sshd's configuration: %w", err)
	}
	config, err := os.ReadFile(filepath.Join(in.root, file))
	if err != nil {
		return plan{}, fmt.Errorf("read sshd's configuration: %w", err)
	}
	rest, err := sshdconf.WithoutBlock(config)
	if err != nil {
		return plan{}, fmt.Errorf("%s: %w", filepath.Join(in.root, name), err)
	}
	body := options.Render()
	if sshdconf.IncludesFirst(rest, sshdconf.DropIn) {
		p := plan{main: file, dropIn: body, config: rest, trial: in.server.Trial(rest, body)}
		if name == sshdconf.VendorConfig {
			p.main = ""
		}
		return p, nil
	}
	if name == sshdconf.VendorConfig {
		file, rest = sshdconf.MainConfig, []byte(includesVendor)
	}
	if config, err = sshdconf.WithBlock(rest, body); err != nil {
		return plan{}, fmt.Errorf("%s: %w", filepath.Join(in.root, name), err)
	}
	return plan{main: file, config: config, trial: in.server.Trial(config, nil)}, nil
}

// stagePlan stages what takes effect before what would undo it: if a kill comes between two
// renames, Hallmark's settings are there at least once.
func (in *Installer) stagePlan(change staging, p plan) error {
	if len(p.dropIn) > 0 {
		if err := in.stage(change, file{sshdconf.DropIn, p.dropIn, 0o644}); err != nil {
			return err
		}
	}
	if p.main != "" {
		if err := in.stage(change, file{p.main, p.config, 0o600}); err != nil {
			return err
		}
	}
	if len(p.dropIn) > 0 {
		return nil
	}
	path, err := in.path(sshdconf.DropIn)
	if err != nil {
		return err
	}
	return change.StageRemoval(path)
}

// try asks sshd what its configuration would be, for everyone who can log in.
func (in *Installer) try(ctx context.Context, p plan) (after []sshd.Login, err error) {
	path, err := in.path(filepath.Join(filepath.Dir(sshdconf.MainConfig), sshd.TrialConfig))
	if err != nil {
		return nil, err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("remove an earlier trial: %w", err)
	}
	// O_EXCL: never through a link that someone put there.
	trial, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, fmt.Errorf("write a trial configuration: %w", err)
	}
	defer func() { err = errors.Join(err, os.Remove(path)) }()
	_, err = trial.Write(p.trial)
	if err = errors.Join(err, trial.Close()); err != nil {
		return nil, fmt.Errorf("write a trial configuration: %w", err)
	}
	return in.server.LoginsWith(ctx, sshd.TrialConfig)
}

// verify compares sshd's effective configuration before and after: the wanted settings must be
// there, and nothing else may have changed for anyone who can log in.
func verify(want sshdconf.Options, before, after []sshd.Login) error {
	got := strings.Join(sshd.Values(after[0].Settings, "trustedusercakeys"), " ")
	if got != want.TrustedUserCAKeys {
		return fmt.Errorf("TrustedUserCAKeys is %q, not %s", got, want.TrustedUserCAKeys)
	}
	certificates := sshd.Values(after[0].Settings, "hostcertificate")
	for _, path := range want.HostCertificates {
		if !slices.Contains(certificates, path) {
			return fmt.Errorf("HostCertificate %s is not in effect", path)
		}
	}
	if exempt, _ := exemptSources(after); want.PenaltyExempt != "" && exempt != want.PenaltyExempt {
		return fmt.Errorf("PerSourcePenaltyExemptList is %q, not %s", exempt, want.PenaltyExempt)
	}
	if drift := sshd.Drift(before, after, "trustedusercakeys", "hostcertificate", "maxstartups", exemptKeyword); drift != "" {
		return fmt.Errorf("refusing: this would also change sshd settings %s", drift)
	}
	return nil
}
