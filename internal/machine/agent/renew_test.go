package agent

import (
	"errors"
	"net/http"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/machine/cafile"
	"github.com/hallmark-ssh/hallmark/internal/machine/fault"
	"github.com/hallmark-ssh/hallmark/internal/machine/hostkey"
	"github.com/hallmark-ssh/hallmark/internal/machine/imds"
	"github.com/hallmark-ssh/hallmark/internal/machine/machinetest"
	"github.com/hallmark-ssh/hallmark/internal/machine/state"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"github.com/hallmark-ssh/hallmark/internal/sshkey"
	"github.com/hallmark-ssh/hallmark/internal/sshkey/sshkeytest"
)

// enrolled returns a machine that enrolled some hours ago.
func enrolled(t *testing.T) *machine {
	t.Helper()
	m := newMachine(t)
	m.get = m.serveCAs
	m.lifetime = 30 * 24 * time.Hour
	if _, err := m.Enroll(t.Context()); err != nil {
		t.Fatal(err)
	}
	m.now = func() time.Time { return time.Now().Add(5 * time.Hour) }
	return m
}

func (m *machine) renew() *Outcome {
	m.t.Helper()
	o, err := m.Renew(m.t.Context())
	if err != nil {
		m.t.Fatal(err)
	}
	return o
}

func (m *machine) state() *state.State {
	m.t.Helper()
	s, err := state.Load(m.stateDir)
	if err != nil || s == nil {
		m.t.Fatalf("state %v, %v", s, err)
	}
	return s
}

// A wake-up with nothing due makes one request, which is answered with 304, even right after
// an enrollment. It asks nothing else.
func TestRenewWithNothingDue(t *testing.T) {
	m := enrolled(t)
	m.imds.intercept = func(_ http.ResponseWriter, r *http.Request) bool {
		// It may not ask for the public address, so the node has an address that no interface
		// has.
		t.Errorf("asked the metadata service for %s", r.URL.Path)
		return false
	}
	var answers []int
	m.get = func(w http.ResponseWriter, r *http.Request) {
		m.serveCAs(&statusRecorder{w, &answers}, r)
	}
	before := m.files()
	for range 2 {
		if o := m.renew(); o.Reason != "" || o.Reloaded || o.Trusted != nil {
			t.Errorf("outcome %+v", o)
		}
	}
	if !slices.Equal(answers, []int{304, 304}) || len(m.requests) != 1 || m.files() != before {
		t.Errorf("GETs were answered %v, %d POSTs, want two of 304, and the first POST only", answers, len(m.requests))
	}
}

type statusRecorder struct {
	http.ResponseWriter
	codes *[]int
}

func (s *statusRecorder) WriteHeader(code int) {
	*s.codes = append(*s.codes, code)
	s.ResponseWriter.WriteHeader(code)
}

// Old signers answer 405, and things in front of them answer 404.
func TestRenewWithAnOldSigner(t *testing.T) {
	for _, code := range []int{http.StatusMethodNotAllowed, http.StatusNotFound, http.StatusNotImplemented} {
		m := enrolled(t)
		m.get = func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(code) }
		before := m.files()
		if o := m.renew(); o.Reason != "" || m.files() != before {
			t.Errorf("%d: outcome %+v", code, o)
		}
	}
}

