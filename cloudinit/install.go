package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/hallmark-ssh/hallmark/internal/machine/install"
)

func runInstall(ctx context.Context, args []string, std streams) error {
	flags := newFlags("install", "put hallmark, its configuration and sshd's settings into a machine or image", std)
	from := flags.String("from", "", "read config.yaml, openssh_ca.pub and signer_ca.pem in this `folder`")
	root := flags.String("root", "/", "install into the file system at this `folder`")
	if err := parseFlags(flags, args); err != nil {
		return err
	}
	if *from == "" {
		return usagef("install needs --from")
	}
	if err := requireRoot("install"); err != nil {
		return err
	}
	log := func(format string, args ...any) { fmt.Fprintf(std.err, "hallmark: "+format+"\n", args...) }
	installer, err := install.New(*root, log)
	if err != nil {
		return asFailure(err)
	}
	changed, err := installer.Install(ctx, *from)
	if err != nil {
		return asFailure(err)
	}
	if !changed {
		fmt.Fprintln(std.err, "hallmark: already installed, nothing changed")
		return nil
	}
	fmt.Fprintln(std.err, "hallmark: installed; the machine enrolls at its next boot, or now by 'systemctl start hallmark.timer hallmark-renew.timer'")
	return nil
}

func runSeal(_ context.Context, args []string, std streams) error {
	flags := newFlags("seal", "remove host keys and state, as the last step before an image is made", std)
	root := flags.String("root", "/", "seal the file system at this `folder`")
	var options install.SealOptions
	flags.BoolVar(&options.Force, "force", false, "seal also a running machine that is enrolled: nobody new can log in to it then")
	flags.BoolVar(&options.HostKeysElsewhere, "host-keys-elsewhere", false, "seal also if nothing that makes host keys at boot is found")
	if err := parseFlags(flags, args); err != nil {
		return err
	}
	if err := requireRoot("seal"); err != nil {
		return err
	}
	removed, err := install.Seal(*root, options)
	for _, path := range removed {
		fmt.Fprintf(std.err, "hallmark: removed %s\n", path)
	}
	if err != nil {
		return asFailure(err)
	}
	fmt.Fprintln(std.err, "hallmark: sealed; sshd accepts no new sessions until new host keys are made at boot")
	return nil
}

func requireRoot(command string) error {
	if os.Geteuid() == 0 {
		return nil
	}
	return &failure{err: errors.New(command + " must run as root"), code: exitFailed, hint: "run it by sudo"}
}
