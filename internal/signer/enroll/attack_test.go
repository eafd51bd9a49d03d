package enroll

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"encoding/json"
	"errors"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/identity"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"github.com/hallmark-ssh/hallmark/internal/signer/entry"
	"github.com/hallmark-ssh/hallmark/internal/signer/inventory"
	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
	"github.com/hallmark-ssh/hallmark/internal/signer/policy"
)

// How far a refused request got. A caller who has proved nothing costs no call, or at most one
// to STS.
const (
	untilNothing = ""
	untilSTS     = "sts"
	untilEC2     = "sts ec2"
	untilConnect = "sts ec2 connect"
	untilClaim   = "sts ec2 connect lookup claim"
	// For a known instance that keeps its name, the signer does not ask Teleport.
	untilRenewed = "sts ec2 connect claim"
	untilLookup  = "sts ec2 connect lookup"
	untilIssue   = "sts ec2 connect lookup claim issue"
	untilUndone  = "sts ec2 connect lookup claim issue confirm delete"
)

// attack changes one thing about a good request or about the world.
type attack struct {
	change func(*world, *attempt)
	// code is the refusal's code, or codeGranted: then the attack gains nothing, and check
	// says what was granted instead.
	code protocol.Code
	// calls are all calls that were made.
	calls string
	// check looks at what was granted, or left behind. It may be nil for a refusal.
	check func(t *testing.T, w *world, a *attempt, got protocol.Response)
}

// TestAttacks is the table of attacks on the signer as a whole. Its rows are in groups, in the
// order in which the signer meets them. A row that tries another system's hole names it. Each
// row arrives through each entry.
func TestAttacks(t *testing.T) {
	seen := make(map[string]bool)
	for _, group := range []map[string]attack{
		senderAttacks(), requestAttacks(), reportAttacks(), documentAttacks(), listAttacks(), timeAttacks(), hostKeyAttacks(),
		proofAttacks(), signatureAttacks(), answerAttacks(),
		instanceAttacks(), policyAttacks(), nameAttacks(), hostnameTagAttacks(), principalAttacks(), labelAttacks(),
		ledgerAttacks(), heldNameAttacks(), endingAttacks(), leaveAttacks(), nodeAttacks(), certificateAttacks(), organizationAttacks(),
	} {
		for _, name := range slices.Sorted(maps.Keys(group)) {
			if seen[name] {
				t.Fatalf("two rows are called %q", name)
			}
			seen[name] = true
			for _, kind := range entry.Kinds() {
				row := group[name]
				if other, ok := invokedAttacks()[name]; ok && kind == entry.Invoke {
					row.code, row.calls, row.check = other.code, other.calls, other.check
				}
				t.Run(name+"/"+string(kind), func(t *testing.T) { row.run(t, kind) })
			}
		}
	}
}

// invokedAttacks end differently in a direct invocation, which has neither a source nor an IAM
// caller nor a content type.
func invokedAttacks() map[string]attack {
	return map[string]attack{
		"source in the allow-list":            {code: protocol.CodeNotAllowed, calls: untilNothing},
		"source in the allow-list, as mapped": {code: protocol.CodeNotAllowed, calls: untilNothing},
		"IAM caller without a proof":          {code: protocol.CodeNotAllowed, calls: untilNothing},
		"another content type":                {code: codeGranted, calls: all, check: checkOwnNames},
	}
}

func (row attack) run(t *testing.T, by entry.Kind) {
	w := newWorld(t)
	w.entry = by
	a := newAttempt(t, w.now)
	row.change(w, a)
	status, granted, refused := w.enroll(a)
	if calls := w.upstream(); calls != row.calls {
		t.Errorf("calls %q, want %q", calls, row.calls)
	}
	if row.code == codeGranted {
		if status != http.StatusOK {
			t.Fatalf("status %d, %+v; log: %s", status, refused, w.log.String())
		}
		checkCertificateLines(t, w, a, granted)
	} else {
		checkRefusal(t, w, row.code, status, refused)
	}
	checkNoSecrets(t, w)
	if row.check != nil {
		row.check(t, w, a, granted)
	} else if row.code == codeGranted {
		t.Error("the row does not say what may be granted")
	}
}

