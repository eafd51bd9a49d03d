// Command man writes the manual pages of hallmark and hallmark-signer into a folder, one
// for each command. The shipped programs do not contain it.
package main

import (
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"github.com/hallmark-ssh/hallmark/internal/buildinfo"
	"github.com/hallmark-ssh/hallmark/internal/machine/command"
	"github.com/hallmark-ssh/hallmark/internal/signer/operator"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "man:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) != 1 {
		return errors.New("want one folder, for the pages")
	}
	return write(args[0])
}

// write writes the pages, with the date in SOURCE_DATE_EPOCH if it is set.
func write(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make the folder for the pages: %w", err)
	}
	for program, section := range map[*cobra.Command]string{command.New(): "8", operator.Command(): "1"} {
		program.DisableAutoGenTag = true
		header := doc.GenManHeader{Section: section, Source: "Hallmark " + buildinfo.Version(), Manual: "Hallmark"}
		err := doc.GenManTreeFromOpts(program, doc.GenManTreeOptions{Header: &header, Path: dir, CommandSeparator: "-"})
		if err != nil {
			return fmt.Errorf("write the pages of %s: %w", program.Name(), err)
		}
	}
	return nil
}
