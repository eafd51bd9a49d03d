package loaded

import (
	"strings"
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/machine/sshd"
)

// noon is the time of the last load in these tests.
func noon() time.Time { return time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC) }

// view returns what sshd reads of a configuration: settings is what "sshd -T" prints for
// root, with ";" for the ends of lines.
func view(settings string, directives ...string) sshd.View {
	return sshd.View{
		Directives: directives, Keys: map[string]string{"/k": "SHA256:a"},
		Logins: map[string]int{"root from 127.0.0.1": 0}, Settings: []string{strings.ReplaceAll(settings, ";", "\n")},
	}
}

func with(v sshd.View, change func(*sshd.View)) sshd.View {
	change(&v)
	return v
}

func TestPending(t *testing.T) {
	const stamp = "1 2 3"
	yes := view("permittty yes;hostcertificate /k-cert.pub", `permittty "yes"`)
	no := view("permittty no;hostcertificate /k-cert.pub", `permittty "no"`)
	same := view("permittty yes;hostcertificate /k-cert.pub", `permittty "yes"`, `permittty "no"`)
	early := []sshd.Changed{{Path: "/etc/ssh/sshd_config", At: noon().Add(-time.Hour)}}
	late := []sshd.Changed{{Path: "/etc/ssh/sshd_config", At: noon().Add(time.Hour)}}
	known := &Snapshot{Stamp: stamp, View: yes}
	load := sshd.Load{Stamp: stamp, At: noon()}
	for _, test := range []struct {
		name  string
		facts facts
		want  string // part of the answer, or empty for none
		known bool   // it is known what sshd has
	}{
		{"nothing runs", facts{Files: no, Changed: late}, "", false},
		{"files are older than the load", facts{Load: load, Files: yes, Changed: early}, "", true},
		{"edited, nothing known", facts{Load: load, Files: yes, Changed: late}, "sshd_config changed at 2026-01-02T13:00:00Z, after", false},
		{"changed at the moment of the load", facts{Load: load, Files: yes, Changed: []sshd.Changed{{Path: "/f", At: noon()}}}, "/f changed", false},
		{"edited", facts{Load: load, Snapshot: known, Files: no, Changed: late}, `"permittty yes" became "permittty no", for root from 127.0.0.1`, true},
		{"edited with an old time", facts{Load: load, Snapshot: known, Files: no, Changed: early}, "permittty", true},
		{"touched", facts{Load: load, Snapshot: known, Files: yes, Changed: late}, "", true},
		{"edited to the same", facts{Load: load, Snapshot: known, Files: same, Changed: late}, "", true},
		{"edited and reloaded", facts{Load: sshd.Load{Stamp: "1 2 4", At: noon()}, Snapshot: known, Files: no, Changed: early}, "", true},
		{"edited, reloaded, edited", facts{Load: sshd.Load{Stamp: "1 2 4", At: noon()}, Snapshot: known, Files: no, Changed: late}, "sshd_config changed", false},
		{"an unknown time of the load", facts{Load: sshd.Load{Stamp: stamp}, Files: yes, Changed: early}, "cannot tell when", false},
		{"the same, known from before", facts{Load: sshd.Load{Stamp: stamp}, Snapshot: known, Files: yes, Changed: early}, "", true},
		{"a file with a time in the future", facts{Load: load, Files: yes, Changed: []sshd.Changed{{Path: "/f", At: noon().AddDate(9, 0, 0)}}}, "/f changed", false},
		{"another host key", facts{Load: load, Snapshot: known, Files: with(yes, func(v *sshd.View) { v.Keys = map[string]string{"/k": "SHA256:b"} })}, "/k is not the one", true},
		{"a new host key", facts{Load: load, Snapshot: known, Files: with(yes, func(v *sshd.View) { v.Keys = map[string]string{"/k": "SHA256:a", "/l": "SHA256:b"} })}, "/l is not the one", true},
		{"a host key removed", facts{Load: load, Snapshot: known, Files: with(yes, func(v *sshd.View) { v.Keys = nil })}, "/k is no longer there", true},
		{"a Match block that nobody who was asked about meets", facts{Load: load, Snapshot: known, Files: with(yes, func(v *sshd.View) {
			v.Directives = []string{`permittty "yes"`, `match User bob: permittty "no"`}
		})}, "match User bob", true},
		{"a Match block removed", facts{Load: load, Files: yes, Snapshot: &Snapshot{stamp, with(yes, func(v *sshd.View) {
			v.Directives = []string{`permittty "yes"`, `match User bob: permittty "no"`}
		})}}, "was removed", true},
		{"no login in common", facts{Load: load, Snapshot: known, Files: with(no, func(v *sshd.View) { v.Logins = nil })}, `permittty`, true},
		{"hallmark's own settings beside an edit to the same", facts{Load: load, Snapshot: known, Files: with(view(
			"permittty yes;maxstartups 100;hostcertificate /k-cert.pub;hostcertificate /l-cert.pub", `permittty "yes"`, `permittty "no"`,
		), func(v *sshd.View) { v.Own = []string{"maxstartups", "hostcertificate /l-cert.pub"} })}, "", true},
		{"somebody's HostCertificate beside hallmark's", facts{Load: load, Snapshot: known, Files: with(view(
			"permittty yes;hostcertificate /k-cert.pub;hostcertificate /theirs", `permittty "yes"`, `hostcertificate "/theirs"`,
		), func(v *sshd.View) { v.Own = []string{"hostcertificate /k-cert.pub"} })}, "/theirs", true},
	} {
		t.Run(test.name, func(t *testing.T) {
			got := test.facts.pending()
			if (got == "") != (test.want == "") || !strings.Contains(got, test.want) {
				t.Errorf("%q, want %q", got, test.want)
			}
			if running, why := test.facts.running(); (running != nil) != test.known || (why == "") != test.known {
				t.Errorf("known %v (%q), want %v", running != nil, why, test.known)
			}
		})
	}
}
