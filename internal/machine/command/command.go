// Package command is hallmark's command line: one file for each command.
package command

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"github.com/hallmark-ssh/hallmark/internal/cli"
	"github.com/hallmark-ssh/hallmark/internal/machine/fault"
)

// Exit codes in addition to those of package cli. Units and scripts read them.
const (
	exitConfig    = 3  // the configuration is missing or wrong
	exitTemporary = 75 // something did not answer; try again later (EX_TEMPFAIL of sysexits.h)
	// exitPermission says that checks need root, and that all others pass (EX_NOPERM).
	exitPermission = 77
)

// New returns hallmark.
func New() *cobra.Command {
	return cli.New("hallmark", "enroll this EC2 instance with plain OpenSSH in a Teleport cluster",
		enrollCommand(), renewCommand(), statusCommand(), doctorCommand(), installCommand(), sealCommand(), unenrollCommand(),
		cli.Group("identity", "work with instance identity documents", identityVerifyCommand()))
}

// asFailure adds the exit code and hint to an error of the machine's packages.
func asFailure(err error) error {
	e, ok := errors.AsType[*fault.Error](err)
	if !ok {
		return err
	}
	codes := map[fault.Kind]int{
		fault.Failed: cli.Failed, fault.Misconfigured: exitConfig,
		fault.Refused: cli.Refused, fault.Temporary: exitTemporary,
	}
	return &cli.Error{Err: err, Code: codes[e.Kind], Hint: e.Hint}
}

// checkRootFolder refuses a folder in which no file system is mounted. The command's own error
// for an empty folder, such as that sshd is missing, would mislead.
func checkRootFolder(cmd *cobra.Command, flag, folder string) error {
	const hint = "mount the image there first"
	if err := checkFolder(cmd, flag, folder, hint); err != nil {
		return err
	}
	if info, err := os.Stat(filepath.Join(folder, "etc")); err != nil || !info.IsDir() {
		return &cli.Error{Err: fmt.Errorf("%s: --%s: %s is not the root of a file system: it has no folder etc", cmd.Name(), flag, folder),
			Code: cli.Failed, Hint: hint}
	}
	return nil
}

func checkFolder(cmd *cobra.Command, flag, folder, hint string) error {
	info, err := os.Stat(folder)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%s: --%s: %w", cmd.Name(), flag, err)
	case err != nil:
		return &cli.Error{Err: fmt.Errorf("%s: --%s: no folder %s", cmd.Name(), flag, folder), Code: cli.Failed, Hint: hint}
	case !info.IsDir():
		return &cli.Error{Err: fmt.Errorf("%s: --%s: %s is not a folder", cmd.Name(), flag, folder), Code: cli.Failed, Hint: hint}
	}
	return nil
}

func requireRoot(cmd *cobra.Command) error {
	if os.Geteuid() == 0 {
		return nil
	}
	return &cli.Error{Err: errors.New(cmd.Name() + " must run as root"), Code: cli.Failed, Hint: "run it with sudo"}
}
