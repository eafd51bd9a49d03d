//go:build linux

// Command rootfs builds the root file systems of machines, which the demo and the tests otherwise
// build when they first need them, and prints their folders.
//
//	rootfs RELEASE...   such as bookworm
package main

import (
	"context"
	"fmt"
	"log"
	"os"
	"os/signal"
	"syscall"

	"github.com/hallmark-ssh/hallmark/e2e/machine"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	logger := log.New(os.Stderr, "rootfs: ", 0)
	for _, release := range os.Args[1:] {
		dir, err := machine.RootFS(ctx, logger, machine.Release(release))
		if err != nil {
			stop()
			fmt.Fprintf(os.Stderr, "rootfs: error: build Debian %s: %v\n", release, err)
			os.Exit(1)
		}
		fmt.Println(dir)
	}
}
