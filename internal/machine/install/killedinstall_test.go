//go:build linux && amd64

package install

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hallmark-ssh/hallmark/internal/machine/machinetest"
	"github.com/hallmark-ssh/hallmark/internal/machine/sshdconf"
	"github.com/hallmark-ssh/hallmark/internal/sshkey"
	"github.com/hallmark-ssh/hallmark/internal/sshkey/sshkeytest"
)

// An installation that is killed at any step leaves either sshd's old settings or its new
// ones, and the next one completes it.
func TestKilledInstall(t *testing.T) {
	const block = "# BEGIN hallmark\nTrustedUserCAKeys /etc/ssh/hallmark/openssh_ca.pub\n# END hallmark\n"
	for name, config := range map[string]string{
		"drop-in": withInclude, "block": withoutInclude, "from block to drop-in": block + withInclude,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ca := sshkey.Line(sshkeytest.NewSigner(t).PublicKey())
			machinetest.KillAtEveryStep(t, 19, func(step int) bool {
				i := newImage(t, config)
				i.give("openssh_ca.pub", ca+"\n")
				if name == "block" {
					i.write(sshdconf.DropIn, "TrustedUserCAKeys /etc/ssh/hallmark/openssh_ca.pub\n")
				}
				before := i.settings()
				killed, what := i.killedAt(step)
				between := i.settings()
				if _, err := i.Installer.Install(t.Context(), i.from); err != nil {
					t.Fatalf("killed at step %d (%s), the next run: %v", step, what, err)
				}
				after := i.settings()
				if between != before && between != after {
					t.Errorf("killed at step %d (%s) sshd's settings are\n%s\nneither the old\n%s\nnor the new\n%s", step, what, between, before, after)
				}
				for path := range i.tree() {
					if strings.Contains(path, ".hallmark-") && !strings.HasSuffix(path, "-saved") {
						t.Errorf("killed at step %d (%s), the next run leaves %s", step, what, path)
					}
				}
				return killed
			})
		})
	}
}

// settings are the settings that sshd would take from the files, each once.
func (i *image) settings() string {
	logins, err := i.Logins(i.t.Context())
	if err != nil {
		i.t.Fatal(err)
	}
	seen := map[string]bool{}
	var all strings.Builder
	for line := range strings.Lines(string(logins[0].Settings)) {
		if !seen[line] {
			all.WriteString(line)
		}
		seen[line] = true
	}
	return all.String()
}

const killedInstall = "HALLMARK_KILLED_INSTALL"

// TestKilledInstallRun is the installation that is killed.
func TestKilledInstallRun(t *testing.T) {
	root := os.Getenv(killedInstall)
	if root == "" {
		t.Skip("it is for TestKilledInstall")
	}
	i := &image{t: t, root: root, from: os.Getenv("HALLMARK_FROM")}
	i.Installer = &Installer{
		root: root, self: filepath.Join(i.from, "hallmark"), server: i, log: t.Logf,
		enable: func(context.Context) ([]string, error) { return nil, nil }, observe: i.noteSettings,
	}
	if _, err := i.Installer.Install(context.Background(), i.from); err != nil {
		t.Fatal(err)
	}
}

func (i *image) killedAt(step int) (killed bool, what string) {
	i.t.Helper()
	return machinetest.RunTraced(i.t, "TestKilledInstallRun", i.root, step, killedInstall+"="+i.root, fmt.Sprintf("HALLMARK_FROM=%s", i.from))
}
