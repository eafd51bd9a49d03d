package enroll

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/hostcert"
	"github.com/hallmark-ssh/hallmark/internal/identity"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"github.com/hallmark-ssh/hallmark/internal/signer/entry"
	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
	"github.com/hallmark-ssh/hallmark/internal/sshkey"
	"github.com/hallmark-ssh/hallmark/internal/sshkey/sshkeytest"
)

// recordedHealth is a ledger of health reports.
type recordedHealth struct {
	reports map[ec2ref.Instance][]ledger.HealthReport
	err     error
}

func (r *recordedHealth) ReportHealth(_ context.Context, i ec2ref.Instance, report ledger.HealthReport) (bool, error) {
	if r.reports == nil {
		r.reports = make(map[ec2ref.Instance][]ledger.HealthReport)
	}
	r.reports[i] = append(r.reports[i], report)
	return r.err == nil, r.err
}

// healthAttempt is a good report until a row of a table changes it.
type healthAttempt struct {
	health    protocol.Health
	cert      *ssh.Certificate
	ca        ssh.Signer
	key       ssh.Signer
	text      func(report []byte) []byte
	signs     func(ssh.Signer, protocol.Binding) (string, error)
	binding   func([]byte) protocol.Binding
	signature string // in place of one by key
	header    string // in place of all
}

func (w *world) newHealthAttempt() *healthAttempt {
	i := ec2ref.Instance{Account: testAccount, Region: testRegion, ID: testInstance}
	key := sshkeytest.NewSigner(w.t)
	return &healthAttempt{
		health: protocol.Health{Audience: testAudience, Instance: i.String(), At: w.now, State: protocol.HealthOK},
		key:    key, ca: w.hostCA, signs: identity.SignHealth, binding: protocol.BindHealth,
		cert: &ssh.Certificate{
			Key: key.PublicKey(), CertType: ssh.HostCert, ValidPrincipals: []string{"web", i.NodeID()},
			ValidAfter: uint64(w.now.Add(-time.Hour).Unix()), ValidBefore: uint64(w.now.Add(time.Hour).Unix()),
			Permissions: ssh.Permissions{Extensions: map[string]string{hostcert.RoleExtension: "ProvisionToken"}},
		},
	}
}

func (a *healthAttempt) value(t *testing.T) string {
	t.Helper()
	if a.header != "" {
		return a.header
	}
	if err := a.cert.SignCert(rand.Reader, a.ca); err != nil {
		t.Fatal(err)
	}
	report, err := json.Marshal(a.health)
	if err != nil {
		t.Fatal(err)
	}
	signature, err := a.signs(a.key, a.binding(report))
	if err != nil {
		t.Fatal(err)
	}
	if a.signature != "" {
		signature = a.signature
	}
	if a.text != nil {
		report = a.text(report)
	}
	value, err := protocol.SignedHealth{Report: report, Certificate: sshkey.Line(a.cert), Signature: signature}.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return value
}

func (w *world) report(value string) entry.Answer {
	w.t.Helper()
	return w.signer.Answer(w.t.Context(), entry.Request{ID: "request-1", Method: http.MethodGet, Source: "192.0.2.1", Health: value})
}

func TestHealthReport(t *testing.T) {
	w, _ := newAsked(t)
	var recorded recordedHealth
	w.signer.Health = &recorded
	a := w.newHealthAttempt()
	a.health.State = protocol.HealthCertificate
	if answer := w.report(a.value(t)); answer.Status != http.StatusOK {
		t.Errorf("status %d", answer.Status)
	}
	i := ec2ref.Instance{Account: testAccount, Region: testRegion, ID: testInstance}
	got := recorded.reports[i]
	if len(got) != 1 || got[0].State != "certificate" || !got[0].At.Equal(w.now) || got[0].Signer != testAudience || got[0].Fingerprint != fingerprintOf(a.key) {
		t.Errorf("recorded %+v", recorded.reports)
	}
	if w.log.Len() != 0 {
		t.Errorf("log %s", w.log.String())
	}
	for range 2 * healthBurst { // its root user can sign as many as it likes
		w.report(a.value(t))
	}
	if got := len(recorded.reports[i]); got != healthBurst {
		t.Errorf("%d reports reached the ledger, want %d", got, healthBurst)
	}
}

