//go:build e2e && linux

package e2e

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/e2e/fake/imds"
	"github.com/hallmark-ssh/hallmark/e2e/lab"
	"github.com/hallmark-ssh/hallmark/internal/identity"
	"github.com/hallmark-ssh/hallmark/internal/machine/state"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"github.com/hallmark-ssh/hallmark/internal/sshkey"
	"github.com/hallmark-ssh/hallmark/internal/sshkey/sshkeytest"
)

// The identity document of a terminated instance stays valid forever: EC2 decides.
func TestInstanceMustRun(t *testing.T) {
	stop := func(id string) error { return shared.lab.EC2.Stop(t.Context(), id) }
	i := launch(t, lab.Template{Name: "stopped", BeforeBoot: stop})
	checkKeyPairLogin(t, i)
	checkExit(t, i, 4, "stopped")
	if err := shared.lab.EC2.Terminate(t.Context(), i.ID); err != nil {
		t.Fatal(err)
	}
	checkExit(t, i, 4, "terminated")
	checkKeyPairLogin(t, i)
}

func TestUnknownInstance(t *testing.T) {
	i := launch(t, lab.Template{Name: "unknown", Claim: "i-0123456789abcdef0"})
	checkKeyPairLogin(t, i)
	checkExit(t, i, 4, string(protocol.CodeInstanceUnknown))
	checkKeyPairLogin(t, i)
}

func TestMetadataTrouble(t *testing.T) {
	i := launch(t, lab.Template{Name: "trouble"})
	must[*state.State](t)(i.WaitEnrolled(t.Context()))
	run(t, i, "rm", "/var/lib/hallmark/state.json")
	for _, test := range []struct {
		name    string
		trouble imds.Trouble
		code    int
		says    string
	}{
		{"without identity role", imds.Trouble{NoIdentityRole: true}, 1, "no instance identity role"},
		{"disabled", imds.Trouble{Disabled: true}, 75, "HttpEndpoint"},
	} {
		t.Run(test.name, func(t *testing.T) {
			i.Metadata.SetTrouble(test.trouble)
			checkExit(t, i, test.code, test.says)
			checkKeyPairLogin(t, i)
		})
	}
	// The machine heals by itself when the service does.
	i.Metadata.SetTrouble(imds.Trouble{Delay: 200 * time.Millisecond})
	hallmark(t, i, "enroll")
}

// Anyone who knows the function's URL can send these.
func TestStrangersRequests(t *testing.T) {
	for _, test := range []struct {
		name, method, body string
		status             int
		code               protocol.Code
	}{
		{"no JSON", http.MethodPost, "hello", http.StatusBadRequest, protocol.CodeMalformed},
		{"unknown field", http.MethodPost, `{"admin":true}`, http.StatusBadRequest, protocol.CodeMalformed},
		{"wrong method", http.MethodPut, "", http.StatusMethodNotAllowed, protocol.CodeMethodNotAllowed},
		{"too long", http.MethodPost, strings.Repeat(" ", protocol.MaxRequestBytes+1), http.StatusRequestEntityTooLarge, protocol.CodeTooLarge},
	} {
		t.Run(test.name, func(t *testing.T) {
			checkRefusal(t, test.method, []byte(test.body), test.status, test.code)
		})
	}
}

// A document is a bearer token that any process on the instance can read. A thief of one can
// only prove the thief's own identity, which is another.
func TestStolenDocument(t *testing.T) {
	victim, thief := web(t), launch(t, lab.Template{Name: "thief"})
	must[*state.State](t)(thief.WaitEnrolled(t.Context()))

	key := sshkeytest.NewSigner(t)
	now := time.Now().UTC().Truncate(time.Second)
	payload := must[[]byte](t)(json.Marshal(protocol.Payload{
		Version: protocol.Version, Audience: lab.Audience, IssuedAt: now,
		IdentityDocument: strings.TrimSpace(metadata(t, victim, "dynamic/instance-identity/rsa2048")),
		HostKeys:         []string{sshkey.Line(key.PublicKey())},
	}))
	var role struct{ AccessKeyID, SecretAccessKey, Token string }
	credentials := metadata(t, thief, "meta-data/identity-credentials/ec2/security-credentials/ec2-instance")
	if err := json.Unmarshal([]byte(credentials), &role); err != nil {
		t.Fatal(err)
	}
	binding := protocol.Bind(payload)
	proof := must[protocol.CallerProof](t)(identity.SignCaller(t.Context(), identity.Credentials{
		AccessKeyID: role.AccessKeyID, SecretAccessKey: role.SecretAccessKey, SessionToken: role.Token,
	}, lab.Region, false, binding, now))
	signature := must[string](t)(identity.SignBinding(key, binding))
	body := must[[]byte](t)(json.Marshal(protocol.Request{Payload: payload, Caller: proof, Signatures: []string{signature}}))

	checkRefusal(t, http.MethodPost, body, http.StatusUnauthorized, protocol.CodeCallerProofInvalid)
}

// metadata reads a page of a machine's metadata service, as a process there would.
func metadata(t *testing.T, i *lab.Instance, page string) string {
	t.Helper()
	const read = `import sys, urllib.request as u
base = "http://169.254.169.254/latest/"
token = u.urlopen(u.Request(base + "api/token", method="PUT", headers={"X-aws-ec2-metadata-token-ttl-seconds": "60"})).read().decode()
print(u.urlopen(u.Request(base + sys.argv[1], headers={"X-aws-ec2-metadata-token": token})).read().decode())`
	return run(t, i, "python3", "-c", read, page)
}

func checkRefusal(t *testing.T, method string, body []byte, status int, code protocol.Code) {
	t.Helper()
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(must[[]byte](t)(shared.lab.SignerRoots()))
	client := &http.Client{
		Timeout:   30 * time.Second,
		Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}},
	}
	defer client.CloseIdleConnections()
	req := must[*http.Request](t)(http.NewRequestWithContext(t.Context(), method, shared.lab.SignerURL, bytes.NewReader(body)))
	req.Header.Set("Content-Type", "application/json")
	res, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	answer := must[[]byte](t)(io.ReadAll(res.Body))
	var refusal protocol.ErrorResponse
	if err := json.Unmarshal(answer, &refusal); err != nil {
		t.Fatalf("%s: %v: %s", res.Status, err, answer)
	}
	if res.StatusCode != status || refusal.Error.Code != code {
		t.Errorf("answer %d %s, want %d %s", res.StatusCode, refusal.Error.Code, status, code)
	}
}
