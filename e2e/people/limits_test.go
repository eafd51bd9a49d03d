//go:build teleport && linux

package people

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/gravitational/teleport/api/client"
	"golang.org/x/crypto/ssh"
	"golang.org/x/sync/errgroup"

	"github.com/hallmark-ssh/hallmark/e2e/lab"
	"github.com/hallmark-ssh/hallmark/e2e/machine"
)

// To sshd, everybody has the proxy's address. OpenSSH 9.8 and later locks out an address whose
// logins fail, unless proxy_sources names it.
func TestOnePersonsFailuresDelayNobody(t *testing.T) {
	const ghost = "ghost" // not an account on the machine
	m := launchTrixie(t)
	bob := newCaller(t, "bob-limits", lab.User)
	carol := newCaller(t, "carol-limits", lab.User)
	mallory := newCaller(t, "mallory-limits", ghost)

	// Each is the best of several rounds: other work on this computer delays some rounds, but
	// penalties would delay all.
	beside := func(rounds, times int, other func() error) time.Duration {
		best := time.Hour
		for range rounds {
			best = min(best, slowestBeside(t, bob, m, times, other))
		}
		return best
	}
	usual := beside(3, 20, func() error { return carol.logIn(t.Context(), m) })
	failing := beside(4, 50, func() error {
		if mallory.logIn(t.Context(), m) == nil {
			return fmt.Errorf("%s logs in", ghost)
		}
		return nil
	})
	t.Logf("bob's slowest login beside somebody's logins: %s; beside 200 failures: %s", usual, failing)
	if failing > usual+time.Second {
		t.Errorf("failures delay bob: %s instead of %s", failing, usual)
	}

	began := time.Now()
	var crowd errgroup.Group
	for range 50 {
		crowd.Go(func() error { return bob.logIn(t.Context(), m) })
	}
	if err := crowd.Wait(); err != nil {
		t.Errorf("50 logins at once: %v", err)
	}
	t.Logf("50 logins at once took %s", time.Since(began))
	if log := sshdLog(t, m); strings.Contains(log, "drop connection") || strings.Contains(log, "penalty") {
		t.Errorf("sshd dropped connections of the proxy:\n%s", log)
	}

	// Without the exemption the same failures lock everybody out, so the test above can fail.
	for _, command := range [][]string{
		{"sed", "-i", "/^PerSourcePenaltyExemptList/d", "/etc/ssh/sshd_config.d/00-hallmark.conf"},
		{"systemctl", "reload", "ssh.service"},
	} {
		if _, err := m.Run(t.Context(), command[0], command[1:]...); err != nil {
			t.Fatal(err)
		}
	}
	for range 10 {
		var failures errgroup.Group
		failures.SetLimit(8)
		for range 40 {
			failures.Go(func() error { _ = mallory.logIn(t.Context(), m); return nil }) // above it was seen to fail
		}
		_ = failures.Wait()
		if bob.logIn(t.Context(), m) != nil {
			return
		}
	}
	t.Errorf("without the exemption bob still logs in:\n%s", sshdLog(t, m))
}

// slowestBeside logs somebody in again and again while something else is done several times,
// and returns how long the slowest login took.
func slowestBeside(t *testing.T, c caller, m enrolled, times int, other func() error) (slowest time.Duration) {
	t.Helper()
	done := make(chan error, 1)
	go func() {
		var err error
		for range times {
			err = errors.Join(err, other())
		}
		done <- err
	}()
	for {
		slowest = max(slowest, mustLogIn(t, c, m))
		select {
		case err := <-done:
			if err != nil {
				t.Fatal(err)
			}
			return slowest
		default:
		}
	}
}

