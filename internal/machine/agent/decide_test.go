package agent

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/machine/cafile"
	"github.com/hallmark-ssh/hallmark/internal/machine/hostkey"
	"github.com/hallmark-ssh/hallmark/internal/machine/imds"
	"github.com/hallmark-ssh/hallmark/internal/machine/state"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"github.com/hallmark-ssh/hallmark/internal/sshkey"
	"github.com/hallmark-ssh/hallmark/internal/sshkey/sshkeytest"
)

// Each row changes one thing about a machine that has nothing to do.
func TestStateStale(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for _, test := range []struct {
		name   string
		change func(s *state.State, seen *observed, now *time.Time)
		want   string
	}{
		{"nothing", func(*state.State, *observed, *time.Time) {}, ""},
		{"another instance", func(_ *state.State, o *observed, _ *time.Time) { o.instance.InstanceID = "i-2" }, "enrolled as instance i-1, but this is i-2"},
		{"stopped and started", func(_ *state.State, o *observed, _ *time.Time) { o.instance.Started = "2026-03-01T11:00:00Z" }, "stopped and started"},
		{"another region", func(_ *state.State, o *observed, _ *time.Time) { o.instance.Region = "x" }, "enrolled as instance"},
		{"configuration", func(_ *state.State, o *observed, _ *time.Time) { o.config = "other" }, "signer_url, signer_function or audience changed"},
		{"due", func(s *state.State, _ *observed, now *time.Time) { *now = s.RenewAfter }, "due for renewal"},
		{"not due for a second", func(s *state.State, _ *observed, now *time.Time) { *now = s.RenewAfter.Add(-time.Second) }, ""},
		{"clock set back", func(s *state.State, _ *observed, now *time.Time) { *now = s.EnrolledAt.Add(-2 * time.Hour) }, "clock was set back"},
		{"renewal in a hundred years", func(s *state.State, _ *observed, _ *time.Time) { s.RenewAfter = s.EnrolledAt.Add(876_000 * time.Hour) }, "later than any certificate"},
		{"address moved", func(_ *state.State, o *observed, _ *time.Time) { o.moved = true }, "no longer belongs to this machine"},
		{"an old state on newer certificates", func(s *state.State, _ *observed, _ *time.Time) {
			s.Certificates[0].ValidBefore = s.Certificates[0].ValidBefore.Add(-time.Minute)
		}, "is not the one that was installed"},
		{"a key more", func(_ *state.State, o *observed, _ *time.Time) { o.keys = append(o.keys, o.keys[0]) }, "set of host keys changed"},
		{"no key", func(_ *state.State, o *observed, _ *time.Time) { o.keys = nil }, "set of host keys changed"},
		{"another key", func(_ *state.State, o *observed, _ *time.Time) {
			o.keys[0].Public = sshkeytest.NewSigner(t).PublicKey()
		}, "host key /k changed"},
		{"certificate gone", func(_ *state.State, o *observed, _ *time.Time) { o.keys[0].Certificate = nil }, "certificate /k-cert.pub is missing"},
		{"another certificate", func(_ *state.State, o *observed, _ *time.Time) { o.keys[0].Certificate.Serial++ }, "is not the one that was installed"},
		{"certificate ended", func(s *state.State, _ *observed, now *time.Time) {
			*now = s.Certificates[0].ValidBefore
			s.RenewAfter = now.Add(time.Hour)
		}, "has expired"},
		{"CA file changed", func(_ *state.State, o *observed, _ *time.Time) { o.caFile = append(o.caFile, '\n') }, "trusted CAs changed"},
		{"CA file gone", func(_ *state.State, o *observed, _ *time.Time) { o.caFile = nil }, "trusted CAs changed"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s, seen, at := enrolledMachine(t, now)
			test.change(s, &seen, &at)
			got := stale(&seen, at)
			if (got == "") != (test.want == "") || !strings.Contains(got, test.want) {
				t.Errorf("stale = %q, want %q", got, test.want)
			}
		})
	}
	if stale(&observed{}, now) == "" {
		t.Error("a machine without state has nothing to do")
	}
}

