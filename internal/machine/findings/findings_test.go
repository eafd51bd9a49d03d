package findings

import (
	"bytes"
	"crypto/ed25519"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/hallmark-ssh/hallmark/internal/machine/sshd"
	"github.com/hallmark-ssh/hallmark/internal/machine/sshdconf"
	"github.com/hallmark-ssh/hallmark/internal/sshkey/sshkeytest"
	"golang.org/x/crypto/ssh"
)

// The addresses for which sshd.Server.Logins asks.
const (
	here      = "127.0.0.1"
	elsewhere = "192.0.2.1"
)

// hardened is what sshd prints where nothing keeps a certificate from working.
const hardened = `pubkeyauthentication yes
trustedusercakeys /ca
revokedkeys none
authorizedprincipalsfile none
authorizedprincipalscommand none
authenticationmethods any
maxstartups 100:30:200
persourcemaxstartups none
requiredrsasize 2048
casignaturealgorithms ssh-ed25519,ecdsa-sha2-nistp256,rsa-sha2-512,rsa-sha2-256
pubkeyacceptedalgorithms ssh-ed25519-cert-v01@openssh.com,ecdsa-sha2-nistp256-cert-v01@openssh.com,rsa-sha2-512-cert-v01@openssh.com,ssh-ed25519
hostkeyalgorithms ssh-ed25519-cert-v01@openssh.com,ssh-ed25519
kexalgorithms curve25519-sha256,diffie-hellman-group16-sha512
ciphers chacha20-poly1305@openssh.com,aes256-ctr
macs umac-128-etm@openssh.com
`

// set replaces keywords of hardened.
func set(lines string) string {
	text := hardened
	for line := range strings.Lines(lines) {
		keyword, _, _ := strings.Cut(strings.TrimSpace(line), " ")
		var kept strings.Builder
		for old := range strings.Lines(text) {
			if was, _, _ := strings.Cut(old, " "); was != keyword {
				kept.WriteString(old)
			}
		}
		text = kept.String()
	}
	return text + strings.TrimSpace(lines) + "\n"
}

