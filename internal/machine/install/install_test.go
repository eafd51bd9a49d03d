package install

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/machine/config"
	"github.com/hallmark-ssh/hallmark/internal/machine/hostkey"
	"github.com/hallmark-ssh/hallmark/internal/machine/machinetest"
	"github.com/hallmark-ssh/hallmark/internal/machine/rooted"
	"github.com/hallmark-ssh/hallmark/internal/machine/sshd"
	"github.com/hallmark-ssh/hallmark/internal/machine/sshdconf"
	"github.com/hallmark-ssh/hallmark/internal/machine/state"
	"github.com/hallmark-ssh/hallmark/internal/sshkey/sshkeytest"
)

const (
	withInclude    = "Include /etc/ssh/sshd_config.d/*.conf\nUsePAM yes\n"
	withoutInclude = "# Amazon Linux 2\nUsePAM yes\nMatch User git\n\tX11Forwarding no\n"
)

// image is a root folder to install into, with a judge that reads its files as sshd would.
type image struct {
	t       *testing.T
	root    string
	from    string
	enabled int
	// noted is sshd's configuration when it was recorded what sshd has loaded.
	noted string
	// verdict replaces the judge's answer, if set.
	verdict func() error
	// drift is added to the settings that sshd would apply, if set.
	drift func() string
	// prints is added to what sshd prints for a configuration, if set.
	prints func(config string) string
	// accounts are those of the machine, if a test needs any.
	accounts []sshd.Account
	*Installer
}

func newImage(t *testing.T, mainConfig string) *image {
	t.Helper()
	i := &image{t: t, root: t.TempDir(), from: t.TempDir()}
	i.write(sshdconf.MainConfig, mainConfig)
	i.give("config.yaml", "signer_url: https://signer.example.com/\naudience: hallmark.example.com\n")
	i.give("openssh_ca.pub", string(ssh.MarshalAuthorizedKey(sshkeytest.NewSigner(t).PublicKey())))
	self := filepath.Join(i.from, "hallmark")
	i.give("hallmark", "program")
	i.Installer = &Installer{root: i.root, self: self, server: i, log: t.Logf, enable: func(context.Context) ([]string, error) { i.enabled++; return nil, nil }, observe: i.noteSettings}
	return i
}

func (i *image) noteSettings(context.Context) error {
	i.noted = i.read(sshdconf.MainConfig)
	return nil
}

func (i *image) write(path, content string) {
	i.t.Helper()
	path = filepath.Join(i.root, path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		i.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o640); err != nil {
		i.t.Fatal(err)
	}
}

func (i *image) give(name, content string) {
	i.t.Helper()
	if err := os.WriteFile(filepath.Join(i.from, name), []byte(content), 0o600); err != nil {
		i.t.Fatal(err)
	}
}

func (i *image) read(path string) string {
	data, err := os.ReadFile(filepath.Join(i.root, path))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		i.t.Fatal(err)
	}
	return string(data)
}

// Logins are those of one account, whose settings are the configuration's lines.
func (i *image) Logins(ctx context.Context) ([]sshd.Login, error) {
	main, err := rooted.Resolve(i.root, sshdconf.FindMainConfig(i.root))
	if err != nil {
		return nil, err
	}
	config := strings.ReplaceAll(i.read(main), "Include "+sshdconf.VendorConfig, i.read(sshdconf.VendorConfig))
	if strings.Contains(config, "Include") {
		config = i.read(sshdconf.DropIn) + config
	}
	return i.logins(config), nil
}

func (i *image) LoginsWith(_ context.Context, name string) ([]sshd.Login, error) {
	if i.verdict != nil {
		return nil, i.verdict()
	}
	trial := strings.ReplaceAll(i.read(filepath.Join("/etc/ssh", name)), `Include "`+sshdconf.VendorConfig+`"`, i.read(sshdconf.VendorConfig))
	if i.drift != nil {
		trial = i.drift() + trial
	}
	return i.logins(trial), nil
}

