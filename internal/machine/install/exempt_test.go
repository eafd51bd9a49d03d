package install

import (
	"testing"

	"github.com/hallmark-ssh/hallmark/internal/machine/sshd"
)

func TestExemptSources(t *testing.T) {
	for settings, want := range map[string]struct {
		value string
		known bool
	}{
		"port 22\n":                                 {"", false},
		"persourcepenaltyexemptlist none\n":         {"", true},
		"port 22\npersourcepenaltyexemptlist a,b\n": {"a,b", true},
		"persourcepenaltyexemptlistish 192.0.2.7\n": {"", false},
	} {
		value, known := exemptSources([]sshd.Login{{Settings: []byte(settings)}})
		if value != want.value || known != want.known {
			t.Errorf("%q: got %q, %v, want %q, %v", settings, value, known, want.value, want.known)
		}
	}
}
