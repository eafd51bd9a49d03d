package enroll

import (
	"fmt"
	"net/http"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
	"github.com/hallmark-ssh/hallmark/internal/sshkey"
	"github.com/hallmark-ssh/hallmark/internal/sshkey/sshkeytest"
)

// permit lets the machine come with the first of its keys.
func (m *machine) permit() {
	m.t.Helper()
	p := ledger.Permit{Fingerprint: fingerprintOf(m.keys[0]), ValidUntil: m.now.Add(time.Hour), By: "operator"}
	if err := m.ledger.Permit(m.t.Context(), m.ref(), p); err != nil {
		m.t.Fatal(err)
	}
}

// holdsOnly checks which keys the ledger has for the instance.
func (m *machine) holdsOnly(keys ...ssh.Signer) {
	m.t.Helper()
	want := make(map[string]bool)
	for _, key := range keys {
		want[fingerprintOf(key)] = true
	}
	got := m.record().Fingerprints
	for _, fingerprint := range got {
		if !want[fingerprint] {
			m.t.Errorf("the ledger has key %s", fingerprint)
		}
	}
	if len(got) != len(want) {
		m.t.Errorf("the ledger has %d keys, want %d", len(got), len(want))
	}
}

// keySequences try to get an instance's name for keys that are not its own.
func keySequences() map[string]sequence {
	return map[string]sequence{
		"a local process comes with its own keys after the machine": {play: func(s *stage) {
			s.honest.mustEnroll()
			s.honest.intruder().mustFail(protocol.CodeKeyConflict)
			s.honest.holdsOnly(s.honest.keys...)
		}},
		// This is the one theft that remains possible, as the threat model says. An operator's
		// permit ends it.
		"a local process enrolls before the machine, and an operator puts it right": {play: func(s *stage) {
			thief := s.honest.intruder()
			thief.mustEnroll()
			s.honest.mustFail(protocol.CodeKeyConflict)
			s.honest.permit()
			s.honest.mustEnroll()
			thief.mustFail(protocol.CodeKeyConflict)
			s.honest.holdsOnly(s.honest.keys...)
		}},
		"a local process claims a permitted key without holding it": {play: func(s *stage) {
			s.honest.mustEnroll()
			old := s.honest.keys
			s.honest.keys = []ssh.Signer{sshkeytest.NewSigner(s.t)}
			s.honest.permit()
			thief := s.honest.intruder()
			thief.change = func(a *attempt) {
				a.payload.HostKeys = []string{sshkey.Line(s.honest.keys[0].PublicKey()), sshkey.Line(a.keys[1].PublicKey())}
			}
			thief.mustFail(protocol.CodeHostKeyUnproved)
			s.honest.holdsOnly(old...)
		}},
		"the thief of one host key adds one of its own": {play: func(s *stage) {
			s.honest.mustEnroll()
			thief := s.honest.intruder()
			thief.keys[0] = s.honest.keys[0]
			thief.mustEnroll()
			s.honest.mustEnroll()
			// The operator generates new keys and permits them. The thief's keys no longer
			// count.
			s.honest.keys = []ssh.Signer{sshkeytest.NewSigner(s.t), sshkeytest.NewSigner(s.t)}
			s.honest.permit()
			s.honest.mustEnroll()
			thief.mustFail(protocol.CodeKeyConflict)
		}},
		"the thief of one host key fills the record with keys": {play: func(s *stage) {
			s.honest.mustEnroll()
			for range ledger.MaxKeys + 2 {
				thief := s.honest.intruder()
				thief.keys[0] = s.honest.keys[0]
				thief.ask()
				s.wait(time.Hour)
			}
			if n := len(s.honest.record().Fingerprints); n > ledger.MaxKeys {
				s.t.Errorf("%d keys, more than %d", n, ledger.MaxKeys)
			}
		}},
		"an unused permit, and then the machine's old keys": {play: func(s *stage) {
			s.honest.mustEnroll()
			waiting := s.honest.intruder()
			waiting.permit()
			s.honest.mustEnroll()
			s.wait(2 * time.Hour)
			waiting.mustFail(protocol.CodeKeyConflict)
		}},
		"a permit for a key of another instance": {play: func(s *stage) {
			other := s.launch(otherInstance, "db")
			other.mustEnroll()
			s.honest.mustEnroll()
			stolen := s.honest.intruder()
			stolen.keys = other.keys
			stolen.permit()
			stolen.mustFail(protocol.CodeKeyInUse)
			other.mustEnroll()
		}},
		"a copied disk boots as another instance, and then as a third": {play: func(s *stage) {
			s.honest.mustEnroll()
			for n, id := range []string{otherInstance, "i-0fedcba9876543210"} {
				copied := s.launch(id, fmt.Sprint("copy", n))
				copied.keys = s.honest.keys
				copied.mustFail(protocol.CodeKeyInUse)
				copied.keys = []ssh.Signer{sshkeytest.NewSigner(s.t)}
				copied.mustEnroll()
			}
		}},
		"a copied disk boots first": {play: func(s *stage) {
			copied := s.launch(otherInstance, "copy")
			copied.keys = s.honest.keys
			copied.mustEnroll()
			s.honest.mustFail(protocol.CodeKeyInUse)
			s.honest.keys = []ssh.Signer{sshkeytest.NewSigner(s.t), sshkeytest.NewSigner(s.t)}
			s.honest.mustEnroll()
			copied.mustEnroll()
		}},
		"the keys of an instance that has ended come back on another": {play: func(s *stage) {
			s.honest.mustEnroll()
			dead := s.launch(otherInstance, "db")
			dead.mustEnroll()
			dead.terminate()
			s.stateChanged(dead.id)
			heir := s.launch("i-0fedcba9876543210", "db")
			heir.keys = dead.keys
			heir.mustFail(protocol.CodeKeyInUse)
			s.wait(60 * 24 * time.Hour)
			heir.ec2().LaunchTime = s.now
			heir.mustFail(protocol.CodeKeyInUse)
			dead.mustFail(protocol.CodeInstanceEnded)
		}},
		"half of the keys are new, half are another instance's": {play: func(s *stage) {
			s.honest.mustEnroll()
			mixed := s.launch(otherInstance, "db")
			mixed.keys[1] = s.honest.keys[1]
			mixed.mustFail(protocol.CodeKeyInUse)
			if r := mixed.record(); len(r.Fingerprints) != 0 {
				s.t.Errorf("a refused claim left %v", r.Fingerprints)
			}
		}},
		"the machine alternates between subsets of its keys": {play: func(s *stage) {
			s.honest.mustEnroll()
			all := s.honest.keys
			for n := range 6 {
				s.honest.keys = all[n%2 : n%2+1]
				s.honest.mustEnroll()
				s.wait(2 * 24 * time.Hour)
			}
			s.honest.keys = all
			s.honest.holdsOnly(all...)
		}},
	}
}

