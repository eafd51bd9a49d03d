package signer

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/identity"
	"github.com/hallmark-ssh/hallmark/internal/inventory"
	"github.com/hallmark-ssh/hallmark/internal/ledger"
	"github.com/hallmark-ssh/hallmark/internal/policy"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"github.com/hallmark-ssh/hallmark/internal/teleport"
)

// How far a refused request came. A caller who has proved nothing costs no call,
// and at most one to STS.
const (
	untilNothing = ""
	untilSTS     = "sts"
	untilEC2     = "sts ec2"
	untilConnect = "sts ec2 connect"
	untilClaim   = "sts ec2 connect claim"
	untilLookup  = "sts ec2 connect claim lookup"
	untilIssue   = "sts ec2 connect claim lookup issue"
)

// Each row changes one thing about a good request or about the world, and names
// the code of the refusal and the calls that were made before it.
func TestAttacks(t *testing.T) {
	tests := map[string]struct {
		change func(*world, *attempt)
		code   protocol.Code
		calls  string
	}{
		// Shape and size.
		"GET": {func(_ *world, a *attempt) {
			a.http = func(r *Request) { r.Method = http.MethodGet }
		}, protocol.CodeMethodNotAllowed, untilNothing},
		"another content type": {func(_ *world, a *attempt) {
			a.http = func(r *Request) { r.ContentType = "text/plain" }
		}, protocol.CodeMalformed, untilNothing},
		"body over 64 KiB": {func(_ *world, a *attempt) {
			a.http = func(r *Request) { r.Body = append(r.Body, bytes.Repeat([]byte(" "), protocol.MaxRequestBytes)...) }
		}, protocol.CodeTooLarge, untilNothing},
		"empty body": {func(_ *world, a *attempt) {
			a.http = func(r *Request) { r.Body = nil }
		}, protocol.CodeMalformed, untilNothing},
		"not JSON": {func(_ *world, a *attempt) {
			a.http = func(r *Request) { r.Body = []byte("hello") }
		}, protocol.CodeMalformed, untilNothing},
		"unknown field": {func(_ *world, a *attempt) {
			a.http = func(r *Request) { r.Body = bytes.Replace(r.Body, []byte("{"), []byte(`{"role":"admin",`), 1) }
		}, protocol.CodeMalformed, untilNothing},
		"data after the request": {func(_ *world, a *attempt) {
			a.http = func(r *Request) { r.Body = append(r.Body, '{') }
		}, protocol.CodeMalformed, untilNothing},
		"unknown field in the payload": {func(_ *world, a *attempt) {
			a.encoded = func(p []byte) []byte { return bytes.Replace(p, []byte("{"), []byte(`{"hostname":"bastion",`), 1) }
		}, protocol.CodeMalformed, untilNothing},
		"another version, with fields of its own": {func(_ *world, a *attempt) {
			a.payload.Version = 2
			a.encoded = func(p []byte) []byte { return bytes.Replace(p, []byte("{"), []byte(`{"new":1,`), 1) }
		}, protocol.CodeUnsupportedVersion, untilNothing},
		"another audience": {func(_ *world, a *attempt) {
			a.payload.Audience = "hallmark.example.net"
		}, protocol.CodeAudienceMismatch, untilNothing},
		"no host keys": {func(_ *world, a *attempt) {
			a.payload.HostKeys = []string{}
		}, protocol.CodeHostKeyInvalid, untilNothing},
		"too many host keys": {func(w *world, a *attempt) {
			for len(a.keys) <= protocol.MaxHostKeys {
				a.keys = append(a.keys, newKey(w.t))
			}
		}, protocol.CodeHostKeyInvalid, untilNothing},
		"one host key twice": {func(_ *world, a *attempt) {
			a.keys[1] = a.keys[0]
		}, protocol.CodeHostKeyInvalid, untilNothing},
		"a short RSA key": {func(w *world, a *attempt) {
			a.payload.HostKeys = []string{line(a.keys[0].PublicKey()), line(newRSA(w.t, 1024).PublicKey())}
		}, protocol.CodeHostKeyInvalid, untilNothing},
		"a certificate as host key": {func(w *world, a *attempt) {
			certificate := must(fakeCluster{w}.SignHostKey(w.t.Context(), a.keys[0].PublicKey(), []string{"*"}, time.Hour))
			a.payload.HostKeys = []string{line(certificate), line(a.keys[1].PublicKey())}
			w.calls = nil
		}, protocol.CodeHostKeyInvalid, untilNothing},

		// The identity document.
		"forged document": {func(_ *world, a *attempt) {
			a.signed = func(text []byte) []byte {
				forger := regions()["hm-test-3"]
				return must(forger.Sign(must(json.Marshal(a.document))))
			}
		}, protocol.CodeIdentityInvalid, untilNothing},
		"truncated document": {func(_ *world, a *attempt) {
			a.signed = func(text []byte) []byte { return text[:len(text)/2] }
		}, protocol.CodeIdentityInvalid, untilNothing},
		"over-long document": {func(_ *world, a *attempt) {
			a.signed = func(text []byte) []byte { return append(text, bytes.Repeat([]byte("\n"), identity.MaxBytes)...) }
		}, protocol.CodeIdentityInvalid, untilNothing},
		"document of one region signed by another": {func(_ *world, a *attempt) {
			a.region = regions()["hm-test-2"]
		}, protocol.CodeIdentityInvalid, untilNothing},
		"document of a region without a key": {func(_ *world, a *attempt) {
			a.region = regions()["hm-test-3"]
			a.document["region"] = "hm-test-3"
		}, protocol.CodeIdentityInvalid, untilNothing},
		"no document": {func(_ *world, a *attempt) {
			a.signed = func([]byte) []byte { return nil }
		}, protocol.CodeIdentityInvalid, untilNothing},

		// The deployment's lists.
		"account not listed": {func(_ *world, a *attempt) {
			a.document["accountId"] = "999999999999"
		}, protocol.CodeNotAllowed, untilNothing},
		"region not listed": {func(_ *world, a *attempt) {
			a.region = regions()["hm-test-2"]
			a.document["region"], a.document["availabilityZone"] = "hm-test-2", "hm-test-2a"
		}, protocol.CodeNotAllowed, untilNothing},

		// Time.
		"older than five minutes": {func(w *world, a *attempt) {
			a.date = w.now.Add(-protocol.MaxClockSkew - time.Second)
			a.payload.IssuedAt = a.date.UTC()
		}, protocol.CodeClockSkew, untilNothing},
		"from the future": {func(w *world, a *attempt) {
			a.date = w.now.Add(protocol.MaxClockSkew + time.Second)
			a.payload.IssuedAt = a.date.UTC()
		}, protocol.CodeClockSkew, untilNothing},
		"proof older than the payload says": {func(w *world, a *attempt) {
			a.date = w.now.Add(-time.Minute)
		}, protocol.CodeCallerProofInvalid, untilNothing},
		"proof without a date": {func(_ *world, a *attempt) {
			a.request = func(r *protocol.Request) { r.Caller.Date = "" }
		}, protocol.CodeCallerProofInvalid, untilNothing},

		// Host keys' signatures.
		"no signatures": {func(_ *world, a *attempt) {
			a.request = func(r *protocol.Request) { r.Signatures = nil }
		}, protocol.CodeHostKeyUnproved, untilNothing},
		"one signature missing": {func(_ *world, a *attempt) {
			a.request = func(r *protocol.Request) { r.Signatures = r.Signatures[:1] }
		}, protocol.CodeHostKeyUnproved, untilNothing},
		"one signature too many": {func(_ *world, a *attempt) {
			a.request = func(r *protocol.Request) { r.Signatures = append(r.Signatures, r.Signatures[0]) }
		}, protocol.CodeHostKeyUnproved, untilNothing},
		"signatures in another order": {func(_ *world, a *attempt) {
			a.request = func(r *protocol.Request) {
				r.Signatures[0], r.Signatures[1] = r.Signatures[1], r.Signatures[0]
			}
		}, protocol.CodeHostKeyUnproved, untilNothing},
		"somebody else's host key": {func(w *world, a *attempt) {
			a.payload.HostKeys = []string{line(a.keys[0].PublicKey()), line(newKey(w.t).PublicKey())}
		}, protocol.CodeHostKeyUnproved, untilNothing},
		"signatures of another binding": {func(_ *world, a *attempt) {
			a.binding = func(protocol.Binding) protocol.Binding { return protocol.Bind([]byte("another payload")) }
		}, protocol.CodeHostKeyUnproved, untilNothing},
		"payload changed after signing": {func(_ *world, a *attempt) {
			a.request = func(r *protocol.Request) { r.Payload = append(r.Payload, ' ') }
		}, protocol.CodeHostKeyUnproved, untilNothing},

		// The caller proof.
		"junk proof with a stolen document": {func(_ *world, a *attempt) {
			a.request = func(r *protocol.Request) { r.Caller.Authorization = "junk" }
		}, protocol.CodeCallerProofInvalid, untilSTS},
		"proof for other keys": {func(_ *world, a *attempt) {
			a.request = func(r *protocol.Request) {
				r.Caller.Authorization = fakeProof(protocol.Bind([]byte("other keys")), testRegion, testAccount, testInstance)
			}
		}, protocol.CodeCallerProofInvalid, untilSTS},
		"proof of another instance": {func(_ *world, a *attempt) {
			a.request = func(r *protocol.Request) {
				r.Caller.Authorization = fakeProof(protocol.Bind(r.Payload), testRegion, testAccount, "i-0123456789abcdef0")
			}
		}, protocol.CodeCallerProofInvalid, untilSTS},
		"document of another instance": {func(_ *world, a *attempt) {
			a.document["instanceId"] = "i-0123456789abcdef0"
		}, protocol.CodeCallerProofInvalid, untilSTS},
		"STS does not answer": {func(w *world, _ *attempt) {
			w.stsErr = identity.ErrSTSUnavailable
		}, protocol.CodeUpstream, untilSTS},

		// EC2.
		"unknown instance": {func(w *world, _ *attempt) {
			w.ec2Err = inventory.ErrNotFound
		}, protocol.CodeInstanceUnknown, untilEC2},
		"EC2 does not answer": {func(w *world, _ *attempt) {
			w.ec2Err = context.DeadlineExceeded
		}, protocol.CodeUpstream, untilEC2},
		"stopped instance": {func(w *world, _ *attempt) {
			w.instance.State = "stopped"
		}, protocol.CodeInstanceState, untilEC2},
		"terminated instance": {func(w *world, _ *attempt) {
			w.instance.State = "terminated"
		}, protocol.CodeInstanceState, untilEC2},
		"instance without a state": {func(w *world, _ *attempt) {
			w.instance.State = ""
		}, protocol.CodeInstanceState, untilEC2},
		"instance of another account": {func(w *world, _ *attempt) {
			w.instance.OwnerID = "999999999999"
		}, protocol.CodeInstanceMismatch, untilEC2},
		"another image": {func(w *world, _ *attempt) {
			w.instance.ImageID = "ami-0fedcba9876543210"
		}, protocol.CodeInstanceMismatch, untilEC2},
		"another address": {func(w *world, _ *attempt) {
			w.instance.PrivateIP = "10.0.0.8"
		}, protocol.CodeInstanceMismatch, untilEC2},
		"another zone": {func(w *world, _ *attempt) {
			w.instance.AvailabilityZone = testRegion + "b"
		}, protocol.CodeInstanceMismatch, untilEC2},
		"an answer about another instance": {func(w *world, _ *attempt) {
			w.instance.ID = "i-0123456789abcdef0"
		}, protocol.CodeInstanceMismatch, untilEC2},

		// Policy.
		"Teleport does not answer": {func(w *world, _ *attempt) {
			w.dialErr = teleport.ErrUnavailable
		}, protocol.CodeUpstream, untilConnect},
		"account not in the policy": {func(w *world, _ *attempt) {
			w.setPolicy("{name: a, match: {accounts: [\"222222222222\"]}}")
		}, protocol.CodePolicyRefused, untilConnect},
		"region not in the policy": {func(w *world, _ *attempt) {
			w.setPolicy("{name: a, match: {regions: [hm-test-2]}}")
		}, protocol.CodePolicyRefused, untilConnect},
		"no address of the wanted kind": {func(w *world, _ *attempt) {
			w.setPolicy("{name: a, address: public}")
		}, protocol.CodePolicyRefused, untilConnect},

		// The ledger.
		"known with other host keys": {func(w *world, _ *attempt) {
			w.hold(testInstance, testHostname, "SHA256:other")
		}, protocol.CodeKeyConflict, untilClaim},
		"host key of another instance": {func(w *world, a *attempt) {
			w.hold("i-0123456789abcdef0", "other", ssh.FingerprintSHA256(a.keys[1].PublicKey()))
		}, protocol.CodeKeyInUse, untilClaim},
		"host name of another instance": {func(w *world, _ *attempt) {
			w.hold("i-0123456789abcdef0", testHostname, "SHA256:other")
		}, protocol.CodeNameInUse, untilClaim},
		"off-boarded instance": {func(w *world, _ *attempt) {
			w.end()
		}, protocol.CodeInstanceEnded, untilClaim},
		"the ledger does not answer": {func(w *world, _ *attempt) {
			w.claimErr = errors.New("connection refused")
		}, protocol.CodeUpstream, untilClaim},

		// Teleport.
		"the node is somebody else's": {func(w *world, _ *attempt) {
			id := protocol.NodeID(testAccount, testRegion, testInstance)
			w.nodes[id] = teleport.Node{ID: id, Labels: map[string]string{signerLabel: "another signer"}}
		}, protocol.CodeNameInUse, untilLookup},
		"the node is nobody's": {func(w *world, _ *attempt) {
			id := protocol.NodeID(testAccount, testRegion, testInstance)
			w.nodes[id] = teleport.Node{ID: id}
		}, protocol.CodeNameInUse, untilLookup},
		"another node has the name": {func(w *world, _ *attempt) {
			w.nodes["other"] = teleport.Node{ID: "other", Hostname: testHostname, Labels: map[string]string{signerLabel: testAudience}}
		}, protocol.CodeNameInUse, untilLookup},
		"looking up fails": {func(w *world, _ *attempt) {
			w.nodeErr = teleport.ErrUnavailable
		}, protocol.CodeUpstream, untilLookup},
		"writing the node fails": {func(w *world, _ *attempt) {
			w.upsertErr = teleport.ErrUnavailable
		}, protocol.CodeUpstream, untilIssue},
		"signing fails": {func(w *world, _ *attempt) {
			w.signErr = teleport.ErrUnavailable
		}, protocol.CodeUpstream, untilIssue},
		"a certificate for another key": {func(w *world, _ *attempt) {
			w.sign = func(c *ssh.Certificate) { c.Key = newKey(w.t).PublicKey() }
		}, protocol.CodeInternal, untilIssue},
		"a certificate without principals": {func(w *world, _ *attempt) {
			w.sign = func(c *ssh.Certificate) { c.ValidPrincipals = nil }
		}, protocol.CodeInternal, untilIssue},
		"a certificate with one more principal": {func(w *world, _ *attempt) {
			w.sign = func(c *ssh.Certificate) { c.ValidPrincipals = append(c.ValidPrincipals, "localhost") }
		}, protocol.CodeInternal, untilIssue},
		"a certificate without end": {func(w *world, _ *attempt) {
			w.sign = func(c *ssh.Certificate) { c.ValidBefore = ssh.CertTimeInfinity }
		}, protocol.CodeInternal, untilIssue},
		"a user certificate": {func(w *world, _ *attempt) {
			w.sign = func(c *ssh.Certificate) { c.CertType = ssh.UserCert }
		}, protocol.CodeInternal, untilIssue},
		"a certificate of an unknown CA": {func(w *world, _ *attempt) {
			w.cas = func(int) teleport.CAs { return teleport.CAs{Host: []ssh.PublicKey{newKey(w.t).PublicKey()}} }
		}, protocol.CodeInternal, untilIssue},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			a := newAttempt(t, w.now)
			tt.change(w, a)
			status, _, refused := w.enroll(a)
			if refused.Code != tt.code {
				t.Errorf("code %q, want %q; log: %s", refused.Code, tt.code, w.log.String())
			}
			if want := outcomes()[tt.code].status; status != want {
				t.Errorf("status %d, want %d", status, want)
			}
			if calls := w.upstream(); calls != tt.calls {
				t.Errorf("calls %q, want %q", calls, tt.calls)
			}
			if refused.Message == "" || refused.RequestID != "request-1" {
				t.Errorf("refusal %+v", refused)
			}
			checkLog(t, w, refused.Code)
		})
	}
}

