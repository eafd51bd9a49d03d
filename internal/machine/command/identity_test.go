package command

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/hallmark-ssh/hallmark/internal/cli"
	"github.com/hallmark-ssh/hallmark/internal/identity/identitytest"
)

// signIdentity is a command of the scripts:
//
//	sign-identity REGION CERTIFICATE DOCUMENT SIGNED
//
// It makes up a region, writes its certificate, and signs the document with its
// key as the metadata service does.
func signIdentity(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 4 {
		ts.Fatalf("usage: sign-identity REGION CERTIFICATE DOCUMENT SIGNED")
	}
	region, err := identitytest.NewRegion(args[0])
	ts.Check(err)
	signed, err := region.Sign([]byte(ts.ReadFile(args[2])))
	ts.Check(err)
	ts.Check(os.WriteFile(ts.MkAbs(args[1]), region.CertificatePEM(), 0o644))
	ts.Check(os.WriteFile(ts.MkAbs(args[3]), signed, 0o644))
}

// The scripts cannot tell one exit code from another.
func TestIdentityVerifyExitCodes(t *testing.T) {
	testdata := filepath.Join("..", "..", "identity", "testdata")
	for _, test := range []struct {
		name string
		args []string
		want int
	}{
		{"verified", []string{filepath.Join(testdata, "real", "us-west-2", "rsa2048.txt")}, cli.OK},
		{"forged", []string{filepath.Join(testdata, "attacks", "A5_content_changed.der")}, cli.Failed},
		{"no such file", []string{filepath.Join(testdata, "none")}, cli.Failed},
		{"no file named", nil, cli.Usage},
	} {
		t.Run(test.name, func(t *testing.T) {
			var out, err bytes.Buffer
			args := append([]string{"identity", "verify"}, test.args...)
			if got := cli.Run(t.Context(), New(), args, strings.NewReader(""), &out, &err); got != test.want {
				t.Errorf("exit code %d, want %d; it said %q", got, test.want, err.String())
			}
		})
	}
}
