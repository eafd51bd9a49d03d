package sshdconf

import (
	"strings"
	"testing"
)

func TestCheckSources(t *testing.T) {
	for source, want := range map[string]string{
		"192.0.2.7": "", "192.0.2.0/28": "", "10.0.0.0/8": "", "2001:db8::1": "", "2001:db8::/32": "", "127.0.0.1": "",

		"":                     "neither an IP address",
		"teleport.example.com": "neither an IP address",
		"192.0.2.256":          "neither an IP address",
		"192.0.2.07":           "neither an IP address",
		"192.0.2.7 ":           "neither an IP address",
		"192.0.2.*":            "neither an IP address",
		"!192.0.2.7":           "neither an IP address",
		"192.0.2.7,192.0.2.8":  "neither an IP address",
		"192.0.2.7:22":         "neither an IP address",
		"192.0.2.7\nPort 23":   "neither an IP address",
		"fe80::1%eth0":         "neither an IP address",
		"fe80::%eth0/64":       "neither an IP address",
		"192.0.2.0/33":         "neither an IP address",
		"192.0.2.7/28":         "write 192.0.2.0/28",
		"0.0.0.0/0":            "too wide",
		"::/0":                 "too wide",
		"0.0.0.0/1":            "too wide",
		"2000::/3":             "too wide",
		"0.0.0.0":              "not the address of a proxy",
		"::":                   "not the address of a proxy",
		"::ffff:192.0.2.7":     "write the IPv4 address itself, 192.0.2.7",
		"::ffff:192.0.2.0/124": "write the IPv4 address itself, 192.0.2.0",
	} {
		err := CheckSources([]string{"198.51.100.1", source})
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%q: got %v, want %q", source, err, want)
		}
	}
	if err := CheckSources(make([]string, maxSources+1)); err == nil || !strings.Contains(err.Error(), "65 entries, 64 at most") {
		t.Errorf("too many: got %v", err)
	}
	if err := CheckSources(nil); err != nil {
		t.Error(err)
	}
}

func FuzzCheckSources(f *testing.F) {
	for _, seed := range []string{"192.0.2.7", "2001:db8::/32", "::ffff:1.2.3.4", "fe80::1%a\nb", "1.2.3.4/08"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, source string) {
		if CheckSources([]string{source}) != nil {
			return
		}
		if strings.Trim(source, "0123456789abcdefABCDEF.:/") != "" {
			t.Errorf("%q was accepted", source)
		}
	})
}

func TestJoinSources(t *testing.T) {
	for _, tt := range []struct {
		inEffect string
		more     []string
		want     string
	}{
		{"none", []string{"192.0.2.7"}, "192.0.2.7"},
		{"", []string{"192.0.2.7", "192.0.2.8", "192.0.2.7"}, "192.0.2.7,192.0.2.8"},
		{"10.0.0.*,192.0.2.7", []string{"192.0.2.7", "192.0.2.8"}, "10.0.0.*,192.0.2.7,192.0.2.8"},
		{"10.0.0.0/8", nil, "10.0.0.0/8"},
	} {
		if got := JoinSources(tt.inEffect, tt.more); got != tt.want {
			t.Errorf("%q and %q: got %q, want %q", tt.inEffect, tt.more, got, tt.want)
		}
	}
}
