package policy

import (
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"
)

func TestDuration(t *testing.T) {
	const day = 24 * time.Hour
	for text, want := range map[string]time.Duration{
		"90m": 90 * time.Minute, "24h": day, "1d": day, "7d": 7 * day, "1d12h": 36 * time.Hour, "1d1.5h30m": 26 * time.Hour,
		"0d": 0, "0s": 0, "-1h": -time.Hour, "65535d": 65535 * day,
	} {
		var got Duration
		if err := yaml.Unmarshal([]byte(text), &got); err != nil || time.Duration(got) != want {
			t.Errorf("%s: %s, error %v", text, time.Duration(got), err)
		}
	}
	for _, text := range []string{
		"7", "d", "1.5d", "-1d", "+1d", "1d-1h", "1d+1h", "1d1d", "1h1d", "1D", "1d 1h", "7days", "65536d", "65535d2562047h", "1w", "[7d]", "yesterday",
	} {
		var got Duration
		err := yaml.Unmarshal([]byte(text), &got)
		if err == nil || !strings.Contains(err.Error(), "line 1: ") || !strings.Contains(err.Error(), "write 90m, 24h or 7d") {
			t.Errorf("%s: %s, error %v", text, time.Duration(got), err)
		}
	}
}