// Each row is a phase of a manual rotation, in the order of tctl auth rotate.
func TestRenewFollowsARotationOfTheOpenSSHCA(t *testing.T) {
	m := enrolled(t)
	m.noPenalties()
	old, fresh := m.openSSHCA, sshkeytest.NewSigner(t)
	for _, phase := range []struct {
		name    string
		signing ssh.Signer
		retired []ssh.Signer
		trusts  []ssh.Signer
		refuses []ssh.Signer
	}{
		{"init", old, []ssh.Signer{fresh}, []ssh.Signer{old, fresh}, nil},
		{"update_clients", fresh, []ssh.Signer{old}, []ssh.Signer{old, fresh}, nil},
		{"rollback", old, []ssh.Signer{fresh}, []ssh.Signer{old, fresh}, nil},
		{"standby after rollback", old, nil, []ssh.Signer{old}, []ssh.Signer{fresh}},
		{"init again", old, []ssh.Signer{fresh}, []ssh.Signer{old, fresh}, nil},
		{"standby", fresh, nil, []ssh.Signer{fresh}, []ssh.Signer{old}},
	} {
		m.openSSHCA, m.retiredOpenSSHCAs = phase.signing, phase.retired
		trusted := len(cafile.Fingerprints(machinetest.ReadFile(t, m.caFile)))
		o := m.renew()
		if o.Reason != "" || o.Reloaded || len(m.requests) != 1 {
			t.Errorf("%s: it enrolled (%q) or reloaded sshd: a new user CA needs neither", phase.name, o.Reason)
		}
		if got := trusted + len(o.Trusted) - len(o.Retired); got != len(phase.trusts) {
			t.Errorf("%s: reports %d trusted and %d retired", phase.name, len(o.Trusted), len(o.Retired))
		}
		for _, ca := range phase.trusts {
			if err := m.sshd.TryLogin(machinetest.UserCertificate(t, ca), m.hostCertificateOnly()); err != nil {
				t.Errorf("%s: login by a trusted CA: %v", phase.name, err)
			}
		}
		for _, ca := range phase.refuses {
			if m.sshd.TryLogin(machinetest.UserCertificate(t, ca), m.hostCertificateOnly()) == nil {
				t.Errorf("%s: login by a CA that is not trusted", phase.name)
			}
		}
	}
}

// Certificates are renewed when Teleport signs with another key, and not when it only trusts
// another one.
func TestRenewFollowsARotationOfTheHostCA(t *testing.T) {
	m := enrolled(t)
	old, fresh := m.hosts, sshkeytest.NewSigner(t)
	for _, phase := range []struct {
		name    string
		signing ssh.Signer
		retired []ssh.Signer
		renews  bool
	}{
		{"init", old, []ssh.Signer{fresh}, false},
		{"update_clients", fresh, []ssh.Signer{old}, true},
		{"update_servers", fresh, []ssh.Signer{old}, false},
		{"rollback", old, []ssh.Signer{fresh}, true},
		{"standby after rollback", old, nil, false},
		// This machine slept through the phases.
		{"standby", fresh, nil, true},
	} {
		m.hosts, m.retiredHosts = phase.signing, phase.retired
		last := m.now()
		m.now = func() time.Time { return last.Add(time.Hour) }
		o := m.renew()
		if (o.Reason != "") != phase.renews {
			t.Errorf("%s: reason %q, want a renewal: %v", phase.name, o.Reason, phase.renews)
		}
		if err := m.sshd.TryLogin(machinetest.UserCertificate(t, m.openSSHCA), m.hostCertificateOnly()); err != nil {
			t.Errorf("%s: a client that trusts the signing CA: %v", phase.name, err)
		}
	}
}

// A new user CA is trusted even if the certificates cannot be renewed.
func TestRenewTrustsBeforeItRenews(t *testing.T) {
	m := enrolled(t)
	m.hosts, m.retiredHosts = sshkeytest.NewSigner(t), []ssh.Signer{m.hosts}
	m.openSSHCA, m.retiredOpenSSHCAs = sshkeytest.NewSigner(t), []ssh.Signer{m.openSSHCA}
	m.answerInstead = func(w http.ResponseWriter, _ *http.Request, _ int) bool {
		w.WriteHeader(http.StatusForbidden)
		return true
	}
	_, err := m.Renew(t.Context())
	machinetest.WantError(t, err, fault.Refused, "403", "signer_url")
	if err := m.sshd.TryLogin(machinetest.UserCertificate(t, m.openSSHCA), ssh.InsecureIgnoreHostKey()); err != nil {
		t.Errorf("login by the new CA: %v", err)
	}
}

