package agent

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/hostcert"
	"github.com/hallmark-ssh/hallmark/internal/machine/fault"
	"github.com/hallmark-ssh/hallmark/internal/machine/handshake"
	"github.com/hallmark-ssh/hallmark/internal/machine/machinetest"
	"github.com/hallmark-ssh/hallmark/internal/machine/sshd"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"github.com/hallmark-ssh/hallmark/internal/sshkey"
	"github.com/hallmark-ssh/hallmark/internal/sshkey/sshkeytest"
)

func TestEnroll(t *testing.T) {
	m := newMachine(t)
	m.openSSHCA = sshkeytest.NewSigner(t) // the baked CA has been retired since
	options := protocol.NewMetadataOptions(protocol.TokensOptional, 2)
	m.spoil = func(r *protocol.Response) { r.MetadataOptions = options }
	outcome, err := m.Enroll(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if outcome.Reason != "not enrolled yet" || !outcome.State.Presented || len(outcome.State.Certificates) != 3 {
		t.Errorf("outcome %+v, state %+v", outcome, outcome.State)
	}
	if saved := m.state().MetadataOptions; saved != options {
		t.Errorf("saved metadata options %+v, want %+v", saved, options)
	}
	m.sshd.AcceptsLogins()
	if err := m.sshd.TryLogin(machinetest.UserCertificate(t, m.openSSHCA), m.hostCertificateOnly()); err != nil {
		t.Errorf("login by a certificate of the cluster: %v", err)
	}
	if err := m.sshd.TryLogin(machinetest.UserCertificate(t, sshkeytest.NewSigner(t)), m.hostCertificateOnly()); err == nil {
		t.Error("a certificate of another CA was accepted")
	}

	before := m.files()
	again, err := m.Enroll(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if again.Reason != "" || again.Reloaded || len(m.requests) != 1 || m.files() != before {
		t.Errorf("the second run did something: %+v, %d requests", again, len(m.requests))
	}
}

// hostCertificateOnly accepts a host only with a certificate that the cluster's Host CA signed
// for its name, like a known_hosts file with one @cert-authority line.
func (m *machine) hostCertificateOnly() ssh.HostKeyCallback {
	checker := &ssh.CertChecker{IsHostAuthority: func(key ssh.PublicKey, _ string) bool {
		return bytes.Equal(key.Marshal(), m.hosts.PublicKey().Marshal())
	}}
	return checker.CheckHostKey
}

func TestEnrollWritesNewCAs(t *testing.T) {
	m := newMachine(t)
	baked := m.openSSHCA
	m.openSSHCA = sshkeytest.NewSigner(t)
	if _, err := m.Enroll(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := m.sshd.TryLogin(machinetest.UserCertificate(t, baked), ssh.InsecureIgnoreHostKey()); err == nil {
		t.Error("the baked CA is still trusted after the enrollment")
	}
}

func TestEnrollReloadsOnlyWhenNeeded(t *testing.T) {
	m := newMachine(t)
	// An sshd that started before the lines were there does not have them.
	m.sshd.Stop()
	m.sshd.Configure("")
	m.sshd.Run()
	m.sshd.Configure(m.sshd.HallmarkLines())
	outcome, err := m.Enroll(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !outcome.Reloaded || m.sshd.Reloads != 1 {
		t.Errorf("%d reloads, want 1", m.sshd.Reloads)
	}
	// An sshd that has them reads new certificates for each connection, up to 9.7.
	m.now = func() time.Time { return time.Now().Add(4 * 24 * time.Hour) }
	m.lifetime = 14 * 24 * time.Hour
	if outcome, err = m.Enroll(t.Context()); err != nil {
		t.Fatal(err)
	}
	if outcome.Reason != "certificates are due for renewal" {
		t.Errorf("reason %q", outcome.Reason)
	}
	want := 1
	if machinetest.HandsOver(t, m.sshd.Program) {
		want = 2
	}
	if m.sshd.Reloads != want {
		t.Errorf("%d reloads after the renewal, want %d", m.sshd.Reloads, want)
	}
	m.sshd.AcceptsLogins()
}

func TestEnrollRunsWithoutSSHD(t *testing.T) {
	m := newMachine(t)
	m.sshd.Stop()
	outcome, err := m.Enroll(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if outcome.State.Presented || m.sshd.Reloads != 0 || m.sshd.Starts != 0 {
		t.Errorf("a stopped sshd: presented %v, %d reloads, %d starts", outcome.State.Presented, m.sshd.Reloads, m.sshd.Starts)
	}
	m.sshd.Run()
	if outcome, err = m.Enroll(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !outcome.State.Presented || len(m.requests) != 1 {
		t.Errorf("once sshd runs: presented %v, %d requests", outcome.State.Presented, len(m.requests))
	}
}

// If the reload ends sshd, it is started again with the old files.
func TestEnrollPutsBackWhenSSHDDoesNotComeBack(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	if _, err := m.Enroll(t.Context()); err != nil {
		t.Fatal(err)
	}
	before := m.files()
	m.sshd.Stop()
	m.sshd.Configure("") // then it presents no certificate and needs a reload
	m.sshd.Run()
	m.sshd.Configure(m.sshd.HallmarkLines())
	m.sshd.OnReload = func(context.Context) error {
		if m.sshd.Process.Process.Signal(syscall.SIGTERM) != nil {
			return errors.New("no sshd to reload")
		}
		<-m.sshd.Exited
		return nil
	}
	m.settle = 3 * time.Second // long enough for one look, however busy the machine
	m.now = func() time.Time { return time.Now().Add(4 * 24 * time.Hour) }

	_, err := m.Enroll(t.Context())
	machinetest.WantError(t, err, fault.Failed, "connection refused", "the old files were restored")
	if m.sshd.Starts != 1 {
		t.Errorf("sshd was started %d times, want once", m.sshd.Starts)
	}
	if after := m.files(); after != before {
		t.Errorf("files differ:\n%s\nwant\n%s", after, before)
	}
	m.sshd.AcceptsLogins()
}

// If sshd runs but never presents the certificate, its old files come back.
func TestEnrollPutsBackWhenSSHDIgnoresTheCertificate(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.sshd.Stop()
	m.sshd.Configure("")
	m.sshd.Run()
	m.sshd.Configure(m.sshd.HallmarkLines())
	m.settle = 3 * time.Second // long enough for one look, however busy the machine
	before := m.files()
	m.sshd.OnReload = func(context.Context) error {
		_, err := os.Stat(m.sshd.KeyPath("rsa") + "-cert.pub")
		if installed := err == nil; installed != (m.sshd.Reloads == 1) {
			t.Errorf("reload %d finds the certificate: %v", m.sshd.Reloads, installed)
		}
		return nil
	}
	_, err := m.Enroll(t.Context())
	machinetest.WantError(t, err, fault.Failed, "presents no such host key", "the old files were restored")
	if m.files() != before {
		t.Errorf("files differ:\n%s\nwant\n%s", m.files(), before)
	}
	m.sshd.AcceptsLogins()
}

// If somebody stops an enrollment halfway, the old files come back.
func TestEnrollPutsBackWhenInterrupted(t *testing.T) {
	m := newMachine(t)
	m.sshd.Stop()
	m.sshd.Configure("")
	m.sshd.Run()
	m.sshd.Configure(m.sshd.HallmarkLines())
	ctx, cancel := context.WithCancel(t.Context())
	m.sshd.OnReload = func(ctx context.Context) error { cancel(); return ctx.Err() }
	before := m.files()
	_, err := m.Enroll(ctx)
	machinetest.WantError(t, err, fault.Failed, "reload sshd", "the old files were restored")
	if m.sshd.Reloads != 2 || m.sshd.Starts != 0 {
		t.Errorf("%d reloads and %d starts, want a second reload for the old files", m.sshd.Reloads, m.sshd.Starts)
	}
	if m.files() != before {
		t.Errorf("files differ:\n%s\nwant\n%s", m.files(), before)
	}
	m.sshd.AcceptsLogins()
}

// Each row breaks one thing about the signer's answer.
func TestEnrollBadAnswers(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	other := sshkeytest.NewSigner(t)
	answer := func(status int, body string) func(http.ResponseWriter, *http.Request, int) bool {
		return func(w http.ResponseWriter, _ *http.Request, _ int) bool {
			w.WriteHeader(status)
			_, _ = w.Write([]byte(body))
			return true
		}
	}
	for _, test := range []struct {
		name      string
		spoil     func(*protocol.Response)
		mutate    func(*ssh.Certificate)
		intercept func(http.ResponseWriter, *http.Request, int) bool
		kind      fault.Kind
		message   string
		hint      string
	}{
		{name: "certificate for another key", spoil: func(r *protocol.Response) {
			r.Certificates[1] = m.certify(other.PublicKey(), r.Principals, m.hosts)
		}, message: "is not the host key", hint: "nothing was changed"},
		{name: "certificates in another order", spoil: func(r *protocol.Response) {
			r.Certificates[0], r.Certificates[1] = r.Certificates[1], r.Certificates[0]
		}, message: "is not the host key"},
		{name: "one certificate too few", spoil: func(r *protocol.Response) { r.Certificates = r.Certificates[:2] }, message: "2 certificates for 3 host keys"},
		{name: "a plain key as certificate", spoil: func(r *protocol.Response) { r.Certificates[0] = r.HostCAs[0] }, message: "not a certificate"},
		{name: "user certificate", mutate: func(c *ssh.Certificate) { c.CertType = ssh.UserCert }, message: "is not host"},
		{name: "one principal more", mutate: func(c *ssh.Certificate) {
			c.ValidPrincipals = append([]string{"bastion"}, c.ValidPrincipals...)
		}, message: "principals"},
		{name: "one principal more, in the answer too", spoil: func(r *protocol.Response) {
			r.Principals = append(r.Principals, "bastion")
			for n := range r.Certificates {
				cert, err := hostcert.Parse(r.Certificates[n])
				if err != nil {
					t.Error(err)
					return
				}
				r.Certificates[n] = m.certify(cert.Key, r.Principals, m.hosts)
			}
		}, message: "not provably this machine's"},
		{name: "no principals", mutate: func(c *ssh.Certificate) { c.ValidPrincipals = nil }, message: "matches every host"},
		{name: "ended", mutate: func(c *ssh.Certificate) { c.ValidBefore = 1000 }, message: "expired"},
		{name: "without end", mutate: func(c *ssh.Certificate) { c.ValidBefore = ssh.CertTimeInfinity }, message: "no expiry"},
		{name: "another Host CA", spoil: func(r *protocol.Response) { r.HostCAs = sshkey.Lines([]ssh.PublicKey{other.PublicKey()}) }, message: "unknown CA"},
		{name: "no OpenSSH CA", spoil: func(r *protocol.Response) { r.OpenSSHCAs = nil }, message: "OpenSSH CAs: no keys"},
		{name: "OpenSSH CA with a second line", spoil: func(r *protocol.Response) { r.OpenSSHCAs[0] += "\n" + r.HostCAs[0] }, message: "more than one line"},
		{name: "no Host CA", spoil: func(r *protocol.Response) { r.HostCAs = nil }, message: "host CAs: no keys"},
		{name: "another node", spoil: func(r *protocol.Response) {
			r.Node.ID = ec2ref.Instance{Account: testAccount, Region: testRegion, ID: "i-0"}.NodeID()
		}, message: "this instance is"},
		{name: "no host name", spoil: func(r *protocol.Response) { r.Node.Hostname = "" }, message: "is not a DNS name"},
		{name: "no cluster", spoil: func(r *protocol.Response) { r.Node.Cluster = "" }, message: "names no cluster"},
		{name: "later protocol", spoil: func(r *protocol.Response) { r.Version = 3 }, message: "protocol version 3", hint: "update hallmark"},
		{name: "garbage", intercept: answer(200, "<html>welcome</html>"), message: "not a valid Hallmark response", hint: "signer_url"},
		{name: "endless", intercept: answer(200, strings.Repeat(" ", protocol.MaxResponseBytes+1)), message: "more than"},
		{name: "redirect", intercept: func(w http.ResponseWriter, _ *http.Request, _ int) bool {
			w.Header().Set("Location", "https://127.0.0.1:1/")
			w.WriteHeader(http.StatusMovedPermanently)
			return true
		}, message: "301", hint: "does not follow redirects"},
		{name: "403 of the policy", intercept: answer(403, `{"error":{"code":"policy_refused","message":"no rule admits the instance","requestId":"r7"}}`),
			kind: fault.Refused, message: `no rule admits the instance`, hint: "no rule of the signer's policy"},
		{name: "403 of something in front", intercept: answer(403, `{"Message":"Forbidden"}`), kind: fault.Refused, message: "403 Forbidden", hint: "signer_url"},
		{name: "409", intercept: answer(409, `{"error":{"code":"host_key_in_use","message":"held by another instance"}}`),
			kind: fault.Refused, message: "held by another instance", hint: "hallmark seal"},
	} {
		t.Run(test.name, func(t *testing.T) {
			m.spoil, m.mutate, m.answerInstead = test.spoil, test.mutate, test.intercept
			before, requests := m.files(), len(m.requests)
			_, err := m.Enroll(t.Context())
			machinetest.WantError(t, err, test.kind, test.message, test.hint)
			if m.files() != before || m.sshd.Reloads != 0 {
				t.Errorf("it changed something, with %d reloads:\n%s", m.sshd.Reloads, m.files())
			}
			if got := len(m.requests) - requests; got != 1 {
				t.Errorf("%d requests, want 1: repeating does not help", got)
			}
			m.sshd.AcceptsLogins()
		})
	}
}

func TestEnrollTriesAgain(t *testing.T) {
	for _, test := range []struct {
		name   string
		status int
		header string
		body   string
		wait   time.Duration // the first
	}{
		{"500", 500, "", `{"error":{"code":"internal","message":"x"}}`, 250 * time.Millisecond},
		{"502 of a gateway", 502, "", "<html>", 250 * time.Millisecond},
		{"429 with Retry-After", 429, "7", `{"error":{"code":"rate_limited","message":"x"}}`, 7250 * time.Millisecond},
		{"503 with half an hour of Retry-After", 503, "1800", ``, 30*time.Minute + 250*time.Millisecond},
		{"clock skew", 401, "", `{"error":{"code":"clock_skew","message":"x","serverTime":"2026-01-02T03:04:05Z"}}`, 250 * time.Millisecond},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			m := newMachine(t)
			m.answerInstead = func(w http.ResponseWriter, _ *http.Request, n int) bool {
				if n > 2 {
					return false
				}
				if test.header != "" {
					w.Header().Set("Retry-After", test.header)
				}
				w.WriteHeader(test.status)
				_, _ = w.Write([]byte(test.body))
				return true
			}
			m.Timeout = 2 * time.Hour
			if _, err := m.Enroll(t.Context()); err != nil {
				t.Fatal(err)
			}
			if len(m.waits) != 2 || m.waits[0] != test.wait {
				t.Errorf("waits %v, want two, the first %s", m.waits, test.wait)
			}
		})
	}
}

func TestEnrollGivesUp(t *testing.T) {
	refuse := func(status int, body string) func(*machine) {
		return func(m *machine) {
			m.answerInstead = func(w http.ResponseWriter, _ *http.Request, _ int) bool {
				w.Header().Set("Retry-After", "30")
				w.WriteHeader(status)
				_, _ = w.Write([]byte(body))
				return true
			}
		}
	}
	for _, test := range []struct {
		name    string
		spoil   func(*machine)
		kind    fault.Kind
		message string
		hint    string
	}{
		{"signer unreachable", func(m *machine) { m.testSigner.server.Close() }, fault.Temporary, "connection refused", "sshd works as before"},
		{"signer of another CA", func(m *machine) { m.connect("") }, fault.Temporary, "certificate", "signer_ca_file"},
		{"signer slow", func(m *machine) {
			m.signer.Attempt = 100 * time.Millisecond // it would never answer in time
			m.answerInstead = func(_ http.ResponseWriter, r *http.Request, _ int) bool {
				<-r.Context().Done()
				panic(http.ErrAbortHandler) // an answer, even an empty one, could still arrive
			}
		}, fault.Temporary, "ask the signer", "sshd works as before"},
		{"429", refuse(429, ""), fault.Temporary, "429", "sshd works as before"},
		{"503", refuse(503, `{"error":{"code":"upstream_unavailable","message":"Teleport does not answer","requestId":"r9"}}`), fault.Temporary, "r9", "sshd works as before"},
		{"wrong clock", refuse(401, `{"error":{"code":"clock_skew","message":"x","serverTime":"2026-01-02T03:04:05Z"}}`), fault.Temporary, "2026-01-02T03:04:05Z", "clock"},
		{"metadata missing", func(m *machine) { m.imds.server.Close() }, fault.Temporary, "connection refused", "metadata service"},
		{"metadata slow", func(m *machine) {
			m.metadata.Timeout = 100 * time.Millisecond
			m.imds.intercept = func(_ http.ResponseWriter, r *http.Request) bool { <-r.Context().Done(); return true }
		}, fault.Temporary, "metadata service", "metadata service"},
		{"metadata switched off", func(m *machine) {
			m.imds.intercept = func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(http.StatusForbidden); return true }
		}, fault.Temporary, "403", "HttpEndpoint"},
		{"metadata refuses new tokens, too", func(m *machine) {
			m.imds.intercept = func(w http.ResponseWriter, r *http.Request) bool {
				if r.Method == http.MethodPut {
					return false
				}
				w.WriteHeader(http.StatusUnauthorized)
				return true
			}
		}, fault.Temporary, "401 Unauthorized: the session token was refused", "metadata service"},
		{"metadata redirects", func(m *machine) {
			m.imds.intercept = func(w http.ResponseWriter, r *http.Request) bool {
				http.Redirect(w, r, m.testSigner.server.URL, http.StatusFound)
				return true
			}
		}, fault.Temporary, "302", "metadata"},
		{"metadata of no instance", func(m *machine) { delete(m.imds.pages, identityPage) }, fault.Failed, "not found", "metadata"},
		{"metadata unreadable", func(m *machine) { m.imds.pages[identityPage] = "<html>" }, fault.Failed, "identity document", "metadata"},
		{"no identity role", func(m *machine) { delete(m.imds.pages, rolePage) }, fault.Failed, "no instance identity role", "identity-credentials"},
		{"identity role not ready", func(m *machine) { m.imds.pages[rolePage] = `{"Code":"Failed"}` }, fault.Temporary, `code "Failed"`, "identity role"},
		{"no CA line", func(m *machine) { m.sshd.Configure("") }, fault.Misconfigured, "no line TrustedUserCAKeys", "hallmark install"},
		{"someone else's CAs", func(m *machine) {
			m.sshd.Configure("TrustedUserCAKeys /etc/other.pub\n" + m.sshd.HallmarkLines())
		}, fault.Misconfigured, "/etc/other.pub", "remove that line"},
		{"no certificate lines", func(m *machine) { m.sshd.Configure("TrustedUserCAKeys " + m.sshd.CAFile + "\n") }, fault.Temporary, "no line HostCertificate", "hallmark install"},
		{"broken sshd_config", func(m *machine) { m.sshd.Configure("Nonsense yes\n") }, fault.Failed, "Nonsense", "sshd -t"},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := newMachine(t)
			before := m.files()
			test.spoil(m)
			_, err := m.Enroll(t.Context())
			machinetest.WantError(t, err, test.kind, test.message, test.hint)
			if m.files() != before {
				t.Errorf("it changed something:\n%s", m.files())
			}
			m.sshd.AcceptsLogins()
		})
	}
}

// unhappy is an sshd that finds an error in a part that only some logins reach.
type unhappy struct{ *machinetest.SSHD }

func (unhappy) Logins(context.Context) ([]sshd.Login, error) {
	return nil, errors.New("line 9: Bad SSH2 cipher spec")
}

func TestEnrollWithAConfigurationThatSSHDRefuses(t *testing.T) {
	m := newMachine(t)
	m.Enroller.server = unhappy{m.sshd}
	before := m.files()
	_, err := m.Enroll(t.Context())
	machinetest.WantError(t, err, fault.Failed, "does not accept its configuration: line 9", "nothing was changed")
	if m.files() != before {
		t.Errorf("it changed something:\n%s", m.files())
	}
	if m.sshd.Reloads != 0 {
		t.Errorf("%d reloads", m.sshd.Reloads)
	}
	m.sshd.AcceptsLogins()
}

// afterCheck is an sshd whose configuration somebody changes after it was checked.
type afterCheck struct {
	*machinetest.SSHD
	change func()
}

func (s afterCheck) Logins(ctx context.Context) ([]sshd.Login, error) {
	logins, err := s.SSHD.Logins(ctx)
	s.change()
	return logins, err
}

// If the configuration breaks in the meantime, sshd is not reloaded, because that would end
// it.
func TestEnrollDoesNotReloadABrokenConfiguration(t *testing.T) {
	m := newMachine(t)
	// sshd runs without hallmark's lines, so it needs a reload.
	lines := m.sshd.HallmarkLines()
	m.sshd.Stop()
	m.sshd.Configure("")
	m.sshd.Run()
	m.sshd.Configure(lines)
	m.Enroller.server = afterCheck{m.sshd, func() { m.sshd.Configure(lines + "Nonsense yes\n") }}
	m.ActivatePending = true
	before := m.files()
	_, err := m.Enroll(t.Context())
	machinetest.WantError(t, err, fault.Failed, "Nonsense", "the old files were restored")
	if m.files() != before {
		t.Errorf("files differ:\n%s\nwant\n%s", m.files(), before)
	}
	if m.sshd.Reloads != 0 {
		t.Errorf("%d reloads", m.sshd.Reloads)
	}
	m.sshd.AcceptsLogins()
}

// Before cloud-init has generated host keys, there is nothing to certify, and nothing is
// wrong.
func TestEnrollWithoutHostKeys(t *testing.T) {
	m := newMachine(t)
	m.sshd.Stop()
	for _, kind := range []string{"rsa", "ecdsa", "ed25519"} {
		if err := os.Remove(m.sshd.KeyPath(kind)); err != nil {
			t.Fatal(err)
		}
	}
	_, err := m.Enroll(t.Context())
	machinetest.WantError(t, err, fault.Temporary, "no host keys", "ssh-keygen -A")
}

// A key for which sshd may not present a certificate is left out, so it does not keep the
// others from being certified.
func TestEnrollHonorsHostKeyAlgorithms(t *testing.T) {
	m := newMachine(t)
	m.sshd.Stop()
	m.sshd.Configure("HostKeyAlgorithms ssh-ed25519-cert-v01@openssh.com,ssh-ed25519,rsa-sha2-512\n" + m.sshd.HallmarkLines())
	m.sshd.Run()
	outcome, err := m.Enroll(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got := outcome.State.Certificates; len(got) != 1 || got[0].Path != m.sshd.KeyPath("ed25519")+"-cert.pub" {
		t.Errorf("certificates %+v, want the one for ed25519", got)
	}
}

// Every address of sshd has to present the certificates, even with several ports.
func TestEnrollAsksEveryAddress(t *testing.T) {
	m := newMachine(t)
	second := machinetest.FreeAddress(t)
	m.sshd.Stop()
	m.sshd.Configure(m.sshd.HallmarkLines() + "ListenAddress " + second.String() + "\n")
	m.sshd.Run()
	if _, err := m.Enroll(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, address := range []netip.AddrPort{m.sshd.Address, second} {
		key, err := handshake.HostKey(t.Context(), address, []string{ssh.CertAlgoED25519v01})
		if _, ok := key.(*ssh.Certificate); err != nil || !ok {
			t.Errorf("%s presents %T: %v", address, key, err)
		}
	}
}

// If another server listens at an address in the configuration, that address is not this
// sshd's.
func TestEnrollLeavesOtherServersAlone(t *testing.T) {
	m := newMachine(t)
	other := machinetest.NewSSHD(t, m.sshd.Program, t.TempDir(), m.openSSHCA.PublicKey())
	other.Stop()
	other.Configure("")
	other.Run()
	m.sshd.Stop()
	m.sshd.Configure(m.sshd.HallmarkLines() + "ListenAddress " + other.Address.String() + "\n")
	m.sshd.Run()
	o, err := m.Enroll(t.Context())
	if err != nil || !o.State.Presented {
		t.Errorf("%+v: %v", o, err)
	}
	m.sshd.AcceptsLogins()
	other.AcceptsLogins()
}

// These machines have only one kind of host key.
func TestEnrollWithOneKindOfKey(t *testing.T) {
	for _, kind := range []string{"rsa", "ecdsa", "ed25519"} {
		m := newMachine(t)
		m.sshd.Stop()
		for _, other := range []string{"rsa", "ecdsa", "ed25519"} {
			if other != kind {
				if err := errors.Join(os.Remove(m.sshd.KeyPath(other)), os.Remove(m.sshd.KeyPath(other)+".pub")); err != nil {
					t.Fatal(err)
				}
			}
		}
		m.sshd.Run()
		o, err := m.Enroll(t.Context())
		if err != nil {
			t.Errorf("%s: %v", kind, err)
			continue
		}
		if !o.State.Presented || len(o.State.Certificates) != 1 {
			t.Errorf("%s: state %+v", kind, o.State)
		}
		m.sshd.AcceptsLogins()
	}
}

var _ server = (*sshd.Server)(nil)