// checkLog wants one line, with the code, and no secret in it.
func checkLog(t *testing.T, w *world, code protocol.Code) {
	t.Helper()
	var entry map[string]any
	if err := json.Unmarshal(w.log.Bytes(), &entry); err != nil {
		t.Fatalf("want one line: %v in %q", err, w.log.String())
	}
	if entry["code"] != string(code) || entry["error"] == nil {
		t.Errorf("log line %v", entry)
	}
	for _, secret := range []string{testSecret, "proof of", "BEGIN SSH SIGNATURE"} {
		if strings.Contains(w.log.String(), secret) {
			t.Errorf("%q is in the log: %s", secret, w.log.String())
		}
	}
}

// Whatever is wrong, a caller who has proved nothing is told the code's own
// sentence and no more.
func TestStrangersLearnNothing(t *testing.T) {
	tests := map[string]func(*attempt){
		"account": func(a *attempt) { a.document["accountId"] = "999999999999" },
		"region": func(a *attempt) {
			a.region = regions()["hm-test-2"]
			a.document["region"], a.document["availabilityZone"] = "hm-test-2", "hm-test-2a"
		},
	}
	var bodies []string
	for name, change := range tests {
		w := newWorld(t)
		a := newAttempt(t, w.now)
		change(a)
		_, _, refused := w.enroll(a)
		if refused.Message != outcomes()[protocol.CodeNotAllowed].message {
			t.Errorf("%s: message %q", name, refused.Message)
		}
		bodies = append(bodies, refused.Message)
	}
	if bodies[0] != bodies[1] {
		t.Errorf("the answers %q tell account from region", bodies)
	}
}

