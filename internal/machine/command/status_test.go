package command

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/cli"
	"github.com/hallmark-ssh/hallmark/internal/golden"
	"github.com/hallmark-ssh/hallmark/internal/machine/agent"
	"github.com/hallmark-ssh/hallmark/internal/machine/cafile"
	"github.com/hallmark-ssh/hallmark/internal/machine/config"
	"github.com/hallmark-ssh/hallmark/internal/machine/doctor"
	"github.com/hallmark-ssh/hallmark/internal/machine/fault"
	"github.com/hallmark-ssh/hallmark/internal/machine/findings"
	"github.com/hallmark-ssh/hallmark/internal/machine/handshake"
	"github.com/hallmark-ssh/hallmark/internal/machine/hostkey"
	"github.com/hallmark-ssh/hallmark/internal/machine/imds"
	"github.com/hallmark-ssh/hallmark/internal/machine/sshd"
	"github.com/hallmark-ssh/hallmark/internal/machine/state"
	"github.com/hallmark-ssh/hallmark/internal/sshkey"
)

var update = flag.Bool("update", false, "rewrite the golden files")

var now = time.Date(2026, 3, 8, 12, 0, 0, 0, time.UTC)

// signer returns a key that is the same in every run, so that its fingerprint is too.
func signer(t *testing.T, n byte) ssh.Signer {
	t.Helper()
	s, err := ssh.NewSignerFromKey(ed25519.NewKeyFromSeed(bytes.Repeat([]byte{n}, ed25519.SeedSize)))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func certify(t *testing.T, end time.Time) *ssh.Certificate {
	t.Helper()
	cert := &ssh.Certificate{
		Key: signer(t, 1).PublicKey(), CertType: ssh.HostCert, Serial: 7, ValidPrincipals: []string{"web-i-0"},
		ValidAfter: uint64(now.Add(-48 * time.Hour).Unix()), ValidBefore: uint64(end.Unix()),
	}
	if err := cert.SignCert(bytes.NewReader(make([]byte, 64)), signer(t, 2)); err != nil {
		t.Fatal(err)
	}
	return cert
}

const certPath = "/etc/ssh/ssh_host_ed25519_key-cert.pub"

// healthy is a machine in which every check passes.
func healthy(t *testing.T) *doctor.Facts {
	t.Helper()
	cert := certify(t, now.Add(5*24*time.Hour))
	key := hostkey.Key{Path: strings.TrimSuffix(certPath, "-cert.pub"), Public: cert.Key, Certificate: cert}
	instance := imds.Instance{AccountID: "111122223333", Region: "us-west-2", InstanceID: "i-0123456789abcdef0"}
	c := config.Config{SignerURL: "https://signer.example.com/", Audience: "hallmark.example.com"}
	s := &state.State{
		Version: state.Version, Instance: instance, Config: c.Digest(),
		Principals:   []string{"web-i-0", "web-i-0.example.com", "uuid", "uuid.example.com"},
		Certificates: []state.Certificate{hostkey.StateOf(key, cert)}, Presented: true,
		OpenSSHCAs: []string{sshkey.Line(signer(t, 3).PublicKey())}, HostCAs: []string{sshkey.Line(signer(t, 2).PublicKey())},
		EnrolledAt: now.Add(-48 * time.Hour), RenewAfter: now.Add(51*time.Hour + 30*time.Minute),
	}
	s.Node.Cluster, s.Node.Hostname, s.Node.ID = "example.com", "web-i-0", "uuid"
	return &doctor.Facts{
		Now: now, Root: true, ConfigFile: config.File, Config: c, StateFile: state.Path(state.Dir), State: s, Instance: &instance,
		CAFile: "/etc/ssh/hallmark/openssh_ca.pub", CAs: cafile.Render([]ssh.PublicKey{signer(t, 3).PublicKey()}),
		LockFile: state.LockPath(state.Dir),
		Files:    []doctor.File{{Path: certPath, Certificate: cert}},
		Disk:     []doctor.Folder{{Path: "/etc/ssh", Free: 1 << 30}},
		Settings: &sshd.Effective{TrustedUserCAKeys: "/etc/ssh/hallmark/openssh_ca.pub"},
		Keys:     []hostkey.Key{key},
		Listeners: []doctor.Listener{
			{Address: "127.0.0.1:22", Offers: []doctor.Offer{{Path: certPath, Certificate: cert, Same: true}}},
			{Address: "[::1]:22", Offers: []doctor.Offer{{Path: certPath, Certificate: cert, Same: true}}},
		},
		Units: map[string]doctor.Unit{
			doctor.BootTimer:   {Name: doctor.BootTimer, Loaded: true, Active: true, State: "active (elapsed)", Enabled: "enabled"},
			doctor.RenewTimer:  {Name: doctor.RenewTimer, Loaded: true, Active: true, State: "active (waiting)", Enabled: "enabled", Next: now.Add(40 * time.Minute)},
			doctor.ServiceUnit: {Name: doctor.ServiceUnit, Loaded: true, State: "inactive (dead)", Enabled: "static", Result: "success", Ended: now.Add(-20 * time.Minute)},
		},
	}
}

// without returns a unit that differs.
func with(units map[string]doctor.Unit, name string, change func(*doctor.Unit)) {
	u := units[name]
	change(&u)
	units[name] = u
}

// broken are machines with one thing wrong. Each row says what status must report first, and
// how it exits.
var broken = []struct {
	name   string
	change func(*testing.T, *doctor.Facts)
	code   int
	check  string
	text   string
}{
	{"healthy", func(*testing.T, *doctor.Facts) {}, cli.OK, "", ""},
	{"not enrolled", func(_ *testing.T, f *doctor.Facts) { f.State, f.Files = nil, nil }, cli.Failed, "enrollment", "not enrolled"},
	{"installed and not enrolled", func(_ *testing.T, f *doctor.Facts) {
		f.State, f.Files[0] = nil, doctor.File{Path: certPath, Err: &fs.PathError{Op: "stat", Path: certPath, Err: fs.ErrNotExist}}
		for n := range f.Listeners {
			f.Listeners[n].Offers[0] = doctor.Offer{Path: certPath, Err: fmt.Errorf("handshake: %w: no common algorithm", handshake.ErrNotPresented)}
		}
	}, cli.Failed, "enrollment", "not enrolled"},
	{"the state is damaged", func(_ *testing.T, f *doctor.Facts) { f.State, f.Damaged = nil, true }, cli.Failed, "enrollment", "damaged"},
	{"another instance's disk", func(_ *testing.T, f *doctor.Facts) {
		f.Instance = &imds.Instance{InstanceID: "i-1"}
	}, cli.Failed, "enrollment", "but this is i-1"},
	{"another audience", func(_ *testing.T, f *doctor.Facts) { f.Config.Audience = "other" }, cli.Failed, "enrollment", "audience"},
	{"the certificate is gone", func(_ *testing.T, f *doctor.Facts) {
		f.Files[0] = doctor.File{Path: certPath, Err: fs.ErrNotExist}
	}, cli.Failed, "certificates", "is missing"},
	{"the certificate is damaged", func(_ *testing.T, f *doctor.Facts) {
		f.Files[0] = doctor.File{Path: certPath, Err: errors.New("damaged")}
	}, cli.Failed, "certificates", "damaged"},
	{"the certificate expired", func(t *testing.T, f *doctor.Facts) {
		f.Files[0].Certificate = certify(t, now.Add(-time.Hour))
	}, cli.Failed, "certificates", "expired at 2026-03-08T11:00:00Z"},
	{"the certificate expires now", func(t *testing.T, f *doctor.Facts) {
		f.Files[0].Certificate = certify(t, now)
	}, cli.Failed, "certificates", "expired"},
	{"a certificate of another key", func(t *testing.T, f *doctor.Facts) {
		cert := *f.Files[0].Certificate
		cert.Key = signer(t, 9).PublicKey()
		f.Files[0].Certificate = &cert
	}, cli.Failed, "certificates", "of another key"},
	{"an older certificate", func(_ *testing.T, f *doctor.Facts) {
		cert := *f.Files[0].Certificate
		cert.Serial = 6
		f.Files[0].Certificate = &cert
	}, cli.Failed, "certificates", "not the certificate that Hallmark installed"},
	{"a certificate of another CA", func(t *testing.T, f *doctor.Facts) {
		cert := *f.Files[0].Certificate
		cert.SignatureKey = signer(t, 9).PublicKey()
		f.Files[0].Certificate = &cert
	}, cli.Failed, "certificates", "not the cluster's"},
	{"the renewal is days overdue", func(_ *testing.T, f *doctor.Facts) {
		f.State.RenewAfter = now.Add(-50 * time.Hour)
	}, cli.Failed, "renewal", "overdue by 2d 2h"},
	{"the renewal is hours overdue", func(_ *testing.T, f *doctor.Facts) {
		f.State.RenewAfter = now.Add(-4 * time.Hour)
	}, cli.OK, "renewal", "overdue by 4h"},
	{"the renewal is due", func(_ *testing.T, f *doctor.Facts) { f.State.RenewAfter = now.Add(-time.Minute) }, cli.OK, "", ""},
	{"the clock was set back", func(_ *testing.T, f *doctor.Facts) {
		f.State.EnrolledAt = now.Add(47 * time.Hour)
	}, cli.Failed, "renewal", "before its enrollment"},
	{"the CAs are gone", func(_ *testing.T, f *doctor.Facts) { f.CAs, f.CAsErr = nil, fs.ErrNotExist }, cli.Failed, "trusted CAs", "is missing"},
	{"the CAs were edited", func(_ *testing.T, f *doctor.Facts) { f.CAs = append(f.CAs, '\n') }, cli.Failed, "trusted CAs", "not the file that Hallmark wrote"},
	{"sshd presents another certificate", func(t *testing.T, f *doctor.Facts) {
		f.Listeners[1].Offers[0] = doctor.Offer{Path: certPath, Certificate: certify(t, now.Add(time.Hour))}
	}, cli.Failed, "presented", "[::1]:22 presents a different certificate"},
	{"sshd presents none", func(_ *testing.T, f *doctor.Facts) {
		f.Listeners[0].Offers[0] = doctor.Offer{Path: certPath, Err: handshake.ErrNotPresented}
	}, cli.Failed, "presented", "does not present"},
	{"sshd hangs", func(_ *testing.T, f *doctor.Facts) {
		f.Listeners[0].Offers[0] = doctor.Offer{Path: certPath, Err: handshake.ErrNoAnswer}
	}, cli.Failed, "presented", "does not answer"},
	{"TCP wrappers", func(_ *testing.T, f *doctor.Facts) {
		f.Listeners[0].Offers[0] = doctor.Offer{Path: certPath, Err: handshake.ErrClosed}
	}, cli.OK, "presented", "does not let this machine check"},
	{"sshd is stopped", func(_ *testing.T, f *doctor.Facts) { f.Listeners = nil }, cli.Failed, "sshd", "is not running"},
	{"no sshd", func(_ *testing.T, f *doctor.Facts) {
		f.Settings, f.SettingsErr, f.ListenersErr = nil, sshd.ErrNoServer, sshd.ErrNoServer
	}, cli.Failed, "sshd", "no sshd program"},
	{"no host keys", func(_ *testing.T, f *doctor.Facts) { f.Settings, f.SettingsErr = nil, sshd.ErrNoHostKeys }, cli.Failed, "sshd", "no host keys"},
	{"a broken sshd_config", func(_ *testing.T, f *doctor.Facts) {
		f.Settings, f.SettingsErr = nil, &sshd.ConfigError{
			Lines: []sshd.Line{{File: "/etc/ssh/sshd_config.d/x.conf", Number: 3}}, Err: errors.New("line 3: Bad configuration option"),
		}
	}, cli.Failed, "sshd", "Bad configuration option"},
	{"an sshd_config broken somewhere", func(_ *testing.T, f *doctor.Facts) {
		f.Settings, f.SettingsErr = nil, errors.New("Bad SSH2 cipher spec")
	}, cli.Failed, "sshd", "Bad SSH2 cipher spec"},
	{"no TrustedUserCAKeys", func(_ *testing.T, f *doctor.Facts) { f.Settings.TrustedUserCAKeys = "" }, cli.Failed, "settings", "trusts no CA"},
	{"another TrustedUserCAKeys", func(_ *testing.T, f *doctor.Facts) { f.Settings.TrustedUserCAKeys = "/ca" }, cli.Failed, "settings", "trusts the CAs in /ca"},
	{"a setting that blocks", func(_ *testing.T, f *doctor.Facts) {
		f.Problems = []findings.Finding{{
			Keyword: "PubkeyAuthentication", Value: "no", Blocks: true, Consequence: "sshd accepts no certificates",
			Remedy: "write PubkeyAuthentication yes", Places: []sshd.Line{{File: "/etc/ssh/sshd_config", Number: 3}},
		}}
	}, cli.Failed, "settings", "PubkeyAuthentication no"},
	{"a setting that limits", func(_ *testing.T, f *doctor.Facts) {
		f.Problems = []findings.Finding{{Keyword: "PerSourceMaxStartups", Value: "1", Remedy: "write PerSourceMaxStartups none"}}
	}, cli.OK, "settings", "PerSourceMaxStartups 1"},
	{"no key to certify", func(_ *testing.T, f *doctor.Facts) { f.Keys, f.KeysErr = nil, errors.New("none can be certified") }, cli.Failed, "host keys", "none can be certified"},
	{"a timer is disabled", func(_ *testing.T, f *doctor.Facts) {
		with(f.Units, doctor.RenewTimer, func(u *doctor.Unit) { u.Enabled = "disabled" })
	}, cli.Failed, "timers", "hallmark-renew.timer is disabled"},
	{"a timer is stopped", func(_ *testing.T, f *doctor.Facts) {
		with(f.Units, doctor.RenewTimer, func(u *doctor.Unit) { u.Active = false })
	}, cli.Failed, "timers", "is not running"},
	{"no timers", func(_ *testing.T, f *doctor.Facts) { f.Units = nil }, cli.Failed, "timers", "is not installed"},
	{"the last run was killed", func(_ *testing.T, f *doctor.Facts) {
		with(f.Units, doctor.ServiceUnit, func(u *doctor.Unit) { u.Result, u.Signal, u.ExitCode = "signal", true, 9 })
	}, cli.OK, "last run", "signal 9"},
	{"an outage", func(_ *testing.T, f *doctor.Facts) {
		f.FailedRuns = &agent.FailedRuns{Failures: 3, Kind: fault.Temporary, Reason: "no answer", Hint: "wait", NotBefore: now.Add(4 * time.Minute)}
	}, cli.OK, "last run", "the last 3 runs failed: no answer; the next attempt is at 2026-03-08T12:04:00Z"},
	{"the signer refuses", func(_ *testing.T, f *doctor.Facts) {
		f.FailedRuns = &agent.FailedRuns{Failures: 1, Kind: fault.Refused, Reason: "policy_refused", Hint: "ask the operator"}
	}, cli.Failed, "last run", "policy_refused"},
	{"a stuck run", func(_ *testing.T, f *doctor.Facts) { f.LockedSince = now.Add(-time.Hour) }, cli.Failed, "lock", "stuck since"},
	{"a run in progress", func(_ *testing.T, f *doctor.Facts) { f.LockedSince = now.Add(-time.Minute) }, cli.OK, "", ""},
	{"waiting for a reload", func(_ *testing.T, f *doctor.Facts) {
		f.State.Waiting = &state.Waiting{Since: now.Add(-time.Hour), AccessEnds: now.Add(48 * time.Hour), Reason: "permittty changed"}
	}, cli.OK, "reload", "permittty changed"},
	{"waiting for too long", func(_ *testing.T, f *doctor.Facts) {
		f.State.Waiting = &state.Waiting{Since: now.Add(-time.Hour), AccessEnds: now.Add(time.Minute), Reason: "permittty changed"}
	}, cli.Failed, "reload", "access through Teleport ends"},
	{"the disk is full", func(_ *testing.T, f *doctor.Facts) { f.Disk[0].Free = 0 }, cli.Failed, "disk", "free space"},
	{"no inodes", func(_ *testing.T, f *doctor.Facts) { f.Disk[0].Limited = true }, cli.Failed, "disk", "inodes"},
	{"a read-only disk", func(_ *testing.T, f *doctor.Facts) { f.Disk[0].ReadOnly = true }, cli.Failed, "disk", "read-only"},
	{"a folder in place of a file", func(_ *testing.T, f *doctor.Facts) { f.DirsFound = []string{f.CAFile} }, cli.Failed, "files", "/etc/ssh/hallmark/openssh_ca.pub"},
	{"the settings are gone", func(_ *testing.T, f *doctor.Facts) {
		f.Settings.TrustedUserCAKeys, f.Keys = "", nil
		f.KeysErr = fault.Newf(fault.Temporary, "check that 'hallmark install' has run", "none can be certified")
		f.State.RenewAfter = now.Add(-50 * time.Hour)
	}, cli.Failed, "settings", "trusts no CA"},
	{"host keys of another CA", func(_ *testing.T, f *doctor.Facts) {
		f.Keys, f.KeysErr = nil, fault.Newf(fault.Misconfigured, "set host_certificate: replace", "%w (another CA has)", hostkey.ErrTaken)
	}, cli.Failed, "host keys", "another CA"},
	{"a folder in place of the configuration", func(_ *testing.T, f *doctor.Facts) {
		f.ConfigErr, f.DirsFound = syscall.EISDIR, []string{f.ConfigFile}
	}, cli.Failed, "files", "/etc/hallmark/config.yaml is a folder"},
	{"no configuration", func(_ *testing.T, f *doctor.Facts) { f.ConfigErr = fs.ErrNotExist }, cli.Failed, "configuration", "missing"},
	{"a wrong configuration", func(_ *testing.T, f *doctor.Facts) { f.ConfigErr = errors.New("line 3: unknown key") }, cli.Failed, "configuration", "line 3"},
	{"another CA's certificate", func(_ *testing.T, f *doctor.Facts) { f.Others = []string{"HostCertificate /ca-cert.pub"} }, cli.OK, "other CAs", "/ca-cert.pub"},
	{"without root", func(_ *testing.T, f *doctor.Facts) { f.Root, f.Settings, f.Keys = false, nil, nil }, exitPermission, "sshd", "without root"},
	{"without root, and broken", func(_ *testing.T, f *doctor.Facts) {
		f.Root, f.Settings, f.Keys = false, nil, nil
		f.Files[0] = doctor.File{Path: certPath, Err: fs.ErrNotExist}
	}, cli.Failed, "certificates", "is missing"},
	{"several faults", func(_ *testing.T, f *doctor.Facts) {
		f.Files[0] = doctor.File{Path: certPath, Err: fs.ErrNotExist}
		f.Listeners[0].Offers[0] = doctor.Offer{Path: certPath, Err: handshake.ErrNotPresented}
		f.State.RenewAfter = now.Add(-72 * time.Hour)
		f.FailedRuns = &agent.FailedRuns{Failures: 9, Kind: fault.Temporary, Reason: "no answer", Hint: "wait", NotBefore: now.Add(time.Hour)}
	}, cli.Failed, "certificates", "is missing"},
}

// Each state of a machine has its first finding, an exit code, a screen and a JSON object.
func TestStatus(t *testing.T) {
	for _, test := range broken {
		t.Run(test.name, func(t *testing.T) {
			f := healthy(t)
			test.change(t, f)
			var screen, object bytes.Buffer
			err := showStatus(&screen, f, false)
			if got := codeOf(err); got != test.code {
				t.Errorf("exit code %d, want %d: %v", got, test.code, err)
			}
			compare(t, test.name, screen.Bytes())
			if jsonErr := showStatus(&object, f, true); codeOf(jsonErr) != test.code {
				t.Errorf("with --json: %v, want code %d", jsonErr, test.code)
			}
			var s status
			if err := json.Unmarshal(object.Bytes(), &s); err != nil {
				t.Fatalf("--json printed no object: %v\n%s", err, &object)
			}
			first := s.Findings[0]
			if test.check == "" {
				if first.Level != doctor.OK {
					t.Errorf("first finding %+v, want none", first)
				}
				return
			}
			if first.Check != test.check || !strings.Contains(first.Text, test.text) || first.Fix == "" {
				t.Errorf("first finding %+v, want %s: …%s…, and a fix", first, test.check, test.text)
			}
		})
	}
}

func codeOf(err error) int {
	e, ok := errors.AsType[*cli.Error](err)
	switch {
	case err == nil:
		return cli.OK
	case !ok:
		return cli.Failed
	}
	return e.Code
}

// compare compares a screen with testdata/status/NAME.golden.
func compare(t *testing.T, name string, got []byte) {
	t.Helper()
	got = regexp.MustCompile(`(?m)^( +Version:) .*$`).ReplaceAll(got, []byte("$1 VERSION"))
	path := filepath.Join("testdata", "status", strings.NewReplacer(" ", "_", "'", "", ",", "").Replace(name)+".golden")
	golden.Compare(t, path, got, *update)
}

// Colors stand on the title and the faults, and nowhere when they are off.
func TestStatusColors(t *testing.T) {
	f := healthy(t)
	f.Listeners = nil
	var plain, colored bytes.Buffer
	for w, s := range map[*bytes.Buffer]style{&plain: {}, &colored: {color: true}} {
		if err := printStatus(w, newStatus(f), s); err != nil {
			t.Fatal(err)
		}
	}
	if strings.Contains(plain.String(), "\x1b") {
		t.Errorf("colors although they are off: %q", &plain)
	}
	if stripped := regexp.MustCompile("\x1b\\[[0-9;]*m").ReplaceAllString(colored.String(), ""); stripped != plain.String() || stripped == colored.String() {
		t.Errorf("with colors %q", &colored)
	}
	file, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if styleOf(file).color || styleOf(&plain).color {
		t.Error("colors for a file or a buffer")
	}
}

// docs/reference.md lists every member of the objects, and no other.
func TestSchemas(t *testing.T) {
	checkSchema(t, "hallmark status --json", reflect.TypeFor[status]())
	checkSchema(t, "hallmark doctor --json", reflect.TypeFor[diagnosis]())
}

func checkSchema(t *testing.T, command string, of reflect.Type) {
	t.Helper()
	data, err := os.ReadFile("../../../docs/reference.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(data), "### `"+command+"`")
	if !ok {
		t.Fatalf("no section about %s", command)
	}
	section, _, _ = strings.Cut(section, "\n#")
	var documented []string
	for _, row := range regexp.MustCompile("(?m)^\\| (`[^|]+`) \\|").FindAllStringSubmatch(section, -1) {
		for _, name := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(row[1], -1) {
			documented = append(documented, name[1])
		}
	}
	members := membersOf(of, "")
	slices.Sort(documented)
	slices.Sort(members)
	if !slices.Equal(documented, members) {
		t.Errorf("%s: documented\n%s\nmembers\n%s", command, strings.Join(documented, "\n"), strings.Join(members, "\n"))
	}
}

// membersOf returns the paths of a struct's JSON members.
func membersOf(of reflect.Type, prefix string) (paths []string) {
	for i := range of.NumField() {
		field := of.Field(i)
		if !field.IsExported() { // encoding/json leaves it out
			continue
		}
		name, _, _ := strings.Cut(field.Tag.Get("json"), ",")
		inner := field.Type
		path := prefix + name
		for inner.Kind() == reflect.Pointer || inner.Kind() == reflect.Slice {
			if inner.Kind() == reflect.Slice {
				path += "[]"
			}
			inner = inner.Elem()
		}
		if inner.Kind() == reflect.Struct && inner != reflect.TypeFor[time.Time]() {
			next := path + "."
			if field.Anonymous {
				next = prefix
			}
			paths = append(paths, membersOf(inner, next)...)
			continue
		}
		paths = append(paths, path)
	}
	return paths
}

// A look at a real machine ends in time, and is an object also where nothing is installed.
func TestStatusOfThisMachine(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), lookTimeout)
	defer cancel()
	var out bytes.Buffer
	_ = showStatus(&out, doctor.ThisMachine().Look(ctx), true) // whatever this machine is
	if !json.Valid(out.Bytes()) {
		t.Errorf("printed %s", &out)
	}
}