func TestAssess(t *testing.T) {
	ca := sshkeytest.NewSigner(t).PublicKey()
	rsaCA := sshkeytest.NewSignerOf(t, "rsa-2048").PublicKey()
	caLine := string(ssh.MarshalAuthorizedKey(ca))
	for _, test := range []struct {
		name, lines string
		files       map[string][]byte
		more        []ssh.PublicKey // CAs in addition to the first
		absent      []string
		proxies     []string
		want        string // the keyword, with "!" if it blocks all, or ""
	}{
		{name: "nothing is wrong"},
		{name: "no public keys", lines: "pubkeyauthentication no", want: "!PubkeyAuthentication"},
		{name: "plain keys only", lines: "pubkeyacceptedalgorithms ssh-ed25519,rsa-sha2-512,rsa-sha2-256", want: "!PubkeyAcceptedAlgorithms"},
		{name: "plain keys only, before 8.5", lines: "pubkeyacceptedalgorithms \npubkeyacceptedkeytypes ssh-ed25519,rsa-sha2-512", want: "!PubkeyAcceptedKeyTypes"},
		{name: "certificates of one type", lines: "pubkeyacceptedalgorithms ssh-ed25519-cert-v01@openssh.com", want: "PubkeyAcceptedAlgorithms"},
		{name: "long RSA keys only", lines: "requiredrsasize 3072", want: "RequiredRSASize"},
		{name: "CA of another type", lines: "casignaturealgorithms ecdsa-sha2-nistp256", want: "!CASignatureAlgorithms"},
		{name: "one CA of two", lines: "casignaturealgorithms ssh-ed25519,rsa-sha2-256", more: []ssh.PublicKey{rsaCA}, want: "CASignatureAlgorithms"},
		{name: "one that does not print them", lines: "casignaturealgorithms "},
		{name: "principals elsewhere", lines: "authorizedprincipalsfile /etc/ssh/auth_principals/%u", want: "!AuthorizedPrincipalsFile"},
		{name: "principals elsewhere that name the login", lines: "authorizedprincipalsfile /etc/ssh/auth_principals/%u",
			files: map[string][]byte{"/etc/ssh/auth_principals/root": []byte("# people\nfrom=\"10.0.0.0/8\" root\n")}},
		{name: "two principals on one line", lines: "authorizedprincipalsfile /etc/ssh/auth_principals/%u",
			files: map[string][]byte{"/etc/ssh/auth_principals/root": []byte("ubuntu root\n")}, want: "!AuthorizedPrincipalsFile"},
		{name: "principals after options, with Windows line breaks", lines: "authorizedprincipalsfile /etc/ssh/auth_principals/%u",
			files: map[string][]byte{"/etc/ssh/auth_principals/root": []byte("No-PTY,command=\"echo \\\"a, b\\\"\"\troot # c\r\n")}},
		{name: "principals of accounts elsewhere", lines: "authorizedprincipalsfile /etc/ssh/auth_principals/%u",
			files: map[string][]byte{"/etc/ssh/auth_principals/jane": []byte("jane\n")}, want: "AuthorizedPrincipalsFile"},
		{name: "principals in a home that this process cannot see", lines: "authorizedprincipalsfile .ssh/principals", files: map[string][]byte{"/root/.ssh/principals": nil}},
		{name: "an empty file of principals", lines: "authorizedprincipalsfile .ssh/principals", files: map[string][]byte{"/root/.ssh/principals": {}}, want: "!AuthorizedPrincipalsFile"},
		{name: "principals that a command prints", lines: "authorizedprincipalscommand /opt/principals %u", want: "AuthorizedPrincipalsCommand"},
		{name: "two factors", lines: "authenticationmethods publickey,keyboard-interactive", want: "!AuthenticationMethods"},
		{name: "two certificates", lines: "authenticationmethods publickey,publickey", want: "!AuthenticationMethods"},
		{name: "two factors or a key", lines: "authenticationmethods publickey,password publickey"},
		{name: "a list of revoked keys that is gone", lines: "revokedkeys /etc/revoked", want: "!RevokedKeys"},
		{name: "an empty list", lines: "revokedkeys /etc/revoked", files: map[string][]byte{"/etc/revoked": {}}},
		{name: "a list with the CA", lines: "revokedkeys /etc/revoked", files: map[string][]byte{"/etc/revoked": []byte("# gone\n" + caLine)}, want: "!RevokedKeys"},
		{name: "a damaged list", lines: "revokedkeys /etc/revoked", files: map[string][]byte{"/etc/revoked": []byte("SSHKRL\n\x00\x00")}, want: "!RevokedKeys"},
		{name: "a list with a fingerprint", lines: "revokedkeys /etc/revoked", files: map[string][]byte{"/etc/revoked": []byte("SHA256:x\n")}, want: "!RevokedKeys"},
		{name: "nobody", lines: "denyusers *", want: "!DenyUsers"},
		{name: "root kept out", lines: "denyusers root", want: "DenyUsers"},
		{name: "root kept out from a network", lines: "denyusers root@10.0.0.0/8"},
		{name: "a service account only", lines: "allowusers daemon", want: "!AllowUsers"},
		{name: "an account that may come at boot", lines: "allowusers ec2-user", want: "AllowUsers"},
		{name: "an account that is nowhere", lines: "allowusers ec2-user", absent: []string{"ec2-user"}, want: "!AllowUsers"},
		{name: "from a network", lines: "allowusers root@10.0.0.0/8\nallowusers x"},
		{name: "from this machine and a network", lines: "allowusers root@127.*\nallowusers root@10.*"},
		{name: "a group", lines: "allowgroups wheel"},
		{name: "a group after one with a sign that has no meaning", lines: "allowgroups !root\nallowgroups wheel"},
		{name: "only root, which may not log in", lines: "permitrootlogin no", want: "PermitRootLogin"},
		{name: "only root, with commands of certificates", lines: "permitrootlogin forced-commands-only", want: "PermitRootLogin"},
		{name: "root without a password", lines: "permitrootlogin without-password"},
		{name: "only a locked account", lines: "usepam no", files: map[string][]byte{"/etc/shadow": []byte("daemon:!:1\nroot:!!:1:0\n")}, want: "UsePAM"},
		{name: "only an account without a password", lines: "usepam no", files: map[string][]byte{"/etc/shadow": []byte("root:*:1:0\n")}},
		{name: "a locked account and PAM", lines: "usepam yes", files: map[string][]byte{"/etc/shadow": []byte("root:!:1:0\n")}},
		{name: "no attempts", lines: "maxauthtries 0", want: "!MaxAuthTries"},
		{name: "one attempt", lines: "maxauthtries 1"},
		{name: "no sessions", lines: "maxsessions 0", want: "!MaxSessions"},
		{name: "no shell", lines: "forcecommand /usr/sbin/nologin", want: "!ForceCommand"},
		{name: "another shell", lines: "forcecommand /usr/local/bin/record"},
		{name: "no forced command", lines: "forcecommand none"},
		{name: "no connections", lines: "refuseconnection yes", want: "!RefuseConnection"},
		{name: "no CAs", lines: "trustedusercakeys none", want: "!TrustedUserCAKeys"},
		{name: "another group", lines: "allowgroups people", want: "AllowGroups"},
		{name: "a group that is nowhere", lines: "allowgroups people", absent: []string{"people"}, want: "!AllowGroups"},
		{name: "a group kept out", lines: "denygroups wh?el", want: "DenyGroups"},
		{name: "plain host keys only", lines: "hostkeyalgorithms ssh-ed25519,rsa-sha2-512", want: "!HostKeyAlgorithms"},
		{name: "key exchanges that Go lacks", lines: "kexalgorithms sntrup761x25519-sha512@openssh.com", want: "!KexAlgorithms"},
		{name: "key exchanges that the proxy does not offer", lines: "kexalgorithms diffie-hellman-group18-sha512,diffie-hellman-group-exchange-sha256", want: "!KexAlgorithms"},
		{name: "key exchanges of new proxies", lines: "kexalgorithms mlkem768x25519-sha256", want: "KexAlgorithms"},
		{name: "ciphers that nobody speaks", lines: "ciphers aes128-cbc", want: "!Ciphers"},
		{name: "MACs that Go lacks", lines: "ciphers aes256-ctr\nmacs umac-128-etm@openssh.com", want: "!MACs"},
		{name: "MACs that are not needed", lines: "ciphers aes256-gcm@openssh.com\nmacs umac-128-etm@openssh.com"},
		{name: "few connections", lines: "maxstartups 10:30:100", want: "MaxStartups"},
		{name: "more connections", lines: "maxstartups 500:30:1000"},
		{name: "few from one address", lines: "persourcemaxstartups 1", want: "PerSourceMaxStartups"},
		{name: "none, as some versions print it", lines: "persourcemaxstartups 2147483647"},
		{name: "penalties", lines: "persourcepenalties crash:90 authfail:5 noauth:1\npersourcepenaltyexemptlist none", want: "PerSourcePenalties"},
		{name: "exempt by hand", lines: "persourcepenalties crash:90 authfail:5\npersourcepenaltyexemptlist 10.0.0.7", want: "PerSourcePenaltyExemptList"},
		{name: "the proxies exempt", proxies: []string{"10.0.0.7"}, lines: "persourcepenalties crash:90\npersourcepenaltyexemptlist 10.0.0.6,10.0.0.7"},
		{name: "a network around the proxies exempt", proxies: []string{"10.0.0.7", "10.0.0.8/30", "2001:db8::1"}, lines: "persourcepenalties crash:90\npersourcepenaltyexemptlist 10.0.0.0/24,2001:db8::/64"},
		{name: "one proxy of two exempt", proxies: []string{"10.0.0.7", "10.1.0.7"}, lines: "persourcepenalties crash:90\npersourcepenaltyexemptlist 10.0.0.0/24", want: "PerSourcePenaltyExemptList"},
		{name: "part of the proxies' network exempt", proxies: []string{"10.0.0.0/24"}, lines: "persourcepenalties crash:90\npersourcepenaltyexemptlist 10.0.0.0/25", want: "PerSourcePenaltyExemptList"},
		{name: "no proxy exempt", proxies: []string{"10.0.0.7"}, lines: "persourcepenalties crash:90\npersourcepenaltyexemptlist none", want: "PerSourcePenaltyExemptList"},
		{name: "proxies, before 9.8", proxies: []string{"10.0.0.7"}},
		{name: "no penalties", lines: "persourcepenalties no"},
		{name: "CAs of somebody else", lines: "trustedusercakeys /other", want: "TrustedUserCAKeys"},
	} {
		t.Run(test.name, func(t *testing.T) {
			settings := hardened
			if test.lines != "" {
				settings = set(test.lines)
			}
			findings := assess(evidence{
				Want:     Want{CAFile: "/ca", CAs: append([]ssh.PublicKey{ca}, test.more...), MaxStartups: sshdconf.DefaultMaxStartups, ProxySources: test.proxies},
				Logins:   []sshd.Login{{Connection: sshd.Connection{User: "root", Address: here}, Settings: []byte(settings)}, {Connection: sshd.Connection{User: "root", Address: elsewhere}, Settings: []byte(settings)}},
				Accounts: []sshd.Account{{Name: "root", Home: "/root", Groups: []string{"root", "wheel"}, LogsIn: true}, {Name: "daemon"}},
				Files:    test.files, Absent: test.absent,
			})
			var got []string
			for _, f := range findings {
				blocks := ""
				if f.Blocks {
					blocks = "!"
				}
				got = append(got, blocks+f.Keyword)
				if f.Consequence == "" || f.Remedy == "" || len(f.Logins) != 0 {
					t.Errorf("finding without consequence or remedy, or for some only: %+v", f)
				}
			}
			if strings.Join(got, " ") != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

// A problem of one login is a finding for that login only, and does not block all.
func TestAssessMatch(t *testing.T) {
	no := set("pubkeyauthentication no")
	login := func(user, address, settings string) sshd.Login {
		return sshd.Login{Connection: sshd.Connection{User: user, Address: address}, Settings: []byte(settings)}
	}
	for _, test := range []struct {
		name   string
		logins []sshd.Login
		blocks bool
		users  string
	}{
		{"one account", []sshd.Login{login("root", elsewhere, hardened), login("git", here, no), login("git", elsewhere, no)}, false, "git"},
		{"this machine", []sshd.Login{login("root", here, no), login("root", elsewhere, hardened)}, false, "root from 127.0.0.1"},
		{"all but this machine", []sshd.Login{login("root", here, hardened), login("root", elsewhere, no)}, true, "root from 192.0.2.1"},
		{"all but a network", []sshd.Login{login("root", elsewhere, no), login("root", "10.0.0.1", hardened)}, false, "root from 192.0.2.1"},
	} {
		findings := assess(evidence{Logins: test.logins, Lines: []sshd.Line{
			{File: "/etc/ssh/sshd_config", Number: 3, Keyword: "pubkeyauthentication", Arguments: []string{"yes"}},
			{File: "/etc/ssh/sshd_config", Number: 9, Keyword: "pubkeyauthentication", Arguments: []string{"no"}, Match: []string{"User", "git"}},
		}})
		if len(findings) != 1 || findings[0].Blocks != test.blocks || strings.Join(findings[0].users(), ", ") != test.users {
			t.Errorf("%s: %+v", test.name, findings)
			continue
		}
		if got := findings[0].String(); !strings.Contains(got, "PubkeyAuthentication no (/etc/ssh/sshd_config:9 (Match User git)), for "+test.users) {
			t.Errorf("%s: %s", test.name, got)
		}
	}
}

// AllowUsers may admit people from this machine only, as through a tunnel.
func TestAssessAllowUsersFromHere(t *testing.T) {
	settings := []byte(set("allowusers root@127.0.0.1\nallowusers root@localhost\nallowusers root@::1\nallowusers root@127.0.0.0/8"))
	findings := assess(evidence{
		Logins: []sshd.Login{
			{Connection: sshd.Connection{User: "root", Address: here}, Settings: settings},
			{Connection: sshd.Connection{User: "root", Address: elsewhere}, Settings: settings},
		},
		Accounts: []sshd.Account{{Name: "root", LogsIn: true}},
	})
	if len(findings) != 1 || findings[0].Blocks || strings.Join(findings[0].users(), " ") != "root from "+elsewhere {
		t.Errorf("%v", findings)
	}
}

// A list may name hosts, and none of the proxies' addresses.
func TestAssessUsersOfHosts(t *testing.T) {
	for _, test := range []struct {
		lines   string
		proxies []string
		want    bool
	}{
		{"allowusers root@10.0.0.0/8", nil, false},
		{"allowusers root@10.0.0.0/8", []string{"192.0.2.7", "2001:db8::/64"}, true},
		{"allowusers root@10.0.0.0/8", []string{"192.0.2.7", "10.1.0.0/16"}, false},
		{"allowusers root@10.1.2.3", []string{"10.0.0.0/8"}, false},
		{"allowusers root@10.0.0.0/8\nallowusers root@2001:db8::/32", []string{"2001:db8::7"}, false},
		{"allowusers root@10.0.*", []string{"10.1.0.7"}, true},
		{"allowusers root@10.0.*", []string{"10.0.0.7"}, false},
		{"allowusers root@10.0.*", []string{"10.1.0.0/16"}, false}, // not worth more
		{"allowusers root@*.example.com", []string{"192.0.2.7"}, false},
		{"allowusers jane\nallowusers root@bastion", []string{"192.0.2.7"}, false},
		{"denyusers root@192.0.2.0/24", nil, false},
		{"denyusers root@192.0.2.0/24", []string{"192.0.2.7", "192.0.2.9"}, true},
		{"denyusers root@192.0.2.0/24", []string{"192.0.2.7", "198.51.100.7"}, false},
		{"denyusers root@192.0.2.0/24\ndenyusers root@198.51.100.7", []string{"192.0.2.7", "198.51.100.7"}, true},
		{"denyusers root@192.0.2.0/24", []string{"192.0.0.0/16"}, false},
	} {
		settings := []byte(set(test.lines))
		findings := assess(evidence{
			Logins: []sshd.Login{
				{Connection: sshd.Connection{User: "root", Address: here}, Settings: settings},
				{Connection: sshd.Connection{User: "root", Address: elsewhere}, Settings: settings},
			},
			Accounts: []sshd.Account{{Name: "root", LogsIn: true}}, Want: Want{ProxySources: test.proxies},
		})
		got := slices.ContainsFunc(findings, func(f Finding) bool { return strings.HasSuffix(f.Keyword, "Users") })
		if got != test.want || slices.ContainsFunc(findings, func(f Finding) bool { return f.Blocks }) {
			t.Errorf("%s from %v: %v, want one: %t", test.lines, test.proxies, findings, test.want)
		}
	}
}

// What is usual for some accounts is reported only if no other can log in.
func TestAssessUsual(t *testing.T) {
	for _, lines := range []string{"permitrootlogin no", "maxsessions 0", "forcecommand /bin/false", "refuseconnection yes"} {
		for others, want := range map[string]int{hardened: 0, set("pubkeyauthentication no"): 2} {
			findings := assess(evidence{Logins: []sshd.Login{
				{Connection: sshd.Connection{User: "root", Address: elsewhere}, Settings: []byte(set(lines))},
				{Connection: sshd.Connection{User: "jane", Address: elsewhere}, Settings: []byte(others)},
			}})
			if len(findings) != want {
				t.Errorf("%s: %v, want %d", lines, findings, want)
			}
		}
	}
}

// Without PAM, sshd refuses locked accounts. cloud-init's default user is one, and people need it
// even if root can get in.
func TestAssessLockedDefaultUser(t *testing.T) {
	cloud := func(user string) []byte {
		return []byte("system_info:\n  default_user:\n    name: " + user + "\n    lock_passwd: True\n")
	}
	for name, test := range map[string]struct {
		shadow string
		files  map[string][]byte
		want   string
	}{
		"locked":              {"root:*:1\nadmin:!:1\n", map[string][]byte{"/etc/cloud/cloud.cfg": cloud("admin")}, "admin"},
		"locked by passwd -l": {"root:*:1\nadmin:!*:1\n", map[string][]byte{"/etc/cloud/cloud.cfg": cloud("admin")}, "admin"},
		"not locked":          {"root:!:1\nadmin:*:1\n", map[string][]byte{"/etc/cloud/cloud.cfg": cloud("admin")}, ""},
		"another account":     {"root:*:1\nadmin:*:1\njane:!:1\n", map[string][]byte{"/etc/cloud/cloud.cfg": cloud("admin")}, ""},
		"no cloud-init":       {"root:*:1\nadmin:!:1\n", nil, ""},
		"a later file":        {"root:*:1\nadmin:!:1\njane:!:1\n", map[string][]byte{"/etc/cloud/cloud.cfg": cloud("admin"), "/etc/cloud/cloud.cfg.d/90.cfg": cloud("jane")}, "jane"},
		"a later file without one": {"root:*:1\nadmin:!:1\n",
			map[string][]byte{"/etc/cloud/cloud.cfg": cloud("admin"), "/etc/cloud/cloud.cfg.d/90.cfg": []byte("ssh_genkeytypes: []\n"), "/etc/cloud/cloud.cfg.d/91.cfg": []byte("\t")}, "admin"},
		"other files":    {"root:*:1\njane:!:1\n", map[string][]byte{"/etc/cloud/x": cloud("jane")}, ""},
		"nobody is left": {"root:!:1\nadmin:!:1\n", map[string][]byte{"/etc/cloud/cloud.cfg": cloud("admin")}, "root, admin"},
	} {
		files := map[string][]byte{"/etc/shadow": []byte(test.shadow)}
		maps.Copy(files, test.files)
		// From here, so that no finding is about all logins.
		logins := []sshd.Login{{Connection: sshd.Connection{User: "ldap", Address: here}, Settings: []byte(set("usepam no"))}}
		var accounts []sshd.Account
		for line := range strings.Lines(test.shadow) {
			user, _, _ := strings.Cut(line, ":")
			logins = append(logins, sshd.Login{Connection: sshd.Connection{User: user, Address: elsewhere}, Settings: []byte(set("usepam no"))})
			accounts = append(accounts, sshd.Account{Name: user, LogsIn: true})
		}
		got := ""
		for _, f := range assess(evidence{Logins: logins, Accounts: accounts, Files: files}) {
			if f.Keyword != "UsePAM" || f.Blocks {
				t.Errorf("%s: %+v", name, f)
			}
			for _, user := range f.Logins {
				got = strings.TrimPrefix(got+", "+user.User, ", ")
			}
		}
		if got != test.want {
			t.Errorf("%s: a finding for %q, want %q", name, got, test.want)
		}
	}
}

func TestPlaces(t *testing.T) {
	lines := []sshd.Line{
		{File: "a", Number: 1, Keyword: "maxstartups", Arguments: []string{"100:30:200"}},
		{File: "b", Number: 2, Keyword: "maxstartups", Arguments: []string{"10:30:100"}},
		{File: "b", Number: 3, Keyword: "pubkeyacceptedkeytypes", Arguments: []string{"-*cert*"}},
		{File: "b", Number: 4, Keyword: "pubkeyacceptedalgorithms", Arguments: []string{"+x"}},
		{File: "b", Number: 5, Keyword: "allowusers", Arguments: []string{"x"}},
		{File: "c", Number: 6, Keyword: "allowusers", Arguments: []string{"y"}},
	}
	for keyword, want := range map[string]string{
		"MaxStartups": "b:2", "PubkeyAcceptedAlgorithms": "b:3", "AllowUsers": "b:5 c:6", "Ciphers": "",
	} {
		var got []string
		for _, l := range places(lines, Finding{Keyword: keyword, Value: "10:30:100"}) {
			got = append(got, l.String())
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%s: %q, want %q", keyword, got, want)
		}
	}
}

func TestRevokes(t *testing.T) {
	keygen, err := exec.LookPath("ssh-keygen")
	if err != nil {
		if os.Getenv("HALLMARK_TEST_STRICT") != "" {
			t.Fatal(err)
		}
		t.Skip("no ssh-keygen")
	}
	dir := t.TempDir()
	ca, other := sshkeytest.NewSigner(t).PublicKey(), sshkeytest.NewSignerOf(t, "rsa-2048").PublicKey()
	write := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	write("ca.pub", string(ssh.MarshalAuthorizedKey(ca)))
	for name, source := range map[string]string{
		"key":    string(ssh.MarshalAuthorizedKey(ca)),
		"sha1":   "sha1: " + string(ssh.MarshalAuthorizedKey(ca)),
		"sha256": "hash: " + ssh.FingerprintSHA256(ca) + "\n",
		"serial": "serial: 1-9\n",
	} {
		list := filepath.Join(dir, name+".krl")
		arguments := []string{"-k", "-f", list, "-s", filepath.Join(dir, "ca.pub"), write(name, source)}
		if out, err := exec.Command(keygen, arguments...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		data, err := os.ReadFile(list)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := Revokes(data, ca); err != nil || got != (name != "serial") {
			t.Errorf("%s: %v, %v", name, got, err)
		}
		if got, err := Revokes(data, other); err != nil || got {
			t.Errorf("%s revokes another key: %v, %v", name, got, err)
		}
		if _, err := Revokes(data[:len(data)-1], other); err == nil {
			t.Errorf("%s cut off is no error", name)
		}
	}
}

// The lists that give an error here make sshd 9.2 refuse all keys. With the others, people get in.
func TestRevokesReadsTextAsSSHDDoes(t *testing.T) {
	ca, other := sshkeytest.NewSigner(t).PublicKey(), sshkeytest.NewSignerOf(t, "rsa-2048").PublicKey()
	line := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(other)))
	caLine := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(ca)))
	for list, want := range map[string]string{
		"": "", "# none\n\n  # none\n \t\n": "", line: "", line + "\n": "", line + "\r\n": "", "\t" + line + " jane of web\n": "",
		line + "\n" + caLine: "revoked", caLine + "\n" + line + "\n": "revoked",
		"junk\n": "line 1 is", line + "\njunk\n": "line 2 is", "\r\n": "line 1 is", "SSHKRL\n": "line 1 is",
		ssh.FingerprintSHA256(other) + "\n": "line 1 is", "sha1: " + line + "\n": "line 1 is", "serial: 7\n": "line 1 is",
		`from="10.0.0.1" ` + line + "\n": "line 1 is", "ssh-rsa AAAA\n": "line 1 is", strings.Fields(line)[1] + "\n": "line 1 is",
	} {
		revoked, err := Revokes([]byte(list), ca)
		if revoked != (want == "revoked") || (err != nil) != strings.HasPrefix(want, "line") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: %v, %v; want %q", list, revoked, err, want)
		}
	}
}

func FuzzRevokes(f *testing.F) {
	_, private, err := ed25519.GenerateKey(bytes.NewReader(make([]byte, 32)))
	if err != nil {
		f.Fatal(err)
	}
	key, err := ssh.NewPublicKey(private.Public())
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte("SSHKRL\n\x00\x00\x00\x00\x01"))
	f.Add(ssh.MarshalAuthorizedKey(key))
	f.Fuzz(func(t *testing.T, data []byte) {
		if revoked, err := Revokes(data, key); revoked && err != nil {
			t.Fatal("both revoked and an error")
		}
	})
}
