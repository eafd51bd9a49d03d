package sshd

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/machine/sshdconf"
)

// noon is the time of the last load in these tests.
func noon() time.Time { return time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC) }

// What counts from boot holds whatever happened to the clock.
func TestMomentsOfALoad(t *testing.T) {
	now := noon()
	for _, test := range []struct {
		name string
		m    moments
		want time.Time
	}{
		{"nothing known", moments{now: now}, time.Time{}},
		{"no boot time", moments{now: now, start: time.Minute}, time.Time{}},
		{"the start alone", moments{now: now, sinceBoot: time.Hour, start: time.Minute}, now.Add(-59 * time.Minute)},
		{"reloaded later", moments{now: now, sinceBoot: time.Hour, start: time.Minute, pidFile: now.Add(-10 * time.Minute)}, now.Add(-10 * time.Minute)},
		{"reloaded by systemd, no PID file", moments{now: now, sinceBoot: time.Hour, start: time.Minute, unit: 30 * time.Minute}, now.Add(-30 * time.Minute)},
		{"the clock was behind when sshd started", moments{now: now, sinceBoot: time.Hour, start: time.Minute, pidFile: now.AddDate(-6, 0, 0)}, now.Add(-59 * time.Minute)},
		{"the clock was ahead when sshd started", moments{now: now, sinceBoot: time.Hour, start: time.Minute, pidFile: now.AddDate(6, 0, 0)}, now.Add(-59 * time.Minute)},
		{"/proc is hidden", moments{now: now, sinceBoot: time.Hour, pidFile: now.Add(-10 * time.Minute)}, now.Add(-10 * time.Minute)},
	} {
		if got := test.m.load(); !got.Equal(test.want) {
			t.Errorf("%s: %s, want %s", test.name, got, test.want)
		}
	}
	later := moments{now: now.AddDate(3, 0, 0), sinceBoot: 2 * time.Hour, start: time.Minute, pidFile: now}
	if earlier := (moments{now: now, sinceBoot: time.Hour, start: time.Minute, pidFile: now}); earlier.stamp(7) != later.stamp(7) {
		t.Errorf("the stamp depends on the clock: %s, %s", earlier.stamp(7), later.stamp(7))
	}
}

func TestParseStartTicks(t *testing.T) {
	const rest = " S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4242 20"
	for stat, want := range map[string]int64{
		"7 (sshd)" + rest:               4242,
		"7 (a) S 1 (b c)" + rest:        4242, // names may hold anything
		"7 (sshd) S 1":                  -1,
		"":                              -1,
		"7 sshd":                        -1,
		"7 (sshd) S" + rest[2:40] + "x": -1,
	} {
		got, err := parseStartTicks(stat)
		if (err == nil) != (want >= 0) || err == nil && got != want {
			t.Errorf("%q: %d %v, want %d", stat, got, err, want)
		}
	}
}

// Lines that hallmark wrote are known by the drop-in and by the block.
func TestOwnLines(t *testing.T) {
	root := t.TempDir()
	s := &Server{Root: root}
	write := func(name, content string) {
		if err := errors.Join(os.MkdirAll(filepath.Dir(root+name), 0o755), os.WriteFile(root+name, []byte(content), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	write(sshdconf.MainConfig, "Include /etc/ssh/sshd_config.d/*.conf\n"+sshdconf.BlockBegin+"\nMaxStartups 100\n"+sshdconf.BlockEnd+"\nPermitTTY no\n")
	write(sshdconf.DropIn, "TrustedUserCAKeys /ca\nHostCertificate /k-cert.pub\n")
	// The kernel's clock for files moves every few milliseconds.
	at := func(name string) time.Time { return s.changes([]string{name})[0].At }
	for later := false; !later; later = at(filepath.Dir(sshdconf.DropIn)).After(at(sshdconf.DropIn)) {
		_ = os.Remove(root + "/etc/ssh/sshd_config.d/50-site.conf")
		write("/etc/ssh/sshd_config.d/50-site.conf", "Match User bob\nX11Forwarding no\n")
	}
	v, changed := s.ViewOf(&Effective{HostCertificates: []string{"/k-cert.pub"}}, nil)
	// The lines of an included file come before the line that includes it.
	want := `match User bob: match "User" "bob"|match User bob: x11forwarding "no"|include "/etc/ssh/sshd_config.d/*.conf"|permittty "no"`
	if got := strings.Join(v.Directives, "|"); got != want {
		t.Errorf("directives %s", got)
	}
	if own := strings.Join(v.Own, ","); own != "trustedusercakeys,hostcertificate /k-cert.pub,maxstartups" {
		t.Errorf("own %s", own)
	}
	var paths []string
	for _, c := range changed {
		paths = append(paths, c.Path)
	}
	if got := strings.Join(paths, " "); got != "/etc/ssh/sshd_config /etc/ssh/sshd_config.d/50-site.conf /etc/ssh/sshd_config.d" {
		t.Errorf("watches %s", got)
	}
}
