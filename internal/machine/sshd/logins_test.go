package sshd

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestParseAccounts(t *testing.T) {
	const passwd = `root:x:0:0:root:/root:/bin/bash
daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin
sshd:x:100:65534::/run/sshd:/usr/sbin/nologin
postgres:x:105:110::/var/lib/postgresql:/bin/bash
admin:x:1000:1000:Debian:/home/admin:/bin/bash
git:x:1001:1001::/home/git:/usr/bin/git-shell
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
ftp:x:1002:1002::/srv:/bin/false
a,user=root:x:1003:1003::/:/bin/sh
short:x:1004
word:x:many:1::/:/bin/sh
admin:x:1000:1000:again:/home/admin:/bin/bash
`
	const group = "root:x:0:\nsudo:x:27:admin,git\nadmin:x:1000:\nbad:line\n"
	var got []string
	for _, a := range parseAccounts(passwd, group) {
		if a.LogsIn {
			got = append(got, a.Name+" "+strings.Join(a.Groups, ","))
		}
	}
	if want := []string{"root root", "admin sudo,admin", "git sudo"}; !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// root's line says where its home is, and whether its shell lets anybody in.
func TestRootAccount(t *testing.T) {
	for passwd, want := range map[string]Account{
		"":                                      {Home: "/root", Shell: "/bin/sh"},
		"root:x:0:0::/srv/root:/sbin/nologin\n": {Home: "/srv/root", Shell: "/sbin/nologin"},
		"root:x:0:0::/srv/root:\nroot:x:0:0::/second:/bin/sh\n": {Home: "/srv/root", Shell: "/bin/sh"},
	} {
		accounts := parseAccounts(passwd, "root:x:0:\nwheel:x:10:ann,root\n")
		root := accounts[0]
		if len(accounts) != 1 || root.Home != want.Home || root.Shell != want.Shell || !root.LogsIn || !slices.Equal(root.GIDs, []int{0, 0, 10}) {
			t.Errorf("%q: %+v", passwd, accounts)
		}
	}
}

// On a machine with a hundred thousand local accounts, comparing each with each would take
// minutes.
func TestManyAccounts(t *testing.T) {
	const most = 100_000
	var passwd, group strings.Builder
	for n := range most {
		fmt.Fprintf(&passwd, "u%d:x:%d:%d::/home/u%d:/bin/sh\n", n, 1000+n, 1000+n, n)
		fmt.Fprintf(&group, "u%d:x:%d:\n", n, 1000+n)
	}
	group.WriteString("staff:x:50:u7,u99999,u7\n")
	accounts := parseAccounts(passwd.String(), group.String())
	last := accounts[len(accounts)-1]
	if len(accounts) != most+1 || !slices.Equal(last.Groups, []string{"u99999", "staff"}) {
		t.Errorf("%d accounts, the last is %+v", len(accounts), last)
	}
}

func TestDrift(t *testing.T) {
	login := func(settings string) []Login {
		return []Login{{Connection{"git", elsewhere}, []byte(settings)}}
	}
	const before = "port 22\nusepam yes\ntrustedusercakeys none\nmaxstartups 10:30:100\n"
	for _, test := range []struct{ name, after, want string }{
		{"the same", before, ""},
		{"what is ours", "port 22\nusepam yes\ntrustedusercakeys /a\nhostcertificate /b\nhostcertificate /c\nmaxstartups 5\n", ""},
		{"another value", strings.Replace(before, "usepam yes", "usepam no", 1), `for git from 192.0.2.1: "usepam yes" became "usepam no"`},
		{"one more", before + "forcecommand x\n", `"" became "forcecommand x"`},
		{"one less", "port 22\ntrustedusercakeys none\n", `"usepam yes" became ""`},
	} {
		got := Drift(login(before), login(test.after), "trustedusercakeys", "hostcertificate", "maxstartups")
		if (got == "") != (test.want == "") || !strings.Contains(got, test.want) {
			t.Errorf("%s: %q, want %q", test.name, got, test.want)
		}
	}
}

// fakeSSHD is a program in place of sshd.
func fakeSSHD(t *testing.T, script string) *Server {
	t.Helper()
	root := t.TempDir()
	program := filepath.Join(root, "sshd")
	if err := os.WriteFile(program, []byte("#!/bin/sh\n"+script), 0o755); err != nil {
		t.Fatal(err)
	}
	return &Server{Program: program, Config: filepath.Join(root, "sshd_config")}
}

// Only some logins reach this error.
func TestCheckReadsMatchBlocks(t *testing.T) {
	s := fakeSSHD(t, `case "$*" in *addr=192.0.2.1*) echo "line 9: Bad SSH2 cipher spec" >&2; exit 255;; esac`)
	err := s.Check(t.Context())
	if err == nil || !strings.Contains(err.Error(), "login of root from 192.0.2.1") || !strings.Contains(err.Error(), "line 9") {
		t.Errorf("error %v, want line 9", err)
	}
}

// sshd runs only once if it certainly finds no Match block: then everybody has the same
// settings.
func TestHowOftenSSHDRuns(t *testing.T) {
	for _, test := range []struct {
		name, config, included string
		once                   bool
		running                []string
	}{
		{"nothing", "", "", true, nil},
		{"no block", "Port 22\n# Match user git\n  #Match all\nInclude INCLUDED\n", "UsePAM yes\n", true, nil},
		{"a block", "Port 22\nMatch user git\n", "", false, nil},
		{"a tab and capitals", "\tMATCH User git\n", "", false, nil},
		{"an equals sign", "match=user git\n", "", false, nil},
		{"a quoted keyword", "\"Match\" user git\n", "", false, nil},
		{"in an included file", "Include INCLUDED\n", "Match all\n", false, nil},
		{"in a file whose Include is quoted", "\"Include\" INCLUDED\n", "Match all\n", false, nil},
		{"in a file in single quotes", "Include 'INCLUDED'\n", "Match all\n", false, nil},
		{"in a file that is quoted in part", "Include DIR/\"included\"\n", "Match all\n", false, nil},
		{"in a file before a comment of OpenSSH before 8.7", "Include INCLUDED#x\n", "Match all\n", false, nil},
		{"in a file that is quoted", "Include \"INCLUDED\"\n", "UsePAM yes\n", true, nil},
		{"in a file behind a pattern of glob(7)", "Include DIR/[!x]ncluded\n", "Match all\n", false, nil},
		{"an included folder", "Include DIR\n", "", false, nil},
		{"beyond what is read", strings.Repeat("Port 22\n", maxLines+1), "", false, nil},
		{"included by an option", "", "", false, []string{"-o", "Include=/etc/other"}},
		{"a port by an option", "", "", true, []string{"-p", "2222"}},
		{"carriage returns", "Port 22\r\nMatch user git\r\n", "", false, nil},
		{"a relative name", "Include *.hallmark-test-without-such-files\n", "", true, nil},
		{"no space after the keyword", "Match=\"user\" git\n", "", false, nil},
	} {
		s := fakeSSHD(t, `echo run >>"$0.runs"; echo port 22`)
		s.running = test.running
		dir := filepath.Dir(s.Program)
		included := filepath.Join(dir, "included")
		config := strings.NewReplacer("INCLUDED", included, "DIR", dir).Replace(test.config)
		if err := errors.Join(os.WriteFile(s.Config, []byte(config), 0o600), os.WriteFile(included, []byte(test.included), 0o600)); err != nil {
			t.Fatal(err)
		}
		logins, err := s.Logins(t.Context())
		if err != nil {
			t.Fatalf("%s: %v", test.name, err)
		}
		runs, err := os.ReadFile(s.Program + ".runs")
		if err != nil {
			t.Fatal(err)
		}
		if once := strings.Count(string(runs), "run") == 1; once != test.once {
			t.Errorf("%s: sshd ran %d times, want once: %v", test.name, strings.Count(string(runs), "run"), test.once)
		}
		for _, login := range logins {
			if login.User == "" || login.Address == "" || string(login.Settings) != "port 22\n" {
				t.Errorf("%s: login %+v", test.name, login)
			}
		}
		if len(logins) < 2 {
			t.Errorf("%s: %d logins", test.name, len(logins))
		}
	}
}

func TestFolderThatIsMissing(t *testing.T) {
	for message, want := range map[string]bool{
		"Missing privilege separation directory: /run/sshd":                true,
		"Missing privilege separation directory: /var/run/sshd":            true,
		"Missing privilege separation directory: /run/sshd; end":           true,
		"Missing privilege separation directory: /var/empty":               false,
		"Missing privilege separation directory: /run/sshdx":               false,
		"/run/sshd must be owned by root and not group or world-writable.": false,
	} {
		if got := missingFolder.MatchString(message); got != want {
			t.Errorf("%q: %v, want %v", message, got, want)
		}
	}
}

func TestSocketActivation(t *testing.T) {
	const running = "MainPID=77\nId=ssh.service\nLoadState=loaded\nActiveState=active\n"
	const stopped = "MainPID=0\nId=ssh.service\nLoadState=loaded\nActiveState=inactive\n"
	const socket = "Id=ssh.socket\nLoadState=loaded\nActiveState=active\n"
	for _, test := range []struct {
		name, output, service, listens string
		activated                      bool
	}{
		{"Ubuntu 22.10, nobody has logged in", stopped + "\n" + socket + "Listen=[::]:22 (Stream)\n", "", "[::]:22 0.0.0.0:22", true},
		{"and then somebody has", running + "\n" + socket + "Listen=[::]:22 (Stream)\n", "ssh.service", "[::]:22 0.0.0.0:22", true},
		{"two addresses", stopped + "\n" + socket + "Listen=0.0.0.0:2222 (Stream)\nListen=10.0.0.1:22 (Stream)\n", "", "0.0.0.0:2222 10.0.0.1:22", true},
		{"also a path", stopped + "\n" + socket + "Listen=/run/ssh-unix-local/socket (Stream)\nListen=127.0.0.1:22 (Stream)\n", "", "127.0.0.1:22", true},
		{"systemd 219", stopped + "\n" + socket + "ListenStream=[::]:22\n", "", "[::]:22 0.0.0.0:22", true},
		{"a socket that is not active", running + "\nId=ssh.socket\nLoadState=loaded\nActiveState=inactive\nListen=[::]:22 (Stream)\n", "ssh.service", "", false},
		{"no socket", running, "ssh.service", "", false},
	} {
		units := parseUnits(test.output)
		if got := chooseUnit(units, 0); got != test.service {
			t.Errorf("%s: service %q, want %q", test.name, got, test.service)
		}
		got := activeSocket(units)
		if (got != nil) != test.activated {
			t.Errorf("%s: socket %v", test.name, got)
			continue
		}
		var listens []string
		if got != nil {
			for _, address := range got.listen {
				listens = append(listens, address.String())
			}
		}
		if strings.Join(listens, " ") != test.listens {
			t.Errorf("%s: listens on %q, want %q", test.name, listens, test.listens)
		}
	}
}
