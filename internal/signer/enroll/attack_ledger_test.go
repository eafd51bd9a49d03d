package enroll

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/hostcert"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"github.com/hallmark-ssh/hallmark/internal/signer/entry"
	"github.com/hallmark-ssh/hallmark/internal/signer/inventory"
	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
	"github.com/hallmark-ssh/hallmark/internal/signer/node"
	"github.com/hallmark-ssh/hallmark/internal/signer/teleport"
	"github.com/hallmark-ssh/hallmark/internal/sshkey/sshkeytest"
)

func fingerprintOf(key ssh.Signer) string { return ssh.FingerprintSHA256(key.PublicKey()) }

// ledgerAttacks ask for keys or names that somebody else holds.
func ledgerAttacks() map[string]attack {
	return map[string]attack{
		"known with other host keys": {func(w *world, _ *attempt) {
			w.hold(testInstance, testHostname, "SHA256:other")
		}, protocol.CodeKeyConflict, untilClaim, nil},
		"host key of another instance": {func(w *world, a *attempt) {
			w.hold("i-0123456789abcdef0", "other", ssh.FingerprintSHA256(a.keys[1].PublicKey()))
		}, protocol.CodeKeyInUse, untilClaim, nil},
		"host name of another instance": {func(w *world, _ *attempt) {
			w.hold("i-0123456789abcdef0", testHostname, "SHA256:other")
		}, protocol.CodeNameInUse, untilClaim, nil},
		"off-boarded instance": {func(w *world, _ *attempt) {
			w.end()
		}, protocol.CodeInstanceEnded, untilSTS, nil},
		"the ledger does not answer": {func(w *world, _ *attempt) {
			w.claimErr = errors.New("connection refused")
		}, protocol.CodeUpstream, untilClaim, nil},

		"copied image with all its host keys": {func(w *world, a *attempt) {
			w.hold(otherInstance, "other", fingerprintOf(a.keys[0]))
		}, protocol.CodeKeyInUse, untilClaim, nil},
		"keys of a terminated instance": {func(w *world, a *attempt) {
			w.hold(otherInstance, "other", fingerprintOf(a.keys[0]))
			w.endOf(otherInstance)
			w.now = w.now.Add(time.Second)
		}, protocol.CodeKeyInUse, untilClaim, nil},
		"keys of a terminated instance, years later": {func(w *world, a *attempt) {
			w.hold(otherInstance, "other", fingerprintOf(a.keys[0]))
			w.endOf(otherInstance)
			w.pass(a, 3*365*24*time.Hour)
			w.instance.LaunchTime = w.now
		}, protocol.CodeKeyInUse, untilClaim, nil},
		"the same instance id in another account holds the key": {func(w *world, a *attempt) {
			w.claimFor(ec2ref.Instance{Account: "222222222222", Region: testRegion, ID: testInstance}, "other", fingerprintOf(a.keys[0]), w.now.Add(time.Hour))
		}, protocol.CodeKeyInUse, untilClaim, nil},
		"the same instance id in another account was off-boarded": {func(w *world, _ *attempt) {
			if err := w.ledger.Retire(w.t.Context(), ec2ref.Instance{Account: "222222222222", Region: testRegion, ID: testInstance}); err != nil {
				w.t.Fatal(err)
			}
		}, codeGranted, all, checkOwnNames},
		"the same instance id in another region was off-boarded": {func(w *world, _ *attempt) {
			if err := w.ledger.Retire(w.t.Context(), ec2ref.Instance{Account: testAccount, Region: "hm-test-2", ID: testInstance}); err != nil {
				w.t.Fatal(err)
			}
		}, codeGranted, all, checkOwnNames},

		// Both keys sign each request, so anyone who adds a key holds an old one.
		"key added beside a recorded one that signs": {func(w *world, a *attempt) {
			w.earlier(a)
			a.payload.HostKeys = nil
			a.keys[1] = sshkeytest.NewSigner(w.t)
		}, codeGranted, renewal, func(t *testing.T, w *world, a *attempt, _ protocol.Response) {
			record := must(w.ledger.Lookup(t.Context(), inTestAccount(testInstance)))
			if len(record.Fingerprints) != 3 || !slices.Contains(record.Fingerprints, fingerprintOf(a.keys[1])) {
				t.Errorf("recorded %v", record.Fingerprints)
			}
		}},
		"new keys without a recorded one": {func(w *world, a *attempt) {
			w.earlier(a)
			a.payload.HostKeys = nil
			a.keys = []ssh.Signer{sshkeytest.NewSigner(w.t), sshkeytest.NewSigner(w.t)}
		}, protocol.CodeKeyConflict, untilRenewed, nil},
		"a permit for another key": {rekeying(func(w *world, _ *attempt) ledger.Permit {
			return ledger.Permit{Fingerprint: fingerprintOf(sshkeytest.NewSigner(w.t)), ValidUntil: w.now.Add(time.Hour), By: "operator"}
		}), protocol.CodeKeyConflict, untilRenewed, nil},
		"a permit that has ended": {rekeying(func(w *world, a *attempt) ledger.Permit {
			return ledger.Permit{Fingerprint: fingerprintOf(a.keys[0]), ValidUntil: w.now.Add(-time.Second), By: "operator"}
		}), protocol.CodeKeyConflict, untilRenewed, nil},
		"a permit used twice": {func(w *world, a *attempt) {
			rekeying(func(w *world, a *attempt) ledger.Permit {
				return ledger.Permit{Fingerprint: fingerprintOf(a.keys[0]), ValidUntil: w.now.Add(time.Hour), By: "operator"}
			})(w, a)
			w.earlier(a)
			a.payload.HostKeys = nil
			a.keys = []ssh.Signer{sshkeytest.NewSigner(w.t)}
		}, protocol.CodeKeyConflict, untilRenewed, nil},
		"a permit for a key that another instance holds": {func(w *world, a *attempt) {
			rekeying(func(w *world, a *attempt) ledger.Permit {
				w.hold(otherInstance, "other", fingerprintOf(a.keys[0]))
				return ledger.Permit{Fingerprint: fingerprintOf(a.keys[0]), ValidUntil: w.now.Add(time.Hour), By: "operator"}
			})(w, a)
		}, protocol.CodeKeyInUse, untilRenewed, nil},
		// Otherwise a thief of an old key could add their own.
		"an old key after a permitted re-key": {func(w *world, a *attempt) {
			old := a.keys
			rekeying(func(w *world, a *attempt) ledger.Permit {
				return ledger.Permit{Fingerprint: fingerprintOf(a.keys[0]), ValidUntil: w.now.Add(time.Hour), By: "operator"}
			})(w, a)
			w.earlier(a)
			a.payload.HostKeys = nil
			a.keys = old
		}, protocol.CodeKeyConflict, untilRenewed, nil},

		"more keys than one machine ever has": {func(w *world, a *attempt) {
			for range ledger.MaxKeys - 2 {
				w.earlier(a)
				a.payload.HostKeys = nil
				a.keys[1] = sshkeytest.NewSigner(w.t)
				w.pass(a, time.Hour)
			}
			w.earlier(a)
			a.payload.HostKeys = nil
			a.keys[1] = sshkeytest.NewSigner(w.t)
		}, protocol.CodeKeyConflict, untilRenewed, nil},
	}
}

