package agent

import (
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
)

// pins tries OpenSSH's client with each host key as the only one that it knows, and returns
// the files of those with which it logs in.
func (s *testSSHD) pins(files ...string) (work []string) {
	s.t.Helper()
	identity := filepath.Join(s.dir, "identity")
	if _, err := os.Stat(identity); err != nil {
		s.writeIdentity(identity)
	}
	for _, file := range files {
		if err := s.trySSH(identity, string(mustRead(s.t, file+".pub"))); err == nil {
			work = append(work, file)
		} else if !strings.Contains(err.Error(), "Host key verification failed") {
			s.t.Fatal(err)
		}
	}
	return work
}

// writeIdentity makes a key that sshd admits.
func (s *testSSHD) writeIdentity(path string) {
	s.t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		s.t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(private, "")
	if err != nil {
		s.t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		s.t.Fatal(err)
	}
	s.write(filepath.Base(path), string(pem.EncodeToMemory(block)))
	appendTo(s.t, filepath.Join(s.dir, "authorized_keys"), string(ssh.MarshalAuthorizedKey(signer.PublicKey())))
}

func (s *testSSHD) trySSH(identity, pinned string) error {
	s.t.Helper()
	me, err := user.Current()
	if err != nil {
		return err
	}
	s.write("known_hosts", "pinned "+pinned)
	cmd := exec.CommandContext(s.t.Context(), "ssh", "-F", "none", "-o", "BatchMode=yes", "-o", "HostKeyAlias=pinned",
		"-o", "StrictHostKeyChecking=yes", "-o", "UpdateHostKeys=no", "-o", "GlobalKnownHostsFile=/dev/null",
		"-o", "UserKnownHostsFile="+filepath.Join(s.dir, "known_hosts"),
		"-o", "IdentitiesOnly=yes", "-o", "IdentityAgent=none", "-i", identity,
		"-p", strconv.Itoa(int(s.address.Port())), me.Username+"@"+s.address.Addr().String(), "true")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("ssh: %w: %s", err, out)
	}
	return nil
}

// A client asks for certificates of all types before it asks for plain keys, unless it knows
// a plain key of another type than the one that it likes best. A certificate must not keep
// out a client that knows one host key.
func TestCertificatesHideNoPinnedKey(t *testing.T) {
	without := func(m *machine, kind string) string {
		return strings.ReplaceAll(m.sshd.hallmarkLines(), "HostCertificate "+m.sshd.keyPath(kind)+certificateSuffix+"\n", "")
	}
	const plainEd25519 = "HostKeyAlgorithms rsa-sha2-512-cert-v01@openssh.com,rsa-sha2-512,ssh-ed25519\n"
	for _, test := range []struct {
		name  string
		lines func(m *machine) string
		want  []string // host keys that are certified; none if the run must fail
		says  string
	}{
		{"a line for each key", func(m *machine) string { return m.sshd.hallmarkLines() }, []string{"rsa", "ecdsa", "ed25519"}, ""},
		{"no line for RSA", func(m *machine) string { return without(m, "rsa") }, []string{"ecdsa", "ed25519"}, "no line HostCertificate"},
		{"no line for Ed25519", func(m *machine) string { return without(m, "ed25519") }, nil, "no line HostCertificate"},
		{"no line for ECDSA", func(m *machine) string { return without(m, "ecdsa") }, nil, "no line HostCertificate"},
		{"no algorithm for Ed25519 certificates", func(m *machine) string {
			return plainEd25519 + m.sshd.hallmarkLines()
		}, nil, "HostKeyAlgorithms rule out"},
		{"no Ed25519 at all", func(m *machine) string {
			return "HostKeyAlgorithms rsa-sha2-512-cert-v01@openssh.com,rsa-sha2-512\n" + m.sshd.hallmarkLines()
		}, []string{"rsa"}, "rule out"},
		{"two Ed25519 keys, a line for the second", func(m *machine) string {
			other := m.sshd.keyPath("other")
			writeHostKey(m.t, "ed25519", other)
			return without(m, "ed25519") + "HostKey " + m.sshd.keyPath("ed25519") + "\nHostKey " + other + "\nHostCertificate " + other + certificateSuffix + "\n"
		}, nil, "no line HostCertificate"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			m := newMachine(t)
			var said strings.Builder
			m.retry.log = func(format string, args ...any) { fmt.Fprintf(&said, format+"\n", args...) }
			m.sshd.stop()
			m.sshd.configure(test.lines(m))
			m.sshd.start()
			keys := []string{m.sshd.keyPath("rsa"), m.sshd.keyPath("ecdsa"), m.sshd.keyPath("ed25519")}
			before := m.sshd.pins(keys...)
			o, err := m.Enroll(t.Context())
			if after := m.sshd.pins(keys...); !slices.Equal(after, before) {
				t.Errorf("a client that knows one key gets in with %q, before with %q", after, before)
			}
			if test.want == nil {
				wantError(t, err, Misconfigured, test.says, "nothing was changed")
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var certified []string
			for _, c := range o.State.Certificates {
				certified = append(certified, strings.TrimSuffix(strings.TrimPrefix(filepath.Base(c.Path), "ssh_host_"), "_key"+certificateSuffix))
			}
			if !slices.Equal(certified, test.want) || !strings.Contains(said.String(), test.says) {
				t.Errorf("certified %q, want %q; it says %s", certified, test.want, said.String())
			}
		})
	}
}