// Each row breaks the signer's list of CAs. None of them changes anything.
func TestRenewBadCAs(t *testing.T) {
	m := enrolled(t)
	key := m.cas().OpenSSHCAs[0]
	before := m.files()
	for _, test := range []struct {
		name, body, message string
		code                int
		kind                fault.Kind
	}{
		{"none", `{"version":1,"opensshCAs":[],"hostCAs":["` + key + `"]}`, "OpenSSH CAs: no keys", 200, fault.Failed},
		{"no list", `{"version":1,"hostCAs":["` + key + `"]}`, "OpenSSH CAs: no keys", 200, fault.Failed},
		{"no host CA", `{"version":1,"opensshCAs":["` + key + `"]}`, "host CAs: no keys", 200, fault.Failed},
		{"options", `{"version":1,"opensshCAs":["cert-authority ` + key + `"],"hostCAs":["` + key + `"]}`, "option", 200, fault.Failed},
		{"two lines", `{"version":1,"opensshCAs":["` + key + `\n` + key + `"],"hostCAs":["` + key + `"]}`, "more than one line", 200, fault.Failed},
		{"another version", `{"version":2,"opensshCAs":["` + key + `"],"hostCAs":["` + key + `"]}`, "protocol version 2", 200, fault.Failed},
		{"a web page", `<html>`, "not a valid Hallmark response", 200, fault.Failed},
		{"endless", strings.Repeat(" ", protocol.MaxResponseBytes+1), "more than", 200, fault.Failed},
		{"503", ``, "503", 503, fault.Temporary},
		{"403", ``, "403", 403, fault.Refused},
		{"redirect", ``, "301", 301, fault.Failed},
	} {
		t.Run(test.name, func(t *testing.T) {
			gets := m.gets
			m.get = func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Location", "https://127.0.0.1:1/")
				w.WriteHeader(test.code)
				_, _ = w.Write([]byte(test.body))
			}
			_, err := m.Enroll(t.Context())
			machinetest.WantError(t, err, test.kind, test.message, "")
			if m.files() != before || len(m.requests) != 1 || m.gets != gets+1 {
				t.Errorf("%d requests, %d of them GETs; files\n%s", len(m.requests)-1, m.gets-gets, m.files())
			}
			m.sshd.AcceptsLogins()
		})
	}
}

// After an answer from the signer there is no need to ask again, and its list may be older.
func TestRenewRightAfterAnEnrollment(t *testing.T) {
	m := enrolled(t)
	m.now = time.Now
	m.renew()
	if m.gets != 0 {
		t.Errorf("%d GETs, want none", m.gets)
	}
}

