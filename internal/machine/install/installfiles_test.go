package install

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hallmark-ssh/hallmark/internal/machine/fault"
	"github.com/hallmark-ssh/hallmark/internal/machine/machinetest"
	"github.com/hallmark-ssh/hallmark/internal/machine/replace"
	"github.com/hallmark-ssh/hallmark/internal/machine/sshdconf"
	"github.com/hallmark-ssh/hallmark/internal/machine/state"
)

// A main configuration that is a link stays a link, and its target changes.
func TestInstallKeepsALink(t *testing.T) {
	for _, target := range []string{"/usr/share/sshd/config", "../../usr/share/sshd/config"} {
		i := newImage(t, "")
		i.write("/usr/share/sshd/config", withoutInclude)
		main := filepath.Join(i.root, sshdconf.MainConfig)
		if err := os.Remove(main); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(target, main); err != nil {
			t.Fatal(err)
		}
		// A link to an absolute path leads into the root, wherever the root is.
		if _, err := i.Installer.Install(t.Context(), i.from); err != nil {
			t.Fatal(err)
		}
		if got, err := os.Readlink(main); err != nil || got != target {
			t.Errorf("the link became %q, %v", got, err)
		}
		if got := i.read("/usr/share/sshd/config"); !strings.HasPrefix(got, "# BEGIN hallmark\n") {
			t.Errorf("what it leads to: %q", got)
		}
	}
}

func TestInstallOnSUSE(t *testing.T) {
	t.Run("with drop-ins", func(t *testing.T) {
		i := newImage(t, "")
		i.suse("Include /etc/ssh/sshd_config.d/*.conf\nInclude /usr/etc/ssh/sshd_config.d/*.conf\nUsePAM yes\n")
		vendor := i.read(sshdconf.VendorConfig)
		if _, err := i.Install(t.Context(), i.from); err != nil {
			t.Fatal(err)
		}
		if i.read(sshdconf.VendorConfig) != vendor || i.read(sshdconf.MainConfig) != "" || i.read(sshdconf.DropIn) == "" {
			t.Errorf("files: %q", i.tree())
		}
	})
	t.Run("without", func(t *testing.T) {
		i := newImage(t, "")
		i.suse("UsePAM yes\n")
		vendor := i.read(sshdconf.VendorConfig)
		for _, changes := range []bool{true, false} {
			lines, err := i.Install(t.Context(), i.from)
			if err != nil || (len(lines) > 0) != changes {
				t.Fatal(lines, err)
			}
		}
		got := i.read(sshdconf.MainConfig)
		if i.read(sshdconf.VendorConfig) != vendor || !strings.HasSuffix(got, "# END hallmark\nInclude /usr/etc/ssh/sshd_config\n") {
			t.Errorf("main configuration: %q", got)
		}
	})
}

func (i *image) suse(config string) {
	if err := os.Remove(filepath.Join(i.root, sshdconf.MainConfig)); err != nil {
		i.t.Fatal(err)
	}
	i.write(sshdconf.VendorConfig, config)
}

func TestInstallRefusesNamesItDoesNotKnow(t *testing.T) {
	for _, name := range []string{"openssh-ca.pub", "openssh_ca.pem", "signer-ca.pem", "config.yml"} {
		i := newImage(t, withInclude)
		i.give(name, "x")
		before := i.tree()
		_, err := i.Install(t.Context(), i.from)
		machinetest.WantError(t, err, fault.Misconfigured, name, "rename it")
		if !equal(i.tree(), before) {
			t.Error("files were changed")
		}
	}
}

// These are trust at enrollment, and an earlier bake's CAs.
func TestInstallRefusesStaleCAs(t *testing.T) {
	i := newImage(t, withInclude)
	if _, err := i.Install(t.Context(), i.from); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(i.from, installCAs)); err != nil {
		t.Fatal(err)
	}
	_, err := i.Install(t.Context(), i.from)
	machinetest.WantError(t, err, fault.Misconfigured, "already exists", "remove")
	i.write(state.Path(state.Dir), "{}") // then they come from the signer
	if _, err := i.Install(t.Context(), i.from); err != nil {
		t.Error(err)
	}
}

// Host keys outside /etc/ssh have their certificates next to them, and the service may write
// them.
func TestInstallForHostKeysElsewhere(t *testing.T) {
	i := newImage(t, withInclude+"HostKey /var/keys/host_ed25519\n")
	if _, err := i.Install(t.Context(), i.from); err != nil {
		t.Fatal(err)
	}
	if got := i.read(sshdconf.DropIn); !strings.Contains(got, "HostCertificate /var/keys/host_ed25519-cert.pub\n") {
		t.Errorf("drop-in: %s", got)
	}
	if got := i.read("/etc/systemd/system/hallmark.service.d/host-keys.conf"); !strings.Contains(got, "\nReadWritePaths=\"-/var/keys\"\n") {
		t.Errorf("unit: %q", got)
	}
}

// The next run does not lose what an earlier run could not restore.
func TestInstallKeepsTheOnlyCopy(t *testing.T) {
	saved := filepath.Join(filepath.Dir(sshdconf.MainConfig), ".sshd_config.hallmark-old")
	t.Run("the file is gone", func(t *testing.T) {
		i := newImage(t, withoutInclude)
		if err := os.Rename(filepath.Join(i.root, sshdconf.MainConfig), filepath.Join(i.root, saved)); err != nil {
			t.Fatal(err)
		}
		if err := replace.RemoveLeftovers(filepath.Join(i.root, sshdconf.MainConfig)); err != nil || i.read(sshdconf.MainConfig) != withoutInclude {
			t.Errorf("%v; the main configuration is %q", err, i.read(sshdconf.MainConfig))
		}
	})
	t.Run("the file is another", func(t *testing.T) {
		i := newImage(t, withoutInclude)
		i.write(saved, "# of people\n")
		for range 2 {
			if _, err := i.Install(t.Context(), i.from); err != nil {
				t.Fatal(err)
			}
		}
		kept := strings.Replace(saved, "-old", "-saved", 1)
		if i.read(kept) != "# of people\n" || i.read(saved) != "" {
			t.Errorf("files: %v", i.tree())
		}
	})
}
