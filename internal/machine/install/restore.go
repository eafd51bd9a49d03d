package install

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/hallmark-ssh/hallmark/internal/machine/rooted"
	"github.com/hallmark-ssh/hallmark/internal/machine/sshd"
	"github.com/hallmark-ssh/hallmark/internal/machine/sshdconf"
)

// restoration says how sshd's configuration becomes what it would be without Hallmark.
type restoration struct {
	plan
	// without says that Hallmark made the main file, which goes.
	without bool
}

// restoration is the reverse of plan. It keeps lines that somebody added to Hallmark's.
func (in *Installer) restoration(r *record) (restoration, error) {
	name := sshdconf.FindMainConfig(in.root)
	config, file, err := in.readMain(name)
	if err != nil {
		return restoration{}, err
	}
	rest, err := sshdconf.Restored(config)
	if err != nil {
		return restoration{}, fmt.Errorf("%s: %w", filepath.Join(in.root, name), err)
	}
	dropIn, err := in.readInstalled(sshdconf.DropIn)
	if err != nil {
		return restoration{}, err
	}
	to := restoration{plan: plan{main: file, config: rest, dropIn: sshdconf.OthersLines(dropIn)}}
	if name == sshdconf.VendorConfig {
		to.main = ""
	}
	if name == sshdconf.MainConfig && string(rest) == includesVendor && r.made(sshdconf.MainConfig) {
		to.without = true
		if rest, _, err = in.readMain(sshdconf.VendorConfig); err != nil {
			return restoration{}, err
		}
	}
	to.trial = in.server.Trial(rest, to.dropIn)
	return to, nil
}

// readMain returns a main configuration, and its path behind any link.
func (in *Installer) readMain(name string) (config []byte, file string, err error) {
	if file, err = rooted.Resolve(in.root, name); err != nil {
		return nil, "", fmt.Errorf("find sshd's configuration: %w", err)
	}
	if config, err = os.ReadFile(filepath.Join(in.root, file)); err != nil {
		return nil, "", fmt.Errorf("read sshd's configuration: %w", err)
	}
	return config, file, nil
}

// readInstalled returns the content of a file, or nil if it does not exist.
func (in *Installer) readInstalled(path string) ([]byte, error) {
	here, err := in.path(path)
	if err != nil {
		return nil, err
	}
	data, err := os.ReadFile(here)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return data, err
}

// stageRestoration prepares the change of sshd's files.
func (in *Installer) stageRestoration(change staging, to restoration) error {
	if !to.without {
		return in.stagePlan(change, to.plan)
	}
	main, err := in.path(to.main)
	if err != nil {
		return err
	}
	if err := change.StageRemoval(main); err != nil {
		return err
	}
	to.main = ""
	return in.stagePlan(change, to.plan)
}

// verifyRestored makes sure that only Hallmark's settings would change, and that none stays.
func (in *Installer) verifyRestored(before, after []sshd.Login) error {
	for _, login := range after {
		if sshd.ParseSettings(login.Settings).Value("trustedusercakeys") == sshdconf.CAFile {
			return fmt.Errorf("remove the line TrustedUserCAKeys %s (%s): hallmark install did not write it", sshdconf.CAFile, strings.Join(in.find("trustedusercakeys"), ", "))
		}
	}
	if drift := sshd.Drift(before, after, "trustedusercakeys", "hostcertificate", "maxstartups", exemptKeyword); drift != "" {
		return fmt.Errorf("refusing: this would also change sshd settings %s", drift)
	}
	return nil
}