// logins keeps the first value of keywords that do not accumulate, as sshd does. Lines in a
// Match block, which does not match, show with another keyword.
func (i *image) logins(config string) []sshd.Login {
	var settings strings.Builder
	seen := map[string]bool{}
	prefix := ""
	add := func(line string) {
		keyword, value, ok := strings.Cut(strings.TrimSpace(line), " ")
		keyword = strings.ToLower(keyword)
		if keyword == "match" {
			prefix = "match:"
		}
		keyword = prefix + keyword
		if !ok || keyword == "#" || keyword == "include" || seen[keyword] && keyword != "hostcertificate" {
			return
		}
		seen[keyword] = true
		fmt.Fprintf(&settings, "%s %s\n", keyword, value)
	}
	for line := range strings.Lines(config) {
		add(line)
	}
	if prefix = ""; i.prints != nil {
		for line := range strings.Lines(i.prints(config)) {
			add(line)
		}
	}
	return []sshd.Login{{Connection: sshd.Connection{User: "root", Address: "192.0.2.1"}, Settings: []byte(settings.String())}}
}

func (i *image) Trial(main, dropIn []byte) []byte {
	return (&sshd.Server{Root: i.root}).Trial(main, dropIn)
}

func (i *image) Listens(context.Context, sshd.Settings) ([]netip.AddrPort, bool) { return nil, false }

func (i *image) Lines() []sshd.Line { return (&sshd.Server{Root: i.root}).Lines() }

func (i *image) Accounts() ([]sshd.Account, error) { return i.accounts, nil }

func (i *image) Absent(context.Context, string, []string) []string { return nil }

func (i *image) Files([]string) map[string][]byte { return nil }

// tree returns every file below the root with its mode and content.
func (i *image) tree() map[string]string {
	i.t.Helper()
	files := map[string]string{}
	err := filepath.WalkDir(i.root, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() || path == state.LockPath(filepath.Join(i.root, state.Dir)) {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		data, err := os.ReadFile(path)
		files[strings.TrimPrefix(path, i.root)] = info.Mode().String() + " " + string(data)
		return err
	})
	if err != nil {
		i.t.Fatal(err)
	}
	return files
}

func TestInstall(t *testing.T) {
	i := newImage(t, withInclude)
	changes, err := i.Install(t.Context(), i.from)
	if err != nil || i.enabled != 1 {
		t.Fatalf("enabled %d, %v", i.enabled, err)
	}
	files := i.tree()
	if got := files[Program]; got != "-rwxr-xr-x program" {
		t.Errorf("program: %q", got)
	}
	for _, path := range []string{
		config.File, recordFile, sshdconf.CAFile, sshdconf.DropIn, sshdconf.MainConfig,
		"/etc/systemd/system/hallmark.service", "/etc/systemd/system/hallmark.timer",
		"/etc/systemd/system/hallmark-renew.timer",
	} {
		if files[path] == "" {
			t.Errorf("%s was not installed", path)
		}
		delete(files, path)
	}
	var want []string
	for _, path := range []string{
		Program, config.File, recordFile, sshdconf.CAFile, sshdconf.DropIn,
		"/etc/systemd/system/hallmark.service", "/etc/systemd/system/hallmark.timer",
		"/etc/systemd/system/hallmark-renew.timer",
	} {
		want = append(want, "wrote "+filepath.Join(i.root, path))
	}
	if got := slices.Sorted(slices.Values(changes)); !slices.Equal(got, slices.Sorted(slices.Values(want))) {
		t.Errorf("changes %q, want %q", got, want)
	}
	if len(files) != 1 {
		t.Errorf("more was installed: %v", files)
	}
	if got := i.read(sshdconf.MainConfig); got != withInclude {
		t.Errorf("the main configuration was changed to %q", got)
	}

	before := i.tree()
	changes, err = i.Install(t.Context(), i.from)
	if err != nil || len(changes) > 0 || !equal(i.tree(), before) {
		t.Errorf("the second run changed something: %v, %v", changes, err)
	}

	i.give("config.yaml", "signer_url: https://signer.example.com/\naudience: other.example.com\n")
	changes, err = i.Install(t.Context(), i.from)
	if want := []string{"replaced " + filepath.Join(i.root, config.File)}; err != nil || !slices.Equal(changes, want) {
		t.Errorf("changes %q, %v; want %q", changes, err, want)
	}
}