func TestHeaders(t *testing.T) {
	w := newWorld(t)
	w.stsErr = identity.ErrSTSUnavailable
	answer := w.signer.Enroll(t.Context(), newAttempt(t, w.now).build(t))
	if seconds, err := strconv.Atoi(answer.Header["Retry-After"]); err != nil || seconds < 1 {
		t.Errorf("Retry-After %q of an answer to be tried again", answer.Header["Retry-After"])
	}
	answer = w.signer.Enroll(t.Context(), Request{Method: http.MethodPut})
	if answer.Header["Allow"] != http.MethodPost || answer.Header["Retry-After"] != "" {
		t.Errorf("headers %v", answer.Header)
	}
}

func TestClockSkewTellsTheTime(t *testing.T) {
	w := newWorld(t)
	a := newAttempt(t, w.now)
	a.date = w.now.Add(-time.Hour)
	a.payload.IssuedAt = a.date.UTC()
	_, _, refused := w.enroll(a)
	if refused.ServerTime == nil || !refused.ServerTime.Equal(w.now) {
		t.Errorf("server time %v, want %v", refused.ServerTime, w.now)
	}
}

func TestTheEdgeOfTheClockSkewIsFine(t *testing.T) {
	for _, skew := range []time.Duration{-protocol.MaxClockSkew, protocol.MaxClockSkew} {
		w := newWorld(t)
		a := newAttempt(t, w.now)
		a.date = w.now.Add(skew)
		a.payload.IssuedAt = a.date.UTC()
		if status, _, refused := w.enroll(a); status != http.StatusOK {
			t.Errorf("skew %s: %+v", skew, refused)
		}
	}
}

