// Command hallmark-signer is the operator's command: it checks policies and changes the
// ledger, from a workstation.
package main

import (
	"context"
	"os"

	"github.com/hallmark-ssh/hallmark/internal/signer/operator"
)

func main() {
	os.Exit(operator.Run(context.Background(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
}
