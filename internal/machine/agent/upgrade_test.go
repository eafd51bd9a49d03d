package agent

import (
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/identity"
	"github.com/hallmark-ssh/hallmark/internal/identity/identitytest"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
)

var record = flag.Bool("record", false, "record what a machine of this version sends, if it is not there yet")

// recordings holds what machines and signers of each version sent.
const recordings = "../../protocol/testdata"

// TestRecordRequest makes the recorded request of this version by the machine's own
// code, with keys that are forgotten. The credentials are those that the signer's
// tests know.
func TestRecordRequest(t *testing.T) {
	dir := filepath.Join(recordings, fmt.Sprintf("v%d", protocol.Version))
	if _, err := os.Stat(filepath.Join(dir, "request.json")); err == nil {
		return // what was sent once never changes
	} else if !*record {
		t.Fatalf("%v: run this test with -record", err)
	}
	const (
		region   = "hm-test-1"
		document = `{
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
	)
	signed, err := identitytest.NewRegion(region)
	if err != nil {
		t.Fatal(err)
	}
	text, err := signed.Sign([]byte(document))
	if err != nil {
		t.Fatal(err)
	}
	var keys []hostKey
	for _, kind := range []string{"rsa", "ecdsa", "ed25519"} {
		path := filepath.Join(t.TempDir(), kind)
		writeHostKey(t, kind, path)
		public, _, _, _, err := ssh.ParseAuthorizedKey(readAll(t, path+".pub"))
		if err != nil {
			t.Fatal(err)
		}
		keys = append(keys, hostKey{path: path, public: public})
	}
	e := &Enroller{
		Config: Config{Audience: "hallmark.example.com"},
		now:    func() time.Time { return time.Date(2026, 1, 2, 3, 5, 0, 0, time.UTC) },

		version: protocol.Version,
	}
	creds := identity.Credentials{
		AccessKeyID: "ASIAHALLMARKTESTKEY0", SecretAccessKey: "secret/access+key", SessionToken: "FwoGZXIvYXdzE-secret-token",
	}
	report := &protocol.Report{Rejected: protocol.NewRejection(protocol.RejectedNotPresented, "3d5d4c5e-0f0a-4b7e-9b59-1f0a6f2f0c11",
		"/etc/ssh/ssh_host_ed25519_key-cert.pub: sshd presents no such host key")}
	body, err := e.newRequest(t.Context(), region, string(text), creds, keys, report)
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

// recorded is an exchange of one version, as its machine sees it.
type recorded struct {
	dir      string
	response []byte
	keys     []hostKey
	instance Instance
	now      time.Time
}

// recordedExchanges returns one of each version that was ever released.
func recordedExchanges(t *testing.T) []recorded {
	t.Helper()
	dirs, err := filepath.Glob(filepath.Join(recordings, "v*"))
	if err != nil || len(dirs) < protocol.Version {
		t.Fatalf("recorded versions %q, error %v", dirs, err)
	}
	var list []recorded
	for _, dir := range dirs {
		request, err := protocol.ParseRequest(readAll(t, filepath.Join(dir, "request.json")))
		if err != nil {
			t.Fatal(err)
		}
		payload, err := protocol.ParsePayload(request.Payload)
		if err != nil {
			t.Fatal(err)
		}
		r := recorded{dir: dir, response: readAll(t, filepath.Join(dir, "response.json")), now: payload.IssuedAt}
		for _, line := range payload.HostKeys {
			public, _, _, _, err := ssh.ParseAuthorizedKey([]byte(line))
			if err != nil {
				t.Fatal(err)
			}
			r.keys = append(r.keys, hostKey{public: public})
		}
		r.instance = Instance{AccountID: "111122223333", Region: "hm-test-1", InstanceID: "i-0a1b2c3d4e5f60718"}
		list = append(list, r)
	}
	return list
}

func readAll(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// with returns the response with other members, also within the node.
func (r recorded) with(t *testing.T, members map[string]any) []byte {
	t.Helper()
	var response map[string]any
	if err := json.Unmarshal(r.response, &response); err != nil {
		t.Fatal(err)
	}
	node := response["node"].(map[string]any)
	for name, value := range members {
		response[name], node[name+"OfTheNode"] = value, value
	}
	data, err := json.Marshal(response)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// A machine goes on with what signers of any version answered, and with what a newer
// one may say beside it.
func TestRecordedAnswers(t *testing.T) {
	for _, r := range recordedExchanges(t) {
		for name, data := range map[string][]byte{
			"as recorded": r.response,
			"with more": r.with(t, map[string]any{
				"hint": "new", "sshd": map[string]any{"port": 22, "deep": []any{nil, 1.5, map[string]any{}}}, "nothing": nil,
			}),
		} {
			answer, err := readAnswer(data)
			if err != nil {
				t.Errorf("%s, %s: %v", r.dir, name, err)
				continue
			}
			g, err := checkAnswer(answer, r.keys, r.instance, nil, r.now)
			if err != nil {
				t.Errorf("%s, %s: %v", r.dir, name, err)
				continue
			}
			if len(g.certificates) != 3 || len(g.openSSH) == 0 || len(g.hosts) == 0 || !g.renewAfter.After(r.now) {
				t.Errorf("%s, %s: %+v", r.dir, name, g)
			}
		}
	}
}

// A version that the machine does not speak is refused, with what to update.
func TestVersionsThatTheMachineDoesNotSpeak(t *testing.T) {
	r := recordedExchanges(t)[0]
	refusal := func(versions string) []byte {
		return []byte(`{"error":{"code":"unsupported_version","message":"no","requestId":"request-1"` + versions + `}}`)
	}
	const (
		machine = "update hallmark on this machine: "
		signer  = "update the signer: "
		either  = "update hallmark on this machine, or the signer"
	)
	tests := map[string]struct {
		status int
		data   []byte
		text   string
		hint   string
		kind   Kind
	}{
		"a later answer":        {http.StatusOK, r.with(t, map[string]any{"version": 3}), "protocol version 3", machine, Failed},
		"an answer without one": {http.StatusOK, []byte(`{}`), "protocol version 0", signer, Failed},
		"a later signer":        {http.StatusBadRequest, refusal(`,"supportedVersions":[3,4]`), "version 2, but 3 to 4", machine, Refused},
		"an earlier signer":     {http.StatusBadRequest, refusal(`,"supportedVersions":[0]`), "version 2, but 0 to 0", signer, Refused},
		"a silent signer":       {http.StatusBadRequest, refusal(""), "protocol version 2 (", either, Refused},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			err := refusedBy(tt.status, tt.data)
			e, ok := err.(*Error) //nolint:errorlint // it is made here
			if !ok || e.Kind != tt.kind || !strings.Contains(e.Error(), tt.text) || !strings.HasPrefix(e.Hint, tt.hint) {
				t.Errorf("error %v, %+v", err, e)
			}
		})
	}
}

// refusedBy reads an answer that is no good.
func refusedBy(status int, data []byte) error {
	if status != http.StatusOK {
		return readRefusal(status, data, protocol.Version)
	}
	_, err := readAnswer(data)
	return err
}

// What a signer of today says to a later machine.
func TestRecordedRefusal(t *testing.T) {
	for _, r := range recordedExchanges(t) {
		err := refusedBy(http.StatusBadRequest, readAll(t, filepath.Join(r.dir, "unsupported.json")))
		if kindOf(err) != Refused || !strings.Contains(err.Error(), "does not speak") {
			t.Errorf("%s: error %v", r.dir, err)
		}
	}
}
