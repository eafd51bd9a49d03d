package install

import (
	"fmt"
	"os/user"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/machine/fault"
	"github.com/hallmark-ssh/hallmark/internal/machine/machinetest"
	"github.com/hallmark-ssh/hallmark/internal/machine/sshd"
	"github.com/hallmark-ssh/hallmark/internal/machine/sshdconf"
	"github.com/hallmark-ssh/hallmark/internal/sshkey"
	"github.com/hallmark-ssh/hallmark/internal/sshkey/sshkeytest"
)

func TestInstallRefusesWhatCannotWork(t *testing.T) {
	unreachable := []machinetest.Setting{
		{Lines: "HostKeyAlgorithms ssh-ed25519,rsa-sha2-512,rsa-sha2-256\n", Want: "HostKeyAlgorithms"},
		{Lines: "HostKeyAlgorithms rsa-sha2-512-cert-v01@openssh.com,rsa-sha2-512,ssh-ed25519\n", Want: "add ssh-ed25519-cert-v01@openssh.com"},
		{Lines: "KexAlgorithms diffie-hellman-group18-sha512\n", Want: "KexAlgorithms"},
		{Lines: "Ciphers aes256-ctr\nMACs umac-128-etm@openssh.com\n", Want: "MACs"},
	}
	s := machinetest.NewSSHD(t, machinetest.FindSSHD(t), t.TempDir(), sshkeytest.NewSigner(t).PublicKey())
	for _, test := range append(unreachable, machinetest.UselessSettings()...) {
		t.Run(test.Want, func(t *testing.T) {
			s.SkipUnknown(t, test.Lines)
			s.Configure("")
			i := newImage(t, "")
			i.server = &sshd.Server{Program: s.Program, Config: filepath.Join(i.root, sshdconf.MainConfig)}
			// Match blocks are at the end, as people write them.
			i.write(sshdconf.MainConfig, string(machinetest.ReadFile(t, s.Config))+test.Lines)
			before := i.tree()
			_, err := i.Install(t.Context(), i.from)
			machinetest.WantError(t, err, fault.Failed, test.Want, "correct sshd's configuration")
			if err != nil && !strings.Contains(err.Error(), sshdconf.MainConfig+":") {
				t.Errorf("the error names no line: %v", err)
			}
			if !equal(i.tree(), before) {
				t.Error("files were changed")
			}
		})
	}
}

// accepted are configurations from hardening guides, cloud images and people.
var accepted = []string{
	"",
	"PasswordAuthentication no\n",
	"KbdInteractiveAuthentication no\nPasswordAuthentication no\n",
	"PermitEmptyPasswords no\nMaxAuthTries 3\n",
	"MaxAuthTries 1\n",
	"MaxSessions 1\n",
	"LoginGraceTime 20\n",
	"ClientAliveInterval 300\nClientAliveCountMax 0\n",
	"X11Forwarding no\nAllowTcpForwarding no\nAllowAgentForwarding no\n",
	"DisableForwarding yes\n",
	"AuthorizedKeysFile none\n",
	"AuthorizedKeysFile /etc/ssh/authorized_keys/%u\n",
	"AuthorizedKeysCommand /bin/false\nAuthorizedKeysCommandUser nobody\n",
	"AuthenticationMethods publickey\n",
	"AuthenticationMethods publickey,password publickey\n",
	"AuthenticationMethods any\n",
	"AllowUsers LOGIN\n",
	"AllowUsers somebody LOGIN@127.0.0.1\n",
	"AllowUsers LOG*\n",
	"AllowGroups GROUP nobody\n",
	"AllowGroups !GROUP *\n",
	"DenyUsers daemon games\n",
	"DenyGroups games\n",
	"Ciphers aes256-gcm@openssh.com,aes128-gcm@openssh.com\nMACs hmac-sha2-512-etm@openssh.com\n",
	"Ciphers chacha20-poly1305@openssh.com\nMACs umac-128-etm@openssh.com\n",
	"Ciphers aes256-ctr,aes192-ctr,aes128-ctr\nMACs hmac-sha2-512,hmac-sha2-256\n",
	"Ciphers -aes128-ctr,aes128-gcm@openssh.com\n",
	"KexAlgorithms curve25519-sha256,diffie-hellman-group-exchange-sha256\n",
	"KexAlgorithms ecdh-sha2-nistp521,ecdh-sha2-nistp384,ecdh-sha2-nistp256\n",
	"KexAlgorithms diffie-hellman-group14-sha256\n",
	"KexAlgorithms -ecdh-sha2-nistp256\n",
	"HostKeyAlgorithms ssh-ed25519-cert-v01@openssh.com,ssh-ed25519\n",
	"HostKeyAlgorithms rsa-sha2-512-cert-v01@openssh.com,rsa-sha2-512\n",
	"HostKeyAlgorithms ecdsa-sha2-nistp256-cert-v01@openssh.com,ecdsa-sha2-nistp256\n",
	"CASignatureAlgorithms ssh-ed25519\n",
	"CASignatureAlgorithms ssh-ed25519,rsa-sha2-512\n",
	"PubkeyAcceptedKeyTypes ssh-ed25519-cert-v01@openssh.com\n",
	"PubkeyAcceptedKeyTypes -ssh-rsa\n",
	"PubkeyAcceptedKeyTypes *-cert-v01@openssh.com\n",
	"RevokedKeys /dev/null\n",
	"RevokedKeys DIR/revoked\n",
	"AuthorizedPrincipalsFile DIR/principals\n",
	"AuthorizedPrincipalsFile DIR/principals.%u\n",
	"AuthorizedPrincipalsFile DIR/options\n",
	"PerSourceMaxStartups 200\n",
	"MaxStartups 100:30:200\n",
	"RequiredRSASize 2048\n",
	"StrictModes no\nUseDNS no\n",
	"VersionAddendum none\nBanner none\n",
	"Compression no\nTCPKeepAlive no\n",
	"PermitRootLogin prohibit-password\n",
	"PermitUserEnvironment no\nIgnoreRhosts yes\nHostbasedAuthentication no\n",
	"Match User daemon\nPubkeyAuthentication no\nMatch all\n",
	"Match User git\nForceCommand /usr/bin/false\nAuthenticationMethods publickey,password\nMatch all\n",
	"Match Group games\nChrootDirectory /nonexistent\nMatch all\n",
	"Match Address 10.0.0.0/8\nPubkeyAuthentication no\nMatch all\n",
	"Match LocalPort 2222\nAuthenticationMethods publickey,password\nMatch all\n",
}

