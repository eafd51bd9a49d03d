package wayin

import (
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/machine/sshd"
	"github.com/hallmark-ssh/hallmark/internal/sshkey/sshkeytest"
)

// defaults are what "sshd -T" prints for an account.
const defaults = "permitrootlogin prohibit-password\npubkeyauthentication yes\npasswordauthentication no\n" +
	"kbdinteractiveauthentication no\nusepam yes\nstrictmodes yes\nauthorizedkeysfile .ssh/authorized_keys .ssh/authorized_keys2\n" +
	"trustedusercakeys none\nrevokedkeys none\nauthenticationmethods any\npubkeyacceptedalgorithms ssh-ed25519,ssh-ed25519-cert-v01@openssh.com,rsa-sha2-512\n" +
	"casignaturealgorithms ssh-ed25519\nrequiredrsasize 2048\nforcecommand none\nchrootdirectory none\nmaxsessions 10\nusedns no\n" +
	"authorizedprincipalsfile none\nauthorizedprincipalscommand none\n"

func TestFind(t *testing.T) {
	key := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(sshkeytest.NewSigner(t).PublicKey())))
	const file = "/home/ann/.ssh/authorized_keys"
	now := time.Date(2026, 11, 27, 12, 0, 0, 0, time.UTC)
	for _, test := range []struct {
		name     string
		settings string // in place of the defaults with the same keyword
		files    map[string]string
		want     string // part of the first way in, or empty for none
	}{
		{"nothing", "", nil, ""},
		{"a key", "", map[string]string{file: key}, "ann by a key in " + file},
		{"the second file", "", map[string]string{file + "2": key}, "ann by a key in " + file + "2"},
		{"by name", "authorizedkeysfile /keys/%u", map[string]string{"/keys/ann": "# hers\n\n" + key + " ann@home\n"}, "ann by a key in /keys/ann"},
		{"options", "", map[string]string{file: `no-pty,from="192.0.2.0/24" ` + key}, "ann by a key"},
		{"a CA of the account's", "", map[string]string{file: "cert-authority " + key}, "ann by a key"},
		{"root's key", "", map[string]string{"/root/.ssh/authorized_keys": key}, "root by a key"},
		{"a comment", "", map[string]string{file: "#" + key}, ""},
		{"junk", "", map[string]string{file: "ssh-ed25519 AAAA\n"}, ""},
		{"a forced command", "", map[string]string{"/root/.ssh/authorized_keys": `no-port-forwarding,command="echo 'Please login as the user \"ann\".';exit 142" ` + key}, ""},
		{"an expired key", "", map[string]string{file: `expiry-time="20261126Z" ` + key}, ""},
		{"a key that expires later", "", map[string]string{file: `expiry-time="202611271201Z" ` + key}, "ann by a key"},
		{"a strange time", "", map[string]string{file: `expiry-time="soon" ` + key}, ""},
		{"a service account", "", map[string]string{"/srv/.ssh/authorized_keys": key}, ""},
		{"no keys", "pubkeyauthentication no", map[string]string{file: key}, ""},
		{"no root", "permitrootlogin no", map[string]string{"/root/.ssh/authorized_keys": key}, ""},
		{"another type", "pubkeyacceptedalgorithms rsa-sha2-512", map[string]string{file: key}, ""},
		{"another type, before OpenSSH 8.5", "pubkeyacceptedalgorithms\npubkeyacceptedkeytypes rsa-sha2-512", map[string]string{file: key}, ""},
		{"no file", "authorizedkeysfile none", map[string]string{file: key}, ""},
		{"revoked", "revokedkeys /etc/revoked", map[string]string{file: key, "/etc/revoked": key}, ""},
		{"no list of revoked keys", "revokedkeys /etc/revoked", map[string]string{file: key}, ""},
		{"not ann", "allowusers bob", map[string]string{file: key}, ""},
		{"another CA", "trustedusercakeys /etc/ca.pub", map[string]string{"/etc/ca.pub": key}, "by a certificate of a CA in /etc/ca.pub"},
		{"an empty CA file", "trustedusercakeys /etc/ca.pub", map[string]string{"/etc/ca.pub": "\n"}, ""},
		{"a password", "passwordauthentication yes", map[string]string{"/etc/shadow": "ann:$y$j9T$abc:1::::::\n"}, "ann by a password"},
		{"by questions", "kbdinteractiveauthentication yes", map[string]string{"/etc/shadow": "ann:$y$j9T$abc:1::::::\n"}, "ann by a password"},
		{"by questions, before OpenSSH 8.7", "kbdinteractiveauthentication\nchallengeresponseauthentication yes", map[string]string{"/etc/shadow": "ann:$y$j9T$abc:1::::::\n"}, "ann by a password"},
		{"a locked password", "passwordauthentication yes", map[string]string{"/etc/shadow": "ann:!$y$j9T$abc:1::::::\nroot:*:1::::::\n"}, ""},
		{"root's password", "passwordauthentication yes", map[string]string{"/etc/shadow": "root:$y$j9T$abc:1::::::\n"}, ""},
		{"a password alone is not enough", "passwordauthentication yes\nauthenticationmethods publickey,password", map[string]string{"/etc/shadow": "ann:$y$j9T$abc:1::::::\n"}, ""},
		{"both", "passwordauthentication yes\nauthenticationmethods publickey,password:pam", map[string]string{file: key, "/etc/shadow": "ann:$y$j9T$abc:1::::::\n"}, "ann by a key in " + file + " and a password"},
		{"two keys", "authenticationmethods publickey,publickey", map[string]string{file: key + "\n"}, ""},
		{"a password that is no hash", "passwordauthentication yes", map[string]string{"/etc/shadow": "ann:x:1::::::\n"}, ""},
		{"an old kind of hash", "passwordauthentication yes", map[string]string{"/etc/shadow": "ann:ab1234567890.:1::::::\n"}, "ann by a password"},
		{"an account that has ended", "", map[string]string{file: key, "/etc/shadow": "ann:!:20000:0:99999:7::20780:\n"}, ""},
		{"an account that ends on day 0", "", map[string]string{file: key, "/etc/shadow": "ann:!:20000:0:99999:7::0:\n"}, ""},
		{"an account that ends later", "", map[string]string{file: key, "/etc/shadow": "ann:!:20000:0:99999:7::30000:\n"}, "ann by a key"},
		{"a password to change at once", "", map[string]string{file: key, "/etc/shadow": "ann:!:0:0:99999:7:::\n"}, ""},
		{"a password that is too old", "", map[string]string{file: key, "/etc/shadow": "ann:!:20000:0:365:7:::\n"}, ""},
		{"a password that is too old but may be changed", "passwordauthentication yes", map[string]string{"/etc/shadow": "ann:$y$j9T$abc:20000:0:365:7:9999::\n"}, "ann by a password"},
		{"a password that may not be changed anymore", "passwordauthentication yes", map[string]string{"/etc/shadow": "ann:$y$j9T$abc:20000:0:365:7:30::\n"}, ""},
		{"a password that is too old, without PAM", "usepam no", map[string]string{file: key, "/etc/shadow": "ann:*:20000:0:365:7:::\n"}, "ann by a key"},
		{"a locked account without PAM", "usepam no", map[string]string{file: key, "/etc/shadow": "ann:!:20000:0:99999:7:::\n"}, ""},
		{"a locked account with PAM", "", map[string]string{file: key, "/etc/shadow": "ann:!:20000:0:99999:7:::\n"}, "ann by a key"},
		{"files only", "forcecommand internal-sftp", map[string]string{file: key}, ""},
		{"another root folder", "chrootdirectory /srv", map[string]string{file: key}, ""},
		{"no sessions", "maxsessions 0", map[string]string{file: key}, ""},
		{"allowed from here only", "allowusers ann@127.0.0.1", map[string]string{file: key}, ""},
		{"allowed from a network", "allowusers ann@127.0.0.1\nallowusers ann@10.0.0.0/8", map[string]string{file: key}, "ann by a key"},
		{"a key from here only", "", map[string]string{file: `from="127.0.0.1,::1,localhost" ` + key}, ""},
		{"a key from a name", "", map[string]string{file: `from="*.example.com" ` + key}, ""},
		{"a key from a name that sshd looks up", "usedns yes", map[string]string{file: `from="*.example.com" ` + key}, "ann by a key"},
		{"a key from a pattern", "", map[string]string{file: `from="!10.0.0.1,10.*" ` + key}, "ann by a key"},
		{"a value without quotes", "", map[string]string{file: "from=10.0.0.1 " + key}, ""},
		{"an unknown option", "", map[string]string{file: "no-such-thing " + key}, ""},
		{"an option with a comma", "", map[string]string{file: `environment="A=\"b, c\"",no-pty ` + key}, "ann by a key"},
		{"a byte order mark", "", map[string]string{file: "\ufeff" + key}, ""},
		{"another type than the key's", "", map[string]string{file: strings.Replace(key, "ssh-ed25519", "ssh-rsa", 1)}, ""},
		{"carriage returns", "", map[string]string{file: "# hers\r\n" + key + "\r"}, "ann by a key"},
		{"an RSA key", "", map[string]string{file: rsaLine(t, 2048)}, "ann by a key"},
		{"a short RSA key", "", map[string]string{file: rsaLine(t, 1024)}, ""},
		{"another CA, but no certificates", "trustedusercakeys /etc/ca.pub\npubkeyacceptedalgorithms ssh-ed25519", map[string]string{"/etc/ca.pub": key}, ""},
		{"another CA, but only certificates", "trustedusercakeys /etc/ca.pub\npubkeyacceptedalgorithms ssh-rsa-cert-v01@openssh.com", map[string]string{"/etc/ca.pub": key}, "by a certificate"},
		{"another CA that may not sign so", "trustedusercakeys /etc/ca.pub\ncasignaturealgorithms rsa-sha2-512", map[string]string{"/etc/ca.pub": key}, ""},
		{"another CA without principals", "trustedusercakeys /etc/ca.pub\nauthorizedprincipalsfile /keys/%u", map[string]string{"/etc/ca.pub": key, "/keys/ann": "# none\n"}, ""},
		{"another CA with principals", "trustedusercakeys /etc/ca.pub\nauthorizedprincipalsfile /keys/%u", map[string]string{"/etc/ca.pub": key, "/keys/ann": "ann\n"}, "ann by a certificate"},
		{"another CA and a program's principals", "trustedusercakeys /etc/ca.pub\nauthorizedprincipalscommand /bin/x", map[string]string{"/etc/ca.pub": key}, ""},
		{"an account's CA, but no certificates", "pubkeyacceptedalgorithms ssh-ed25519", map[string]string{file: "cert-authority " + key}, ""},
		{"Kerberos", "authenticationmethods gssapi-with-mic", map[string]string{file: key}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := newTestMachine(t, test.settings, test.files)
			m.Now = now
			ways := Find(m)
			if test.want == "" && len(ways) > 0 || test.want != "" && (len(ways) == 0 || !strings.Contains(ways[0], test.want)) {
				t.Errorf("ways %q, want %q", ways, test.want)
			}
		})
	}
}

