package enroll

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/json"
	"flag"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/golden"
	"github.com/hallmark-ssh/hallmark/internal/identity"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"github.com/hallmark-ssh/hallmark/internal/signer/emf/emftest"
	"github.com/hallmark-ssh/hallmark/internal/signer/entry"
	"github.com/hallmark-ssh/hallmark/internal/signer/inventory"
	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
	"github.com/hallmark-ssh/hallmark/internal/signer/teleport"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// decode returns attributes as they appear in a line.
func decode(t *testing.T, attrs []slog.Attr) map[string]any {
	t.Helper()
	var b bytes.Buffer
	slog.New(slog.NewJSONHandler(&b, nil)).LogAttrs(t.Context(), slog.LevelInfo, "", attrs...)
	return parse(t, b.Bytes())
}

func parse(t *testing.T, line []byte) map[string]any {
	t.Helper()
	var entry map[string]any
	if err := json.Unmarshal(line, &entry); err != nil {
		t.Fatalf("want one line: %v in %q", err, line)
	}
	return entry
}

func equalJSON(a, b any) bool {
	return bytes.Equal(must(json.Marshal(a)), must(json.Marshal(b)))
}

// keyOf is always the same key.
func keyOf(t *testing.T, seed byte) ssh.Signer {
	t.Helper()
	signer, err := ssh.NewSignerFromSigner(ed25519.NewKeyFromSeed(bytes.Repeat([]byte{seed}, ed25519.SeedSize)))
	if err != nil {
		t.Fatal(err)
	}
	return signer
}

// compare compares one line with a golden file, in which it is indented. The
// policy's hash is scrubbed: these tests are not about the default policy.
func compare(t *testing.T, name string, line []byte) {
	t.Helper()
	if n := bytes.Count(line, []byte("\n")); n != 1 {
		t.Fatalf("%d lines, want one: %s", n, line)
	}
	line = regexp.MustCompile(`"policy_sha256":"[0-9a-f]{64}"`).ReplaceAll(line, []byte(`"policy_sha256":"…"`))
	var got bytes.Buffer
	if err := json.Indent(&got, line, "", "  "); err != nil {
		t.Fatal(err)
	}
	golden.Compare(t, filepath.Join("testdata", name), got.Bytes(), *update)
}

// audited returns a world without randomness, and a request.
func audited(t *testing.T) (*world, *attempt) {
	t.Helper()
	w := newWorld(t)
	w.now = time.Date(2026, 1, 2, 3, 5, 0, 0, time.UTC)
	w.instance.LaunchTime = time.Date(2026, 1, 2, 3, 4, 0, 0, time.UTC)
	w.instance.Subnet = "subnet-1"
	w.instance.InstanceProfileARN = "arn:aws:iam::111122223333:instance-profile/web"
	w.sign = func(c *ssh.Certificate) { c.KeyId = "web.teleport.example.com" }
	a := newAttempt(t, w.now)
	a.keys = []ssh.Signer{keyOf(t, 1), keyOf(t, 2)}
	a.http = func(r *entry.Request) {
		r.Endpoint = testEndpoint
		r.IAM = &entry.IAMCaller{Account: testAccount, ARN: "arn:aws:sts::" + testAccount + ":assumed-role/web/" + testInstance}
	}
	return w, a
}

func TestAuditLineOfAGrantedRequest(t *testing.T) {
	w, a := audited(t)
	w.hold(testInstance, testHostname, "SHA256:other")
	err := w.ledger.Permit(t.Context(), ec2ref.Instance{Account: testAccount, Region: testRegion, ID: testInstance}, ledger.Permit{
		Fingerprint: ssh.FingerprintSHA256(a.keys[1].PublicKey()), ValidUntil: w.now.Add(time.Hour),
		By: "arn:aws:sts::111122223333:assumed-role/operator/on-call",
	})
	if err != nil {
		t.Fatal(err)
	}
	w.instance.Tags["*"] = "everything"
	w.enroll(a)
	compare(t, "granted.json", w.log.Bytes())
	if sum := must(w.signer.Policy(t.Context())).SHA256; parse(t, w.log.Bytes())["policy_sha256"] != sum {
		t.Errorf("another policy than %s", sum)
	}
}

func TestAuditLineOfARefusedRequest(t *testing.T) {
	w, a := audited(t)
	w.hold(testInstance, testHostname, "SHA256:other")
	w.enroll(a)
	compare(t, "refused.json", w.log.Bytes())
}

func TestAuditLineOfALeave(t *testing.T) {
	w, a := audited(t)
	w.claimFor(theInstance(), testHostname, fingerprintOf(a.keys[0]), w.now.Add(time.Hour))
	w.askToLeave("", a)
	compare(t, "left.json", w.log.Bytes())
}