// If the bake accepts a configuration, people can log in with a certificate.
func TestAcceptedConfigurationsLetPeopleIn(t *testing.T) {
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	group, err := user.LookupGroupId(me.Gid)
	if err != nil {
		t.Fatal(err)
	}
	ca := sshkeytest.NewSigner(t)
	s := machinetest.NewSSHD(t, machinetest.FindSSHD(t), t.TempDir(), ca.PublicKey())
	s.Write("principals", "somebody\n"+me.Username+"\n")
	s.Write("principals."+me.Username, me.Username+"\n")
	s.Write("options", "somebody "+me.Username+"\nno-pty,from=\"127.0.0.1,::1\" "+me.Username+" # people\n")
	s.Write("revoked", "# nobody\n"+sshkey.Line(sshkeytest.NewSigner(t).PublicKey())+"\n")
	s.Stop()
	tried := 0
	for n, lines := range accepted {
		lines = strings.NewReplacer("LOGIN", me.Username, "LOG*", me.Username[:1]+"*", "GROUP", group.Name, "DIR", s.Dir).Replace(lines)
		t.Run(fmt.Sprintf("%d %s", n, strings.TrimSpace(lines)), func(t *testing.T) {
			s.SkipUnknown(t, lines)
			i := newImage(t, "")
			i.give("openssh_ca.pub", sshkey.Line(ca.PublicKey())+"\n")
			i.server = &sshd.Server{Program: s.Program, Config: filepath.Join(i.root, sshdconf.MainConfig)}
			i.write(sshdconf.MainConfig, string(machinetest.ReadFile(t, s.Config)))
			if _, err := i.Install(t.Context(), i.from); err != nil {
				t.Fatalf("the bake refuses it: %v", err)
			}
			// These lines are what was installed, with the CA file where this sshd finds it.
			installed := strings.ReplaceAll(i.read(sshdconf.MainConfig), sshdconf.CAFile, s.CAFile)
			s.Write("sshd_config", installed)
			s.Run()
			defer s.Stop()
			if err := s.TryLogin(machinetest.UserCertificate(t, ca), ssh.InsecureIgnoreHostKey()); err != nil {
				t.Errorf("the bake accepts it, and nobody can log in: %v", err)
			}
			tried++
		})
	}
	if tried < 40 {
		t.Errorf("%d configurations were tried, fewer than 40", tried)
	}
}

// A problem of only some accounts or addresses is reported, and stops nothing.
func TestInstallWarns(t *testing.T) {
	s := machinetest.NewSSHD(t, machinetest.FindSSHD(t), t.TempDir(), sshkeytest.NewSigner(t).PublicKey())
	for _, test := range []struct{ lines, want string }{
		{"", "accepts connections from this machine only"}, // its ListenAddress is 127.0.0.1
		{"MaxStartups 10:30:60\n", "the last line wins, not hallmark's 100:30:200"},
		{"HostCertificate /etc/vault-cert.pub\n", "HostCertificate /etc/vault-cert.pub ("},
		{"PerSourceMaxStartups 1\n", "PerSourceMaxStartups 1"},
		{"Match Address 10.0.0.0/8\nPubkeyAuthentication no\n", "(Match Address 10.0.0.0/8)), for "},
		{"Match User deploy\nAuthenticationMethods publickey,password\n", "for deploy from 192.0.2.1: a certificate alone"},
		{"AllowUsers ec2-user-of-the-cloud\nMatch User nobody\n", "AllowUsers"},
		{"Match Address 198.51.100.0/24\nTrustedUserCAKeys /etc/other.pub\n", "TrustedUserCAKeys /etc/other.pub"},
	} {
		t.Run(test.lines, func(t *testing.T) {
			s.SkipUnknown(t, test.lines)
			s.Configure("")
			i := newImage(t, "")
			var said strings.Builder
			i.log = func(format string, args ...any) { fmt.Fprintf(&said, format+"\n", args...) }
			i.server = &sshd.Server{Program: s.Program, Config: filepath.Join(i.root, sshdconf.MainConfig), Root: "/"}
			i.write(sshdconf.MainConfig, string(machinetest.ReadFile(t, s.Config))+test.lines)
			if _, err := i.Install(t.Context(), i.from); err != nil && !strings.Contains(test.lines, "AllowUsers") {
				t.Fatal(err)
			} else if err != nil {
				said.WriteString(err.Error()) // the test's machine has no such account
			}
			if !strings.Contains(said.String(), test.want) {
				t.Errorf("it says %q, want %q", said.String(), test.want)
			}
		})
	}
}
