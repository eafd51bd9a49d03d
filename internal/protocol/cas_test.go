package protocol_test

import (
	"testing"

	"github.com/hallmark-ssh/hallmark/internal/protocol"
)

// The expected text is written out: a signer and machines of every version must agree on the
// tag, or every wake-up fetches the CAs again.
func TestCAsEncodeAndETagAreStable(t *testing.T) {
	body, err := protocol.CAs{Version: 1, OpenSSHCAs: []string{"ssh-ed25519 AAAA"}, HostCAs: []string{"ssh-rsa BBBB"}}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if want := `{"version":1,"opensshCAs":["ssh-ed25519 AAAA"],"hostCAs":["ssh-rsa BBBB"]}`; string(body) != want {
		t.Errorf("body %s, want %s", body, want)
	}
	const empty = `"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"` // FIPS 180-4's of no bytes
	if got := protocol.ETag(nil); got != empty {
		t.Errorf("ETag = %s, want %s", got, empty)
	}
}
