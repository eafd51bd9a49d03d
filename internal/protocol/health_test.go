package protocol_test

import (
	"encoding/base64"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/protocol"
)

func signedHealth() protocol.SignedHealth {
	return protocol.SignedHealth{Report: []byte(`{"audience":"a"}`), Certificate: "ssh-ed25519-cert-v01@openssh.com AAAA", Signature: "-----BEGIN SSH SIGNATURE-----\n"}
}

func TestSignedHealth(t *testing.T) {
	want := signedHealth()
	value, err := want.Encode()
	if err != nil {
		t.Fatal(err)
	}
	got, err := protocol.ParseSignedHealth(value)
	if err != nil || string(got.Report) != string(want.Report) || got.Certificate != want.Certificate || got.Signature != want.Signature {
		t.Errorf("got %+v, error %v, want %+v", got, err, want)
	}
	want.Signature = strings.Repeat("a", protocol.MaxHealthBytes)
	if value, err := want.Encode(); err == nil {
		t.Errorf("a report of %d bytes was encoded", len(value))
	}
}

func TestParseSignedHealthRefuses(t *testing.T) {
	encode := func(text string) string { return base64.RawURLEncoding.EncodeToString([]byte(text)) }
	good, err := signedHealth().Encode()
	if err != nil {
		t.Fatal(err)
	}
	for name, value := range map[string]string{
		"empty":            "",
		"not base64":       "{}",
		"with padding":     base64.URLEncoding.EncodeToString([]byte(`{"report":"YQ=="}`)),
		"with a line end":  good + "\n",
		"too long":         strings.Repeat("a", protocol.MaxHealthBytes+1),
		"no object":        encode("[]"),
		"unknown member":   encode(`{"report":"YQ==","status":"ok"}`),
		"repeated member":  encode(`{"report":"YQ==","report":"Yg=="}`),
		"other letters":    encode(`{"Report":"YQ=="}`),
		"data afterwards":  encode(`{"report":"YQ=="}{}`),
		"a number":         encode(`{"signature":1}`),
		"bad UTF-8":        encode("{\"signature\":\"\xff\"}"),
		"a bit too many":   "e1",
		"report not bytes": encode(`{"report":"?"}`),
	} {
		if got, err := protocol.ParseSignedHealth(value); err == nil {
			t.Errorf("%s: accepted as %+v", name, got)
		}
	}
}

func TestParseHealth(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for _, state := range protocol.HealthStates() {
		want := protocol.Health{Audience: "hallmark.example.com", Instance: "111122223333/us-west-2/i-0123456789abcdef0", At: at, State: state}
		data, err := json.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := protocol.ParseHealth(data); err != nil || *got != want {
			t.Errorf("got %+v, error %v, want %+v", got, err, want)
		}
	}
	for name, text := range map[string]string{
		"no state":       `{"audience":"a"}`,
		"another state":  `{"audience":"a","state":"silent"}`,
		"unknown member": `{"audience":"a","state":"ok","detail":"x"}`,
		"not a time":     `{"at":"yesterday","state":"ok"}`,
		"null":           `null`,
	} {
		if got, err := protocol.ParseHealth([]byte(text)); err == nil {
			t.Errorf("%s: accepted as %+v", name, got)
		}
	}
}

// A signature for one purpose must never count for another.
func TestHealthBinding(t *testing.T) {
	report := []byte("text")
	if protocol.BindHealth(report) == protocol.Bind(report) || protocol.HealthNamespace == protocol.SignatureNamespace {
		t.Error("a health report and an enrollment share a binding or a namespace")
	}
}

func FuzzParseSignedHealth(f *testing.F) {
	value, err := signedHealth().Encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(value)
	f.Fuzz(func(t *testing.T, value string) {
		got, err := protocol.ParseSignedHealth(value)
		if err != nil {
			return
		}
		if _, err := protocol.ParseHealth(got.Report); err == nil && len(got.Report) == 0 {
			t.Error("an empty report was accepted")
		}
	})
}
