package signerclient

import (
	"encoding/json"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/machine/fault"
	"github.com/hallmark-ssh/hallmark/internal/machine/hostkey"
	"github.com/hallmark-ssh/hallmark/internal/machine/imds"
	"github.com/hallmark-ssh/hallmark/internal/machine/machinetest"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"golang.org/x/crypto/ssh"
)

// recordedExchanges returns one exchange of each released version.
func recordedExchanges(t *testing.T) []recorded {
	t.Helper()
	dirs, err := filepath.Glob(filepath.Join(recordings, "v*"))
	if err != nil || len(dirs) < protocol.Version {
		t.Fatalf("recorded versions %q, error %v", dirs, err)
	}
	var list []recorded
	for _, dir := range dirs {
		request, err := protocol.ParseRequest(machinetest.ReadFile(t, filepath.Join(dir, "request.json")))
		if err != nil {
			t.Fatal(err)
		}
		payload, err := protocol.ParsePayload(request.Payload)
		if err != nil {
			t.Fatal(err)
		}
		r := recorded{dir: dir, response: machinetest.ReadFile(t, filepath.Join(dir, "response.json")), now: payload.IssuedAt}
		for _, line := range payload.HostKeys {
			public, _, _, _, err := ssh.ParseAuthorizedKey([]byte(line))
			if err != nil {
				t.Fatal(err)
			}
			r.keys = append(r.keys, hostkey.Key{Public: public})
		}
		r.instance = imds.Instance{AccountID: "111122223333", Region: "hm-test-1", InstanceID: "i-0a1b2c3d4e5f60718"}
		list = append(list, r)
	}
	return list
}

// A machine accepts the answers of signers of any version, and whatever a newer signer may add
// to them.
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
			g, err := Check(answer, r.keys, r.instance, nil, r.now)
			if err != nil {
				t.Errorf("%s, %s: %v", r.dir, name, err)
				continue
			}
			if len(g.Certificates) != 3 || len(g.OpenSSH) == 0 || len(g.Hosts) == 0 || !g.RenewAfter.After(r.now) {
				t.Errorf("%s, %s: %+v", r.dir, name, g)
			}
		}
	}
}

// Signers of any version may send metadata options. No value of them, however odd, keeps the
// machine from its certificates.
func TestRecordedAnswersWithMetadataOptions(t *testing.T) {
	for _, r := range recordedExchanges(t) {
		for name, tt := range map[string]struct {
			sent any
			want protocol.MetadataOptions
		}{
			"valid":   {map[string]any{"httpTokens": "required", "httpPutResponseHopLimit": 1, "httpEndpoint": "enabled"}, protocol.NewMetadataOptions("required", 1)},
			"a list":  {[]any{"required", 1}, protocol.MetadataOptions{}},
			"hostile": {map[string]any{"httpTokens": strings.Repeat("\n", 10_000), "httpPutResponseHopLimit": 1 << 40}, protocol.MetadataOptions{}},
		} {
			answer, err := readAnswer(r.with(t, map[string]any{"metadataOptions": tt.sent}))
			if err != nil {
				t.Errorf("%s, %s: %v", r.dir, name, err)
				continue
			}
			if _, err := Check(answer, r.keys, r.instance, nil, r.now); err != nil || answer.MetadataOptions != tt.want {
				t.Errorf("%s, %s: %+v, error %v", r.dir, name, answer.MetadataOptions, err)
			}
		}
	}
}

// A machine refuses a version that it does not speak, and says what to update.
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
		kind   fault.Kind
	}{
		"a later answer":        {http.StatusOK, r.with(t, map[string]any{"version": 3}), "protocol version 3", machine, fault.Failed},
		"an answer without one": {http.StatusOK, []byte(`{}`), "protocol version 0", signer, fault.Failed},
		"a later signer":        {http.StatusBadRequest, refusal(`,"supportedVersions":[3,4]`), "version 2, but 3 to 4", machine, fault.Refused},
		"an earlier signer":     {http.StatusBadRequest, refusal(`,"supportedVersions":[0]`), "version 2, but 0 to 0", signer, fault.Refused},
		"a silent signer":       {http.StatusBadRequest, refusal(""), "protocol version 2 (", either, fault.Refused},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			err := refusedBy(tt.status, tt.data)
			e, ok := err.(*fault.Error) //nolint:errorlint // it is made here
			if !ok || e.Kind != tt.kind || !strings.Contains(e.Error(), tt.text) || !strings.HasPrefix(e.Hint, tt.hint) {
				t.Errorf("error %v, %+v", err, e)
			}
		})
	}
}

// refusedBy reads an answer that is not valid.
func refusedBy(status int, data []byte) error {
	if status != http.StatusOK {
		return readRefusal(status, data, protocol.Version)
	}
	_, err := readAnswer(data)
	return err
}

// This is what a signer of today answers to a later machine.
func TestRecordedRefusal(t *testing.T) {
	for _, r := range recordedExchanges(t) {
		err := refusedBy(http.StatusBadRequest, machinetest.ReadFile(t, filepath.Join(r.dir, "unsupported.json")))
		if fault.KindOf(err) != fault.Refused || !strings.Contains(err.Error(), "does not support") {
			t.Errorf("%s: error %v", r.dir, err)
		}
	}
}

// recorded is an exchange of one version, as its machine sees it.
type recorded struct {
	dir      string
	response []byte
	keys     []hostkey.Key
	instance imds.Instance
	now      time.Time
}

// with returns the response with additional members, even within the node.
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

// recordings holds what machines and signers of each version sent.
const recordings = "../../protocol/testdata"