func TestRenewWaitsAfterFailures(t *testing.T) {
	m := newMachine(t)
	now := time.Now()
	m.now = func() time.Time { return now }
	refuse := func(w http.ResponseWriter, _ *http.Request, _ int) bool {
		w.Header().Set("Retry-After", "60")
		w.WriteHeader(http.StatusForbidden)
		_, _ = w.Write([]byte(`{"error":{"code":"policy_refused","message":"no"}}`))
		return true
	}
	m.answerInstead = refuse
	attempt := func(act func() (*Outcome, error), message string, asks bool) {
		t.Helper()
		before := len(m.requests)
		_, err := act()
		machinetest.WantError(t, err, fault.Refused, message, "policy")
		if asked := len(m.requests) > before; asked != asks {
			t.Errorf("asked the signer: %v, want %v", asked, asks)
		}
	}
	renew := func() (*Outcome, error) { return m.Renew(t.Context()) }
	enroll := func() (*Outcome, error) { return m.Enroll(t.Context()) }

	attempt(renew, "policy_refused", true)
	attempt(renew, "failed runs in a row: 1; the last error: the signer answered 403", false)
	now = now.Add(time.Minute + firstBackoff/2) // random is 0.5
	attempt(renew, "policy_refused", true)
	now = now.Add(time.Minute + firstBackoff/2)
	attempt(renew, "failed runs in a row: 2", false)
	// A person who runs enroll gets certificates at once.
	attempt(enroll, "policy_refused", true)
	attempt(renew, "failed runs in a row: 3", false)
	// Something has changed, so it has not been tried yet.
	m.Config.Audience = "other.example.com"
	attempt(renew, "policy_refused", true)

	m.answerInstead = nil
	if _, err := m.Enroll(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(failurePath(m.stateDir)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after success the failures are still noted: %v", err)
	}
}

func TestNextAttempt(t *testing.T) {
	now := time.Now().Truncate(time.Second)
	for _, test := range []struct {
		failures int
		urgent   bool
		kind     fault.Kind
		asked    time.Duration
		random   float64
		want     time.Duration
	}{
		{1, false, fault.Temporary, 0, 0, 0},
		{1, false, fault.Temporary, 0, 1, 5 * time.Minute},
		{2, false, fault.Temporary, 0, 0.5, 5 * time.Minute},
		{4, false, fault.Temporary, 0, 1, 40 * time.Minute},
		{5, false, fault.Temporary, 0, 1, time.Hour},
		{1 << 40, false, fault.Temporary, 0, 0.5, 30 * time.Minute},
		{9, true, fault.Temporary, 0, 0.5, 5 * time.Minute},
		{9, true, fault.Refused, 0, 0.5, 30 * time.Minute},
		{1, false, fault.Temporary, 20 * time.Minute, 0, 20 * time.Minute},
		{1, false, fault.Temporary, 99 * time.Hour, 1, time.Hour + 5*time.Minute},
		{1, false, fault.Temporary, -time.Hour, 0, 0},
	} {
		before := &failure{Situation: "renewal", Failures: test.failures - 1}
		err := &fault.Error{Kind: test.kind, After: test.asked, Err: errors.New("test")}
		next := before.next("renewal", test.urgent, err, now, test.random)
		if got := next.NotBefore.Sub(now); got != test.want || next.Failures != test.failures {
			t.Errorf("after %d failures, urgent %v, %v, asked for %s, random %v: %s, want %s", next.Failures, test.urgent, test.kind, test.asked, test.random, got, test.want)
		}
	}
}

func TestBackOff(t *testing.T) {
	now := time.Now()
	for _, test := range []struct {
		name string
		s    *failure
		want bool
	}{
		{"none", nil, false},
		{"in force", &failure{Situation: "a", NotBefore: now.Add(time.Minute)}, true},
		{"over", &failure{Situation: "a", NotBefore: now}, false},
		{"of another situation", &failure{Situation: "b", NotBefore: now.Add(time.Minute)}, false},
		{"of a wrong clock", &failure{Situation: "a", NotBefore: now.Add(24 * time.Hour)}, false},
	} {
		if got := test.s.backOff("a", now) != nil; got != test.want {
			t.Errorf("%s: %v, want %v", test.name, got, test.want)
		}
	}
	for _, junk := range []string{"", "{", `{"failures":-3}`, `{"failures":"x"}`} {
		dir := t.TempDir()
		if err := os.WriteFile(failurePath(dir), []byte(junk), 0o600); err != nil {
			t.Fatal(err)
		}
		if s := loadFailure(dir); s != nil {
			t.Errorf("%q was read as %+v", junk, s)
		}
	}
}

func TestResigned(t *testing.T) {
	a, b, c := sshkeytest.NewSigner(t), sshkeytest.NewSigner(t), sshkeytest.NewSigner(t)
	line := func(s ssh.Signer) string { return sshkey.Line(s.PublicKey()) }
	for _, test := range []struct {
		name        string
		signer      ssh.Signer
		hosts       []string
		signedUnder string
		want        string
	}{
		{"the only one", a, []string{line(a)}, line(a), ""},
		{"a second one is known", a, []string{line(a), line(b)}, line(a), ""},
		{"the second one signs", a, []string{line(b), line(a)}, line(a), "now signs host certificates with another key"},
		{"back to the first", b, []string{line(a), line(b)}, line(b), "now signs host certificates with another key"},
		{"the second one only", a, []string{line(b)}, line(a), "no longer the cluster's"},
		// Each auth server has its own key, and the other one signed the renewal.
		{"several that sign", b, []string{line(a), line(b)}, line(a), ""},
		{"several, of which one goes", b, []string{line(a), line(c)}, line(a), "no longer the cluster's"},
		{"a state of an older version", a, []string{line(b), line(a)}, "", "now signs host certificates with another key"},
		{"no CAs known", a, nil, "", ""},
	} {
		key := hostkey.Key{Path: "/k", Certificate: &ssh.Certificate{SignatureKey: test.signer.PublicKey()}}
		s := &state.State{HostCAs: test.hosts, SignedUnder: test.signedUnder}
		got := hostCAChanged(s, []hostkey.Key{key})
		if (got == "") != (test.want == "") || !strings.Contains(got, test.want) {
			t.Errorf("%s: %q, want %q", test.name, got, test.want)
		}
	}
}

func TestSpread(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	for random, want := range map[float64]time.Duration{0: 54 * time.Hour, 0.5: 60 * time.Hour, 1: 66 * time.Hour} {
		if got := spread(now.Add(60*time.Hour), now, random).Sub(now); got != want {
			t.Errorf("with %v: %s, want %s", random, got, want)
		}
	}
}

// The run asks for the instance only once in a boot.
func TestInstanceIsAskedOnceInABoot(t *testing.T) {
	m := enrolled(t)
	m.imds.mu.Lock()
	m.imds.pages[identityPage] = strings.ReplaceAll(m.imds.pages[identityPage], testHost, "i-2")
	m.imds.mu.Unlock()
	if o := m.renew(); o.Reason != "" {
		t.Errorf("reason %q", o.Reason)
	}
	if err := os.RemoveAll(m.runDir); err != nil { // a boot
		t.Fatal(err)
	}
	_, err := m.Renew(t.Context())
	machinetest.WantError(t, err, fault.Failed, "this instance is", "") // the test's signer knows only one
}

// A node whose address belonged to this machine, and no longer does, gets the new address.
func TestRenewAfterTheAddressChanged(t *testing.T) {
	m := newMachine(t)
	m.imds.pages[imds.PublicAddressPage] = "10.0.0.1"
	if _, err := m.Enroll(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !m.state().OwnAddress {
		t.Fatal("the node's address is the public one, but not this machine's")
	}
	m.renew()
	m.imds.pages[imds.PublicAddressPage] = "203.0.113.7"
	if o := m.renew(); !strings.Contains(o.Reason, `"10.0.0.1:22" no longer belongs to this machine`) {
		t.Errorf("reason %q", o.Reason)
	}
	// The signer returns the same address again. That is its decision, and the machine does
	// not ask forever.
	if o := m.renew(); o.Reason != "" {
		t.Errorf("reason %q", o.Reason)
	}
}

// An outage that outlasts the certificates takes nothing else away, and ends without manual
// steps.
func TestOutageLongerThanTheCertificatesLive(t *testing.T) {
	m := enrolled(t)
	m.answerInstead = func(w http.ResponseWriter, _ *http.Request, _ int) bool {
		w.WriteHeader(http.StatusServiceUnavailable)
		return true
	}
	m.get = func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusServiceUnavailable) }
	before := m.files()
	var now time.Time
	runs := 0
	for at := time.Hour; at < 2*m.lifetime; at += 24 * time.Hour {
		now = time.Now().Add(at)
		m.now = func() time.Time { return now }
		_, err := m.Renew(t.Context())
		machinetest.WantError(t, err, fault.Temporary, "503", "sshd works as before")
		runs++
	}
	if asked := m.gets + len(m.requests) - 1; asked < runs {
		t.Errorf("asked %d times in %d days", asked, runs)
	}
	if m.files() != before {
		t.Errorf("it changed something:\n%s", m.files())
	}
	m.sshd.AcceptsLogins()

	m.answerInstead, m.get = nil, m.serveCAs
	m.clock = func() time.Time { return now }
	now = now.Add(longestBackoff)
	if o := m.renew(); o.Reason != "certificates are due for renewal" || !o.State.Presented {
		t.Errorf("outcome %+v", o)
	}
	m.sshd.AcceptsLogins()
}

