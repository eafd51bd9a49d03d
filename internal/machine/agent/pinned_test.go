package agent

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/hallmark-ssh/hallmark/internal/machine/fault"
	"github.com/hallmark-ssh/hallmark/internal/machine/hostkey"
	"github.com/hallmark-ssh/hallmark/internal/machine/machinetest"
)

// A client asks for certificates of all types before it asks for plain keys, unless it knows a
// plain key of another type than its preferred one. A certificate must not lock out a client
// that knows only one host key.
func TestCertificatesHideNoPinnedKey(t *testing.T) {
	without := func(m *machine, kind string) string {
		return strings.ReplaceAll(m.sshd.HallmarkLines(), "HostCertificate "+m.sshd.KeyPath(kind)+hostkey.CertificateSuffix+"\n", "")
	}
	theirs := func(m *machine, kind string) string {
		file := m.sshd.KeyPath(kind) + "-theirs"
		m.certifyByOther(kind, file)
		return "HostCertificate " + file + "\n"
	}
	const plainEd25519 = "HostKeyAlgorithms rsa-sha2-512-cert-v01@openssh.com,rsa-sha2-512,ssh-ed25519\n"
	for _, test := range []struct {
		name  string
		lines func(m *machine) string
		want  []string // host keys that are certified; none if the run must fail
		says  string
	}{
		{"a line for each key", func(m *machine) string { return m.sshd.HallmarkLines() }, []string{"rsa", "ecdsa", "ed25519"}, ""},
		{"no line for RSA", func(m *machine) string { return without(m, "rsa") }, []string{"ecdsa", "ed25519"}, "no line HostCertificate"},
		{"no line for Ed25519", func(m *machine) string { return without(m, "ed25519") }, nil, "no line HostCertificate"},
		{"no line for ECDSA", func(m *machine) string { return without(m, "ecdsa") }, nil, "no line HostCertificate"},
		{"no algorithm for Ed25519 certificates", func(m *machine) string {
			return plainEd25519 + m.sshd.HallmarkLines()
		}, nil, "HostKeyAlgorithms rule out"},
		{"no Ed25519 at all", func(m *machine) string {
			return "HostKeyAlgorithms rsa-sha2-512-cert-v01@openssh.com,rsa-sha2-512\n" + m.sshd.HallmarkLines()
		}, []string{"rsa"}, "rule out"},
		{"two Ed25519 keys, a line for the second", func(m *machine) string {
			other := m.sshd.KeyPath("other")
			machinetest.WriteHostKey(m.t, "ed25519", other)
			return without(m, "ed25519") + "HostKey " + m.sshd.KeyPath("ed25519") + "\nHostKey " + other + "\nHostCertificate " + other + hostkey.CertificateSuffix + "\n"
		}, nil, "no line HostCertificate"},
		{"another CA's certificate for Ed25519", func(m *machine) string {
			return theirs(m, "ed25519") + without(m, "ed25519")
		}, []string{"rsa", "ecdsa"}, "no line HostCertificate"},
		{"another CA's certificate for the first of two Ed25519 keys", func(m *machine) string {
			other := m.sshd.KeyPath("other")
			machinetest.WriteHostKey(m.t, "ed25519", other)
			return theirs(m, "ed25519") + without(m, "ed25519") + "HostKey " + m.sshd.KeyPath("ed25519") + "\nHostKey " + other + "\nHostCertificate " + other + hostkey.CertificateSuffix + "\n"
		}, []string{"rsa", "ecdsa"}, "has the same type"},
		{"another CA's certificate for the second of two Ed25519 keys", func(m *machine) string {
			other := m.sshd.KeyPath("other")
			machinetest.WriteHostKey(m.t, "ed25519", other)
			return without(m, "ed25519") + "HostKey " + m.sshd.KeyPath("ed25519") + "\nHostKey " + other + "\n" + theirs(m, "other")
		}, []string{"rsa", "ecdsa"}, "no line HostCertificate"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			m := newMachine(t)
			var said strings.Builder
			m.retry.Log = func(format string, args ...any) { fmt.Fprintf(&said, format+"\n", args...) }
			m.sshd.Stop()
			m.sshd.Configure(test.lines(m))
			m.sshd.Run()
			keys := []string{m.sshd.KeyPath("rsa"), m.sshd.KeyPath("ecdsa"), m.sshd.KeyPath("ed25519")}
			before := m.sshd.Pins(keys...)
			o, err := m.Enroll(t.Context())
			// More keys may work than before: with OpenSSH 8.4, another CA's Ed25519
			// certificate hides the ECDSA key until that key has a certificate too.
			after := m.sshd.Pins(keys...)
			for _, key := range before {
				if !slices.Contains(after, key) {
					t.Errorf("a client that knows one key gets in with %q, before with %q", after, before)
				}
			}
			if test.want == nil {
				machinetest.WantError(t, err, fault.Misconfigured, test.says, "nothing was changed")
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var certified []string
			for _, c := range o.State.Certificates {
				certified = append(certified, strings.TrimSuffix(strings.TrimPrefix(filepath.Base(c.Path), "ssh_host_"), "_key"+hostkey.CertificateSuffix))
			}
			if !slices.Equal(certified, test.want) || !strings.Contains(said.String(), test.says) {
				t.Errorf("certified %q, want %q; it says %s", certified, test.want, said.String())
			}
		})
	}
}
