package enroll

import (
	"bytes"
	"encoding/json"
	"net/http"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"github.com/hallmark-ssh/hallmark/internal/signer/emf/emftest"
	"github.com/hallmark-ssh/hallmark/internal/signer/entry"
	"github.com/hallmark-ssh/hallmark/internal/signer/teleport"
	"github.com/hallmark-ssh/hallmark/internal/sshkey"
	"github.com/hallmark-ssh/hallmark/internal/sshkey/sshkeytest"
)

// newAsked is a world whose cluster has CAs of both kinds.
func newAsked(t *testing.T) (*world, teleport.CAs) {
	t.Helper()
	w := newWorld(t)
	cas := teleport.CAs{
		OpenSSH: []ssh.PublicKey{sshkeytest.NewSigner(t).PublicKey(), sshkeytest.NewSigner(t).PublicKey()},
		Host:    []ssh.PublicKey{w.hostCA.PublicKey()},
	}
	w.cas = func(int) teleport.CAs { return cas }
	return w, cas
}

func (w *world) get(ifNoneMatch string) entry.Answer {
	w.t.Helper()
	return w.signer.Answer(w.t.Context(), entry.Request{ID: "request-1", Method: http.MethodGet, Source: "192.0.2.1", IfNoneMatch: ifNoneMatch})
}

func TestCAs(t *testing.T) {
	w, cas := newAsked(t)
	answer := w.get("")
	var got protocol.CAs
	if err := json.Unmarshal(answer.Body, &got); answer.Status != http.StatusOK || err != nil {
		t.Fatalf("status %d, body %q, error %v", answer.Status, answer.Body, err)
	}
	if !slices.Equal(got.OpenSSHCAs, sshkey.Lines(cas.OpenSSH)) || !slices.Equal(got.HostCAs, sshkey.Lines(cas.Host)) || got.Version != protocol.CAsVersion {
		t.Errorf("got %+v", got)
	}
	etag := answer.Header["ETag"]
	if etag != protocol.ETag(answer.Body) {
		t.Errorf("entity tag %s", etag)
	}
	if again := w.get(etag); again.Status != http.StatusNotModified || len(again.Body) != 0 || again.Header["ETag"] != etag {
		t.Errorf("the same again: status %d, body %q, header %v", again.Status, again.Body, again.Header)
	}
	if other := w.get(`"another"`); other.Status != http.StatusOK {
		t.Errorf("another entity tag: status %d", other.Status)
	}
	if w.log.Len() != 0 {
		t.Errorf("log %s", w.log.String())
	}
}

// However often an unproved caller asks, the signer asks Teleport once a minute, and less
// often while it is down.
func TestCAsCostTheSameHoweverOftenTheyAreAskedFor(t *testing.T) {
	w, _ := newAsked(t)
	for range 100 {
		w.get("")
	}
	if w.casRead != 1 {
		t.Errorf("Teleport was asked %d times", w.casRead)
	}
	w.now = w.now.Add(casRule().Fresh)
	for range 100 {
		w.get("")
	}
	if w.casRead != 2 {
		t.Errorf("Teleport was asked %d times in two minutes", w.casRead)
	}
	w.calls, w.dialErr = nil, teleport.ErrUnavailable
	w.now = w.now.Add(casRule().Fresh)
	for range 100 {
		if answer := w.get(""); answer.Status != http.StatusOK {
			t.Fatalf("status %d while the last list is good", answer.Status)
		}
	}
	if len(w.calls) != 1 {
		t.Errorf("%d calls while Teleport is down, want 1", len(w.calls))
	}
}

func TestCAsWithoutTeleport(t *testing.T) {
	w, _ := newAsked(t)
	w.dialErr = teleport.ErrUnavailable
	for range 3 {
		answer := w.get("")
		var refused protocol.ErrorResponse
		if err := json.Unmarshal(answer.Body, &refused); err != nil || refused.Error.Code != protocol.CodeUpstream || answer.Header["Retry-After"] == "" {
			t.Errorf("status %d, header %v, body %q", answer.Status, answer.Header, answer.Body)
		}
	}
	w.dialErr = nil
	w.now = w.now.Add(casRule().Pause)
	if answer := w.get(""); answer.Status != http.StatusOK {
		t.Errorf("status %d when Teleport is back", answer.Status)
	}
	w.dialErr = teleport.ErrUnavailable
	w.now = w.now.Add(casRule().Kept)
	if answer := w.get(""); answer.Status != http.StatusServiceUnavailable {
		t.Errorf("status %d with a list that is too old", answer.Status)
	}
}

// Each failed read of the list is logged and counted once, even if the signer still serves the
// cached list. Requests that wait in the meantime add nothing.
func TestFailedCAReadsAreCounted(t *testing.T) {
	w, _ := newAsked(t)
	w.get("")
	for _, age := range []time.Duration{casRule().Fresh, casRule().Kept} { // the last list is served, or is not
		w.log.Reset()
		w.dialErr, w.now = teleport.ErrUnavailable, w.now.Add(age)
		w.get("")
		w.get("")
		seen := 0
		for line := range bytes.Lines(w.log.Bytes()) {
			entry := parse(t, line)
			if entry["_aws"] == nil {
				continue
			}
			seen++
			emftest.Check(t, entry, w.now)
			if entry["teleport_errors"] != 1.0 || entry["level"] != "WARN" || entry["error"] == nil {
				t.Errorf("line %s", line)
			}
		}
		if seen != 1 {
			t.Errorf("told %d times, want once: %s", seen, w.log.String())
		}
	}
}

// With an empty list, machines would let nobody in.
func TestNoCAsAreNoAnswer(t *testing.T) {
	for name, cas := range map[string]teleport.CAs{
		"none":     {},
		"no host":  {OpenSSH: []ssh.PublicKey{sshkeytest.NewSigner(t).PublicKey()}},
		"no users": {Host: []ssh.PublicKey{sshkeytest.NewSigner(t).PublicKey()}},
	} {
		w := newWorld(t)
		w.cas = func(int) teleport.CAs { return cas }
		if answer := w.get(""); answer.Status != http.StatusServiceUnavailable {
			t.Errorf("%s: status %d, body %s", name, answer.Status, answer.Body)
		}
	}
}

func TestCAsAreBehindTheDoorToo(t *testing.T) {
	w, _ := newAsked(t)
	w.signer.Sources = []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}
	if answer := w.get(""); answer.Status != http.StatusForbidden || len(w.calls) != 0 {
		t.Errorf("status %d, calls %v", answer.Status, w.calls)
	}
}

// A machine that enrolls and a machine that asks get the same list: the entity tags are equal.
func TestCAsOfAnEnrollment(t *testing.T) {
	w, _ := newAsked(t)
	_, granted, _ := w.enroll(newAttempt(t, w.now))
	body, err := protocol.CAs{Version: protocol.CAsVersion, OpenSSHCAs: granted.OpenSSHCAs, HostCAs: granted.HostCAs}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if answer := w.get(protocol.ETag(body)); answer.Status != http.StatusNotModified {
		t.Errorf("status %d, body %s", answer.Status, answer.Body)
	}
	w.now = w.now.Add(time.Hour)
	rotated := teleport.CAs{OpenSSH: []ssh.PublicKey{sshkeytest.NewSigner(t).PublicKey()}, Host: []ssh.PublicKey{w.hostCA.PublicKey()}}
	w.cas = func(int) teleport.CAs { return rotated }
	if answer := w.get(protocol.ETag(body)); answer.Status != http.StatusOK {
		t.Errorf("status %d after a rotation", answer.Status)
	}
}
