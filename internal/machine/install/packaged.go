package install

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/hallmark-ssh/hallmark/templates/systemd"
)

// PackagedProgram is where a deb or rpm package puts hallmark. Its units are in packagedUnits.
const PackagedProgram = "/usr/bin/hallmark"

const packagedUnits = "/usr/lib/systemd/system"

// units are the names of Hallmark's units.
func units() []string { return []string{"hallmark.timer", "hallmark-renew.timer", "hallmark.service"} }

// packaged reports whether the program that runs belongs to a package in the root. Then the
// package's program and units are used in place, so that an upgrade of the package upgrades
// what the timers run.
func (in *Installer) packaged() (bool, error) {
	program, err := in.path(PackagedProgram)
	if err != nil {
		return false, err
	}
	service, err := in.path(filepath.Join(packagedUnits, "hallmark.service"))
	if err != nil {
		return false, err
	}
	self, err := os.Stat(in.self)
	if err != nil {
		return false, err
	}
	there, err := os.Stat(program)
	if err == nil {
		_, err = os.Stat(service)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil && os.SameFile(self, there), err
}

// programFiles returns the program and its units. A package has its own.
func (in *Installer) programFiles(program []byte) ([]file, error) {
	if packaged, err := in.packaged(); packaged || err != nil {
		return nil, err
	}
	return []file{
		{Program, program, 0o755},
		{filepath.Join(unitDir, "hallmark.service"), systemd.Service, 0o644},
		{filepath.Join(unitDir, "hallmark.timer"), systemd.Timer, 0o644},
		{filepath.Join(unitDir, "hallmark-renew.timer"), systemd.RenewTimer, 0o644},
	}, nil
}

// stageSuperseded removes what an installation without the package left: its units and program
// would hide the package's.
func (in *Installer) stageSuperseded(change staging) error {
	if packaged, err := in.packaged(); !packaged || err != nil {
		return err
	}
	var names []string
	for _, unit := range units() {
		names = append(names, filepath.Join(unitDir, unit))
	}
	for _, name := range append(names, Program) {
		path, err := in.path(name)
		if err != nil {
			return err
		}
		if _, err := os.Stat(filepath.Dir(path)); errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err := change.StageRemoval(path); err != nil {
			return err
		}
	}
	return nil
}

// enableVerb returns what systemctl has to do with the timers. If the link of an enabled timer
// leads to another folder, "enable" leaves the link there (systemd 252) or fails (older ones).
func enableVerb(root string) string {
	for _, unit := range units() {
		link, err := os.Readlink(filepath.Join(root, unitDir, "timers.target.wants", unit))
		if err != nil {
			continue // not enabled yet
		}
		_, err = os.Lstat(filepath.Join(root, unitDir, unit))
		if own := err == nil; own != (filepath.Dir(link) == unitDir) {
			return "reenable"
		}
	}
	return "enable"
}

// timersToEnable returns the timers that systemd would not start at boot yet.
func timersToEnable(root string) (names []string) {
	for _, timer := range timers() {
		if _, err := os.Readlink(filepath.Join(root, unitDir, "timers.target.wants", timer)); err != nil {
			names = append(names, timer)
		}
	}
	return names
}

// prefixed returns lines that begin with what was done, or would be, and end with names.
func prefixed(what string, names []string) (lines []string) {
	for _, name := range names {
		lines = append(lines, what+name)
	}
	return lines
}
