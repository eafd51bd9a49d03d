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

// view returns what sshd reads of a configuration: settings is what "sshd -T" prints for
// root, with ";" for the ends of lines.
func view(settings string, directives ...string) View {
	v := View{Directives: directives, Keys: map[string]string{"/k": "SHA256:a"}, Logins: map[string]int{}}
	v.add(Login{Connection{"root", here}, []byte(strings.ReplaceAll(settings, ";", "\n"))})
	return v
}

func (v View) with(change func(*View)) View {
	change(&v)
	return v
}

func TestPending(t *testing.T) {
	const stamp = "1 2 3"
	yes := view("permittty yes;hostcertificate /k-cert.pub", `permittty "yes"`)
	no := view("permittty no;hostcertificate /k-cert.pub", `permittty "no"`)
	same := view("permittty yes;hostcertificate /k-cert.pub", `permittty "yes"`, `permittty "no"`)
	early := []Changed{{"/etc/ssh/sshd_config", noon().Add(-time.Hour)}}
	late := []Changed{{"/etc/ssh/sshd_config", noon().Add(time.Hour)}}
	known := &Snapshot{Stamp: stamp, View: yes}
	loaded := Load{Stamp: stamp, At: noon()}
	for _, test := range []struct {
		name  string
		facts LoadFacts
		want  string // part of the answer, or empty for none
		known bool   // it is known what sshd has
	}{
		{"nothing runs", LoadFacts{Files: no, Changed: late}, "", false},
		{"files are older than the load", LoadFacts{Load: loaded, Files: yes, Changed: early}, "", true},
		{"edited, nothing known", LoadFacts{Load: loaded, Files: yes, Changed: late}, "sshd_config changed at 2026-01-02T13:00:00Z, after", false},
		{"changed at the moment of the load", LoadFacts{Load: loaded, Files: yes, Changed: []Changed{{"/f", noon()}}}, "/f changed", false},
		{"edited", LoadFacts{Load: loaded, Snapshot: known, Files: no, Changed: late}, `"permittty yes" became "permittty no", for root from 127.0.0.1`, true},
		{"edited with an old time", LoadFacts{Load: loaded, Snapshot: known, Files: no, Changed: early}, "permittty", true},
		{"touched", LoadFacts{Load: loaded, Snapshot: known, Files: yes, Changed: late}, "", true},
		{"edited to the same", LoadFacts{Load: loaded, Snapshot: known, Files: same, Changed: late}, "", true},
		{"edited and reloaded", LoadFacts{Load: Load{Stamp: "1 2 4", At: noon()}, Snapshot: known, Files: no, Changed: early}, "", true},
		{"edited, reloaded, edited", LoadFacts{Load: Load{Stamp: "1 2 4", At: noon()}, Snapshot: known, Files: no, Changed: late}, "sshd_config changed", false},
		{"an unknown time of the load", LoadFacts{Load: Load{Stamp: stamp}, Files: yes, Changed: early}, "cannot tell when", false},
		{"the same, known from before", LoadFacts{Load: Load{Stamp: stamp}, Snapshot: known, Files: yes, Changed: early}, "", true},
		{"a file with a time in the future", LoadFacts{Load: loaded, Files: yes, Changed: []Changed{{"/f", noon().AddDate(9, 0, 0)}}}, "/f changed", false},
		{"another host key", LoadFacts{Load: loaded, Snapshot: known, Files: yes.with(func(v *View) { v.Keys = map[string]string{"/k": "SHA256:b"} })}, "/k is not the one", true},
		{"a new host key", LoadFacts{Load: loaded, Snapshot: known, Files: yes.with(func(v *View) { v.Keys = map[string]string{"/k": "SHA256:a", "/l": "SHA256:b"} })}, "/l is not the one", true},
		{"a host key removed", LoadFacts{Load: loaded, Snapshot: known, Files: yes.with(func(v *View) { v.Keys = nil })}, "/k is no longer there", true},
		{"a Match block that nobody who was asked about meets", LoadFacts{Load: loaded, Snapshot: known, Files: yes.with(func(v *View) {
			v.Directives = []string{`permittty "yes"`, `match User bob: permittty "no"`}
		})}, "match User bob", true},
		{"a Match block removed", LoadFacts{Load: loaded, Files: yes, Snapshot: &Snapshot{stamp, yes.with(func(v *View) {
			v.Directives = []string{`permittty "yes"`, `match User bob: permittty "no"`}
		})}}, "was removed", true},
		{"no login in common", LoadFacts{Load: loaded, Snapshot: known, Files: no.with(func(v *View) { v.Logins = nil })}, `permittty`, true},
		{"hallmark's own settings beside an edit to the same", LoadFacts{Load: loaded, Snapshot: known, Files: view(
			"permittty yes;maxstartups 100;hostcertificate /k-cert.pub;hostcertificate /l-cert.pub", `permittty "yes"`, `permittty "no"`,
		).with(func(v *View) { v.Own = []string{"maxstartups", "hostcertificate /l-cert.pub"} })}, "", true},
		{"somebody's HostCertificate beside hallmark's", LoadFacts{Load: loaded, Snapshot: known, Files: view(
			"permittty yes;hostcertificate /k-cert.pub;hostcertificate /theirs", `permittty "yes"`, `hostcertificate "/theirs"`,
		).with(func(v *View) { v.Own = []string{"hostcertificate /k-cert.pub"} })}, "/theirs", true},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := test.facts.Pending()
			if (got == "") != (test.want == "") || !strings.Contains(got, test.want) {
				t.Errorf("%q, want %q", got, test.want)
			}
			if running, why := test.facts.Running(); (running != nil) != test.known || (why == "") != test.known {
				t.Errorf("known %v (%q), want %v", running != nil, why, test.known)
			}
		})
	}
}

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
	write(sshdconf.MainConfig, "Include /etc/ssh/sshd_config.d/*.conf\n"+blockBegin+"\nMaxStartups 100\n"+blockEnd+"\nPermitTTY no\n")
	write(sshdconf.DropIn, "TrustedUserCAKeys /ca\nHostCertificate /k-cert.pub\n")
	write("/etc/ssh/sshd_config.d/50-site.conf", "Match User bob\nX11Forwarding no\n")
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
