package wayin

import (
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
	"trustedusercakeys none\nrevokedkeys none\nauthenticationmethods any\npubkeyacceptedalgorithms ssh-ed25519,rsa-sha2-512\n"

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
	ann := sshd.Account{Name: "ann", Home: "/home/ann", UID: max(os.Getuid(), 1000), LogsIn: true}
	m := Machine{Root: root, Accounts: []sshd.Account{{Name: "root", Home: "/root", LogsIn: true}, ann, {Name: "svc", Home: "/srv", UID: 999}}}
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
		"she may not read it": func(path string) error {
			return os.Chown(path, 0, 0)
		},
	} {
		for _, strict := range []string{"yes", "no"} {
			m := newTestMachine(t, "strictmodes "+strict, map[string]string{"/home/ann/.ssh/authorized_keys": key})
			if err := spoil(filepath.Join(m.Root, "home/ann/.ssh/authorized_keys")); err != nil {
				t.Fatal(err)
			}
			if got, want := len(Find(m)) > 0, name == "as it should be" || strict == "no"; got != want {
				t.Errorf("%s, StrictModes %s: %v", name, strict, got)
			}
		}
	}
}