func TestInstallWithoutInclude(t *testing.T) {
	i := newImage(t, withoutInclude)
	if _, err := i.Install(t.Context(), i.from); err != nil {
		t.Fatal(err)
	}
	if i.noted != withoutInclude {
		t.Errorf("what sshd has loaded was noted when its configuration was already %q", i.noted)
	}
	got := i.read(sshdconf.MainConfig)
	if !strings.HasPrefix(got, "# BEGIN hallmark\n") || !strings.HasSuffix(got, "# END hallmark\n"+withoutInclude) {
		t.Errorf("main configuration:\n%s", got)
	}
	if i.read(sshdconf.DropIn) != "" {
		t.Error("a drop-in was written that nobody includes")
	}
	if changes, err := i.Install(t.Context(), i.from); err != nil || len(changes) > 0 {
		t.Errorf("the second run: %v, %v", changes, err)
	}
}

func TestInstallTrustAtEnrollment(t *testing.T) {
	i := newImage(t, withInclude)
	if err := os.Remove(filepath.Join(i.from, "openssh_ca.pub")); err != nil {
		t.Fatal(err)
	}
	if _, err := i.Install(t.Context(), i.from); err != nil {
		t.Fatal(err)
	}
	if i.read(sshdconf.CAFile) != "" {
		t.Error("CAs are trusted before the enrollment")
	}
}

func TestInstallRefuses(t *testing.T) {
	for _, test := range []struct {
		name  string
		spoil func(*image)
		want  string
	}{
		{"no configuration", func(i *image) { os.Remove(filepath.Join(i.from, "config.yaml")) }, "read the configuration"},
		{"bad configuration", func(i *image) { i.give("config.yaml", "signer: x\n") }, "line 1: unknown key signer"},
		{"bad CAs", func(i *image) { i.give("openssh_ca.pub", "cert-authority junk\n") }, "openssh_ca.pub: key 1"},
		{"no CA in the file", func(i *image) { i.give("openssh_ca.pub", "# none\n") }, "openssh_ca.pub: no keys"},
		{"unnamed signer CA", func(i *image) { i.give("signer_ca.pem", "x") }, "does not have signer_ca_file"},
		{"someone else's CAs", func(i *image) {
			i.write(sshdconf.MainConfig, withInclude+"TrustedUserCAKeys /etc/other.pub\n")
		}, "/etc/ssh/sshd_config:3"},
		{"someone else's CAs in a drop-in", func(i *image) {
			i.write(sshdconf.DropIn, "TrustedUserCAKeys /etc/other.pub\n")
		}, "00-hallmark.conf:1"},
		{"damaged block", func(i *image) { i.write(sshdconf.MainConfig, "# BEGIN hallmark\n") }, "damaged"},
		{"sshd refuses", func(i *image) { i.verdict = func() error { return errors.New("line 3: no") } }, "line 3: no"},
		{"timer cannot be enabled", func(i *image) {
			i.enable = func(context.Context) ([]string, error) { return nil, errors.New("no systemd") }
		}, "no systemd"},
		{"program cannot be replaced", func(i *image) { i.write(Program+"/x", "") }, "/usr/local/bin/hallmark"},
	} {
		t.Run(test.name, func(t *testing.T) {
			i := newImage(t, withInclude)
			test.spoil(i)
			before := i.tree()
			_, err := i.Install(t.Context(), i.from)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want %q", err, test.want)
			}
			if after := i.tree(); !equal(after, before) {
				t.Errorf("files differ: %v, want %v", after, before)
			}
		})
	}
}

