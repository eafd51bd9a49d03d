package command

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hallmark-ssh/hallmark/internal/cli"
	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/identity"
)

func identityVerifyCommand() *cobra.Command {
	var certificates string
	cmd := &cobra.Command{
		Use: "verify FILE|-", Short: "verify a signed instance identity document",
		Long: `Verifies what the metadata service returned at
/latest/dynamic/instance-identity/rsa2048 (base64, PEM or DER) and prints the document that
AWS signed, with the fingerprint of the key that signed it.`,
		Args: cli.OneFile,
		RunE: func(cmd *cobra.Command, args []string) error { return runIdentityVerify(cmd, args[0], certificates) },
	}
	cmd.Flags().StringVar(&certificates, "certificates", "", "trust additional regions: `folder` of PEM certificates, one file REGION.pem for each")
	return cmd
}

func runIdentityVerify(cmd *cobra.Command, file, certificates string) error {
	keys, err := identity.Regions()
	if err != nil {
		return err
	}
	if certificates != "" {
		if keys, err = addRegions(keys, certificates); err != nil {
			return err
		}
	}
	input, err := readDocument(file, cmd.InOrStdin())
	if err != nil {
		return err
	}
	document, err := verifyDocument(keys, input)
	if err != nil {
		if file == "-" {
			file = "standard input"
		}
		return fmt.Errorf("%s: identity document refused: %w", file, err)
	}
	return printDocument(cmd.OutOrStdout(), document)
}

// addRegions adds the regions whose certificates are in dir, as REGION.pem.
func addRegions(keys *identity.Keyring, dir string) (*identity.Keyring, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("--certificates: %w", err)
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
		if keys, err = keys.With(ec2ref.Region(region), data); err != nil {
			return nil, fmt.Errorf("use %s: %w", path, err)
		}
		added++
	}
	if added == 0 {
		return nil, &cli.Error{Err: fmt.Errorf("--certificates: no file named REGION.pem in %s", dir), Code: cli.Failed,
			Hint: "name each file after its region, such as us-west-2.pem"}
	}
	return keys, nil
}

// readDocument reads the file, or standard input if its name is "-", but little more than a
// valid document can have.
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

// printDocument prints every member that AWS signed, with its name and value unchanged, and
// the key.
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
