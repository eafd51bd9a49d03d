package operator

import (
	"strings"
	"testing"
)

func TestTier(t *testing.T) {
	for size, want := range map[int]string{
		0: "", 4096: "", 4097: "tier: advanced", 8192: "tier: advanced", 8193: "tier: none",
	} {
		if got := tier(size); !strings.HasPrefix(got, want) || (want == "") != (got == "") {
			t.Errorf("%d bytes: %q, want %q", size, got, want)
		}
	}
}
