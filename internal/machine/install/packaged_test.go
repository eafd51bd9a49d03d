package install

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"github.com/hallmark-ssh/hallmark/internal/machine/config"
	"github.com/hallmark-ssh/hallmark/internal/machine/sshdconf"
)

// addPackage puts a package's files into the image, and makes its program the one that runs.
func (i *image) addPackage() {
	i.write(PackagedProgram, "packaged")
	for _, unit := range units() {
		i.write(filepath.Join(packagedUnits, unit), "packaged")
	}
	i.self = filepath.Join(i.root, PackagedProgram)
}

// The package's program and units are used in place, and nothing hides them.
func TestInstallFromPackage(t *testing.T) {
	i := newImage(t, withInclude)
	alone := i.self
	if _, err := i.Install(t.Context(), i.from); err != nil {
		t.Fatal(err)
	}
	without := i.tree()

	i.addPackage()
	packaged := i.tree()
	changes, err := i.Install(t.Context(), i.from)
	if err != nil || i.enabled != 2 {
		t.Fatalf("enabled %d, %v", i.enabled, err)
	}
	var want []string
	for _, path := range []string{
		Program, "/etc/systemd/system/hallmark.service", "/etc/systemd/system/hallmark.timer", "/etc/systemd/system/hallmark-renew.timer",
	} {
		want = append(want, "removed "+filepath.Join(i.root, path))
		delete(packaged, path)
	}
	if got := slices.Sorted(slices.Values(changes)); !slices.Equal(got, slices.Sorted(slices.Values(want))) {
		t.Errorf("changes %q, want %q", got, want)
	}
	if !equal(i.tree(), packaged) {
		t.Errorf("files %v, want %v", i.tree(), packaged)
	}
	if changes, err := i.Install(t.Context(), i.from); err != nil || len(changes) > 0 {
		t.Errorf("the second run: %v, %v", changes, err)
	}

	// A program that is not the package's takes over again.
	i.self = alone
	if _, err := i.Install(t.Context(), i.from); err != nil {
		t.Fatal(err)
	}
	for path, file := range without {
		if i.tree()[path] != file {
			t.Errorf("%s is %q, want %q", path, i.tree()[path], file)
		}
	}
}

func TestFirstInstallFromPackage(t *testing.T) {
	i := newImage(t, withInclude)
	i.addPackage()
	before := i.tree()
	if _, err := i.Install(t.Context(), i.from); err != nil {
		t.Fatal(err)
	}
	after := i.tree()
	for _, path := range []string{config.File, recordFile, sshdconf.CAFile, sshdconf.DropIn} {
		if after[path] == "" {
			t.Errorf("%s was not installed", path)
		}
		delete(after, path)
	}
	if !equal(after, before) {
		t.Errorf("files %v, want %v", after, before)
	}
}

// A program at the package's path without the package's units is not the package's.
func TestInstallFromUsrBinWithoutPackage(t *testing.T) {
	i := newImage(t, withInclude)
	i.addPackage()
	if err := os.RemoveAll(filepath.Join(i.root, packagedUnits)); err != nil {
		t.Fatal(err)
	}
	if _, err := i.Install(t.Context(), i.from); err != nil {
		t.Fatal(err)
	}
	if i.read(Program) != "packaged" || i.read("/etc/systemd/system/hallmark.service") == "" {
		t.Errorf("files: %v", i.tree())
	}
}

// If the link leads to the unit of another folder, systemctl enable does not correct it.
func TestEnableVerb(t *testing.T) {
	const own, others = "/etc/systemd/system/hallmark.timer", "/lib/systemd/system/hallmark.timer"
	for _, test := range []struct {
		name      string
		link      string
		installed bool // in /etc
		want      string
	}{
		{"first", "", true, "enable"},
		{"first of a package", "", false, "enable"},
		{"again", own, true, "enable"},
		{"again of a package", others, false, "enable"},
		{"to a package", own, false, "reenable"},
		{"from a package", others, true, "reenable"},
	} {
		t.Run(test.name, func(t *testing.T) {
			i := newImage(t, withInclude)
			if test.installed {
				i.write(own, "")
			}
			if test.link != "" {
				path := filepath.Join(i.root, unitDir, "timers.target.wants", "hallmark.timer")
				if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.Symlink(test.link, path); err != nil {
					t.Fatal(err)
				}
			}
			if got := enableVerb(i.root); got != test.want {
				t.Errorf("%s, want %s", got, test.want)
			}
		})
	}
}

// The installation says which timers it enabled: a reinstalled package's are disabled, and nothing
// else changes then.
func TestEnableTimers(t *testing.T) {
	if _, err := exec.LookPath("systemctl"); err != nil {
		if os.Getenv("HALLMARK_TEST_STRICT") != "" {
			t.Fatal(err)
		}
		t.Skip("there is no systemctl")
	}
	i := newImage(t, withInclude)
	for _, unit := range timers() {
		i.write(filepath.Join(unitDir, unit), "[Timer]\nOnBootSec=0\n[Install]\nWantedBy=timers.target\n")
	}
	for _, want := range [][]string{{"enabled hallmark.timer", "enabled hallmark-renew.timer"}, nil} {
		if got, err := enableTimers(t.Context(), i.root); err != nil || !slices.Equal(got, want) {
			t.Errorf("%q, %v; want %q", got, err, want)
		}
	}
}
