package agent

import (
	"net/http"
	"net/netip"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/hostcert"
	"github.com/hallmark-ssh/hallmark/internal/identity"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
)

// reported checks the proof in a header as the signer does, and returns the report.
func reported(t *testing.T, value string) protocol.Health {
	t.Helper()
	signed, err := protocol.ParseSignedHealth(value)
	if err != nil {
		t.Fatal(err)
	}
	h, err := protocol.ParseHealth(signed.Report)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := hostcert.Parse(signed.Certificate)
	if err != nil {
		t.Fatal(err)
	}
	if err := identity.VerifyHealth(cert.Key, protocol.BindHealth(signed.Report), signed.Signature); err != nil {
		t.Error(err)
	}
	i := ec2ref.Instance{Account: testAccount, Region: testRegion, ID: testHost}
	if !slices.Contains(cert.ValidPrincipals, i.NodeID()) || h.Instance != i.String() || h.Audience != "hallmark.example.com" {
		t.Errorf("report %+v, certificate of %q", h, cert.ValidPrincipals)
	}
	return *h
}

// With its hourly question the machine says whether people can reach it.
func TestHealth(t *testing.T) {
	m := newMachine(t)
	var values []string
	m.get = func(w http.ResponseWriter, r *http.Request) {
		values = append(values, r.Header.Get(protocol.HealthHeader))
		m.serveCAs(w, r)
	}
	if _, err := m.Enroll(t.Context()); err != nil {
		t.Fatal(err)
	}
	now := time.Now().Add(freshAnswer + time.Minute)
	m.now = func() time.Time { return now }
	next := func(want protocol.HealthState) {
		t.Helper()
		now = now.Add(time.Hour)
		values = nil
		if _, err := m.Renew(t.Context()); err != nil {
			t.Fatal(err)
		}
		if len(values) != 1 {
			t.Fatalf("%d questions, want 1", len(values))
		}
		h := reported(t, values[0])
		if h.State != want || !h.At.Equal(now.UTC().Truncate(time.Second)) {
			t.Errorf("report %+v, want %s at %s", h, want, now)
		}
	}
	next(protocol.HealthOK)
	m.sshd.Stop()
	next(protocol.HealthUnreachable)
	// An sshd that was started before the certificates were configured.
	m.sshd.Configure("")
	m.sshd.Run()
	m.sshd.Configure(m.sshd.HallmarkLines())
	next(protocol.HealthCertificate)
	m.sshd.Stop()
	m.sshd.Run()
	next(protocol.HealthOK)
}

// Someone who may not speak for the node says nothing: a machine whose certificates have
// all expired asks as an older release does.
func TestHealthWithoutCertificate(t *testing.T) {
	m := newMachine(t)
	r := m.newRun()
	r.seen = &observed{}
	if value := r.health(t.Context()); value != "" {
		t.Errorf("report %q", value)
	}
}

func TestWithPort(t *testing.T) {
	listeners := []netip.AddrPort{netip.MustParseAddrPort("0.0.0.0:22"), netip.MustParseAddrPort("[::]:22"), netip.MustParseAddrPort("127.0.0.1:2222")}
	for address, want := range map[string][]netip.AddrPort{
		"10.0.0.7:22":         listeners[:2],
		"[2001:db8::7]:2222":  listeners[2:],
		"10.0.0.7:3022":       {},
		"10.0.0.7":            listeners,
		"10.0.0.7:ssh":        listeners,
		"host.example.com:22": listeners[:2],
	} {
		if got := withPort(listeners, address); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %v, want %v", address, got, want)
		}
	}
}