func checkRefusal(t *testing.T, w *world, code protocol.Code, status int, refused protocol.Refusal) {
	t.Helper()
	if refused.Code != code {
		t.Errorf("code %q, want %q; log: %s", refused.Code, code, w.log.String())
	}
	if want := outcomes()[code].status; status != want {
		t.Errorf("status %d, want %d", status, want)
	}
	if refused.Message == "" || refused.RequestID != "request-1" {
		t.Errorf("refusal %+v", refused)
	}
	checkLog(t, w, refused.Code)
}

// earlier lets the row's machine enroll before the attack begins.
func (w *world) earlier(a *attempt) entry.Request {
	w.t.Helper()
	request := a.build(w.t)
	if answer := w.signer.Enroll(w.t.Context(), request); answer.Status != http.StatusOK {
		w.t.Fatalf("answer %d %s", answer.Status, answer.Body)
	}
	w.calls = nil
	w.log.Reset()
	return request
}

// pass lets time pass, for the machine as well.
func (w *world) pass(a *attempt, d time.Duration) {
	w.now = w.now.Add(d)
	a.date = w.now
	a.payload.IssuedAt = w.now.UTC()
}

// checkNoSecrets looks for text that must never be in a log.
func checkNoSecrets(t *testing.T, w *world) {
	t.Helper()
	for _, secret := range []string{testSecret, testSecretKey, "proof of", "BEGIN SSH SIGNATURE", "Signature="} {
		if strings.Contains(w.log.String(), secret) {
			t.Errorf("%q is in the log: %s", secret, w.log.String())
		}
	}
}

// checkLog requires one line, with the code.
func checkLog(t *testing.T, w *world, code protocol.Code) {
	t.Helper()
	var entry map[string]any
	if err := json.Unmarshal(w.log.Bytes(), &entry); err != nil {
		t.Fatalf("want one line: %v in %q", err, w.log.String())
	}
	if entry["code"] != string(code) || entry["error"] == nil {
		t.Errorf("log line %v", entry)
	}
}

// Whatever is wrong, a caller who has proved nothing learns only the code's own sentence.
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
	answer = w.signer.Enroll(t.Context(), entry.Request{Method: http.MethodPut})
	if answer.Header["Allow"] != "GET, POST" || answer.Header["Retry-After"] != "" {
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

func newRSA(t testing.TB, bits int) ssh.Signer {
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

// setPolicy replaces the policy with these rules, in YAML. The limits are wide, so a rule can
// exclude the test's instance.
func (w *world) setPolicy(list ...string) {
	w.t.Helper()
	limits := policy.Limits{
		Accounts:    []ec2ref.Account{testAccount, "222222222222"},
		Regions:     []ec2ref.Region{testRegion, "hm-test-2"},
		MaxLifetime: policy.LongestLifetime,
	}
	rules, err := policy.Parse([]byte("version: 1\nrules:\n- "+strings.Join(list, "\n- ")), limits)
	if err != nil {
		w.t.Fatal(err)
	}
	w.signer.Policy = fixed(rules)
}

// otherInstance belongs to somebody else, in the same account.
const otherInstance = "i-0123456789abcdef0"

// hold gives an instance a name and a key before the request comes.
func (w *world) hold(instance, hostname, fingerprint string) {
	w.t.Helper()
	w.claimFor(inTestAccount(instance), hostname, fingerprint, w.now.Add(time.Hour))
}

func (w *world) claimFor(i ec2ref.Instance, hostname, fingerprint string, end time.Time) {
	w.t.Helper()
	_, err := w.ledger.Claim(w.t.Context(), ledger.Claim{
		Instance: i, Fingerprints: []string{fingerprint}, Hostname: hostname, ValidUntil: end,
	}, w.now)
	if err != nil {
		w.t.Fatal(err)
	}
}

func inTestAccount(instance string) ec2ref.Instance {
	return ec2ref.Instance{Account: testAccount, Region: testRegion, ID: ec2ref.InstanceID(instance)}
}

// end off-boards the test's instance.
func (w *world) end() { w.endOf(testInstance) }

func (w *world) endOf(instance string) {
	if err := w.ledger.Retire(w.t.Context(), inTestAccount(instance)); err != nil {
		w.t.Error(err)
	}
}