func TestPendingInstancesMayEnroll(t *testing.T) {
	w := newWorld(t)
	w.instance.State = inventory.StatePending
	if status, _, refused := w.enroll(newAttempt(t, w.now)); status != http.StatusOK {
		t.Errorf("%+v", refused)
	}
}

func TestKeyConflictsRaiseAnAlarm(t *testing.T) {
	w := newWorld(t)
	w.hold(testInstance, testHostname, "SHA256:other")
	w.enroll(newAttempt(t, w.now))
	if !strings.Contains(w.log.String(), `"alarm":true`) || !strings.Contains(w.log.String(), `"level":"ERROR"`) {
		t.Errorf("log line %s", w.log.String())
	}
}

func TestEveryCodeHasAnOutcome(t *testing.T) {
	for code, o := range outcomes() {
		if o.status < 400 || o.message == "" {
			t.Errorf("%s: %+v", code, o)
		}
	}
	if answer := refusalAnswer(errors.New("unforeseen"), "1", time.Now()); answer.Status != http.StatusInternalServerError {
		t.Errorf("an unforeseen error is answered with %d", answer.Status)
	}
}

// The deadline leaves time to answer before Lambda kills the process.
func TestDeadlineKeepsAReserve(t *testing.T) {
	end := time.Now().Add(time.Minute)
	parent, cancel := context.WithDeadline(t.Context(), end)
	defer cancel()
	ctx, cancel := withDeadline(parent)
	defer cancel()
	if deadline, _ := ctx.Deadline(); !deadline.Equal(end.Add(-reserve)) {
		t.Errorf("deadline %s, want %s before %s", deadline, reserve, end)
	}
	ctx, cancel = withDeadline(t.Context())
	defer cancel()
	if _, ok := ctx.Deadline(); !ok {
		t.Error("no deadline for a request without one")
	}
}

