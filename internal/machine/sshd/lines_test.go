package sshd

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/hallmark-ssh/hallmark/internal/machine/sshdconf"
)

func TestProbes(t *testing.T) {
	accounts := []Account{{Name: "root", LogsIn: true}, {Name: "git", Groups: []string{"git", "sftp"}, LogsIn: true}, {Name: "daemon"}}
	for match, want := range map[string]string{
		"all":                           "",
		"User git":                      "",
		"User root":                     "",
		"User deploy":                   "user=deploy,host=192.0.2.1,addr=192.0.2.1,laddr=127.0.0.1,lport=22",
		"User ops*":                     "user=opsx,host=192.0.2.1,addr=192.0.2.1,laddr=127.0.0.1,lport=22",
		"User !root,*":                  "",
		"Group sftp":                    "",
		"Group nobody":                  "",
		"Address 10.0.0.0/8":            "user=git,host=10.0.0.1,addr=10.0.0.1,laddr=127.0.0.1,lport=22",
		"address=10.1.*":                "user=git,host=10.1.1.1,addr=10.1.1.1,laddr=127.0.0.1,lport=22",
		"Address 2001:db8::/32":         "user=git,host=2001:db8::1,addr=2001:db8::1,laddr=127.0.0.1,lport=22",
		"Address 127.0.0.1":             "",
		"Address !10.0.0.1,*":           "",
		"Host *.example.com":            "user=git,host=x.example.com,addr=192.0.2.1,laddr=127.0.0.1,lport=22",
		"LocalPort 2222":                "user=git,host=192.0.2.1,addr=192.0.2.1,laddr=127.0.0.1,lport=2222",
		"LocalAddress 10.0.0.7":         "user=git,host=192.0.2.1,addr=192.0.2.1,laddr=10.0.0.7,lport=22",
		"User root Address 10.0.0.0/24": "user=root,host=10.0.0.1,addr=10.0.0.1,laddr=127.0.0.1,lport=22",
		"RDomain blue":                  "user=git,host=192.0.2.1,addr=192.0.2.1,laddr=127.0.0.1,lport=22,rdomain=blue",
		"Invalid-User":                  "",
	} {
		_, arguments := sshdconf.SplitDirective("Match " + match)
		got := ""
		for _, p := range probes([]Line{{Keyword: "match", Arguments: arguments}, {Keyword: "match", Arguments: arguments}}, accounts) {
			got += p.spec()
		}
		if got != want {
			t.Errorf("Match %s: %q, want %q", match, got, want)
		}
	}
}

// Lines follow Include as sshd does, with Match blocks that end with their file.
func TestLines(t *testing.T) {
	root := t.TempDir()
	for file, content := range map[string]string{
		"etc/ssh/sshd_config":               "Include sshd_config.d/*.conf\nUsePAM yes\nMatch User git\n\tBanner \"a b\"\nInclude /etc/ssh/more\nX11Forwarding=no\n",
		"etc/ssh/sshd_config.d/b.conf":      "PermitRootLogin no\n",
		"etc/ssh/sshd_config.d/a.conf":      "Match all\nMaxAuthTries 3\n",
		"etc/ssh/sshd_config.d/ignored.bak": "Port 1\n",
		"etc/ssh/more":                      "Include /etc/ssh/more\nMaxSessions 2\n",
	} {
		path := filepath.Join(root, file)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var got []string
	for _, l := range (&Server{Root: root}).Lines() {
		if l.Keyword != "include" && l.Keyword != "match" && l.File != "/etc/ssh/more" {
			got = append(got, l.String()+" "+l.Keyword)
		}
	}
	want := []string{
		"/etc/ssh/sshd_config.d/a.conf:2 (Match all) maxauthtries", "/etc/ssh/sshd_config.d/b.conf:1 permitrootlogin",
		"/etc/ssh/sshd_config:2 usepam", "/etc/ssh/sshd_config:4 (Match User git) banner", "/etc/ssh/sshd_config:6 (Match User git) x11forwarding",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// Where versions of sshd read a line in different ways, both count: the files that an Include
// names, and the logins that a Match block is about.
func TestLinesThatVersionsReadDifferently(t *testing.T) {
	root := t.TempDir()
	for file, content := range map[string]string{
		"etc/ssh/sshd_config": "Include /etc/ssh/a# comment\nInclude '/etc/ssh/b' /etc/ssh/a\nMatch User git#x\nHostKey /srv/key# comment\n",
		"etc/ssh/a":           "UsePAM yes\n",
		"etc/ssh/b":           "UsePAM no\n",
	} {
		path := filepath.Join(root, file)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	lines := (&Server{Root: root}).Lines()
	var got []string
	for _, l := range lines {
		got = append(got, l.String()+" "+l.Keyword)
	}
	want := []string{
		"/etc/ssh/a:1 usepam", "/etc/ssh/sshd_config:1 include", "/etc/ssh/b:1 usepam", "/etc/ssh/a:1 usepam", "/etc/ssh/sshd_config:2 include",
		"/etc/ssh/sshd_config:3 (Match User git#x) match", "/etc/ssh/sshd_config:4 (Match User git#x) hostkey",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
	var users []string
	for _, p := range probes(lines, []Account{rootAccount()}) {
		users = append(users, p.User)
	}
	if want := []string{"git#x", "git"}; !slices.Equal(users, want) {
		t.Errorf("logins of %q, want %q", users, want)
	}
	if key := lines[len(lines)-1]; !key.Sets("/srv/key") || !key.Sets("/srv/key# comment") || key.Sets("/srv") {
		t.Errorf("%+v", key)
	}
}

// sshd refuses files that include each other. Reading them stops as soon as sshd would.
func TestLinesOfFilesThatIncludeEachOther(t *testing.T) {
	root := t.TempDir()
	folder := filepath.Join(root, filepath.Dir(sshdconf.DropIn))
	if err := os.MkdirAll(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	// Somebody copied the main file, twice: 2^16 paths lead through these files.
	for _, path := range []string{filepath.Join(root, sshdconf.MainConfig), filepath.Join(folder, "a.conf"), filepath.Join(folder, "b.conf")} {
		if err := os.WriteFile(path, []byte("Include /etc/ssh/sshd_config.d/*.conf\nUsePAM yes\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	r := (&Server{Root: root}).read()
	if len(r.files) > 2*maxIncludes || !r.mayMatch {
		t.Errorf("%d files read, a Match block possible %v", len(r.files), r.mayMatch)
	}
}
