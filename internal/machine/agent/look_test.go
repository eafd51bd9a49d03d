package agent

import (
	"context"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/machine/machinetest"
	"github.com/hallmark-ssh/hallmark/internal/machine/sshd"
	"github.com/hallmark-ssh/hallmark/internal/machine/state"
)

// startWith starts sshd with further arguments on its command line, as SSHD_OPTS in
// /etc/default/ssh does, and waits until it accepts connections at the address.
func (m *machine) startWith(address netip.AddrPort, arguments ...string) {
	m.t.Helper()
	m.sshd.Arguments, m.sshd.Address = arguments, address
	m.sshd.Run()
}

// listenOn rewrites the configuration so that the command line decides the port.
func (m *machine) listenOn(listen, lines string) {
	m.t.Helper()
	m.sshd.Listen = &listen
	m.sshd.Configure(lines)
}

// If the command line says where sshd listens, the configuration does not.
func TestEnrollFindsSSHDByItsCommandLine(t *testing.T) {
	for _, test := range []struct {
		name   string
		listen string
		option func(netip.AddrPort) []string
	}{
		{"-p", "ListenAddress 127.0.0.1", func(a netip.AddrPort) []string { return []string{"-p", port(a)} }},
		{"-o Port", "ListenAddress 127.0.0.1", func(a netip.AddrPort) []string { return []string{"-o", "Port " + port(a)} }},
		{"-o ListenAddress", "", func(a netip.AddrPort) []string { return []string{"-oListenAddress=" + a.String()} }},
		{"without a PID file", "PidFile none\nListenAddress 127.0.0.1", func(a netip.AddrPort) []string { return []string{"-p", port(a)} }},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := newMachine(t)
			m.sshd.Stop()
			other := machinetest.FreeAddress(t)
			m.listenOn(test.listen, "") // without hallmark's lines, so it needs a reload
			m.startWith(other, test.option(other)...)
			m.listenOn(test.listen, m.sshd.HallmarkLines())
			o, err := m.Enroll(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if !o.State.Presented || o.State.NotVerified != "" || m.sshd.Reloads != 1 {
				t.Errorf("state %+v after %d reloads, want the certificates seen after one", o.State, m.sshd.Reloads)
			}
			m.sshd.AcceptsLogins()
		})
	}
}

func port(a netip.AddrPort) string { _, port, _ := net.SplitHostPort(a.String()); return port }

// If this machine cannot connect to a running sshd, sshd is reloaded once for its new
// certificates, because people may well reach it, and the state says that nobody saw them.
func TestEnrollWhereSSHDLetsNobodyLook(t *testing.T) {
	t.Parallel() // it mostly waits for answers that do not come
	for _, test := range []struct {
		name string
		at   func(t *testing.T, m *machine) netip.AddrPort // where hallmark looks
		why  string
	}{
		{"closed during the handshake", closesConnections, "closed during the handshake"},
		{"no answer", neverAnswers, "no answer"},
		{"refused", refuses, "connection refused"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			m := newMachine(t)
			m.sshd.Stop()
			m.sshd.Configure("")
			m.sshd.Run()
			m.sshd.Configure(m.sshd.HallmarkLines())
			m.Enroller.server = listensAt{m.sshd, test.at(t, m)}
			o, err := m.Enroll(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if !o.State.Presented || !strings.Contains(o.State.NotVerified, test.why) {
				t.Errorf("state %+v, want it not verified because of %q", o.State, test.why)
			}
			if !o.Reloaded || m.sshd.Reloads != 1 {
				t.Errorf("%d reloads, want one", m.sshd.Reloads)
			}
			if o, err = m.Enroll(t.Context()); err != nil || m.sshd.Reloads != 1 || o.State.NotVerified == "" {
				t.Errorf("the next run: %v, %d reloads, want no other", err, m.sshd.Reloads)
			}
			// Once hallmark can connect, the state says so.
			m.Enroller.server = m.sshd
			m.sshd.Stop()
			m.sshd.Run()
			if o, err = m.Enroll(t.Context()); err != nil || o.State.NotVerified != "" || !o.State.Presented {
				t.Errorf("after that: %+v %v", o, err)
			}
		})
	}
}

func closesConnections(t *testing.T, _ *machine) netip.AddrPort {
	return accept(t, func(conn net.Conn) { conn.Close() })
}

func neverAnswers(t *testing.T, _ *machine) netip.AddrPort {
	return accept(t, func(conn net.Conn) { t.Cleanup(func() { conn.Close() }) })
}

func refuses(t *testing.T, _ *machine) netip.AddrPort { return machinetest.FreeAddress(t) }

// accept passes each connection to an address of its own on.
func accept(t *testing.T, handle func(net.Conn)) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			handle(conn)
		}
	}()
	return netip.MustParseAddrPort(l.Addr().String())
}

