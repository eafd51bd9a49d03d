package policy

import (
	"strings"
	"testing"
	"time"
)

func TestDuration(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"90m": 90 * time.Minute, "24h": day, "1d": day, "7d": 7 * day, "1d12h": 36 * time.Hour, "1d1.5h30m": 26 * time.Hour,
		"0d": 0, "0s": 0, "-1h": -time.Hour, "65535d": 65535 * day,
	} {
		var got Duration
		if err := got.UnmarshalText([]byte(text)); err != nil || time.Duration(got) != want {
			t.Errorf("%s: %s, error %v", text, time.Duration(got), err)
		}
	}
	for _, text := range []string{
		"7", "d", "1.5d", "-1d", "+1d", "1d-1h", "1d+1h", "1d1d", "1h1d", "1D", "1d 1h", "7days", "65536d", "65535d2562047h", "1w", "[7d]", "yesterday",
	} {
		var got Duration
		err := got.UnmarshalText([]byte(text))
		if err == nil || !strings.Contains(err.Error(), "is not a duration; write ") {
			t.Errorf("%s: %s, error %v", text, time.Duration(got), err)
		}
	}
}

func TestDurationIsPrintedAsWritten(t *testing.T) {
	for d, want := range map[time.Duration]string{
		7 * day: "7d", 36 * time.Hour: "1d12h", 90 * time.Minute: "1h30m", time.Hour: "1h", 59 * time.Minute: "59m", 0: "0s",
		-time.Hour: "-1h", day + time.Second: "1d1s", 90 * time.Second: "1m30s", day + 10*time.Minute: "1d10m", 10 * time.Hour: "10h",
		20 * time.Second: "20s", 30*day + time.Hour + time.Second: "30d1h0m1s",
	} {
		var again Duration
		if got := Duration(d).String(); got != want {
			t.Errorf("%s is printed %s, want %s", d, got, want)
		} else if err := again.UnmarshalText([]byte(got)); err != nil || time.Duration(again) != d {
			t.Errorf("%s is read as %s, error %v", got, time.Duration(again), err)
		}
	}
}