func newRSA(t *testing.T, bits int) ssh.Signer {
	t.Helper()
	t.Setenv("GODEBUG", "rsa1024min=0")
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return signer
}

// setPolicy replaces the policy with one rule. The limits are wide, so that the
// rule can leave the test's instance out.
func (w *world) setPolicy(rule string) {
	w.t.Helper()
	limits := policy.Limits{
		Accounts:    []string{testAccount, "222222222222"},
		Regions:     []string{testRegion, "hm-test-2"},
		MaxLifetime: policy.LongestLifetime,
	}
	var err error
	if w.signer.Policy, err = policy.Parse([]byte("version: 1\nrules: ["+rule+"]"), limits); err != nil {
		w.t.Fatal(err)
	}
}

// hold lets an instance have a name and a key before the request comes.
func (w *world) hold(instance, hostname, fingerprint string) {
	w.t.Helper()
	_, err := w.ledger.Claim(w.t.Context(), ledger.Claim{
		Instance:     ledger.Instance{Account: testAccount, Region: testRegion, ID: instance},
		Fingerprints: []string{fingerprint}, Hostname: hostname, End: w.now.Add(time.Hour),
	}, w.now)
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) end() {
	w.t.Helper()
	if err := w.ledger.End(w.t.Context(), ledger.Instance{Account: testAccount, Region: testRegion, ID: testInstance}); err != nil {
		w.t.Fatal(err)
	}
}