func TestFurtherPrincipals(t *testing.T) {
	pages := map[string]string{
		identityPage:                       `{"accountId":"` + testAccount + `","region":"` + testRegion + `","instanceId":"` + testHost + `","privateIp":"10.0.0.1"}`,
		imds.PublicAddressPage:             "203.0.113.7",
		"/latest/meta-data/ipv6":           "2001:db8::7",
		"/latest/meta-data/local-hostname": "ip-10-0-0-1.ec2.internal",
	}
	for _, test := range []struct {
		extra []string
		want  string // the error, or ""
	}{
		{[]string{"10.0.0.1"}, ""},
		{[]string{"203.0.113.7", "2001:db8::7", "ip-10-0-0-1.ec2.internal"}, ""},
		{[]string{"10.0.0.2"}, "not provably this machine's"},
		{[]string{"10.0.0.1", "bastion"}, `"bastion" is not provably`},
		{[]string{"*"}, "not provably"},
		{[]string{"127.0.0.1"}, "not provably"},
		{[]string{"localhost"}, "not provably"},
		{[]string{"2001:DB8::7"}, "not provably"},
		{[]string{"010.0.0.1"}, "not provably"},
		{[]string{"10.0.0.1", "10.0.0.1"}, "is listed twice"},
		{[]string{testName}, "is listed twice"},
	} {
		t.Run(strings.Join(test.extra, " "), func(t *testing.T) {
			m := newMachine(t)
			for page, content := range pages {
				m.imds.pages[page] = content
			}
			m.further = test.extra
			_, err := m.Enroll(t.Context())
			if test.want != "" {
				machinetest.WantError(t, err, fault.Failed, test.want, "nothing was changed")
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := m.state().Principals; len(got) != 4+len(test.extra) {
				t.Errorf("principals %q", got)
			}
		})
	}
}