// TCP wrappers (hosts.deny) keep this machine's own connections out, and hardening guides
// recommend them. Debian's sshd has them.
func TestEnrollBehindTCPWrappers(t *testing.T) {
	if os.Getenv(machinetest.WrappersVariable) == "" {
		behindTCPWrappers(t)
		return
	}
	m := newMachineBehind(t)
	o, err := m.Enroll(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	// Before it closes the connection, sshd may wait longer for DNS than hallmark does.
	if !o.State.Presented || o.State.NotVerified == "" || m.sshd.Reloads != 1 {
		t.Errorf("%+v after %d reloads, want one, and a state that says not verified", o.State, m.sshd.Reloads)
	}
}

// behindTCPWrappers runs the test again in a separate mount namespace, where alone
// /etc/hosts.deny is another file.
func behindTCPWrappers(t *testing.T) {
	t.Helper()
	libraries, err := exec.Command("ldd", machinetest.FindSSHD(t)).Output()
	if err != nil || !strings.Contains(string(libraries), "libwrap") && !strings.Contains(wrapsSessions(), "libwrap") {
		t.Skip("this sshd has no TCP wrappers")
	}
	if os.Geteuid() != 0 {
		t.Skip("only root can change /etc/hosts.deny")
	}
	program, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	deny := filepath.Join(t.TempDir(), "hosts.deny")
	if err := os.WriteFile(deny, []byte("ALL: ALL\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	const script = `[ -e /etc/hosts.deny ] || touch /etc/hosts.deny; mount --bind "$1" /etc/hosts.deny; shift
"$@" || code=$?; umount /etc/hosts.deny; exit ${code:-0}`
	propagation := "private"
	if exec.Command("unshare", "--mount", "true").Run() != nil {
		propagation = "unchanged" // in a chroot, which is not a mount point
	}
	child := exec.Command("unshare", "--mount", "--propagation", propagation, "sh", "-euc", script, "sh", deny, program, "-test.run", "^"+t.Name()+"$", "-test.v")
	child.Env = append(os.Environ(), machinetest.WrappersVariable+"=1")
	if output, err := child.CombinedOutput(); err != nil {
		t.Errorf("%v\n%s", err, output)
	}
}

// wrapsSessions names the libraries of the program that sshd runs for a session since 9.8.
func wrapsSessions() string {
	output, _ := exec.Command("ldd", "/usr/lib/openssh/sshd-session").Output()
	return string(output)
}

// newMachineBehind is a machine whose sshd started without hallmark's lines and never accepts
// a connection from this machine.
func newMachineBehind(t *testing.T) *machine {
	t.Helper()
	m := newMachine(t)
	m.sshd.Stop()
	m.sshd.Configure("")
	m.sshd.Run()
	m.sshd.Configure(m.sshd.HallmarkLines())
	return m
}

// PerSourcePenalties (OpenSSH 9.8) punishes a handshake without a login. It must never count
// against 127.0.0.1, where forwarded ports come from.
func TestEnrollKeepsClearOfPenalties(t *testing.T) {
	m := newMachine(t)
	if !machinetest.HandsOver(t, m.sshd.Program) {
		t.Skip("this sshd has no PerSourcePenalties")
	}
	m.sshd.Stop()
	m.sshd.Configure("PerSourcePenalties noauth:15m\nPerSourceMaxStartups 1\n" + m.sshd.HallmarkLines())
	m.sshd.Run()
	m.sshd.AcceptsLogins()
	for n := range 3 {
		m.now = func() time.Time { return time.Now().Add(time.Duration(n) * 3 * 24 * time.Hour) }
		m.clock = m.now
		o, err := m.Enroll(t.Context())
		if err != nil || o.Reason == "" || o.State.NotVerified != "" {
			t.Fatalf("run %d: %+v %v", n, o, err)
		}
		m.sshd.AcceptsLogins()
	}
}

// Any algorithm that both sshd and the library support is good enough for a look.
func TestEnrollWithUnusualAlgorithms(t *testing.T) {
	for _, lines := range []string{
		"KexAlgorithms diffie-hellman-group16-sha512\n",
		"KexAlgorithms diffie-hellman-group-exchange-sha256\nCiphers aes192-ctr\nMACs hmac-sha1\n",
		"Ciphers 3des-cbc\nMACs hmac-sha1-96\n",
	} {
		m := newMachine(t)
		m.sshd.Stop()
		m.sshd.Configure(lines + m.sshd.HallmarkLines())
		m.sshd.Run()
		// Teleport's proxy supports fewer algorithms than this machine, which is a separate
		// error.
		if _, err := m.Enroll(t.Context()); err != nil && !strings.Contains(err.Error(), "nobody can log in with one") {
			t.Errorf("%q: %v", lines, err)
		}
		s, err := state.Load(m.stateDir)
		if err != nil || s == nil || !s.Presented || s.NotVerified != "" {
			t.Errorf("%q: %+v %v", lines, s, err)
		}
	}
}

// There is one handshake for each certificate, and none to find sshd.
func TestLooksAtEachCertificateOnce(t *testing.T) {
	m := newMachine(t)
	if machinetest.HandsOver(t, m.sshd.Program) {
		t.Skip("this sshd has to be reloaded for each certificate")
	}
	front := newCountingProxy(t, m.sshd.Address)
	m.Enroller.server = listensAt{m.sshd, front.address}
	if _, err := m.Enroll(t.Context()); err != nil {
		t.Fatal(err)
	}
	if total := front.total.Load(); total != 3 {
		t.Errorf("%d handshakes, want one for each of 3 certificates", total)
	}
}

// listensAt is an sshd that is reached through another address.
type listensAt struct {
	*machinetest.SSHD
	address netip.AddrPort
}

func (s listensAt) Running(context.Context, *sshd.Effective) (*sshd.Running, error) {
	return &sshd.Running{Listen: []netip.AddrPort{s.address}}, nil
}

// countingProxy forwards connections, and counts them.
type countingProxy struct {
	address netip.AddrPort
	total   atomic.Int32
}

func newCountingProxy(t *testing.T, to netip.AddrPort) *countingProxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	p := &countingProxy{address: netip.MustParseAddrPort(l.Addr().String())}
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			p.total.Add(1)
			go forward(conn, to)
		}
	}()
	return p
}

func forward(conn net.Conn, to netip.AddrPort) {
	defer conn.Close()
	back, err := net.Dial("tcp", to.String())
	if err != nil {
		return
	}
	defer back.Close()
	go func() { _, _ = io.Copy(conn, back) }()
	_, _ = io.Copy(back, conn) // until the client is through
}
