// Command hallmark-signer is the operator's command, for a workstation: it checks policies,
// reports on the fleet, and changes the ledger.
package main

import (
	"context"
	"os"

	"github.com/hallmark-ssh/hallmark/internal/cli"
	"github.com/hallmark-ssh/hallmark/internal/signer/operator"
)

func main() {
	os.Exit(cli.Run(context.Background(), operator.Command(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}
