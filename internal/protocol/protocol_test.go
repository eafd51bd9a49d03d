package protocol_test

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/protocol"
)

// The expected binding is written out: machines and signers of every version must always agree
// on it.
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

func TestParseRequest(t *testing.T) {
	for _, test := range []struct {
		name, body, wantErr string
	}{
		{"good", `{"payload":"e30=","caller":{"authorization":"a","date":"d","securityToken":"s"},"signatures":["x"]}`, ""},
		{"empty", ``, "decode request: EOF"},
		{"unknown field", `{"payload":"e30=","admin":true}`, `unknown field "admin"`},
		{"unknown nested field", `{"caller":{"host":"evil"}}`, `unknown field "host"`},
		{"field in another case", `{"Payload":"e30="}`, `unknown field "Payload"`},
		{"field in a letter that folds to another", `{"\u017fignatures":[]}`, "unknown field"},
		{"field twice", `{"payload":"e30=","payload":"e30="}`, `field "payload" appears twice`},
		{"nested field twice", `{"caller":{"date":"a","date":"b"}}`, `field "date" appears twice`},
		{"object twice", `{"caller":{"date":"a"},"caller":{"authorization":"b"}}`, `field "caller" appears twice`},
		{"field twice, once escaped", `{"payload":"e30=","p\u0061yload":"e30="}`, "appears twice"},
		{"array", `["payload"]`, "not a JSON object"},
		{"null", `null`, "not a JSON object"},
		{"null object", `{"caller":null}`, "not a JSON object"},
		{"bad UTF-8", "{\"signatures\":[\"\xff\"]}", "not UTF-8"},
		{"deep, in an unknown field", `{"x":` + strings.Repeat("[", 20000), `unknown field "x"`},
		{"deep, in a known field", `{"signatures":` + strings.Repeat("[", 20000), "depth"},
		{"deep objects", strings.Repeat(`{"caller":`, 1000), `unknown field "caller"`},
		{"cut short", `{"payload":"e30="`, "EOF"},
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

// FuzzParseRequest compares the parser with encoding/json at its strictest: the parser accepts
// less, and reads the same from what it accepts.
func FuzzParseRequest(f *testing.F) {
	f.Add([]byte(`{"payload":"e30=","caller":{"authorization":"a","date":"d","securityToken":"s"},"signatures":["x"]}`))
	f.Add([]byte(`{"payload":"e30=","Payload":"e30="}`))
	f.Add([]byte(`{"caller":{"date":"a","date":"b"}}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		got, err := protocol.ParseRequest(body)
		checkAgainstStandard(t, body, got, err)
	})
}

func FuzzParsePayload(f *testing.F) {
	f.Add([]byte(`{"version":1,"audience":"a","issuedAt":"2026-01-02T03:04:05Z","identityDocument":"MIIB","hostKeys":["ssh-ed25519 AAAA"]}`))
	f.Add([]byte(`{"version":1,"version":2}`))
	f.Add([]byte(`{"version":1,"report":{}}`))
	f.Add([]byte(`{"report":{"rejected":{"code":"x"}},"version":2}`))
	f.Add([]byte(`{"issuedAt":null,"hostKeys":[null]}`))
	f.Fuzz(func(t *testing.T, payload []byte) {
		got, err := protocol.ParsePayload(payload)
		if err == nil && got.Report != nil {
			return // it is open: see FuzzParseReport
		}
		checkAgainstStandard(t, payload, got, err)
	})
}

func checkAgainstStandard[T any](t *testing.T, data []byte, got *T, err error) {
	t.Helper()
	if (got == nil) == (err == nil) {
		t.Fatalf("returned %v and %v", got, err)
	}
	if err != nil {
		return
	}
	var want T
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(&want); err != nil {
		t.Fatalf("accepted %q, which encoding/json refuses: %v", data, err)
	}
	if !reflect.DeepEqual(*got, want) {
		t.Fatalf("read %+v, encoding/json %+v", *got, want)
	}
}

func message(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}