// rekeying lets an enrolled machine come with new keys, and lets an operator permit something.
func rekeying(permit func(*world, *attempt) ledger.Permit) func(*world, *attempt) {
	return func(w *world, a *attempt) {
		w.earlier(a)
		a.payload.HostKeys = nil
		a.keys = []ssh.Signer{sshkeytest.NewSigner(w.t), sshkeytest.NewSigner(w.t)}
		if err := w.ledger.Permit(w.t.Context(), inTestAccount(testInstance), permit(w, a)); err != nil {
			w.t.Fatal(err)
		}
	}
}

// ending is a step during which the instance is off-boarded.
func ending(step string) func(*world, *attempt) {
	return func(w *world, _ *attempt) {
		once := func(at string) {
			if at == step {
				w.end()
			}
		}
		w.signer.Callers = endingSTS{w.signer.Callers, once}
		w.signer.Ledger = endingLedger{w.signer.Ledger, once}
		connect := w.signer.Connect
		w.signer.Connect = func(ctx context.Context) (Cluster, error) {
			once("connect")
			cluster, err := connect(ctx)
			return endingCluster{cluster, once}, err
		}
	}
}

type endingSTS struct {
	CallerVerifier
	at func(string)
}

func (e endingSTS) Verify(ctx context.Context, p protocol.CallerProof, b protocol.Binding, i ec2ref.Instance) error {
	e.at("sts")
	return e.CallerVerifier.Verify(ctx, p, b, i)
}

type endingLedger struct {
	Ledger
	at func(string)
}

func (e endingLedger) Lookup(ctx context.Context, i ec2ref.Instance) (ledger.Record, error) {
	defer e.at("record")
	return e.Ledger.Lookup(ctx, i)
}

