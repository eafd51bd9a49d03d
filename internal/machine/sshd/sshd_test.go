package sshd

import (
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
)

func TestParseEffective(t *testing.T) {
	got, err := parseEffective([]byte(strings.Join([]string{
		"port 22", "listenaddress [::]:22", "listenaddress 0.0.0.0:22", "listenaddress 10.0.0.1:2222 rdomain blue",
		"hostkey /etc/ssh/ssh_host_rsa_key", "hostkey /etc/my keys/k", "hostcertificate /etc/ssh/ssh_host_rsa_key-cert.pub",
		"hostkeyalgorithms ssh-ed25519-cert-v01@openssh.com,rsa-sha2-256-cert-v01@openssh.com,ssh-ed25519",
		"trustedusercakeys none", "pidfile /run/sshd.pid", "maxstartups 10:30:100", "subsystem sftp /usr/lib/x", "",
	}, "\n")))
	if err != nil {
		t.Fatal(err)
	}
	want := &Effective{
		HostKeys:          []string{"/etc/ssh/ssh_host_rsa_key", "/etc/my keys/k"},
		HostCertificates:  []string{"/etc/ssh/ssh_host_rsa_key-cert.pub"},
		HostKeyAlgorithms: []string{"ssh-ed25519-cert-v01@openssh.com", "rsa-sha2-256-cert-v01@openssh.com", "ssh-ed25519"},
		MaxStartups:       "10:30:100", PIDFile: "/run/sshd.pid",
		Listen: []netip.AddrPort{
			netip.MustParseAddrPort("[::1]:22"), netip.MustParseAddrPort("127.0.0.1:22"), netip.MustParseAddrPort("10.0.0.1:2222"),
		},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v\nwant %+v", got, want)
	}
	for keyType, want := range map[string][]string{
		ssh.KeyAlgoRSA: {ssh.CertAlgoRSASHA256v01}, ssh.KeyAlgoED25519: {ssh.CertAlgoED25519v01}, ssh.KeyAlgoECDSA256: {},
	} {
		if algorithms := got.CertAlgorithms(keyType); !reflect.DeepEqual(algorithms, want) {
			t.Errorf("CertAlgorithms(%s) = %q, want %q", keyType, algorithms, want)
		}
	}
	for _, bad := range []string{"", "port 22\n", "listenaddress localhost\n"} {
		if _, err := parseEffective([]byte(bad)); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

// These rows are what versions and policies make of the same three host keys.
func TestCertAlgorithmsOfVersions(t *testing.T) {
	const listen = "listenaddress 0.0.0.0:22\n"
	for _, test := range []struct {
		name, algorithms  string
		rsa, ecdsa, other bool // whether a certificate for such a key is useful
	}{
		// 7.4 signs RSA certificates only with SHA-1, which clients now refuse.
		{"OpenSSH 7.4, Amazon Linux 2", "ecdsa-sha2-nistp256-cert-v01@openssh.com,ssh-ed25519-cert-v01@openssh.com,ssh-rsa-cert-v01@openssh.com,ecdsa-sha2-nistp256,ssh-ed25519,rsa-sha2-512,rsa-sha2-256,ssh-rsa", false, true, true},
		{"OpenSSH 8.0 in FIPS mode, RHEL 8", "ecdsa-sha2-nistp256,ecdsa-sha2-nistp256-cert-v01@openssh.com,ecdsa-sha2-nistp384,ecdsa-sha2-nistp384-cert-v01@openssh.com,rsa-sha2-256,rsa-sha2-256-cert-v01@openssh.com,rsa-sha2-512,rsa-sha2-512-cert-v01@openssh.com", true, true, false},
		{"OpenSSH 9.2, Debian 12", "ssh-ed25519-cert-v01@openssh.com,ecdsa-sha2-nistp256-cert-v01@openssh.com,rsa-sha2-512-cert-v01@openssh.com,rsa-sha2-256-cert-v01@openssh.com,ssh-ed25519", true, true, true},
		{"one that does not print them", "", true, true, true},
		{"no certificates at all", "ssh-ed25519,rsa-sha2-512", false, false, false},
	} {
		text := listen
		if test.algorithms != "" {
			text += "hostkeyalgorithms " + test.algorithms + "\n"
		}
		e, err := parseEffective([]byte(text))
		if err != nil {
			t.Fatal(err)
		}
		for keyType, want := range map[string]bool{ssh.KeyAlgoRSA: test.rsa, ssh.KeyAlgoECDSA256: test.ecdsa, ssh.KeyAlgoED25519: test.other} {
			if got := e.CertAlgorithms(keyType); (len(got) > 0) != want {
				t.Errorf("%s: %s by %q, want any: %v", test.name, keyType, got, want)
			}
		}
	}
}

func FuzzParseEffective(f *testing.F) {
	f.Add([]byte("listenaddress 0.0.0.0:22\nhostkey /a\ntrustedusercakeys none\n"))
	f.Fuzz(func(t *testing.T, output []byte) {
		e, err := parseEffective(output)
		if (e == nil) == (err == nil) {
			t.Fatalf("%v and %v", e, err)
		}
	})
}

func TestChooseUnit(t *testing.T) {
	const debian = "MainPID=77\nId=ssh.service\nLoadState=loaded\nActiveState=active\n\nMainPID=77\nId=ssh.service\nLoadState=loaded\nActiveState=active\n"
	const fedora = "MainPID=0\nId=ssh.service\nLoadState=not-found\nActiveState=inactive\n\nMainPID=77\nId=sshd.service\nLoadState=loaded\nActiveState=reloading\n"
	const stopped = "MainPID=0\nId=ssh.service\nLoadState=loaded\nActiveState=failed\n"
	for _, test := range []struct {
		name, output string
		pid          int
		want         string
	}{
		{"Debian", debian, 77, "ssh.service"},
		{"Fedora", fedora, 77, "sshd.service"},
		{"without pid file", fedora, 0, "sshd.service"},
		{"a listener that is not the unit's", debian, 78, ""},
		{"stopped", stopped, 77, ""},
		{"nothing", "", 0, ""},
	} {
		if got := chooseUnit(parseUnits(test.output), test.pid); got != test.want {
			t.Errorf("%s: %q, want %q", test.name, got, test.want)
		}
	}
}

// A stale PID file must not end an unrelated process.
func TestReloadLeavesStrangersAlone(t *testing.T) {
	pidFile := filepath.Join(t.TempDir(), "sshd.pid")
	for _, content := range []string{"", "x", "1", "-1", "0"} {
		if err := os.WriteFile(pidFile, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := listenerPID(pidFile); err == nil {
			t.Errorf("%q was taken for sshd's", content)
		}
	}
	self := filepath.Join(t.TempDir(), "self.pid")
	if err := os.WriteFile(self, []byte(strconv.Itoa(os.Getpid())+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	// This test's program is called sshd.test, so only the exact name may count.
	if _, err := listenerPID(self); err == nil {
		t.Error("this process was taken for sshd")
	}
}
