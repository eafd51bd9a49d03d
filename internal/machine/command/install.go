package command

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/hallmark-ssh/hallmark/internal/cli"
	"github.com/hallmark-ssh/hallmark/internal/machine/install"
)

func installCommand() *cobra.Command {
	var from, root string
	var dryRun bool
	cmd := &cobra.Command{
		Use: "install --from FOLDER", Short: "install hallmark, its configuration and sshd's settings into a machine or image",
		Long: `Installs the program, its configuration, the OpenSSH CA, sshd's settings and the systemd units.
If sshd would not accept the settings, or nobody could log in with a certificate, nothing
changes. Prints each file that it wrote, replaced or removed, and each timer that it enabled. With
--dry-run, it makes the same checks, prints what it would change, and changes nothing.`,
		Args: cli.NoArgs, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if from == "" {
				return cli.Usagef(cmd, "--from is missing")
			}
			return runInstall(cmd, from, root, dryRun)
		},
	}
	cmd.Flags().StringVar(&from, "from", "", "read config.yaml, openssh_ca.pub and signer_ca.pem in this `folder`")
	cmd.Flags().StringVar(&root, "root", "/", "install into the file system in this `folder`")
	cmd.Flags().BoolVar(&dryRun, "dry-run", false, "check everything and print what would change, but change nothing")
	return cmd
}

func runInstall(cmd *cobra.Command, from, root string, dryRun bool) error {
	if err := requireRoot(cmd); err != nil {
		return err
	}
	if err := checkFolder(cmd, "from", from, "put config.yaml, openssh_ca.pub and signer_ca.pem into a folder, as docs/deploy.md says"); err != nil {
		return err
	}
	if err := checkRootFolder(cmd, "root", root); err != nil {
		return err
	}
	log := func(format string, args ...any) { cli.Note(cmd, format, args...) }
	installer, err := install.New(root, log)
	if err != nil {
		return asFailure(err)
	}
	if dryRun {
		return previewInstall(cmd, installer, from)
	}
	changes, err := installer.Install(cmd.Context(), from)
	if err != nil {
		return asFailure(err)
	}
	if len(changes) == 0 {
		cli.Note(cmd, "already installed, nothing changed")
		return nil
	}
	for _, line := range changes {
		cli.Note(cmd, "%s", line)
	}
	cli.Note(cmd, "installed; the machine enrolls at its next boot, or now if you run 'systemctl start hallmark.timer hallmark-renew.timer'")
	return nil
}

func previewInstall(cmd *cobra.Command, installer *install.Installer, from string) error {
	changes, err := installer.Preview(cmd.Context(), from)
	if err != nil {
		return asFailure(err)
	}
	for _, line := range changes {
		fmt.Fprintln(cmd.OutOrStdout(), line)
	}
	if len(changes) == 0 {
		cli.Note(cmd, "already installed, nothing would change")
		return nil
	}
	cli.Note(cmd, "nothing was changed; without --dry-run, install makes these changes and leaves the running sshd alone")
	return nil
}

func sealCommand() *cobra.Command {
	var root string
	var options install.SealOptions
	cmd := &cobra.Command{
		Use: "seal", Short: "remove host keys and state, as the last step before an image is made",
		Long: `Removes host keys, certificates and state, as the last step before an image is made. It
refuses a running machine that is enrolled, and an image in which it finds nothing that
generates new host keys at boot.`,
		Args: cli.NoArgs, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error { return runSeal(cmd, root, options) },
	}
	cmd.Flags().StringVar(&root, "root", "/", "seal the file system in this `folder`")
	cmd.Flags().BoolVar(&options.Force, "force", false, "seal even a running machine that is enrolled; after that, nobody new can log in to it")
	cmd.Flags().BoolVar(&options.HostKeysElsewhere, "host-keys-elsewhere", false, "seal even if nothing that generates host keys at boot is found")
	return cmd
}

func runSeal(cmd *cobra.Command, root string, options install.SealOptions) error {
	if err := requireRoot(cmd); err != nil {
		return err
	}
	if err := checkRootFolder(cmd, "root", root); err != nil {
		return err
	}
	removed, err := install.Seal(root, options)
	for _, path := range removed {
		cli.Note(cmd, "removed %s", path)
	}
	if err != nil {
		return asFailure(err)
	}
	cli.Note(cmd, "sealed; sshd accepts no new sessions until new host keys are generated at boot")
	return nil
}
