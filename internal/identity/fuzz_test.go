package identity

import (
	"bytes"
	"encoding/json"
	"io/fs"
	"os"
	"reflect"
	"testing"
)

// FuzzVerify looks for panics and forgeries: whatever verifies under the
// shipped keys holds the one real document there is, and verifies the same
// after it was re-encoded.
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

// FuzzFields checks the JSON reader against encoding/json: what it accepts is
// read the same by both.
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
		if document, err := got.document(); err == nil && document.AccountID == "" {
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
