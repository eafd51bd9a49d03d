package install

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/hallmark-ssh/hallmark/internal/machine/fault"
	"github.com/hallmark-ssh/hallmark/internal/machine/machinetest"
	"github.com/hallmark-ssh/hallmark/internal/machine/sshdconf"
)

// Install also compares each installation of these tests with its preview: the preview changes
// nothing, fails only if the installation does, for the same reason, and announces its changes.
func (i *image) Install(ctx context.Context, from string) ([]string, error) {
	i.t.Helper()
	if i.server != judge(i) {
		return i.Installer.Install(ctx, from) // a real sshd takes a while
	}
	before, enabled, noted := i.tree(), i.enabled, i.noted
	preview, previewErr := i.Preview(ctx, from)
	if !equal(i.tree(), before) || i.enabled != enabled || i.noted != noted {
		i.t.Errorf("the preview changed something: %v, before %v", i.tree(), before)
	}
	changes, err := i.Installer.Install(ctx, from)
	if previewErr != nil && (err == nil || err.Error() != previewErr.Error()) {
		i.t.Errorf("the preview failed with %v, the installation with %v", previewErr, err)
	}
	announced := slices.DeleteFunc(preview, func(line string) bool { return strings.HasPrefix(line, "would enable ") })
	did := strings.NewReplacer("would write ", "wrote ", "would replace ", "replaced ", "would remove ", "removed ")
	for n, line := range announced {
		announced[n] = did.Replace(line)
	}
	if err == nil && !slices.Equal(announced, changes) {
		i.t.Errorf("the preview announced %q, the installation made %q", announced, changes)
	}
	return changes, err
}

func TestPreview(t *testing.T) {
	i := newImage(t, withInclude)
	i.write(Program, "older")
	i.write(sshdconf.CAFile, "older")
	i.write(filepath.Join(unitDir, "timers.target.wants/x"), "")
	if err := os.Symlink(filepath.Join(unitDir, "hallmark.timer"), filepath.Join(i.root, unitDir, "timers.target.wants/hallmark.timer")); err != nil {
		t.Fatal(err)
	}
	lines, err := i.Preview(t.Context(), i.from)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"would write " + recordFile,
		"would replace " + Program,
		"would write /etc/systemd/system/hallmark.service",
		"would write /etc/systemd/system/hallmark.timer",
		"would write /etc/systemd/system/hallmark-renew.timer",
		"would write /etc/hallmark/config.yaml",
		"would replace " + sshdconf.CAFile,
		"would write " + sshdconf.DropIn,
		"would enable hallmark-renew.timer",
	}
	for n, line := range lines {
		lines[n] = strings.ReplaceAll(line, i.root, "")
	}
	if !slices.Equal(lines, want) {
		t.Errorf("lines\n%s\nwant\n%s", strings.Join(lines, "\n"), strings.Join(want, "\n"))
	}
}

func TestNewNeedsSystemd(t *testing.T) {
	i := &image{t: t, root: t.TempDir()}
	i.write("/usr/sbin/sshd", "")
	t.Setenv("PATH", i.root)
	_, err := New(i.root, t.Logf)
	machinetest.WantError(t, err, fault.Failed, "there is no systemctl in PATH", "use a distribution with systemd")
}