// A real sshd checks what is installed into configurations as people have them. None of them
// includes drop-ins first.
func TestInstallWithRealSSHD(t *testing.T) {
	const connect = "AuthorizedKeysCommand /opt/aws/bin/eic_run_authorized_keys %u %f\nAuthorizedKeysCommandUser nobody\n"
	for _, test := range []struct {
		name, before, after string // around lines that every sshd_config has
		want                string // the error, or ""
		keeps               string // a line of sshd -T
	}{
		{name: "Amazon Linux 2", after: "Match User git\n\tX11Forwarding no\n"},
		{name: "no line break at the end", after: "Match User git\n\tX11Forwarding no"},
		{name: "drop-ins included last", after: "Include /nonexistent/sshd_config.d/*.conf\n"},
		{name: "drop-ins included in a Match", after: "Match all\nInclude /nonexistent/sshd_config.d/*.conf\n"},
		{name: "EC2 Instance Connect", before: connect, keeps: "authorizedkeyscommand /opt/aws/bin/eic_run_authorized_keys %u %f"},
		{name: "several ports and addresses", before: "ListenAddress 127.0.0.1:2201\nListenAddress [::1]:2202\n", keeps: "listenaddress [::1]:2202"},
		{name: "a host certificate of someone else", before: "HostCertificate /etc/other-cert.pub\n", keeps: "hostcertificate /etc/other-cert.pub"},
		{name: "a host key of someone else", before: "HostKey /etc/other\n", keeps: "hostkey /etc/other"},
		{name: "FIPS", before: "HostKeyAlgorithms rsa-sha2-256-cert-v01@openssh.com,rsa-sha2-256,ecdsa-sha2-nistp256-cert-v01@openssh.com,ecdsa-sha2-nistp256\n", keeps: "hostkeyalgorithms rsa-sha2-256-cert-v01@openssh.com,rsa-sha2-256,ecdsa-sha2-nistp256-cert-v01@openssh.com,ecdsa-sha2-nistp256"},
		{name: "CAs of someone else", before: "TrustedUserCAKeys /etc/other.pub\n", want: "sshd already trusts the CAs in /etc/other.pub"},
		{name: "CAs of someone else for everyone", after: "Match all\nTrustedUserCAKeys /etc/other.pub\n", want: "sshd already trusts the CAs in /etc/other.pub"},
		{name: "CAs of someone else for some", after: "Match Address 192.0.2.0/24\nTrustedUserCAKeys /etc/other.pub\n"},
		{name: "a bad Match block", after: "Match User root\nNonsense yes\n", want: "Nonsense"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s := machinetest.NewSSHD(t, machinetest.FindSSHD(t), t.TempDir(), sshkeytest.NewSigner(t).PublicKey())
			i := newImage(t, "")
			i.server = &sshd.Server{Program: s.Program, Config: filepath.Join(i.root, sshdconf.MainConfig)}
			s.Configure("")
			i.write(sshdconf.MainConfig, test.before+string(machinetest.ReadFile(t, s.Config))+test.after)
			before := i.tree()
			_, err := i.Install(t.Context(), i.from)
			if test.want != "" {
				if err == nil || !strings.Contains(err.Error(), test.want) || !equal(i.tree(), before) {
					t.Errorf("error %v, want %q, and nothing changed", err, test.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			logins, err := i.server.Logins(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			settings := logins[0].Settings
			if got := sshd.Values(settings, "trustedusercakeys"); !slices.Equal(got, []string{sshdconf.CAFile}) {
				t.Errorf("TrustedUserCAKeys %q", got)
			}
			if got := sshd.Values(settings, "maxstartups"); !slices.Equal(got, []string{sshdconf.DefaultMaxStartups}) {
				t.Errorf("MaxStartups %q", got)
			}
			for _, path := range append(sshdconf.DefaultOptions().HostCertificates, s.KeyPath("rsa")+hostkey.CertificateSuffix) {
				if !slices.Contains(sshd.Values(settings, "hostcertificate"), path) {
					t.Errorf("HostCertificate %s is not in effect", path)
				}
			}
			if !strings.Contains(string(settings), test.keeps) {
				t.Errorf("%q is lost", test.keeps)
			}
		})
	}
}

// A configuration that would change somebody else's setting is not installed.
func TestInstallChangesNothingElse(t *testing.T) {
	i := newImage(t, withInclude)
	i.write(sshdconf.MainConfig, "Include /etc/ssh/sshd_config.d/*.conf\nPermitRootLogin no\n")
	i.drift = func() string { return "PermitRootLogin yes\n" }
	before := i.tree()
	_, err := i.Install(t.Context(), i.from)
	if err == nil || !strings.Contains(err.Error(), `"permitrootlogin no" became "permitrootlogin yes"`) || !equal(i.tree(), before) {
		t.Errorf("error %v, want that it would change, and nothing changed", err)
	}
}

func TestSeal(t *testing.T) {
	i := newImage(t, withInclude)
	remove := []string{
		"/etc/ssh/ssh_host_rsa_key", "/etc/ssh/ssh_host_rsa_key.pub", "/etc/ssh/ssh_host_rsa_key-cert.pub",
		"/etc/ssh/.ssh_host_rsa_key-cert.pub.hallmark-new", "/var/lib/hallmark/state.json", "/var/lib/hallmark/.x",
	}
	keep := []string{sshdconf.MainConfig, sshdconf.CAFile, config.File, "/etc/ssh/ssh_config"}
	for _, path := range append(remove, keep...) {
		i.write(path, "x")
	}
	removed, err := Seal(i.root)
	if err != nil || len(removed) != len(remove) {
		t.Errorf("removed %q, %v", removed, err)
	}
	if left := i.tree(); len(left) != len(keep) {
		t.Errorf("left %v, want %q", left, keep)
	}
	if removed, err := Seal(i.root); err != nil || len(removed) != 0 {
		t.Errorf("the second time it removed %q, %v", removed, err)
	}
}

func equal(a, b map[string]string) bool {
	if len(a) != len(b) {
		return false
	}
	for path, content := range a {
		if b[path] != content {
			return false
		}
	}
	return true
}

const withSources = "signer_url: https://signer.example.com/\naudience: hallmark.example.com\nproxy_sources: [192.0.2.7, \"2001:db8::/64\"]\n"

// penalties makes the image's sshd one of 9.8 or later: it prints the first list that a file
// sets.
func (i *image) penalties() {
	i.prints = func(config string) string {
		if strings.Contains(strings.ToLower(config), "\n"+exemptKeyword+" ") {
			return "persourcepenalties crash:90\n"
		}
		return "persourcepenalties crash:90\n" + exemptKeyword + " none\n"
	}
}

func TestInstallExemptsProxies(t *testing.T) {
	const ours = "PerSourcePenaltyExemptList 192.0.2.7,2001:db8::/64\n"
	for _, test := range []struct {
		name, main string
		old        bool   // an sshd without penalties
		want       string // the line in our drop-in or block, or ""
	}{
		{name: "nothing exempt yet", main: withInclude, want: ours},
		{name: "something exempt already", main: withInclude + "PerSourcePenaltyExemptList 10.0.0.0/8,192.0.2.7\n", want: "PerSourcePenaltyExemptList 10.0.0.0/8,192.0.2.7,2001:db8::/64\n"},
		{name: "without drop-ins", main: withoutInclude, want: ours},
		{name: "an sshd that has no penalties", main: withInclude, old: true},
	} {
		t.Run(test.name, func(t *testing.T) {
			i := newImage(t, test.main)
			if !test.old {
				i.penalties()
			}
			i.give("config.yaml", withSources)
			if _, err := i.Install(t.Context(), i.from); err != nil {
				t.Fatal(err)
			}
			if got := i.exemptLine(); got != test.want {
				t.Errorf("installed %q, want %q", got, test.want)
			}
			before := i.tree()
			if changes, err := i.Install(t.Context(), i.from); err != nil || len(changes) > 0 || !equal(i.tree(), before) {
				t.Errorf("the second run: %v, %v", changes, err)
			}
			// An address that is no longer a proxy is no longer exempt; earlier entries of
			// others still are.
			i.give("config.yaml", strings.ReplaceAll(withSources, "192.0.2.7, ", ""))
			if _, err := i.Install(t.Context(), i.from); err != nil {
				t.Fatal(err)
			}
			want := strings.Replace(test.want, "192.0.2.7,2001", "2001", 1)
			if strings.Contains(test.main, "192.0.2.7") {
				want = test.want
			}
			if got := i.exemptLine(); got != want {
				t.Errorf("with one proxy less: installed %q, want %q", got, want)
			}
		})
	}
}

// exemptLine is the installed line, in either place.
func (i *image) exemptLine() string {
	text, _, _ := strings.Cut(i.read(sshdconf.MainConfig), "# END hallmark")
	if dropIn := i.read(sshdconf.DropIn); dropIn != "" {
		text = dropIn
	}
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, "PerSourcePenaltyExemptList") {
			return line
		}
	}
	return ""
}

// A real sshd accepts the list, if it supports penalties, together with the operator's list.
func TestInstallExemptsProxiesWithRealSSHD(t *testing.T) {
	s := machinetest.NewSSHD(t, machinetest.FindSSHD(t), t.TempDir(), sshkeytest.NewSigner(t).PublicKey())
	s.Configure("")
	i := newImage(t, "")
	i.server = &sshd.Server{Program: s.Program, Config: filepath.Join(i.root, sshdconf.MainConfig)}
	own := ""
	if machinetest.HandsOver(t, s.Program) {
		own = "PerSourcePenaltyExemptList 10.9.8.0/24\n"
	}
	i.write(sshdconf.MainConfig, string(machinetest.ReadFile(t, s.Config))+own)
	i.give("config.yaml", withSources)
	for range 2 {
		if _, err := i.Install(t.Context(), i.from); err != nil {
			t.Fatal(err)
		}
		logins, err := i.server.Logins(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		want := ""
		if own != "" {
			want = "10.9.8.0/24,192.0.2.7,2001:db8::/64"
		}
		if got, known := exemptSources(logins); got != want || known != (own != "") {
			t.Errorf("sshd exempts %q (%v), want %q", got, known, want)
		}
	}
}

// A trial has the same effect as the configuration, whatever the names of its drop-ins, and
// whatever sshd's version makes of its quotes.
func TestTrialIsReadAlike(t *testing.T) {
	dir := t.TempDir()
	s := &sshd.Server{Program: machinetest.FindSSHD(t), Config: filepath.Join(dir, "sshd_config")}
	key, folder := filepath.Join(dir, "key"), filepath.Join(dir, "conf.d")
	machinetest.WriteHostKey(t, "ed25519", key)
	if err := os.Mkdir(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	for n, name := range []string{"plain", "a#b", `a"b`, "a'b", "a b", `a\b`, "[a]?*"} {
		text := fmt.Sprintf("Match User u%d\n\tBanner /banner/%d\n", n, n)
		if err := os.WriteFile(filepath.Join(folder, name+".conf"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, include := range []string{"FOLDER/*.conf", `"FOLDER/*.conf"`, "'FOLDER/*.conf'", "FOLDER/*.conf # all", "FOLDER/*.conf# all"} {
		main := "Include " + strings.ReplaceAll(include, "FOLDER", folder) + "\nHostKey " + key + "\n"
		for path, text := range map[string]string{s.Config: main, filepath.Join(dir, sshd.TrialConfig): string(s.Trial([]byte(main), nil))} {
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		before, err := s.Logins(t.Context())
		if err != nil {
			t.Fatalf("%s: %v", include, err)
		}
		after, err := s.LoginsWith(t.Context(), sshd.TrialConfig)
		if err != nil {
			t.Errorf("%s: %v", include, err)
			continue
		}
		if drift := sshd.Drift(before, after); drift != "" || len(before) != len(after) {
			t.Errorf("%s: %d logins became %d, %s", include, len(before), len(after), drift)
		}
		if strings.HasPrefix(include, "FOLDER/*.conf #") && !strings.Contains(string(before[len(before)-1].Settings), "banner /banner/") {
			t.Error("no drop-in had an effect")
		}
	}
}
