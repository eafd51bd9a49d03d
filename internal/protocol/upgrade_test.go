package protocol_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/hallmark-ssh/hallmark/internal/protocol"
)

// testdata has what machines and signers of each released version send, recorded once. The
// tests of packages agent and signer, run with -record, create what is missing for today's
// version. What a release has sent never changes, so an existing file is never overwritten.

// There is a recording of each supported version, and it is read to the last byte.
func TestRecordedVersions(t *testing.T) {
	for version := 1; version <= protocol.Version; version++ {
		dir := filepath.Join("testdata", fmt.Sprintf("v%d", version))
		body := read(t, dir, "request.json")
		request, payload := parse(t, body)
		if payload.Version != version {
			t.Errorf("%s has version %d", dir, payload.Version)
		}
		if version != protocol.Version {
			continue
		}
		// A machine of today writes what the recorded one wrote.
		if again := must(json.Marshal(payload)); !bytes.Equal(again, request.Payload) {
			t.Errorf("the payload is written as %s, was %s", again, request.Payload)
		}
		if again := must(json.Marshal(request)); !bytes.Equal(again, body) {
			t.Errorf("the request is written as %s, was %s", again, body)
		}
		var response protocol.Response
		answer := read(t, dir, "response.json")
		if err := json.Unmarshal(answer, &response); err != nil {
			t.Fatal(err)
		}
		if again := must(json.Marshal(response)); !bytes.Equal(again, answer) {
			t.Errorf("the response is written as %s, was %s", again, answer)
		}
		// Machines of this version compute the entity tag of what an enrollment returned.
		var cas protocol.CAs
		list := read(t, dir, "authorities.json")
		if err := json.Unmarshal(list, &cas); err != nil {
			t.Fatal(err)
		}
		if again := must(cas.Encode()); !bytes.Equal(again, list) {
			t.Errorf("the CAs are written as %s, were %s", again, list)
		}
	}
}

// The recorded request to leave, and its answer, are read to the last byte.
func TestRecordedLeave(t *testing.T) {
	dir := filepath.Join("testdata", "leave")
	body := read(t, dir, "request.json")
	request, payload := parse(t, body)
	if payload.Purpose != protocol.PurposeLeave {
		t.Errorf("purpose %q", payload.Purpose)
	}
	if again := must(json.Marshal(payload)); !bytes.Equal(again, request.Payload) {
		t.Errorf("the payload is written as %s, was %s", again, request.Payload)
	}
	var answer protocol.LeaveResponse
	recorded := read(t, dir, "response.json")
	if err := json.Unmarshal(recorded, &answer); err != nil {
		t.Fatal(err)
	}
	if again := must(json.Marshal(answer)); !bytes.Equal(again, recorded) {
		t.Errorf("the answer is written as %s, was %s", again, recorded)
	}
}

func read(t *testing.T, dir, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

// parse parses a request and the payload in it.
func parse(t *testing.T, body []byte) (*protocol.Request, *protocol.Payload) {
	t.Helper()
	request, err := protocol.ParseRequest(body)
	if err != nil {
		t.Fatal(err)
	}
	payload, err := protocol.ParsePayload(request.Payload)
	if err != nil {
		t.Fatal(err)
	}
	return request, payload
}