func (e endingLedger) Claim(ctx context.Context, c ledger.Claim, now time.Time) (ledger.Grant, error) {
	e.at("claim")
	defer e.at("claimed")
	return e.Ledger.Claim(ctx, c, now)
}

func (e endingLedger) Complete(ctx context.Context, c ledger.Claim, g ledger.Grant, now time.Time) (ledger.Record, error) {
	e.at("confirm")
	return e.Ledger.Complete(ctx, c, g, now)
}

type endingCluster struct {
	Cluster
	at func(string)
}

func (e endingCluster) Node(ctx context.Context, id string) (*node.Node, error) {
	e.at("lookup")
	return e.Cluster.Node(ctx, id)
}

func (e endingCluster) UpsertNode(ctx context.Context, n node.Node) error {
	e.at("upsert")
	return e.Cluster.UpsertNode(ctx, n)
}

func (e endingCluster) SignHostKey(ctx context.Context, key ssh.PublicKey, principals []string, ttl time.Duration) (*ssh.Certificate, error) {
	e.at("sign")
	return e.Cluster.SignHostKey(ctx, key, principals, ttl)
}

func (e endingCluster) CAs(ctx context.Context) (teleport.CAs, error) {
	defer e.at("CAs")
	return e.Cluster.CAs(ctx)
}

// endingAttacks race with an off-boarding. Whenever it comes, the machine gets nothing and no
// node remains.
func endingAttacks() map[string]attack {
	rows := make(map[string]attack)
	nothingLeft := func(t *testing.T, w *world, _ *attempt, _ protocol.Response) {
		t.Helper()
		if len(w.nodes) != 0 {
			t.Errorf("nodes %v are left", w.nodes)
		}
		if record := must(w.ledger.Lookup(t.Context(), inTestAccount(testInstance))); !record.Retired {
			t.Errorf("the record says %+v", record)
		}
	}
	for step, calls := range map[string]string{
		"sts": untilSTS, "record": untilClaim, "connect": untilClaim, "claim": untilClaim,
		"lookup": untilClaim, "claimed": untilUndone, "upsert": untilUndone, "sign": untilUndone, "CAs": untilUndone, "confirm": untilUndone,
	} {
		rows["off-boarded at the step "+step] = attack{ending(step), protocol.CodeInstanceEnded, calls, nothingLeft}
	}
	rows["a captured request, after the end"] = attack{func(w *world, a *attempt) {
		captured := w.earlier(a)
		w.end()
		clear(w.nodes)
		a.http = func(r *entry.Request) { *r = captured }
	}, protocol.CodeInstanceEnded, untilSTS, nothingLeft}
	rows["a stale running: EC2 has not heard of the end"] = attack{func(w *world, _ *attempt) {
		w.end()
		w.instance.State = inventory.StateRunning
	}, protocol.CodeInstanceEnded, untilSTS, nothingLeft}
	rows["off-boarded, then years pass"] = attack{func(w *world, a *attempt) {
		w.earlier(a)
		w.end()
		clear(w.nodes)
		w.pass(a, 3*365*24*time.Hour)
	}, protocol.CodeInstanceEnded, untilSTS, nothingLeft}
	return rows
}

// nodeAttacks are about nodes that are already in Teleport, and about a failing Teleport.
func nodeAttacks() map[string]attack {
	return map[string]attack{
		"the node is somebody else's": {func(w *world, _ *attempt) {
			id := theInstance().NodeID()
			w.nodes[id] = node.Node{ID: id, Labels: map[string]string{node.SignerLabel: "another signer"}}
		}, protocol.CodeNameInUse, untilLookup, nil},
		"the node is nobody's": {func(w *world, _ *attempt) {
			id := theInstance().NodeID()
			w.nodes[id] = node.Node{ID: id}
		}, protocol.CodeNameInUse, untilLookup, nil},
		"another node has the name": {func(w *world, _ *attempt) {
			w.nodes["other"] = node.Node{ID: "other", Hostname: testHostname, Labels: map[string]string{node.SignerLabel: testAudience}}
		}, protocol.CodeNameInUse, untilLookup, nil},
		"looking up fails": {func(w *world, _ *attempt) {
			w.nodeErr = teleport.ErrUnavailable
		}, protocol.CodeUpstream, untilLookup, nil},
		"writing the node fails": {func(w *world, _ *attempt) {
			w.upsertErr = teleport.ErrUnavailable
		}, protocol.CodeUpstream, untilIssue, nil},
		"Teleport refuses the look-up": {func(w *world, _ *attempt) {
			w.nodeErr = fmt.Errorf("read node: %w", teleport.ErrDenied)
		}, protocol.CodeTeleportRefused, untilLookup, nil},
		"Teleport refuses the node": {func(w *world, _ *attempt) {
			w.upsertErr = fmt.Errorf("write node: %w", teleport.ErrDenied)
		}, protocol.CodeTeleportRefused, untilIssue, nil},
		"Teleport refuses to sign": {func(w *world, _ *attempt) {
			w.signErr = fmt.Errorf("sign host key: %w", teleport.ErrDenied)
		}, protocol.CodeTeleportRefused, untilIssue, nil},
		"signing fails": {func(w *world, _ *attempt) {
			w.signErr = teleport.ErrUnavailable
		}, protocol.CodeUpstream, untilIssue, nil},
	}
}