// launchTrixie boots a machine with OpenSSH 10 that has the proxy's address in proxy_sources.
func launchTrixie(t *testing.T) enrolled {
	t.Helper()
	image, _, err := shared.lab.BakeQuietly(t.Context(), lab.Source{
		Name: "builder13", Release: machine.Debian13, ProxySources: []string{machine.Hub},
	})
	if err != nil {
		t.Fatal(err)
	}
	instance, err := shared.lab.Launch(t.Context(), lab.Template{Name: "trixie", Image: image, Tags: map[string]string{"Name": "trixie"}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := instance.PowerOff(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	state, err := instance.WaitEnrolled(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	settings, err := instance.Run(t.Context(), "sshd", "-T")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(settings, "\npersourcepenaltyexemptlist "+machine.Hub+"\n") {
		t.Errorf("sshd does not exempt the proxy:\n%s", settings)
	}
	return enrolled{instance, state}
}

func sshdLog(t *testing.T, m enrolled) string {
	t.Helper()
	log, err := m.Run(t.Context(), "journalctl", "--no-pager", "--boot", "--unit=ssh.service", "--lines=400")
	if err != nil {
		t.Fatal(err)
	}
	return log
}

// caller is a person who is connected to the proxy, like tsh and `ssh -J`. Starting tsh
// hundreds of times would take minutes.
type caller struct {
	proxy  *ssh.Client
	config *ssh.ClientConfig // to the proxy and to machines
}

// newCaller connects a person whose role allows one login.
func newCaller(t *testing.T, name, login string) caller {
	t.Helper()
	cluster := shared.lab.Teleport
	newPerson(t, cluster, name, "{logins: ["+login+"], node_labels: {'*': '*'}}")
	identity, err := cluster.SignIdentity(t.Context(), name, time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	config, err := client.LoadIdentityFile(identity).SSHClientConfig()
	if err != nil {
		t.Fatal(err)
	}
	// The SSH handshake inside verifies the proxy: the identity file has the cluster's CAs.
	settings := &tls.Config{NextProtos: []string{"teleport-proxy-ssh"}, InsecureSkipVerify: true}
	conn, err := (&tls.Dialer{Config: settings}).DialContext(t.Context(), "tcp", cluster.Address())
	if err != nil {
		t.Fatal(err)
	}
	config.User = login // the proxy, like a machine, accepts only logins in the certificate
	connection, channels, requests, err := ssh.NewClientConn(conn, cluster.Address(), config)
	if err != nil {
		t.Fatal(err)
	}
	c := caller{ssh.NewClient(connection, channels, requests), config}
	t.Cleanup(func() { c.proxy.Close() })
	return c
}

// mustLogIn returns how long a login takes.
func mustLogIn(t *testing.T, c caller, m enrolled) time.Duration {
	t.Helper()
	began := time.Now()
	if err := c.logIn(t.Context(), m); err != nil {
		t.Fatalf("a login that nothing should stop: %v\n%s", err, sshdLog(t, m))
	}
	return time.Since(began)
}

// logIn runs a command on the machine, through the proxy.
func (c caller) logIn(ctx context.Context, m enrolled) error {
	session, err := c.proxy.NewSession()
	if err != nil {
		return fmt.Errorf("open a session with the proxy: %w", err)
	}
	defer session.Close()
	stop := context.AfterFunc(ctx, func() { session.Close() })
	defer stop()
	in, err := session.StdinPipe()
	if err != nil {
		return err
	}
	out, err := session.StdoutPipe()
	if err != nil {
		return err
	}
	if err := session.RequestSubsystem(fmt.Sprintf("proxy:%s:22@%s", m.state.Node.Hostname, shared.lab.Teleport.Name())); err != nil {
		return fmt.Errorf("ask the proxy for %s: %w", m.state.Node.Hostname, err)
	}
	connection, channels, requests, err := ssh.NewClientConn(channel{out, in}, m.state.Node.Hostname+":22", c.config)
	if err != nil {
		return fmt.Errorf("log in as %s: %w", c.config.User, err)
	}
	machine := ssh.NewClient(connection, channels, requests)
	defer machine.Close()
	command, err := machine.NewSession()
	if err != nil {
		return fmt.Errorf("open a session: %w", err)
	}
	defer command.Close()
	return command.Run("true")
}

// channel is a connection through the proxy. It has no addresses and no deadlines.
type channel struct {
	io.Reader
	io.WriteCloser
}

func (channel) LocalAddr() net.Addr              { return &net.TCPAddr{} }
func (channel) RemoteAddr() net.Addr             { return &net.TCPAddr{} }
func (channel) SetDeadline(time.Time) error      { return nil }
func (channel) SetReadDeadline(time.Time) error  { return nil }
func (channel) SetWriteDeadline(time.Time) error { return nil }
