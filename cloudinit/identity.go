package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/hallmark-ssh/hallmark/internal/identity"
)

const identityUsage = `usage: hallmark identity verify [--certificates DIR] FILE|-

Verifies what the metadata service returned at
/latest/dynamic/instance-identity/rsa2048 (base64; PEM and DER will do too) and
prints the document that AWS signed, with the key that signed it.

  --certificates DIR  believe further regions: their certificates in PEM, each
                      in a file named REGION.pem
`

func runIdentity(_ context.Context, args []string, std streams) error {
	if len(args) == 0 {
		return usagef("identity: no action given, want verify")
	}
	switch args[0] {
	case "verify":
		return runIdentityVerify(args[1:], std)
	case "-h", "-help", "--help":
		fmt.Fprint(std.out, identityUsage)
		return nil
	default:
		return usagef("identity: unknown action %q, want verify", args[0])
	}
}

func runIdentityVerify(args []string, std streams) error {
	flags := flag.NewFlagSet("identity verify", flag.ContinueOnError)
	flags.SetOutput(io.Discard) // run reports the error, in one line
	certificates := flags.String("certificates", "", "")
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(std.out, identityUsage)
		return nil
	case err != nil:
		return usagef("identity verify: %v", err)
	case flags.NArg() != 1:
		return usagef("identity verify: want one file, or - for standard input")
	}

	keys, err := identity.Regions()
	if err != nil {
		return err
	}
	if *certificates != "" {
		if keys, err = addRegions(keys, *certificates); err != nil {
			return err
		}
	}
	input, err := readDocument(flags.Arg(0), std.in)
	if err != nil {
		return err
	}
	document, err := verifyDocument(keys, input)
	if err != nil {
		return fmt.Errorf("identity document refused: %w", err)
	}
	return printDocument(std.out, document)
}

// addRegions adds the regions whose certificates lie in dir, as REGION.pem.
func addRegions(keys *identity.Keyring, dir string) (*identity.Keyring, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("read certificates: %w", err)
	}
	added := 0
	for _, entry := range entries {
		region, isPEM := strings.CutSuffix(entry.Name(), ".pem")
		if !isPEM {
			continue
		}
		path := filepath.Join(dir, entry.Name())
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("read certificate: %w", err)
		}
		if keys, err = keys.With(region, data); err != nil {
			return nil, fmt.Errorf("use %s: %w", path, err)
		}
		added++
	}
	if added == 0 {
		return nil, fmt.Errorf("no file named REGION.pem in %s", dir)
	}
	return keys, nil
}

// readDocument reads the file, or standard input if its name is "-", but not
// much more of it than can be good.
func readDocument(name string, stdin io.Reader) ([]byte, error) {
	in := stdin
	if name != "-" {
		file, err := os.Open(name)
		if err != nil {
			return nil, fmt.Errorf("read identity document: %w", err)
		}
		defer func() { _ = file.Close() }()
		in = file
	}
	input, err := io.ReadAll(io.LimitReader(in, identity.MaxBytes+1))
	if err != nil {
		return nil, fmt.Errorf("read identity document: %w", err)
	}
	return input, nil
}

func verifyDocument(keys *identity.Keyring, input []byte) (*identity.Document, error) {
	message, err := identity.Decode(input)
	if err != nil {
		return nil, err
	}
	return keys.Verify(message)
}

// printDocument prints every member that AWS signed, under its own name and
// with its own value, and the key.
func printDocument(w io.Writer, document *identity.Document) error {
	var members map[string]json.RawMessage
	if err := json.Unmarshal(document.Content, &members); err != nil {
		return fmt.Errorf("read signed document: %w", err)
	}
	members["regionKeySHA256"] = json.RawMessage(`"` + document.RegionKeySHA256 + `"`)
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	if err := encoder.Encode(members); err != nil {
		return fmt.Errorf("print document: %w", err)
	}
	return nil
}