// certificateAttacks make Teleport answer with something other than what the signer asked for.
func certificateAttacks() map[string]attack {
	return map[string]attack{
		"a certificate for another key": {func(w *world, _ *attempt) {
			w.sign = func(c *ssh.Certificate) { c.Key = sshkeytest.NewSigner(w.t).PublicKey() }
		}, protocol.CodeInternal, untilIssue, nil},
		"a certificate without principals": {func(w *world, _ *attempt) {
			w.sign = func(c *ssh.Certificate) { c.ValidPrincipals = nil }
		}, protocol.CodeInternal, untilIssue, nil},
		"a certificate with one more principal": {func(w *world, _ *attempt) {
			w.sign = func(c *ssh.Certificate) { c.ValidPrincipals = append(c.ValidPrincipals, "localhost") }
		}, protocol.CodeInternal, untilIssue, nil},
		"a certificate without end": {func(w *world, _ *attempt) {
			w.sign = func(c *ssh.Certificate) { c.ValidBefore = ssh.CertTimeInfinity }
		}, protocol.CodeInternal, untilIssue, nil},
		"a user certificate": {func(w *world, _ *attempt) {
			w.sign = func(c *ssh.Certificate) { c.CertType = ssh.UserCert }
		}, protocol.CodeInternal, untilIssue, nil},
		"a certificate of an unknown CA": {func(w *world, _ *attempt) {
			w.cas = func(int) teleport.CAs {
				return teleport.CAs{Host: []ssh.PublicKey{sshkeytest.NewSigner(w.t).PublicKey()}}
			}
		}, protocol.CodeInternal, untilIssue, nil},
		"a certificate with other principals": {func(w *world, _ *attempt) {
			w.sign = func(c *ssh.Certificate) { c.ValidPrincipals = []string{"bastion"} }
		}, protocol.CodeInternal, untilIssue, nil},
		"a certificate that lasts longer": {func(w *world, _ *attempt) {
			w.sign = func(c *ssh.Certificate) { c.ValidBefore += 24 * 3600 }
		}, protocol.CodeInternal, untilIssue, nil},
		"a certificate that has ended": {func(w *world, _ *attempt) {
			w.sign = func(c *ssh.Certificate) { c.ValidBefore = uint64(w.now.Unix()) }
		}, protocol.CodeInternal, untilIssue, nil},
		"a certificate with a critical option": {func(w *world, _ *attempt) {
			w.sign = func(c *ssh.Certificate) { c.CriticalOptions = map[string]string{"force-command": "true"} }
		}, protocol.CodeInternal, untilIssue, nil},
		"a certificate that opens a reverse tunnel": {func(w *world, _ *attempt) {
			w.sign = func(c *ssh.Certificate) { c.Extensions[hostcert.RoleExtension] = "Node" }
		}, protocol.CodeInternal, untilIssue, nil},
		"a certificate of two roles": {func(w *world, _ *attempt) {
			w.sign = func(c *ssh.Certificate) { c.Extensions[hostcert.RoleExtension] = "ProvisionToken,Node" }
		}, protocol.CodeInternal, untilIssue, nil},
		"a certificate without a role": {func(w *world, _ *attempt) {
			w.sign = func(c *ssh.Certificate) { delete(c.Extensions, hostcert.RoleExtension) }
		}, protocol.CodeInternal, untilIssue, nil},
		"the cluster's own CA key as host key": {func(w *world, a *attempt) {
			a.keys[1] = w.hostCA
		}, protocol.CodeInternal, untilIssue, nil},
		"no CAs": {func(w *world, _ *attempt) {
			w.cas = func(int) teleport.CAs { return teleport.CAs{} }
		}, protocol.CodeInternal, untilIssue, nil},
	}
}
