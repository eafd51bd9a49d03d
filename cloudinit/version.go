package main

import (
	"context"
	"fmt"

	"github.com/hallmark-ssh/hallmark/internal/buildinfo"
)

func runVersion(_ context.Context, args []string, std streams) error {
	if len(args) > 0 {
		return usagef("version takes no arguments")
	}
	_, err := fmt.Fprintln(std.out, buildinfo.Version())
	return err
}
