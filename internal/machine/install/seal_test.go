package install

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/hallmark-ssh/hallmark/internal/machine/fault"
	"github.com/hallmark-ssh/hallmark/internal/machine/machinetest"
	"github.com/hallmark-ssh/hallmark/internal/machine/sshd"
	"github.com/hallmark-ssh/hallmark/internal/machine/sshdconf"
	"github.com/hallmark-ssh/hallmark/internal/machine/state"
)

func TestSealRefuses(t *testing.T) {
	program := "/usr/sbin/sshd"
	for _, test := range []struct {
		name  string
		files map[string]string // in addition to sshd and a host key
		want  string            // the error, or ""
	}{
		{"nothing makes host keys", nil, "generates host keys at boot"},
		{"cloud-init", map[string]string{"/usr/bin/cloud-init": "", "/etc/cloud/cloud.cfg": "cloud_init_modules:\n - seed_random\n - ssh\n"}, ""},
		{"cloud-init that is off", map[string]string{"/usr/bin/cloud-init": "", "/etc/cloud/cloud-init.disabled": ""}, "generates host keys"},
		{"cloud-init told not to", map[string]string{"/usr/bin/cloud-init": "", "/etc/cloud/cloud.cfg.d/99.cfg": "ssh_genkeytypes: []\n"}, "generates host keys"},
		{"cloud-init told to again", map[string]string{
			"/usr/bin/cloud-init": "", "/etc/cloud/cloud.cfg.d/98.cfg": "ssh_genkeytypes: []\n", "/etc/cloud/cloud.cfg.d/99.cfg": "ssh_genkeytypes: [ed25519]\n",
		}, ""},
		{"cloud-init without its ssh module", map[string]string{"/usr/bin/cloud-init": "", "/etc/cloud/cloud.cfg": "cloud_init_modules: [seed_random]\n"}, "generates host keys"},
		{"Red Hat's unit", map[string]string{"/usr/lib/systemd/system/sshd-keygen@.service": "[Service]\nExecStart=/usr/libexec/openssh/sshd-keygen %i\n"}, ""},
		{"the same, replaced", map[string]string{
			"/usr/lib/systemd/system/sshd-keygen@.service": "[Service]\nExecStart=/usr/libexec/openssh/sshd-keygen %i\n",
			"/etc/systemd/system/sshd-keygen@.service":     "[Service]\nExecStart=/bin/true\n",
		}, "generates host keys"},
		{"a unit of the image's", map[string]string{"/etc/systemd/system/keys.service": "[Service]\nExecStart=/usr/bin/ssh-keygen -A\n"}, ""},
		{"cloud-init told not to, by an empty value", map[string]string{"/usr/bin/cloud-init": "", "/etc/cloud/cloud.cfg": "ssh_genkeytypes: ~\n"}, "generates host keys"},
		{"cloud-init told to, without a list", map[string]string{"/usr/bin/cloud-init": "", "/etc/cloud/cloud.cfg": "ssh_genkeytypes: ed25519\n"}, ""},
		{"cloud-init with its ssh module again", map[string]string{
			"/usr/bin/cloud-init": "", "/etc/cloud/cloud.cfg": "cloud_init_modules: [seed_random]\n", "/etc/cloud/cloud.cfg.d/99.cfg": "cloud_init_modules: [[ssh, always]]\n",
		}, ""},
		{"cloud-init told not to, and its unit", map[string]string{
			"/usr/bin/cloud-init": "", "/etc/cloud/cloud.cfg.d/99.cfg": "ssh_genkeytypes: []\n",
			"/usr/lib/systemd/system/cloud-init.service": "[Unit]\nWants=sshd-keygen.service\nBefore=sshd-keygen.service\n[Service]\nExecStart=/usr/bin/cloud-init init\n",
		}, "generates host keys"},
		{"cloud-init told not to, and Red Hat's unit, which leaves it to cloud-init", map[string]string{
			"/usr/bin/cloud-init": "", "/etc/cloud/cloud.cfg": "ssh_genkeytypes: []\n",
			"/usr/lib/systemd/system/sshd-keygen@.service":                                                 "[Service]\nExecStart=/usr/libexec/openssh/sshd-keygen %i\n",
			"/usr/lib/systemd/system/sshd-keygen@.service.d/disable-sshd-keygen-if-cloud-init-active.conf": "[Unit]\nConditionPathExists=!/run/systemd/generator.early/multi-user.target.wants/cloud-init.target\n",
		}, "generates host keys"},
		{"cloud-init that is off, and Red Hat's unit, which leaves it to cloud-init", map[string]string{
			"/usr/bin/cloud-init": "", "/etc/cloud/cloud-init.disabled": "",
			"/usr/lib/systemd/system/sshd-keygen@.service":                                                 "[Service]\nExecStart=/usr/libexec/openssh/sshd-keygen %i\n",
			"/usr/lib/systemd/system/sshd-keygen@.service.d/disable-sshd-keygen-if-cloud-init-active.conf": "[Unit]\nConditionPathExists=!/run/systemd/generator.early/multi-user.target.wants/cloud-init.target\n",
		}, ""},
		{"a script", map[string]string{"/etc/rc.local": "#!/bin/sh\nssh-keygen -A\n"}, ""},
		{"a unit that only waits for one", map[string]string{"/etc/systemd/system/x.service": "[Unit]\nAfter=sshd-keygen.target\n# ssh-keygen -A\n"}, "generates host keys"},
	} {
		t.Run(test.name, func(t *testing.T) {
			i := newImage(t, withInclude)
			i.write(program, "")
			i.write("/etc/ssh/ssh_host_rsa_key", "x")
			for path, content := range test.files {
				i.write(path, content)
			}
			before := i.tree()
			removed, err := Seal(i.root)
			if test.want == "" {
				if err != nil || len(removed) != 1 {
					t.Errorf("removed %q, %v", removed, err)
				}
				return
			}
			machinetest.WantError(t, err, fault.Failed, test.want, "--host-keys-elsewhere")
			if !equal(i.tree(), before) {
				t.Error("files were removed")
			}
			if _, err := Seal(i.root, SealOptions{HostKeysElsewhere: true}); err != nil {
				t.Error(err)
			}
		})
	}
	for _, unit := range []string{"cloud-init.service", "cloud-init-network.service", "cloud-init.target"} {
		i := newImage(t, withInclude)
		i.write("/usr/bin/cloud-init", "")
		if !MakesHostKeys(i.root) {
			t.Error("cloud-init does not count")
		}
		i.write("/etc/systemd/system/others.service", "")
		if err := os.Symlink(os.DevNull, filepath.Join(i.root, "/etc/systemd/system", unit)); err != nil {
			t.Fatal(err)
		}
		if MakesHostKeys(i.root) {
			t.Errorf("cloud-init counts although %s is masked", unit)
		}
	}
	for name, root := range map[string]string{"missing": filepath.Join(t.TempDir(), "typo"), "empty": t.TempDir()} {
		_, err := Seal(root)
		if err == nil {
			t.Fatalf("%s: sealed a root without a system", name)
		}
		machinetest.WantError(t, err, fault.Failed, "is not a root file system", "--root")
	}
}

