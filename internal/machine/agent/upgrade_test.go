package agent

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/identity"
	"github.com/hallmark-ssh/hallmark/internal/identity/identitytest"
	"github.com/hallmark-ssh/hallmark/internal/machine/config"
	"github.com/hallmark-ssh/hallmark/internal/machine/hostkey"
	"github.com/hallmark-ssh/hallmark/internal/machine/machinetest"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
)

var record = flag.Bool("record", false, "record what a machine of this version sends, if it is not there yet")

// TestRecordRequest creates the recorded request of this version with the machine's own code.
func TestRecordRequest(t *testing.T) {
	recordRequest(t, fmt.Sprintf("v%d", protocol.Version), func(e *Enroller, text string, creds identity.Credentials, keys []hostkey.Key) ([]byte, error) {
		report := &protocol.Report{Rejected: protocol.NewRejection(protocol.RejectedNotPresented, "3d5d4c5e-0f0a-4b7e-9b59-1f0a6f2f0c11",
			"/etc/ssh/ssh_host_ed25519_key-cert.pub: sshd presents no such host key")}
		return e.newRequest(t.Context(), protocol.Version, testRegion, text, creds, keys, report)
	})
}

// TestRecordLeave does the same for a request to leave.
func TestRecordLeave(t *testing.T) {
	recordRequest(t, "leave", func(e *Enroller, text string, creds identity.Credentials, keys []hostkey.Key) ([]byte, error) {
		p := protocol.Payload{Version: protocol.Version, IdentityDocument: text, Purpose: protocol.PurposeLeave}
		return e.prove(t.Context(), testRegion, creds, keys, p)
	})
}

// recordRequest creates a request with keys that it then discards. The credentials are those
// that the signer's tests know.
func recordRequest(t *testing.T, name string, build func(*Enroller, string, identity.Credentials, []hostkey.Key) ([]byte, error)) {
	t.Helper()
	dir := filepath.Join("../../protocol/testdata", name)
	if _, err := os.Stat(filepath.Join(dir, "request.json")); err == nil {
		return // a recorded request never changes
	} else if !*record {
		t.Fatalf("%v: run this test with -record", err)
	}
	const document = `{
  "accountId" : "111122223333",
  "architecture" : "arm64",
  "availabilityZone" : "hm-test-1a",
  "billingProducts" : null,
  "devpayProductCodes" : null,
  "marketplaceProductCodes" : null,
  "imageId" : "ami-0a1b2c3d4e5f60718",
  "instanceId" : "i-0a1b2c3d4e5f60718",
  "instanceType" : "t4g.small",
  "kernelId" : null,
  "pendingTime" : "2026-01-02T03:04:05Z",
  "privateIp" : "10.0.0.7",
  "ramdiskId" : null,
  "region" : "hm-test-1",
  "version" : "2017-09-30"
}`
	signed, err := identitytest.NewRegion(testRegion)
	if err != nil {
		t.Fatal(err)
	}
	text, err := signed.Sign([]byte(document))
	if err != nil {
		t.Fatal(err)
	}
	var keys []hostkey.Key
	for _, kind := range []string{"rsa", "ecdsa", "ed25519"} {
		path := filepath.Join(t.TempDir(), kind)
		machinetest.WriteHostKey(t, kind, path)
		public, _, _, _, err := ssh.ParseAuthorizedKey(machinetest.ReadFile(t, path+".pub"))
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, hostkey.Key{Path: path, Public: public})
	}
	e := &Enroller{
		Config: config.Config{Audience: "hallmark.example.com"},
		now:    func() time.Time { return time.Date(2026, 1, 2, 3, 5, 0, 0, time.UTC) },
	}
	creds := identity.Credentials{
		AccessKeyID: "ASIAHALLMARKTESTKEY0", SecretAccessKey: "secret/access+key", SessionToken: "FwoGZXIvYXdzE-secret-token",
	}
	body, err := build(e, string(text), creds, keys)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{"request.json": body, "region.pem": signed.CertificatePEM()} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
