package enroll

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/identity"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"github.com/hallmark-ssh/hallmark/internal/signer/entry"
	"github.com/hallmark-ssh/hallmark/internal/signer/teleport"
)

var record = flag.Bool("record", false, "record what a signer of this version answers, if it is not there yet")

// recordings holds what machines and signers of each version sent.
const recordings = "../../protocol/testdata"

// TestRecordedRequests answers what a machine of each released version sent, at the time when
// it sent it. All proofs are real: the document's signature, those of the host keys, and the
// one that STS verifies.
func TestRecordedRequests(t *testing.T) {
	dirs, err := filepath.Glob(filepath.Join(recordings, "v*"))
	if err != nil || len(dirs) < protocol.Version {
		t.Fatalf("recorded versions %q, error %v", dirs, err)
	}
	for _, dir := range dirs {
		t.Run(filepath.Base(dir), func(t *testing.T) {
			w, request := newRecordedWorld(t, dir)
			answer := w.signer.Enroll(t.Context(), request)
			if answer.Status != http.StatusOK {
				t.Fatalf("status %d, %s; log: %s", answer.Status, answer.Body, w.log.String())
			}
			if calls := w.upstream(); calls != all {
				t.Errorf("calls %q, want %q", calls, all)
			}
			compareRecording(t, filepath.Join(dir, "response.json"), answer.Body)
			list := w.signer.Answer(t.Context(), entry.Request{ID: "request-2", Method: http.MethodGet, Source: "192.0.2.1"})
			if list.Status != http.StatusOK || list.Header["ETag"] != protocol.ETag(list.Body) {
				t.Fatalf("status %d, %s, headers %v", list.Status, list.Body, list.Header)
			}
			compareRecording(t, filepath.Join(dir, "authorities.json"), list.Body)
		})
	}
}

// TestRecordedLeave answers the recorded request to leave of the first release that sends one.
func TestRecordedLeave(t *testing.T) {
	dir := filepath.Join(recordings, "leave")
	w, request := newRecordedWorld(t, dir)
	payload := must(protocol.ParsePayload(must(protocol.ParseRequest(request.Body)).Payload))
	keys := must(identity.ParseHostKeys(payload.HostKeys))
	w.claimFor(theInstance(), testHostname, ssh.FingerprintSHA256(keys[len(keys)-1]), w.now.Add(time.Hour))
	answer := w.signer.Enroll(t.Context(), request)
	if answer.Status != http.StatusOK {
		t.Fatalf("status %d, %s; log: %s", answer.Status, answer.Body, w.log.String())
	}
	if calls := w.upstream(); calls != left {
		t.Errorf("calls %q, want %q", calls, left)
	}
	compareRecording(t, filepath.Join(dir, "response.json"), answer.Body)
}

// newRecordedWorld returns the world of a recorded request, and the request.
func newRecordedWorld(t *testing.T, dir string) (*world, entry.Request) {
	t.Helper()
	request := entry.Request{
		ID: "request-1", Method: http.MethodPost, ContentType: "application/json", Source: "192.0.2.1",
		Body: must(os.ReadFile(filepath.Join(dir, "request.json"))),
	}
	w := newWorld(t)
	w.now = must(protocol.ParsePayload(must(protocol.ParseRequest(request.Body)).Payload)).IssuedAt
	w.instance.LaunchTime = w.now
	w.cas = func(int) teleport.CAs {
		return teleport.CAs{Host: []ssh.PublicKey{w.hostCA.PublicKey()}, OpenSSH: []ssh.PublicKey{w.hostCA.PublicKey()}}
	}
	keyring := must(identity.Regions())
	w.signer.Documents = must(keyring.With(testRegion, must(os.ReadFile(filepath.Join(dir, "region.pem")))))
	stsAttack(func(*atSTS) {})(w, new(attempt)) // an STS that verifies signatures
	return w, request
}

// compareRecording requires each member of the recorded answer in today's answer, with a value
// of the same kind: machines of that version read them.
func compareRecording(t *testing.T, path string, body []byte) {
	t.Helper()
	if _, err := os.Stat(path); err != nil && *record {
		if err := os.WriteFile(path, body, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	recorded, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v: run this test with -record", err)
	}
	var was, is any
	if err := json.Unmarshal(recorded, &was); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(body, &is); err != nil {
		t.Fatal(err)
	}
	compareShape(t, "answer", was, is)
}

func compareShape(t *testing.T, path string, was, is any) {
	t.Helper()
	if fmt.Sprintf("%T", was) != fmt.Sprintf("%T", is) {
		t.Errorf("%s is %v, and was %v", path, is, was)
		return
	}
	switch was := was.(type) {
	case map[string]any:
		for _, name := range slices.Sorted(maps.Keys(was)) {
			compareShape(t, path+"."+name, was[name], is.(map[string]any)[name])
		}
	case []any:
		if list := is.([]any); len(was) > 0 && len(list) > 0 {
			compareShape(t, path+"[]", was[0], list[0])
		} else if len(was) > 0 {
			t.Errorf("%s is empty", path)
		}
	}
}

// A machine that speaks an unsupported version learns which versions are supported, and no
// more: it has proved nothing.
func TestVersionsThatTheSignerDoesNotSpeak(t *testing.T) {
	for _, version := range []int{-1, 0, protocol.Version + 1, 99} {
		w := newWorld(t)
		a := newAttempt(t, w.now)
		a.payload.Version = version
		status, _, refused := w.enroll(a)
		if status != http.StatusBadRequest || refused.Code != protocol.CodeUnsupportedVersion {
			t.Errorf("version %d: status %d, %+v", version, status, refused)
		}
		if !slices.Equal(refused.SupportedVersions, protocol.SupportedVersions()) || w.upstream() != untilNothing {
			t.Errorf("version %d: %+v, calls %q", version, refused, w.upstream())
		}
	}
	w := newWorld(t)
	a := newAttempt(t, w.now)
	a.payload.Version = 99
	answer := w.signer.Enroll(t.Context(), a.build(t))
	compareRecording(t, filepath.Join(recordings, fmt.Sprintf("v%d", protocol.Version), "unsupported.json"), answer.Body)
	if bytes.Contains(answer.Body, []byte(testAudience)) {
		t.Errorf("answer %s", answer.Body)
	}
	for _, other := range []protocol.Code{protocol.CodeMalformed, protocol.CodePolicyRefused} {
		if answer := refusalAnswer(refuse(other, http.ErrBodyNotAllowed), "1", w.now); bytes.Contains(answer.Body, []byte("supportedVersions")) {
			t.Errorf("%s: answer %s", other, answer.Body)
		}
	}
}
