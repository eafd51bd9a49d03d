// Package golden compares what a test made with a file in testdata.
package golden

import (
	"bytes"
	"os"
	"testing"
)

// Compare fails the test if got is not what the file at path contains. With update, it
// writes the file first: the caller passes its own flag -update.
func Compare(t testing.TB, path string, got []byte, update bool) {
	t.Helper()
	if update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s differs. If this is intended, run the test with -update and read the changes. Got:\n%s", path, got)
	}
}
