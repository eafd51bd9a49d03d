package enroll

import (
	"crypto/rand"
	"errors"
	"reflect"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/hostcert"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
	"github.com/hallmark-ssh/hallmark/internal/signer/node"
	"github.com/hallmark-ssh/hallmark/internal/signer/policy"
	"github.com/hallmark-ssh/hallmark/internal/sshkey/sshkeytest"
)

// clockSequences set clocks wrong, and make Teleport answer strangely.
func clockSequences() map[string]sequence {
	return map[string]sequence{
		"the machine's clock is an hour off, then right": {play: func(s *stage) {
			s.honest.mustEnroll()
			s.honest.change = func(a *attempt) {
				a.date = s.now.Add(-time.Hour)
				a.payload.IssuedAt = a.date.UTC()
			}
			for range 3 {
				s.honest.mustFail(protocol.CodeClockSkew)
			}
			s.honest.change = nil
		}},
		"the function is frozen for 45 minutes in a flood": {play: func(s *stage) {
			s.honest.mustEnroll()
			for range 100 {
				s.honest.thief(s.honest.source).ask()
			}
			s.wait(45 * time.Minute)
			s.honest.mustEnroll()
		}},
		"the function is frozen before it confirms, until its claim has run out": {play: func(s *stage) {
			s.honest.mustEnroll()
			before := s.honest.record()
			s.beforeOK = func() {
				s.beforeOK = nil
				s.wait(policy.DefaultLifetime + time.Hour)
			}
			s.honest.mustFail(protocol.CodeUpstream)
			if after := s.honest.record(); !after.Lease.Equal(before.Lease) {
				s.t.Errorf("lease %s became %s", before.Lease, after.Lease)
			}
		}},
		"the function is frozen before it confirms, until another signer has enrolled the machine": {play: func(s *stage) {
			s.honest.mustEnroll()
			var theirs node.Node
			s.beforeOK = func() {
				s.beforeOK = nil
				s.wait(policy.DefaultLifetime + time.Hour)
				r := s.honest.record()
				c := ledger.Claim{
					Instance: s.honest.ref(), Fingerprints: r.Fingerprints, Hostname: r.ConfirmedHostname,
					Signer: "second.example.com", ValidUntil: s.now.Add(policy.DefaultLifetime),
				}
				if err := s.ledger.Confirm(s.t.Context(), c, must(s.ledger.Claim(s.t.Context(), c, s.now)), s.now); err != nil {
					s.t.Fatal(err)
				}
				theirs, _ = s.node()
				theirs.Labels = map[string]string{node.SignerLabel: c.Signer}
				s.nodes[theirs.ID] = theirs
			}
			s.honest.mustFail(protocol.CodeUpstream)
			if n, _ := s.node(); !reflect.DeepEqual(n, theirs) || s.honest.record().Signer != "second.example.com" {
				s.t.Errorf("node %+v, want the other signer's %+v; record %+v", n, theirs, s.honest.record())
			}
			s.wait(policy.DefaultLifetime + time.Hour) // the other signer's claims and node expire
			delete(s.nodes, theirs.ID)
		}},
		"the signer's clock jumps back a day": {play: func(s *stage) {
			s.honest.mustEnroll()
			s.wait(-24 * time.Hour)
			s.honest.ask()
			s.wait(24 * time.Hour)
		}},
		"Teleport's clock is five minutes ahead": {play: func(s *stage) {
			s.sign = func(c *ssh.Certificate) {
				c.ValidBefore = uint64(s.now.Add(policy.DefaultLifetime + hostcert.MaxClockSkew).Unix())
			}
			s.honest.mustEnroll()
			for _, g := range s.granted {
				if end := time.Unix(int64(g.certificate.ValidBefore), 0); end.After(s.honest.record().ValidUntil) {
					s.t.Errorf("a certificate lives until %s, its claim until %s", end, s.honest.record().ValidUntil)
				}
			}
		}},
		"signing takes eighteen seconds, by a clock that is five minutes ahead": {play: func(s *stage) {
			s.onClaim = func(ledger.Claim) error {
				s.onClaim = nil
				s.wait(18 * time.Second)
				return nil
			}
			s.sign = func(c *ssh.Certificate) {
				c.ValidBefore = uint64(s.now.Add(policy.DefaultLifetime + hostcert.MaxClockSkew).Unix())
			}
			s.honest.mustEnroll()
			for _, g := range s.granted {
				if end := time.Unix(int64(g.certificate.ValidBefore), 0); end.After(s.honest.record().ValidUntil) {
					s.t.Errorf("a certificate lives until %s, its claim until %s", end, s.honest.record().ValidUntil)
				}
			}
		}},
		"Teleport adds a principal, then does not": {play: func(s *stage) {
			s.sign = func(c *ssh.Certificate) { c.ValidPrincipals = append(c.ValidPrincipals, "bastion") }
			s.honest.mustFail(protocol.CodeInternal)
			s.sign = nil
		}},
		"Teleport's certificates never end, then do": {play: func(s *stage) {
			s.sign = func(c *ssh.Certificate) { c.ValidBefore = ssh.CertTimeInfinity }
			s.honest.mustFail(protocol.CodeInternal)
			s.sign = nil
		}},
		// CVE-2025-49825: a certificate is in place of the CA's key.
		"CVE-2025-49825: a nested certificate as the CA": {play: func(s *stage) {
			middle, host := sshkeytest.NewSigner(s.t), sshkeytest.NewSigner(s.t)
			nested := &ssh.Certificate{
				Key: middle.PublicKey(), CertType: ssh.HostCert, ValidPrincipals: []string{"web"},
				ValidBefore: uint64(s.now.Add(time.Hour).Unix()),
			}
			if err := nested.SignCert(rand.Reader, s.hostCA); err != nil {
				s.t.Fatal(err)
			}
			forged := &ssh.Certificate{
				Key: host.PublicKey(), CertType: ssh.HostCert, ValidPrincipals: []string{"web"},
				ValidAfter: uint64(s.now.Add(-time.Minute).Unix()), ValidBefore: uint64(s.now.Add(time.Hour).Unix()),
			}
			if err := forged.SignCert(rand.Reader, middle); err != nil {
				s.t.Fatal(err)
			}
			forged.SignatureKey = nested
			want := hostcert.Want{Key: host.PublicKey(), Principals: []string{"web"}, CAs: []ssh.PublicKey{s.hostCA.PublicKey()}, MaxLifetime: time.Hour}
			if err := hostcert.Check(forged, want, s.now); err == nil {
				s.t.Error("a nested certificate passes")
			}
			want.CAs = []ssh.PublicKey{nested}
			if err := hostcert.Check(forged, want, s.now); err == nil {
				s.t.Error("a certificate passes as a CA")
			}
		}},
		// CVE-2022-2385: a parameter was given twice; one value was checked and the other
		// used.
		"CVE-2022-2385: parameters of the proof are given twice": {play: func(s *stage) {
			s.honest.mustEnroll()
			twice := *s.honest
			for _, extra := range []string{", Credential=AKIA/20260101/us-east-1/sts/aws4_request", ", SignedHeaders=host", ", Signature=00"} {
				twice.change = func(a *attempt) {
					sign := a.request
					a.request = func(r *protocol.Request) {
						sign(r)
						r.Caller.Authorization += extra
					}
				}
				twice.mustFail(protocol.CodeCallerProofInvalid)
			}
		}},
		"Teleport refuses for a day": {play: func(s *stage) {
			s.honest.mustEnroll()
			s.signErr = errors.New("access denied")
			for range 24 {
				s.honest.ask()
				s.wait(time.Hour)
			}
			s.honest.hasNode(true)
		}},
	}
}
