package protocol_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/protocol"
)

// The binding is written out by hand: machines and signers of every version
// must agree on it for ever.
func TestBindIsSHA256OverDomainAndPayload(t *testing.T) {
	payload := []byte(`{"version":1}`)
	want := sha256.Sum256([]byte("hallmark-enroll-v1\x00" + `{"version":1}`))
	got := protocol.Bind(payload)
	if got.String() != hex.EncodeToString(want[:]) {
		t.Errorf("Bind = %s, want %x", got, want)
	}
	if string(got.Message()) != got.String() {
		t.Errorf("Message = %q, want the text of String", got.Message())
	}
	if protocol.Bind([]byte(`{"version": 1}`)) == got {
		t.Error("a payload with one more space has the same binding")
	}
}

func TestNodeIDIsStable(t *testing.T) {
	const want = "28663dc7-edf9-5081-a573-668145833f31"
	if got := protocol.NodeID("111122223333", "us-west-2", "i-0123456789abcdef0"); got != want {
		t.Errorf("NodeID = %s, want %s: nodes in people's clusters carry the old one", got, want)
	}
	for _, other := range [][3]string{
		{"111122223334", "us-west-2", "i-0123456789abcdef0"},
		{"111122223333", "us-west-1", "i-0123456789abcdef0"},
		{"111122223333", "us-west-2", "i-0123456789abcdef1"},
	} {
		if protocol.NodeID(other[0], other[1], other[2]) == want {
			t.Errorf("NodeID(%v) is the same as another instance's", other)
		}
	}
}

func TestParseRequest(t *testing.T) {
	for _, test := range []struct {
		name, body, wantErr string
	}{
		{"good", `{"payload":"e30=","caller":{"authorization":"a","date":"d","securityToken":"s"},"signatures":["x"]}`, ""},
		{"empty", ``, "decode request: EOF"},
		{"unknown field", `{"payload":"e30=","admin":true}`, `unknown field "admin"`},
		{"unknown nested field", `{"caller":{"host":"evil"}}`, `unknown field "host"`},
		{"two values", `{}{}`, "data after the JSON value"},
		{"wrong type", `{"payload":7}`, "cannot unmarshal"},
		{"too long", `{"payload":"` + strings.Repeat("A", protocol.MaxRequestBytes) + `"}`, "more than 65536"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := protocol.ParseRequest([]byte(test.body))
			if got := message(err); (test.wantErr == "") != (err == nil) || !strings.Contains(got, test.wantErr) {
				t.Errorf("error %q, want it to contain %q", got, test.wantErr)
			}
		})
	}
}

func TestParsePayload(t *testing.T) {
	want := protocol.Payload{
		Version: protocol.Version, Audience: "hallmark.example.com",
		IssuedAt:         time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC),
		IdentityDocument: "MIIB", HostKeys: []string{"ssh-ed25519 AAAA"},
	}
	data, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	got, err := protocol.ParsePayload(data)
	if err != nil {
		t.Fatal(err)
	}
	if again, _ := json.Marshal(got); !bytes.Equal(again, data) {
		t.Errorf("ParsePayload gave %s, want %s", again, data)
	}
	if _, err := protocol.ParsePayload(append(data, '1')); err == nil {
		t.Error("trailing data was accepted")
	}
}

func FuzzParseRequest(f *testing.F) {
	f.Add([]byte(`{"payload":"e30=","caller":{},"signatures":[]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		r, err := protocol.ParseRequest(body)
		if (r == nil) == (err == nil) {
			t.Fatalf("ParseRequest returned %v and %v", r, err)
		}
	})
}

func message(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
