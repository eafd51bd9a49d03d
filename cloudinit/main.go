// Command hallmark enrolls the EC2 instance that it runs on in a Teleport
// cluster: its host keys get certificates, and its sshd trusts the cluster's
// OpenSSH CA.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"github.com/hallmark-ssh/hallmark/internal/cli"
	"github.com/hallmark-ssh/hallmark/internal/machine/command"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := cli.Run(ctx, command.New(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}
