package agent

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hallmark-ssh/hallmark/internal/machine/sshd"
)

// A main configuration that is a link stays one, and what it leads to changes.
func TestInstallKeepsALink(t *testing.T) {
	for _, target := range []string{"/usr/share/sshd/config", "../../usr/share/sshd/config"} {
		i := newImage(t, "")
		i.write("/usr/share/sshd/config", withoutInclude)
		main := filepath.Join(i.root, sshd.MainConfig)
		if err := os.Remove(main); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(target, main); err != nil {
			t.Fatal(err)
		}
		// A link to an absolute path leads into the root, wherever that is.
		if _, err := i.Install(t.Context(), i.from); err != nil {
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
		vendor := i.read(sshd.VendorConfig)
		if _, err := i.Install(t.Context(), i.from); err != nil {
			t.Fatal(err)
		}
		if i.read(sshd.VendorConfig) != vendor || i.read(sshd.MainConfig) != "" || i.read(sshd.DropIn) == "" {
			t.Errorf("files: %q", i.tree())
		}
	})
	t.Run("without", func(t *testing.T) {
		i := newImage(t, "")
		i.suse("UsePAM yes\n")
		vendor := i.read(sshd.VendorConfig)
		for _, changes := range []bool{true, false} {
			changed, err := i.Install(t.Context(), i.from)
			if err != nil || changed != changes {
				t.Fatal(changed, err)
			}
		}
		got := i.read(sshd.MainConfig)
		if i.read(sshd.VendorConfig) != vendor || !strings.HasSuffix(got, "# END hallmark\nInclude /usr/etc/ssh/sshd_config\n") {
			t.Errorf("main configuration: %q", got)
		}
	})
}

func (i *image) suse(config string) {
	if err := os.Remove(filepath.Join(i.root, sshd.MainConfig)); err != nil {
		i.t.Fatal(err)
	}
	i.write(sshd.VendorConfig, config)
}

func TestInstallRefusesNamesItDoesNotKnow(t *testing.T) {
	for _, name := range []string{"openssh-ca.pub", "openssh_ca.pem", "signer-ca.pem", "config.yml"} {
		i := newImage(t, withInclude)
		i.give(name, "x")
		before := i.tree()
		_, err := i.Install(t.Context(), i.from)
		wantError(t, err, Misconfigured, name, "rename it")
		if !equal(i.tree(), before) {
			t.Error("files were changed")
		}
	}
}

// Trust at enrollment, and the CAs of an earlier bake.
func TestInstallRefusesStaleCAs(t *testing.T) {
	i := newImage(t, withInclude)
	if _, err := i.Install(t.Context(), i.from); err != nil {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(i.from, installCAs)); err != nil {
		t.Fatal(err)
	}
	_, err := i.Install(t.Context(), i.from)
	wantError(t, err, Misconfigured, "is there already", "remove")
	i.write(statePath(StateDir), "{}") // they are the signer's then
	if _, err := i.Install(t.Context(), i.from); err != nil {
		t.Error(err)
	}
}

// Host keys outside /etc/ssh have certificates beside them, which the service may write.
func TestInstallForHostKeysElsewhere(t *testing.T) {
	i := newImage(t, withInclude+"HostKey /var/keys/host_ed25519\n")
	if _, err := i.Install(t.Context(), i.from); err != nil {
		t.Fatal(err)
	}
	if got := i.read(sshd.DropIn); !strings.Contains(got, "HostCertificate /var/keys/host_ed25519-cert.pub\n") {
		t.Errorf("drop-in: %s", got)
	}
	if got := i.read("/etc/systemd/system/hallmark.service.d/host-keys.conf"); !strings.Contains(got, "\nReadWritePaths=\"-/var/keys\"\n") {
		t.Errorf("unit: %q", got)
	}
}

// What a run could not put back is not lost by the next one.
func TestInstallKeepsTheOnlyCopy(t *testing.T) {
	saved := filepath.Join(filepath.Dir(sshd.MainConfig), ".sshd_config.hallmark-old")
	t.Run("the file is gone", func(t *testing.T) {
		i := newImage(t, withoutInclude)
		if err := os.Rename(filepath.Join(i.root, sshd.MainConfig), filepath.Join(i.root, saved)); err != nil {
			t.Fatal(err)
		}
		if err := sshd.RemoveLeftovers(filepath.Join(i.root, sshd.MainConfig)); err != nil || i.read(sshd.MainConfig) != withoutInclude {
			t.Errorf("%v; the main configuration is %q", err, i.read(sshd.MainConfig))
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