// Seal removes the host keys that sshd's configuration names, wherever they are inside the
// root, and nothing outside it.
func TestSealRemovesWhatTheConfigurationNames(t *testing.T) {
	i := newImage(t, "Include /etc/ssh/sshd_config.d/*.conf\nHostKey /var/keys/a\nHostKey \"/var/other keys/b\"\nHostKey /var/link\nHostKey /out/c\n\"HostKey\" /var/keys/e\n=HostKey=/var/keys/f\n")
	outside := t.TempDir()
	i.write("/etc/ssh/sshd_config.d/x.conf", "HostKey /var/keys/d\n")
	gone := []string{"/var/keys/a", "/var/keys/a.pub", "/var/keys/a-cert.pub", "/var/other keys/b", "/var/keys/d", "/var/keys/e", "/var/keys/f", "/srv/real"}
	for _, path := range append(slices.Clone(gone), "/var/keys/kept", "/srv/kept") {
		i.write(path, "x")
	}
	for _, link := range [][2]string{
		{"/srv/real", "/var/link"},       // absolute: inside the root
		{outside, "/out"},                // a folder outside
		{outside, "/var/lib/hallmark/x"}, // of the state folder
		{outside + "/c", "/etc/ssh/ssh_host_rsa_key"},
	} {
		path := filepath.Join(i.root, link[1])
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(link[0], path); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"c", "c.pub"} {
		if err := os.WriteFile(filepath.Join(outside, name), []byte("x"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Seal(i.root); err != nil {
		t.Fatal(err)
	}
	there := func(path string) bool {
		_, err := os.Lstat(filepath.Join(i.root, path))
		return err == nil
	}
	for _, path := range append(gone, "/var/link", "/etc/ssh/ssh_host_rsa_key", "/var/lib/hallmark/x") {
		if there(path) {
			t.Errorf("%s is still there", path)
		}
	}
	for _, path := range []string{"/var/keys/kept", "/srv/kept", sshdconf.MainConfig} {
		if !there(path) {
			t.Errorf("%s is gone", path)
		}
	}
	for _, name := range []string{"c", "c.pub"} {
		if _, err := os.Stat(filepath.Join(outside, name)); err != nil {
			t.Errorf("a file outside the root: %v", err)
		}
	}
}

// A machine that people log in to is not sealed by mistake.
func TestSealRefusesAnEnrolledMachine(t *testing.T) {
	dir := t.TempDir()
	if err := checkNotEnrolled(dir); err != nil {
		t.Errorf("before it is enrolled: %v", err)
	}
	enrolled := &state.State{Version: state.Version}
	enrolled.Node.Hostname = machinetest.HostName
	if err := state.Save(dir, enrolled); err != nil {
		t.Fatal(err)
	}
	machinetest.WantError(t, checkNotEnrolled(dir), fault.Failed, machinetest.HostName, "--force")
	if live, err := isLive("/proc/self/root"); err != nil || !live {
		t.Errorf("/proc/self/root is this machine: %v, %v", live, err)
	}
	if live, err := isLive(dir); err != nil || live {
		t.Errorf("a folder is this machine: %v, %v", live, err)
	}
}

// Seal finds every host key that sshd uses, however sshd's version reads the line that names it.
func TestSealFindsTheKeysThatSSHDUses(t *testing.T) {
	root, program := t.TempDir(), machinetest.FindSSHD(t)
	for _, folder := range []string{"/etc/ssh", "/srv/keys", "/srv/keys#1"} {
		if err := os.MkdirAll(filepath.Join(root, folder), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write := func(name, content string) {
		if err := os.WriteFile(filepath.Join(root, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"/srv/keys/a", "/srv/keys/b c", "/srv/keys#1/a"} {
		machinetest.WriteHostKey(t, "ed25519", filepath.Join(root, name))
	}
	used := 0
	for _, lines := range []string{
		"HostKey ROOT/srv/keys/a", "HostKey=ROOT/srv/keys/a # the key", "HostKey ROOT/srv/keys/a# the key", "HostKey ROOT/srv/keys/a#",
		"HostKey ROOT/srv/keys#1/a", "HostKey 'ROOT/srv/keys/a'", `HostKey "ROOT/srv/keys/b c"`, `HostKey 'ROOT/srv/keys/b c'`,
		`HostKey ROOT/srv/keys/b\ c`, `HostKey ROOT/srv/keys/"b c"`, "Include ROOT/srv/keys/conf# the keys", "Include 'ROOT/srv/keys/conf'",
	} {
		write("/srv/keys/conf", "HostKey "+root+"/srv/keys/a\n")
		write("/etc/ssh/sshd_config", strings.ReplaceAll(lines, "ROOT", root)+"\n")
		logins, err := (&sshd.Server{Program: program, Config: filepath.Join(root, sshdconf.MainConfig)}).Logins(t.Context())
		if err != nil {
			continue // this version of sshd does not accept the line
		}
		write("/srv/keys/conf", "HostKey /srv/keys/a\n") // as an sshd with this root sees it
		write("/etc/ssh/sshd_config", strings.ReplaceAll(lines, "ROOT", "")+"\n")
		found := HostKeys(root)
		for _, key := range sshd.Values(logins[0].Settings, "hostkey") {
			if _, err := os.Lstat(key); err != nil || !strings.HasPrefix(key, root) {
				continue
			}
			used++
			if !slices.Contains(found, key) {
				t.Errorf("%s: sshd uses %s, but Seal finds %q", lines, key, found)
			}
		}
		if slices.Contains(found, filepath.Join(root, "/srv/keys")) {
			t.Errorf("%s: Seal would remove a folder", lines)
		}
	}
	if used < 6 {
		t.Errorf("sshd used %d keys, want 6 at least", used)
	}
}
