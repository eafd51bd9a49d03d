package enroll

import (
	"bytes"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/identity"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"github.com/hallmark-ssh/hallmark/internal/signer/entry"
	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
	"github.com/hallmark-ssh/hallmark/internal/signer/node"
	"github.com/hallmark-ssh/hallmark/internal/sshkey"
)

// FuzzEnroll sends any body from anywhere. Only the one payload that the machine signed gets
// past STS, and nobody else learns more than a code.
func FuzzEnroll(f *testing.F) {
	now := time.Date(2026, 3, 4, 5, 6, 7, 0, time.UTC)
	good := fuzzRequest(f, now)
	seed := must(json.Marshal(good))
	f.Add(seed, "application/json")
	f.Add([]byte(`{"payload":"e30=","caller":{},"signatures":[]}`), "application/json; charset=utf-8")
	f.Add([]byte(`{"payload":"eyJ2ZXJzaW9uIjozfQ=="}`), "application/json")
	f.Add(must(json.Marshal(protocol.Request{Payload: good.Payload, Caller: good.Caller})), "application/json")
	var w *world
	f.Fuzz(func(t *testing.T, body []byte, contentType string) {
		if w == nil {
			w = newWorld(t)
		}
		w.reset(t, now)
		answer := w.signer.Enroll(t.Context(), entry.Request{
			ID: "request-1", Method: http.MethodPost, ContentType: contentType, Body: body, Source: "192.0.2.1",
		})
		if bytes.Equal(body, seed) && contentType == "application/json" && answer.Status != http.StatusOK {
			t.Fatalf("the machine's own request: %d %s", answer.Status, answer.Body)
		}
		if answer.Status == http.StatusOK || strings.HasPrefix(w.upstream(), untilEC2) {
			if request, err := protocol.ParseRequest(body); err != nil || !bytes.Equal(request.Payload, good.Payload) {
				t.Fatalf("a payload that nobody signed came to %q: %s", w.upstream(), body)
			}
			return
		}
		if calls := w.upstream(); calls != untilNothing && calls != untilSTS {
			t.Errorf("calls %q", calls)
		}
		checkStrangersAnswer(t, answer)
		var entry map[string]any
		if err := json.Unmarshal(w.log.Bytes(), &entry); err != nil {
			t.Errorf("want one line: %v in %q", err, w.log.String())
		}
		checkNoSecrets(t, w)
	})
}

// checkStrangersAnswer requires the code's own sentence, and nothing from the request.
func checkStrangersAnswer(t *testing.T, answer entry.Answer) {
	t.Helper()
	var refused protocol.ErrorResponse
	if err := json.Unmarshal(answer.Body, &refused); err != nil {
		t.Fatalf("answer %q: %v", answer.Body, err)
	}
	known, ok := outcomes()[refused.Error.Code]
	if !ok || answer.Status != known.status || refused.Error.Message != known.message || len(answer.Body) > 512 {
		t.Errorf("answer %d %s", answer.Status, answer.Body)
	}
}

// reset makes the world new, except what takes long to create.
func (w *world) reset(t *testing.T, now time.Time) {
	w.t, w.now = t, now
	w.instance.LaunchTime = now.Add(-time.Minute)
	w.signer.Documents = oneDocument{}
	w.signer.attempts, w.signer.proved = limiter{}, limiter{}
	w.ledger = ledger.Memory{}
	w.nodes = make(map[string]node.Node)
	w.calls, w.claimed = nil, nil
	w.log.Reset()
}

// oneDocument accepts one message. internal/identity fuzzes how messages are verified; here
// that would only cost time.
type oneDocument struct{}

func (oneDocument) Verify(message []byte) (*identity.Document, error) {
	if string(message) != "the document" {
		return nil, errors.New("not signed by the region")
	}
	return &identity.Document{
		Instance: theInstance(), AvailabilityZone: testRegion + "a",
		ImageID: testImage, PrivateIP: "10.0.0.7",
	}, nil
}

// fuzzRequest is the same in every process, so that a fuzzer's workers agree on it.
func fuzzRequest(t testing.TB, now time.Time) protocol.Request {
	t.Helper()
	var keys []ssh.Signer
	payload := protocol.Payload{
		Version: protocol.Version, Audience: testAudience, IssuedAt: now,
		IdentityDocument: base64.StdEncoding.EncodeToString([]byte("the document")),
		Report:           &protocol.Report{Rejected: protocol.NewRejection(protocol.RejectedNotPresented, "request-0", "sshd presents another")},
	}
	for _, seed := range []string{"a", "b"} {
		key := must(ssh.NewSignerFromKey(ed25519.NewKeyFromSeed([]byte(strings.Repeat(seed, ed25519.SeedSize)))))
		keys = append(keys, key)
		payload.HostKeys = append(payload.HostKeys, sshkey.Line(key.PublicKey()))
	}
	text := must(json.Marshal(payload))
	binding := protocol.Bind(text)
	r := protocol.Request{Payload: text, Caller: protocol.CallerProof{
		Authorization: fakeProof(binding, theInstance()),
		Date:          now.Format("20060102T150405Z"), SecurityToken: testSecret,
	}}
	for _, key := range keys {
		r.Signatures = append(r.Signatures, must(identity.SignBinding(key, binding)))
	}
	return r
}