func TestAuditLineOfAnUnprovedCaller(t *testing.T) {
	w, a := audited(t)
	a.http = func(r *entry.Request) { r.Body = []byte("hello") }
	w.enroll(a)
	compare(t, "stranger.json", w.log.Bytes())
}

// The document explains each member of the lines, and nothing else.
func TestAuditLineIsDocumented(t *testing.T) {
	text, err := os.ReadFile("../../../docs/audit.md")
	if err != nil {
		t.Fatal(err)
	}
	text, _, _ = bytes.Cut(text, []byte("\n## The fleet's lines\n"))
	documented := make(map[string]bool)
	for _, row := range regexp.MustCompile("(?m)^\\| (`.*?`) \\|").FindAllStringSubmatch(string(text), -1) {
		for _, name := range regexp.MustCompile("`([a-z0-9_]+)`").FindAllStringSubmatch(row[1], -1) {
			documented[name[1]] = true
		}
	}
	// These do not occur in the golden lines.
	written := map[string]bool{
		"hostname_wanted": true, "held_by_others": true, "skipped_principals": true, "renamed_from": true, "notes": true,
		"released": true, "members_ms": true,
	}
	for _, name := range []string{"granted.json", "refused.json", "stranger.json", "rejected.json", "left.json"} {
		line, err := os.ReadFile(filepath.Join("testdata", name))
		if err != nil {
			t.Fatal(err)
		}
		for key := range parse(t, line) {
			written[key] = true
		}
	}
	if a, b := slices.Sorted(maps.Keys(documented)), slices.Sorted(maps.Keys(written)); !slices.Equal(a, b) {
		t.Errorf("documented: %q\nwritten:    %q", a, b)
	}
}

func TestAuditLineHasTheTimeOfEachStep(t *testing.T) {
	w := newWorld(t)
	callers := w.signer.Callers
	w.signer.Callers = callersFunc(func(ctx context.Context, p protocol.CallerProof, b protocol.Binding, i ec2ref.Instance) error {
		w.now = w.now.Add(40 * time.Millisecond)
		return callers.Verify(ctx, p, b, i)
	})
	w.enroll(newAttempt(t, w.now))
	entry := parse(t, w.log.Bytes())
	want := map[string]float64{
		"sts_ms": 40, "ec2_ms": 0, "record_ms": 0, "connect_ms": 0, "policy_ms": 0, "claim_ms": 0, "lookup_ms": 0,
		"teleport_ms": 0, "confirm_ms": 0, "total_ms": 40,
	}
	for name, took := range want {
		if entry[name] != took {
			t.Errorf("%s is %v, want %v", name, entry[name], took)
		}
	}
}

// A step that did not run has no time: 0 would make the others look fast.
func TestAuditLineHasNoTimeOfStepsThatWereNotTaken(t *testing.T) {
	w := newWorld(t)
	w.ec2Err = context.DeadlineExceeded
	w.enroll(newAttempt(t, w.now))
	entry := parse(t, w.log.Bytes())
	for name, taken := range map[string]bool{"sts_ms": true, "ec2_ms": true, "claim_ms": false, "teleport_ms": false} {
		if _, seen := entry[name]; seen != taken {
			t.Errorf("%s is %v", name, entry[name])
		}
	}
}

type callersFunc func(context.Context, protocol.CallerProof, protocol.Binding, ec2ref.Instance) error

func (f callersFunc) Verify(ctx context.Context, p protocol.CallerProof, b protocol.Binding, i ec2ref.Instance) error {
	return f(ctx, p, b, i)
}

// The log contains what a machine says about itself once the machine has proved itself.
func TestAMachinesRejectionIsLogged(t *testing.T) {
	w, a := audited(t)
	a.payload.Report = &protocol.Report{Rejected: protocol.NewRejection(
		protocol.RejectedNotPresented, "request-0", "sshd presents no such host key\x1b[2J\u202e")}
	w.enroll(a)
	compare(t, "rejected.json", w.log.Bytes())
}

// The ledger keeps the version that the machine reports, for the operator's report.
func TestTheLedgerKeepsTheProgramsVersion(t *testing.T) {
	w := newWorld(t)
	a := newAttempt(t, w.now)
	var claimed []string
	w.onClaim = func(c ledger.Claim) error {
		claimed = append(claimed, c.Program)
		return nil
	}
	for _, report := range []*protocol.Report{nil, {Program: "v1.2.3"}} {
		a.payload.Report = report
		w.enroll(a)
	}
	if !slices.Equal(claimed, []string{"", "v1.2.3"}) {
		t.Errorf("programs %q", claimed)
	}
}

func TestARenameIsLogged(t *testing.T) {
	w := newWorld(t)
	a := newAttempt(t, w.now)
	w.enroll(a)
	if entry := parse(t, w.log.Bytes()); entry["renamed_from"] != nil || entry["enrolled_before"] != false {
		t.Errorf("the first line %v", entry)
	}
	w.log.Reset()
	w.instance.Tags["Name"] = "db"
	w.enroll(a)
	entry := parse(t, w.log.Bytes())
	if entry["hostname"] != "db-"+testInstance || entry["renamed_from"] != testHostname || entry["enrolled_before"] != true {
		t.Errorf("the line of a rename %v", entry)
	}
}

