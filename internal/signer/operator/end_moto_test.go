//go:build e2e

package operator

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/cli"
	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
)

// TestEndAndReleaseOnMoto frees a name and ends an instance with the commands, on an emulator
// of STS and DynamoDB.
func TestEndAndReleaseOnMoto(t *testing.T) {
	held := newLedgerOnMoto(t)
	now := time.Now()
	instance := ec2ref.Instance{Account: "111122223333", Region: "us-west-2", ID: "i-0a1b2c3d4e5f60718"}
	other := ec2ref.Instance{Account: instance.Account, Region: instance.Region, ID: "i-0123456789abcdef0"}
	claim := func(i ec2ref.Instance, hostname string, end time.Time) error {
		_, err := held.Claim(t.Context(), ledger.Claim{Instance: i, Fingerprints: []string{string("SHA256:" + i.ID)}, Hostname: hostname, ValidUntil: end}, now)
		return err
	}
	if err := claim(instance, "web", now.Add(time.Hour)); err != nil {
		t.Fatal(err)
	}
	run := func(want int, args ...string) string {
		t.Helper()
		var out, errs bytes.Buffer
		if code := cli.Run(t.Context(), Command(), args, strings.NewReader(""), &out, &errs); code != want {
			t.Fatalf("%s: exit code %d, want %d: %s", args[0], code, want, &errs)
		}
		return out.String() + errs.String()
	}

	if text := run(cli.Failed, "release", "--table", "hallmark", "--name", "web"); !strings.Contains(text, "certificate") {
		t.Errorf("a name with a certificate: %s", text)
	}
	if err := claim(other, "web", now.Add(time.Hour)); !errors.Is(err, ledger.ErrNameInUse) {
		t.Errorf("error %v, want %v", err, ledger.ErrNameInUse)
	}
	if err := claim(other, "squatted", now.Add(-time.Hour)); err != nil {
		t.Fatal(err)
	}
	if line := run(cli.OK, "release", "--table", "hallmark", "--name", "squatted"); !strings.Contains(line, string(other.ID)) {
		t.Errorf("line %s", line)
	}
	if err := claim(instance, "squatted", now.Add(time.Hour)); err != nil {
		t.Errorf("a released name: error %v", err)
	}

	end := []string{"end", "--table", "hallmark", "--account", string(instance.Account), "--region", string(instance.Region), "--instance", string(instance.ID)}
	for range 2 {
		run(cli.OK, end...)
	}
	if r, err := held.Lookup(t.Context(), instance); err != nil || !r.Retired || r.RetiredBy == "" {
		t.Errorf("record %+v, error %v", r, err)
	}
	if err := claim(instance, "web", now.Add(time.Hour)); !errors.Is(err, ledger.ErrRetired) {
		t.Errorf("error %v, want %v", err, ledger.ErrRetired)
	}
}
