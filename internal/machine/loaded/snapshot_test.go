package loaded

import (
	"os"
	"testing"
)

// What cannot be read is as good as nothing.
func TestLoadSnapshot(t *testing.T) {
	dir := t.TempDir()
	for _, junk := range []string{"", "{", `{"stamp":7}`, `{}`, `{"directives":["x"]}`} {
		if err := os.WriteFile(Path(dir), []byte(junk), 0o600); err != nil {
			t.Fatal(err)
		}
		if s := LoadSnapshot(dir); s != nil {
			t.Errorf("%q was read as %+v", junk, s)
		}
	}
}