func enrolledMachine(t *testing.T, now time.Time) (*state.State, observed, time.Time) {
	key := hostkey.Key{Path: "/k", Public: sshkeytest.NewSigner(t).PublicKey()}
	key.Certificate = &ssh.Certificate{Key: key.Public, Serial: 7, ValidBefore: uint64(now.Add(time.Hour).Unix())}
	ca := sshkeytest.NewSigner(t).PublicKey()
	instance := imds.Instance{AccountID: testAccount, Region: testRegion, InstanceID: "i-1"}
	s := &state.State{
		Version: state.Version, Instance: instance, Config: "c",
		Certificates: []state.Certificate{hostkey.StateOf(key, key.Certificate)},
		OpenSSHCAs:   sshkey.Lines([]ssh.PublicKey{ca}),
		EnrolledAt:   now.Add(-time.Minute), RenewAfter: now.Add(20 * time.Minute),
	}
	caFile := cafile.Render([]ssh.PublicKey{ca})
	return s, observed{state: s, instance: instance, config: "c", keys: []hostkey.Key{key}, caFile: caFile}, now
}

// What a run does on a machine that needs no certificates.
func TestDecideWhatElse(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for name, test := range map[string]struct {
		change             func(*state.State)
		confirm, askForCAs bool
	}{
		"enrolled a moment ago":   {func(*state.State) {}, false, false},
		"enrolled a while ago":    {func(s *state.State) { s.EnrolledAt = now.Add(-freshAnswer) }, false, true},
		"almost a while ago":      {func(s *state.State) { s.EnrolledAt = now.Add(time.Second - freshAnswer) }, false, false},
		"the clock was set back":  {func(s *state.State) { s.EnrolledAt = now.Add(time.Second) }, false, true},
		"not presented":           {func(s *state.State) { s.Presented = false }, true, false},
		"could not be verified":   {func(s *state.State) { s.NotVerified = "firewall" }, true, false},
		"certificates are needed": {func(s *state.State) { s.Presented, s.RenewAfter = false, now }, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			s, seen, _ := enrolledMachine(t, now)
			s.Presented = true
			test.change(s)
			if p := decide(&seen, true, now); p.confirm != test.confirm || p.askForCAs != test.askForCAs {
				t.Errorf("plan %+v", p)
			}
		})
	}
}

// Each row is a machine that a run finds.
func TestDecide(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	rejected := protocol.NewRejection(protocol.RejectedNotPresented, "r1", "x")
	failed := func(seen *observed, until time.Time) {
		need := decide(seen, false, now).need
		seen.failure = &failure{Situation: need, Failures: 2, NotBefore: until, Reason: "no answer", Futile: "mark", Rejected: rejected}
	}
	for _, test := range []struct {
		name   string
		change func(*observed)
		timer  bool
		reason string
		wait   bool
		futile string
		report *protocol.Rejection
	}{
		{name: "nothing to do", change: func(*observed) {}, timer: true},
		{name: "new", change: func(o *observed) { o.state = nil }, timer: true, reason: "not enrolled yet"},
		{name: "failed a moment ago", change: func(o *observed) { failed(o, now.Add(time.Minute)) }, timer: true, wait: true, futile: "mark", report: rejected},
		{name: "failed, by hand", change: func(o *observed) { failed(o, now.Add(time.Minute)) }, report: rejected},
		{name: "failed a while ago", change: func(o *observed) { failed(o, now) }, timer: true, futile: "mark", report: rejected},
		{name: "failed, and another need now", change: func(o *observed) {
			failed(o, now.Add(time.Minute))
			o.config = "other"
		}, timer: true, reason: "signer_url, signer_function or audience changed", futile: "mark", report: rejected},
		{name: "waits for a reload", change: func(o *observed) {
			o.state.Waiting = &state.Waiting{Since: now, Reason: "Port"}
		}, timer: true, report: protocol.NewRejection(protocol.RejectedReloadPending, "", "Port")},
		{name: "nobody can log in", change: func(o *observed) { o.state.Rejected = rejected }, timer: true, report: rejected},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, seen, _ := enrolledMachine(t, now)
			test.change(&seen)
			p := decide(&seen, test.timer, now)
			if p.reason != test.reason || (p.wait != nil) != test.wait || p.futile != test.futile || !reflect.DeepEqual(p.rejected, test.report) {
				t.Errorf("plan %+v", p)
			}
		})
	}
}
