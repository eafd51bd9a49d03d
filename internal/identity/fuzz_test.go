package identity

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"net/http"
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/hallmark-ssh/hallmark/internal/protocol"
)

// FuzzVerify looks for panics and forgeries. Anything that verifies under the shipped keys
// contains the one real document, and verifies the same after it is re-encoded.
func FuzzVerify(f *testing.F) {
	seedWithTestdata(f)
	f.Add(decodeFile(f, "real/us-west-2/rsa2048.txt"))
	keys := shippedKeys(f)
	genuine := readTestdata(f, "real/us-west-2/document.json")
	f.Fuzz(func(t *testing.T, input []byte) {
		message, err := Decode(input)
		if err != nil {
			return
		}
		document, err := keys.Verify(message)
		if err == nil && !bytes.Equal(document.Content, genuine) {
			t.Fatalf("forged: %s", document.Content)
		}
		der, derErr := definite(message)
		if derErr != nil {
			if err == nil {
				t.Fatalf("verified, but cannot be re-encoded: %v", derErr)
			}
			return
		}
		if again, err := definite(der); err != nil || !bytes.Equal(again, der) {
			t.Fatalf("re-encoding twice differs from once: %v", err)
		}
		if _, again := keys.Verify(der); len(message) <= MaxBytes && (again == nil) != (err == nil) {
			t.Fatalf("as received: %v, re-encoded: %v", err, again)
		}
	})
}

// FuzzFields compares the JSON reader with encoding/json: both read the same from any input
// that the reader accepts.
func FuzzFields(f *testing.F) {
	f.Add([]byte(madeUpDocument))
	f.Add(readTestdata(f, "real/us-west-2/document.json"))
	f.Add([]byte(`{"region":"a","region":"b"}`))
	f.Add([]byte(`{"region":"\ud800","Region":[{}]}`))
	f.Fuzz(func(t *testing.T, content []byte) {
		got, err := parseFields(content)
		if err != nil {
			return
		}
		var want map[string]json.RawMessage
		if err := json.Unmarshal(content, &want); err != nil || !reflect.DeepEqual(map[string]json.RawMessage(got), want) {
			t.Fatalf("read as %s, by encoding/json as %s (%v)", got, want, err)
		}
		if document, err := got.document(); err == nil && document.Instance.Account == "" {
			t.Fatal("a document without an account")
		}
	})
}

func seedWithTestdata(f *testing.F) {
	root := os.DirFS("testdata")
	for _, dir := range []string{"real", "attacks"} {
		err := fs.WalkDir(root, dir, func(path string, entry fs.DirEntry, err error) error {
			if err != nil || entry.IsDir() {
				return err
			}
			data, err := fs.ReadFile(root, path)
			f.Add(data)
			return err
		})
		if err != nil {
			f.Fatal(err)
		}
	}
}

// FuzzCallerProof sends three strings from an unproved caller through the rebuilding of the
// request to STS. Whatever they are, they choose nothing but those three values.
func FuzzCallerProof(f *testing.F) {
	good := newAttempt(f).proof
	f.Add(good.Authorization, good.Date, good.SecurityToken)
	f.Add(strings.Replace(good.Authorization, signedHeaders, signedHeadersWithLength, 1), good.Date, good.SecurityToken)
	f.Add(good.Authorization, "20260304T050607.5Z", good.SecurityToken)
	f.Add(good.Authorization+"\r\nHost: evil.example", good.Date, good.SecurityToken+"\r\nX: y")
	binding := protocol.Bind([]byte("payload"))
	f.Fuzz(func(t *testing.T, authorization, date, token string) {
		proof := protocol.CallerProof{Authorization: authorization, Date: date, SecurityToken: token}
		request, err := rebuildCallerRequest(t.Context(), proof, binding, callerRegion)
		if err != nil {
			return
		}
		want := http.Header{
			"Authorization": {authorization}, "Content-Type": {callerContentType}, "User-Agent": {"hallmark"},
			"X-Amz-Date": {date}, "X-Amz-Security-Token": {token}, "X-Hallmark-Binding": {binding.String()},
		}
		if !reflect.DeepEqual(request.Header, want) {
			t.Errorf("header %v, want %v", request.Header, want)
		}
		for name, values := range request.Header {
			if strings.ContainsAny(values[0], "\r\n\x00") {
				t.Errorf("%s breaks out of its line: %q", name, values[0])
			}
		}
		if request.Method != http.MethodPost || request.URL.String() != "https://sts.hm-test-1.amazonaws.com/" {
			t.Errorf("request %s %s", request.Method, request.URL)
		}
	})
}

// FuzzSTSAnswer checks that an answer names somebody only if its text does, and
// that what goes to the log is one line without the token.
func FuzzSTSAnswer(f *testing.F) {
	good := identityAnswer(callerARN, callerAccount)
	proof := newAttempt(f).proof
	f.Add(200, []byte(good))
	f.Add(200, []byte(good+good))
	f.Add(200, []byte("<html><body>Welcome</body></html>"))
	f.Add(403, []byte(errorAnswer("SignatureDoesNotMatch", proof.SecurityToken)))
	f.Add(400, []byte(errorAnswer("Throttling", "Rate exceeded")))
	f.Fuzz(func(t *testing.T, status int, body []byte) {
		who, err := readSTSAnswer(status, body, proof)
		if err == nil {
			if status != http.StatusOK || !bytes.Contains(body, []byte("GetCallerIdentityResponse")) {
				t.Errorf("status %d and %q name %+v", status, body, who)
			}
			return
		}
		if errors.Is(err, ErrCallerProof) == errors.Is(err, ErrSTSUnavailable) {
			t.Errorf("error %v is not one of the two", err)
		}
		if strings.Contains(err.Error(), proof.SecurityToken) || strings.ContainsAny(err.Error(), "\n\r") {
			t.Errorf("not for the log: %q", err)
		}
	})
}
