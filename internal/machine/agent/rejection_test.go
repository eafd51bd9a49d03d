package agent

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/machine/fault"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
)

// told returns what the last request reported about the answer before it.
func (m *machine) told() *protocol.Rejection {
	m.t.Helper()
	last := m.requests[len(m.requests)-1]
	if last.Report == nil {
		return nil
	}
	return last.Report.Rejected
}

// A machine that does not use what the signer granted says so in its next request. Once it
// does use it, it stops.
func TestNextRequestTellsWhatWasRejected(t *testing.T) {
	for _, test := range []struct {
		name   string
		spoil  func(t *testing.T, m *machine)
		repair func(m *machine)
		code   protocol.RejectionCode
		detail string
	}{
		{"an answer about another host", func(_ *testing.T, m *machine) {
			m.spoil = func(r *protocol.Response) { r.Node.Hostname = "BASTION" }
		}, func(m *machine) { m.spoil = nil }, protocol.RejectedAnswer, "is not a DNS name"},
		{"sshd never presents it", func(_ *testing.T, m *machine) {
			m.withoutHallmark()
			m.settle = 3 * time.Second // long enough for one look, however busy the machine
			m.sshd.OnReload = func(context.Context) error { return nil }
		}, func(m *machine) { m.sshd.OnReload = nil }, protocol.RejectedNotPresented, "presents no such host key"},
		{"the certificate cannot be written", func(t *testing.T, m *machine) {
			if err := os.MkdirAll(m.sshd.KeyPath("rsa")+"-cert.pub/in/the/way", 0o755); err != nil {
				t.Fatal(err)
			}
		}, func(m *machine) {
			if err := os.RemoveAll(m.sshd.KeyPath("rsa") + "-cert.pub"); err != nil {
				m.t.Fatal(err)
			}
		}, protocol.RejectedNotInstalled, "-cert.pub"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			m := newMachine(t)
			test.spoil(t, m)
			if _, err := m.Enroll(t.Context()); err == nil {
				t.Fatal("no error")
			}
			if r := m.told(); r != nil {
				t.Errorf("the first request says %+v", r)
			}
			// In the meantime the signer does not answer, so it has not heard the report yet.
			m.answerInstead = func(w http.ResponseWriter, _ *http.Request, _ int) bool {
				w.WriteHeader(http.StatusForbidden)
				return true
			}
			_, _ = m.Enroll(t.Context())
			m.answerInstead = nil
			test.repair(m)
			if _, err := m.Enroll(t.Context()); err != nil {
				t.Fatal(err)
			}
			if r := m.told(); r == nil || r.Code != test.code || r.RequestID != "request-1" || !strings.Contains(r.Detail, test.detail) {
				t.Errorf("the next request says %+v, want %s with %q", r, test.code, test.detail)
			}
			m.now = func() time.Time { return time.Now().Add(4 * 24 * time.Hour) }
			m.clock = m.now
			if _, err := m.Enroll(t.Context()); err != nil {
				t.Fatal(err)
			}
			if r := m.told(); r != nil {
				t.Errorf("after it worked: %+v", r)
			}
		})
	}
}

// The machine also reports installed certificates that do not work, at the next renewal.
func TestNextRequestTellsOfUselessCertificates(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(m *machine)
		code   protocol.RejectionCode
	}{
		{"nobody can log in", func(m *machine) {
			m.sshd.Stop()
			m.sshd.Configure("PubkeyAcceptedKeyTypes ssh-ed25519\n" + m.sshd.HallmarkLines())
			m.sshd.Run()
		}, protocol.RejectedLoginsBlocked},
		{"they wait for a reload", func(m *machine) {
			m.withoutHallmark()
			m.observed()
			m.sshd.Configure("PermitTTY no\n" + m.sshd.HallmarkLines())
		}, protocol.RejectedReloadPending},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			m := newMachine(t)
			m.noPenalties()
			test.change(m)
			_, err := m.Enroll(t.Context())
			if fault.KindOf(err) != fault.Misconfigured {
				t.Fatalf("error %v", err)
			}
			_, _ = m.Enroll(t.Context()) // an hour later, with nothing due
			m.now = func() time.Time { return time.Now().Add(4 * 24 * time.Hour) }
			m.clock = m.now
			_, _ = m.Enroll(t.Context())
			if r := m.told(); len(m.requests) != 2 || r == nil || r.Code != test.code {
				t.Errorf("%d requests, the last says %+v, want %s", len(m.requests), r, test.code)
			}
		})
	}
}

// If a signer from before version 2 refuses, the machine asks in the version that it speaks,
// for the rest of the run. The next run tries the latest version again.
func TestFallsBackToTheSignersVersion(t *testing.T) {
	for _, test := range []struct {
		name, versions string
		want           []int // of the requests of two runs
	}{
		{"it names version 1", `,"supportedVersions":[1]`, []int{2, 1, 2, 1}},
		{"it names none", "", []int{2, 1, 2, 1}},
		{"it names later ones, too", `,"supportedVersions":[1,3]`, []int{2, 1, 2, 1}},
		{"none that this machine speaks", `,"supportedVersions":[3]`, []int{2, 2}},
		{"the one that was asked in", `,"supportedVersions":[2]`, []int{2, 2}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			m := newMachine(t)
			m.spoil = func(r *protocol.Response) { r.Version, r.Node.Hostname = 1, "BASTION" } // this makes the next run ask, too
			m.answerInstead = func(w http.ResponseWriter, _ *http.Request, n int) bool {
				if m.requests[n-1].Version == protocol.FirstVersion {
					return false
				}
				w.WriteHeader(http.StatusBadRequest)
				fmt.Fprintf(w, `{"error":{"code":"unsupported_version","message":"no","requestId":"r"%s}}`, test.versions)
				return true
			}
			for range 2 {
				_, err := m.Enroll(t.Context())
				if refused := fault.KindOf(err) == fault.Refused; err == nil || refused != (len(test.want) == 2) {
					t.Errorf("error %v", err)
				}
			}
			var got []int
			for _, r := range m.requests {
				got = append(got, r.Version)
				if r.Version == protocol.FirstVersion && r.Report != nil {
					t.Errorf("a request of version 1 has a report: %+v", r.Report)
				}
			}
			if fmt.Sprint(got) != fmt.Sprint(test.want) {
				t.Errorf("asked in versions %v, want %v", got, test.want)
			}
		})
	}
}