// floodSequences use up what limits requests.
func floodSequences() map[string]sequence {
	// flood makes an attacker ask n times, and checks that nothing is granted.
	flood := func(attacker *machine, n int) {
		attacker.t.Helper()
		for range n {
			if status, got, _ := attacker.ask(); status == http.StatusOK {
				attacker.t.Fatalf("an attacker was granted %v", got.Principals)
			}
		}
	}
	return map[string]sequence{
		"a local process floods, then the machine renews at once": {play: func(s *stage) {
			s.honest.mustEnroll()
			s.wait(3 * 24 * time.Hour)
			for range 60 {
				flood(s.honest.intruder(), 1)
			}
			s.honest.mustEnroll()
		}},
		"a local process asks every minute for six hours": {play: func(s *stage) {
			s.honest.mustEnroll()
			intruder := s.honest.intruder()
			for hour := range 6 {
				for range 60 {
					s.wait(time.Minute)
					flood(intruder, 1)
				}
				if status, _, refused := s.honest.ask(); status != http.StatusOK {
					s.t.Fatalf("hour %d: the machine is refused: %+v", hour, refused)
				}
			}
		}},
		"a stolen document is used from the machine's own address": {play: func(s *stage) {
			s.honest.mustEnroll()
			flood(s.honest.thief(s.honest.source), 100)
			s.honest.mustEnroll()
		}},
		"a stolen document is used from 200 addresses": {play: func(s *stage) {
			s.honest.mustEnroll()
			for n := range 200 {
				flood(s.honest.thief(fmt.Sprintf("198.51.%d.%d", n/100, n%100+1)), 1)
			}
			s.honest.mustEnroll()
		}},
		"a stolen document floods before the machine's first enrollment, from elsewhere": {play: func(s *stage) {
			flood(s.honest.thief("198.51.100.66"), 100)
			s.honest.mustEnroll()
		}},
		"floods about 9,000 other instances push out the machine's own bucket": {play: func(s *stage) {
			s.honest.mustEnroll()
			flood(s.honest.thief(s.honest.source), 100)
			for n := range 9000 {
				stranger := s.honest.thief(s.honest.source)
				stranger.id = fmt.Sprintf("i-%017x", n)
				if n%3000 == 0 { // building a request is slow, so a few represent all of them
					flood(stranger, 1)
				}
				s.signer.attempts.take(bucket{instance: inTestAccount(stranger.id), source: network(stranger.source)}, attemptBurst, attemptEvery, s.now)
			}
			s.honest.mustEnroll()
		}},
		"a captured request is sent again and again, until it is too old": {play: func(s *stage) {
			s.honest.mustEnroll()
			captured := s.honest.request()
			for range 100 {
				s.honest.send(captured)
			}
			s.wait(protocol.MaxClockSkew + time.Second)
			if _, _, refused := s.honest.send(captured); refused.Code != protocol.CodeClockSkew && refused.Code != protocol.CodeRateLimited {
				s.t.Errorf("a captured request is answered with %q after %s", refused.Code, protocol.MaxClockSkew)
			}
			s.wait(time.Minute)
			s.honest.mustEnroll()
		}},
		"a captured request comes back after the instance has ended": {gone: true, play: func(s *stage) {
			s.honest.mustEnroll()
			captured := s.honest.request()
			s.honest.terminate()
			s.stateChanged(s.honest.id)
			if _, _, refused := s.honest.send(captured); refused.Code != protocol.CodeInstanceEnded {
				s.t.Errorf("code %q", refused.Code)
			}
		}},
		"one instance floods, and its neighbor behind the same address renews": {play: func(s *stage) {
			s.honest.mustEnroll()
			noisy := s.launch(otherInstance, "noisy")
			noisy.mustEnroll()
			for range 100 {
				noisy.ask()
			}
			s.honest.mustEnroll()
		}},
	}
}