// newTestMachine has the accounts root and ann, and one of a service.
func newTestMachine(t *testing.T, settings string, files map[string]string) Machine {
	t.Helper()
	root := t.TempDir()
	for path, content := range files {
		path = filepath.Join(root, path)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	// Only root can change who owns a file. Anybody else who runs the test is the account.
	ann := sshd.Account{Name: "ann", Home: "/home/ann", UID: max(os.Getuid(), 1000), GIDs: []int{1000}, Shell: "/bin/bash", LogsIn: true}
	if err := errors.Join(os.MkdirAll(filepath.Join(root, "bin"), 0o755), os.WriteFile(filepath.Join(root, ann.Shell), nil, 0o755)); err != nil {
		t.Fatal(err)
	}
	m := Machine{Root: root, Accounts: []sshd.Account{{Name: "root", Home: "/root", Shell: ann.Shell, LogsIn: true}, ann, {Name: "svc", Home: "/srv", UID: 999}}}
	if os.Getuid() == 0 {
		chown(t, filepath.Join(root, "home"), ann.UID)
		chown(t, filepath.Join(root, "keys"), ann.UID)
	} else {
		settings += "\nstrictmodes no"
	}
	var lines []string
	for line := range strings.Lines(defaults) {
		keyword, _, _ := strings.Cut(strings.TrimSpace(line), " ")
		if !slices.ContainsFunc(strings.Split(settings, "\n"), func(s string) bool { return strings.HasPrefix(s, keyword) }) {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	for line := range strings.Lines(settings) {
		if strings.Contains(line, " ") {
			lines = append(lines, strings.TrimSpace(line))
		}
	}
	for _, user := range []string{"root", "ann", "svc"} {
		for _, address := range []string{"127.0.0.1", "192.0.2.1"} {
			m.Logins = append(m.Logins, sshd.Login{Connection: sshd.Connection{User: user, Address: address}, Settings: []byte(strings.Join(lines, "\n"))})
		}
	}
	return m
}

func chown(t *testing.T, path string, uid int) {
	t.Helper()
	err := filepath.WalkDir(path, func(path string, _ os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return os.Lchown(path, uid, -1)
	})
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
}

// A key that works from this machine only lets nobody in.
func TestFindFromElsewhere(t *testing.T) {
	key := string(ssh.MarshalAuthorizedKey(sshkeytest.NewSigner(t).PublicKey()))
	m := newTestMachine(t, "", map[string]string{"/home/ann/.ssh/authorized_keys": key})
	m.Logins = slices.DeleteFunc(m.Logins, func(l sshd.Login) bool { return !l.IsLocal() })
	if ways := Find(m); len(ways) > 0 {
		t.Errorf("ways %q", ways)
	}
}

// sshd ignores a file that somebody else could have written.
func TestStrictModes(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("files have to belong to others")
	}
	key := string(ssh.MarshalAuthorizedKey(sshkeytest.NewSigner(t).PublicKey()))
	for name, spoil := range map[string]func(path string) error{
		"as it should be":            func(string) error { return nil },
		"others may write it":        func(path string) error { return os.Chmod(path, 0o622) },
		"others may write its group": func(path string) error { return os.Chmod(filepath.Dir(path), 0o775) },
		"others may write the home":  func(path string) error { return os.Chmod(filepath.Dir(filepath.Dir(path)), 0o777) },
		"it is another's":            func(path string) error { return os.Chown(path, 4242, -1) },
		"she may not read it":        func(path string) error { return os.Chown(path, 0, 0) },
		"she may not enter its folder": func(path string) error {
			return errors.Join(os.Chown(filepath.Dir(path), 0, 0), os.Chmod(filepath.Dir(path), 0o700))
		},
	} {
		for _, strict := range []string{"yes", "no"} {
			m := newTestMachine(t, "strictmodes "+strict, map[string]string{"/home/ann/.ssh/authorized_keys": key})
			if err := spoil(filepath.Join(m.Root, "home/ann/.ssh/authorized_keys")); err != nil {
				t.Fatal(err)
			}
			good, unreadable := name == "as it should be", strings.HasPrefix(name, "she may not") || name == "it is another's"
			if got, want := len(Find(m)) > 0, good || strict == "no" && !unreadable; got != want {
				t.Errorf("%s, StrictModes %s: %v", name, strict, got)
			}
		}
	}
}

// sshd reads the file as the account, which may be a member of its group.
func TestReadableByGroup(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("files have to belong to others")
	}
	key := string(ssh.MarshalAuthorizedKey(sshkeytest.NewSigner(t).PublicKey()))
	for _, test := range []struct {
		gid  int
		mode os.FileMode
		want bool
	}{{1000, 0o640, true}, {1001, 0o640, false}, {1001, 0o644, true}, {1000, 0o604, false}} {
		m := newTestMachine(t, "authorizedkeysfile /keys/%u", map[string]string{"/keys/ann": key})
		path := filepath.Join(m.Root, "keys/ann")
		if err := errors.Join(os.Chown(path, 0, test.gid), os.Chmod(path, test.mode)); err != nil {
			t.Fatal(err)
		}
		if got := len(Find(m)) > 0; got != test.want {
			t.Errorf("%+v: %v", test, got)
		}
	}
}

// sshd refuses an account without a shell, and other shells offer something else.
func TestShells(t *testing.T) {
	key := string(ssh.MarshalAuthorizedKey(sshkeytest.NewSigner(t).PublicKey()))
	for shell, want := range map[string]bool{"/bin/bash": true, "/bin/zsh": false, "/sbin/nologin": false, "/usr/bin/git-shell": false, "": false} {
		m := newTestMachine(t, "", map[string]string{"/root/.ssh/authorized_keys": key, "/sbin/nologin": "", "/usr/bin/git-shell": ""})
		for _, program := range []string{"sbin/nologin", "usr/bin/git-shell"} {
			if err := os.Chmod(filepath.Join(m.Root, program), 0o755); err != nil {
				t.Fatal(err)
			}
		}
		m.Accounts[0].Shell = shell
		if got := len(Find(m)) > 0; got != want {
			t.Errorf("%q: %v", shell, got)
		}
	}
}

func rsaLine(t *testing.T, bits int) string {
	t.Helper()
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	public, err := ssh.NewPublicKey(&key.PublicKey)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(ssh.MarshalAuthorizedKey(public)))
}