func TestMetrics(t *testing.T) {
	tests := map[string]struct {
		change func(*world, *attempt)
		counts map[string]float64
	}{
		"enrollment": {func(*world, *attempt) {}, map[string]float64{"enrollments": 1}},
		"renewal": {func(w *world, a *attempt) {
			w.enroll(a)
			w.log.Reset()
		}, map[string]float64{"renewals": 1}},
		"refusal": {func(_ *world, a *attempt) {
			a.payload.Audience = "other"
		}, map[string]float64{"refusals": 1}},
		"failure": {func(w *world, _ *attempt) {
			w.ec2Err = context.DeadlineExceeded
		}, map[string]float64{"failures": 1, "ec2_errors": 1}},
		"an instance that EC2 does not know": {func(w *world, _ *attempt) {
			w.ec2Err = inventory.ErrNotFound
		}, map[string]float64{"refusals": 1}},
		"STS does not answer": {func(w *world, _ *attempt) {
			w.stsErr = identity.ErrSTSUnavailable
		}, map[string]float64{"failures": 1, "sts_errors": 1}},
		"STS says no": {func(w *world, _ *attempt) {
			w.stsErr = identity.ErrCallerProof
		}, map[string]float64{"refusals": 1}},
		"the ledger does not answer": {func(w *world, _ *attempt) {
			w.claimErr = context.DeadlineExceeded
		}, map[string]float64{"failures": 1, "ledger_errors": 1}},
		"no login to Teleport": {func(w *world, _ *attempt) {
			w.dialErr = teleport.ErrUnavailable
		}, map[string]float64{"failures": 1, "teleport_errors": 1}},
		"Teleport does not look up": {func(w *world, _ *attempt) {
			w.nodeErr = teleport.ErrUnavailable
		}, map[string]float64{"failures": 1, "teleport_errors": 1}},
		"Teleport does not sign": {func(w *world, _ *attempt) {
			w.signErr = teleport.ErrUnavailable
		}, map[string]float64{"failures": 1, "teleport_errors": 1}},
		"Teleport refuses": {func(w *world, _ *attempt) {
			w.signErr = teleport.ErrDenied
		}, map[string]float64{"failures": 1, "teleport_errors": 1}},
		"key conflict": {func(w *world, _ *attempt) {
			w.hold(testInstance, testHostname, "SHA256:other")
		}, map[string]float64{"refusals": 1, "key_conflicts": 1}},
		"the machine rejected the last answer": {func(_ *world, a *attempt) {
			a.payload.Report = &protocol.Report{Rejected: protocol.NewRejection(protocol.RejectedNotPresented, "request-0", "no")}
		}, map[string]float64{"enrollments": 1, "machine_rejections": 1}},
		"somebody else says so": {func(w *world, a *attempt) {
			w.stsErr = identity.ErrCallerProof
			a.payload.Report = &protocol.Report{Rejected: protocol.NewRejection(protocol.RejectedNotPresented, "request-0", "no")}
		}, map[string]float64{"refusals": 1}},
		"a report that says nothing": {func(_ *world, a *attempt) {
			a.payload.Report = &protocol.Report{}
		}, map[string]float64{"enrollments": 1}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			a := newAttempt(t, w.now)
			tt.change(w, a)
			w.enroll(a)
			entry := parse(t, w.log.Bytes())
			for _, name := range []string{"enrollments", "renewals", "refusals", "failures", "key_conflicts", "machine_rejections", "sts_errors", "ec2_errors", "ledger_errors", "teleport_errors"} {
				if entry[name] != tt.counts[name] {
					t.Errorf("%s: %v, want %v", name, entry[name], tt.counts[name])
				}
			}
			emftest.Check(t, entry, w.now)
		})
	}
}

// A logger with a higher level does not do the work of a line.
func TestALineThatIsNotWanted(t *testing.T) {
	w := newWorld(t)
	w.signer.Log = slog.New(slog.NewJSONHandler(&w.log, &slog.HandlerOptions{Level: slog.LevelError}))
	w.enroll(newAttempt(t, w.now))
	if w.log.Len() != 0 {
		t.Errorf("log %s", w.log.String())
	}
}

func TestLongErrorsAreCut(t *testing.T) {
	long := strings.Repeat("ü", maxLoggedError)
	if got := shorten(long); len(got) > maxLoggedError+len("…") || !strings.HasPrefix(long, strings.TrimSuffix(got, "…")) {
		t.Errorf("%d bytes", len(got))
	}
	if got := shorten("short"); got != "short" {
		t.Errorf("%q", got)
	}
}