// The answer does not depend on the report.
func TestHealthReportFails(t *testing.T) {
	w, _ := newAsked(t)
	w.signer.Health = &recordedHealth{err: errors.New("throttled")}
	if answer := w.report(w.newHealthAttempt().value(t)); answer.Status != http.StatusOK {
		t.Errorf("status %d", answer.Status)
	}
	if log := w.log.String(); !strings.Contains(log, "throttled") || !strings.Contains(log, testInstance) {
		t.Errorf("log %s", log)
	}
	w.signer.Health = nil
	if answer := w.report("anything"); answer.Status != http.StatusOK {
		t.Errorf("without a ledger for it: status %d", answer.Status)
	}
}

// TestHealthAttacks holds reports about somebody else's node, or by nobody. None reaches
// the ledger, and none causes a call that the question for the CAs does not.
func TestHealthAttacks(t *testing.T) {
	other := ec2ref.Instance{Account: testAccount, Region: testRegion, ID: "i-0fedcba9876543210"}
	for name, row := range map[string]struct {
		change func(*world, *healthAttempt)
		want   string
	}{
		"not base64":       {func(_ *world, a *healthAttempt) { a.header = "{}" }, "not base64"},
		"another instance": {func(_ *world, a *healthAttempt) { a.health.Instance = other.String() }, "not the instance's"},
		"another account": {func(_ *world, a *healthAttempt) {
			a.health.Instance = "999999999999/" + testRegion + "/" + testInstance
		}, "not listed"},
		"not an instance":    {func(_ *world, a *healthAttempt) { a.health.Instance = "web" }, "health report"},
		"another signer":     {func(_ *world, a *healthAttempt) { a.health.Audience = "other.example.com" }, "another signer"},
		"yesterday's":        {func(w *world, a *healthAttempt) { a.health.At = w.now.Add(-6 * time.Minute) }, "five minutes"},
		"tomorrow's":         {func(w *world, a *healthAttempt) { a.health.At = w.now.Add(6 * time.Minute) }, "five minutes"},
		"a state of display": {func(_ *world, a *healthAttempt) { a.health.State = "silent" }, "not a state"},
		"changed on the way": {func(_ *world, a *healthAttempt) {
			a.text = func(report []byte) []byte { return []byte(strings.Replace(string(report), `"ok"`, `"unreachable"`, 1)) }
		}, "signature"},
		"signed by another key": {func(w *world, a *healthAttempt) { a.key = sshkeytest.NewSigner(w.t) }, "another key"},
		"signed as a request":   {func(_ *world, a *healthAttempt) { a.signs = identity.SignBinding }, "signature"},
		"a request's binding":   {func(_ *world, a *healthAttempt) { a.binding = protocol.Bind }, "signature"},
		"no signature":          {func(_ *world, a *healthAttempt) { a.signature = "none" }, "signature"},
		"another CA":            {func(w *world, a *healthAttempt) { a.ca = sshkeytest.NewSigner(w.t) }, "unknown CA"},
		"a user certificate":    {func(_ *world, a *healthAttempt) { a.cert.CertType = ssh.UserCert }, "not host"},
		"an expired certificate": {func(w *world, a *healthAttempt) {
			a.cert.ValidBefore = uint64(w.now.Add(-time.Minute).Unix())
		}, "expired"},
		"a certificate for every host": {func(_ *world, a *healthAttempt) { a.cert.ValidPrincipals = nil }, "not the instance's"},
		"a Teleport agent's certificate": {func(_ *world, a *healthAttempt) {
			a.cert.Extensions[hostcert.RoleExtension] = "Node"
		}, "role"},
		"a CA's own key": {func(w *world, a *healthAttempt) {
			a.key = w.hostCA
			a.cert.Key = w.hostCA.PublicKey()
		}, "CA's own"},
	} {
		t.Run(name, func(t *testing.T) {
			w, _ := newAsked(t)
			var recorded recordedHealth
			w.signer.Health = &recorded
			a := w.newHealthAttempt()
			row.change(w, a)
			if answer := w.report(a.value(t)); answer.Status != http.StatusOK {
				t.Errorf("status %d: the answer depends on the report", answer.Status)
			}
			if len(recorded.reports) != 0 {
				t.Errorf("recorded %+v", recorded.reports)
			}
			if log := w.log.String(); !strings.Contains(log, row.want) || strings.Contains(log, testInstance) {
				t.Errorf("log %s, want %q and no instance", log, row.want)
			}
			if len(w.calls) > 2 { // to connect and to read the CAs
				t.Errorf("calls %v", w.calls)
			}
		})
	}
}
