package enroll

import (
	"context"
	"errors"
	"log/slog"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/identity"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"github.com/hallmark-ssh/hallmark/internal/signer/entry"
	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
	"github.com/hallmark-ssh/hallmark/internal/signer/node"
	"github.com/hallmark-ssh/hallmark/internal/signer/policy"
)

// These are the logged codes of granted requests.
const (
	codeGranted = "granted"
	codeLeft    = "left"
)

// maxLoggedError bounds how much of a malformed request, or of a policy with many rules,
// reaches the log.
const maxLoggedError = 4 << 10

// audit collects the fields of a request's log line (docs/audit.md). It has no room for
// secrets: no token, no Authorization, no raw document, no tags.
type audit struct {
	now     func() time.Time
	signer  string // its audience
	request entry.Request
	start   time.Time

	keys         []string           // fingerprints, claimed until proved is set
	purpose      protocol.Purpose   // the same
	document     *identity.Document // verified
	proved       bool               // the caller is that instance and holds the keys
	report       *protocol.Report   // the instance's report on itself, once its identity is proved
	facts        *node.Facts        // agree with the document
	record       ledger.Record
	policy       string
	decision     policy.Decision
	heldBy       map[string]string // requested names that other instances hold, with the holders
	released     map[string]string // requested names that were released, with the former holders
	grant        *grant            // the final claim
	certificates []*ssh.Certificate

	mu    sync.Mutex               // steps run concurrently
	steps map[string]time.Duration // how long each took
}

func newAudit(signer string, r entry.Request, now func() time.Time) *audit {
	return &audit{
		now: now, signer: signer, request: r, start: now(),
		heldBy: make(map[string]string), released: make(map[string]string), steps: make(map[string]time.Duration),
	}
}

// step runs one step with its own deadline and records how long it took.
func (a *audit) step(ctx context.Context, name string, timeout time.Duration, run func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	start := a.now()
	err := run(ctx)
	took := a.now().Sub(start)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.steps[name] += took
	return err
}

// noteHolders records which names the instance does not get, and which instances hold
// them.
func (a *audit) noteHolders(err error) {
	inUse, ok := errors.AsType[*ledger.NameInUseError](err)
	if !ok {
		return
	}
	for _, h := range inUse.Held {
		a.heldBy[h.Name] = string(h.Holder.ID)
	}
}

// noteReleased records that a name was taken from an instance that is gone.
func (a *audit) noteReleased(h ledger.HeldName) {
	delete(a.heldBy, h.Name)
	a.released[h.Name] = string(h.Holder.ID)
}

func (a *audit) log(ctx context.Context, log *slog.Logger, status int, err error) {
	level := slog.LevelInfo
	switch {
	case isFailure(status, err) || isAlarm(err):
		level = slog.LevelError
	case err != nil:
		level = slog.LevelWarn
	}
	if !log.Enabled(ctx, level) {
		return
	}
	end := a.now()
	// The line has the same time as the decision.
	record := slog.NewRecord(end, level, "enroll", 0)
	record.AddAttrs(a.line(status, err)...)
	record.AddAttrs(a.metrics(end, status, err)...)
	// If writing the log line fails, there is nowhere to report it.
	_ = log.Handler().Handle(ctx, record)
}

// line returns the line's attributes in order.
func (a *audit) line(status int, err error) []slog.Attr {
	var f fields
	f.add("request_id", a.request.ID)
	f.add("code", a.code(err))
	f.add("status", status)
	f.text("source", a.request.Source)
	f.text("vpc_endpoint", a.request.Endpoint)
	if a.request.IAM != nil {
		f.text("iam_arn", a.request.IAM.ARN)
	}
	f.text("purpose", string(a.purpose))
	f.add("proved", a.proved)
	a.addCaller(&f)
	a.addFacts(&f)
	a.addDecision(&f)
	a.addIssued(&f)
	if isAlarm(err) {
		f.add("alarm", true)
	}
	if err != nil {
		f.text("error", shorten(err.Error()))
	}
	return f
}

func (a *audit) code(err error) string {
	switch {
	case err != nil:
		return string(codeOf(err))
	case a.leaves():
		return codeLeft
	}
	return codeGranted
}

func (a *audit) leaves() bool { return a.purpose == protocol.PurposeLeave }

// addCaller adds the caller and its host keys.
func (a *audit) addCaller(f *fields) {
	f.list("host_keys", a.keys)
	d := a.document
	if d == nil {
		return
	}
	f.add("account", string(d.Instance.Account))
	f.add("region", string(d.Instance.Region))
	f.add("instance", string(d.Instance.ID))
	f.add("node_id", d.Instance.NodeID())
	f.time("pending_time", d.PendingTime)
	if r := a.rejection(); r != nil {
		f.add("machine_rejected", string(r.Code))
		f.text("machine_rejected_request", r.RequestID)
		f.text("machine_rejected_detail", r.Detail)
	}
}

// rejection returns why the instance rejected its last certificates, or nil.
func (a *audit) rejection() *protocol.Rejection {
	if a.report == nil {
		return nil
	}
	return a.report.Rejected
}

// addFacts adds the facts that the policy decided on, except for tags.
func (a *audit) addFacts(f *fields) {
	if a.facts == nil {
		return
	}
	f.time("launch_time", a.facts.LaunchTime)
	f.text("zone", a.facts.Zone)
	f.text("vpc", a.facts.VPC)
	f.text("subnet", a.facts.Subnet)
	f.text("instance_profile", a.facts.InstanceProfile)
	f.text("image", a.facts.Image)
	f.text("image_owner", a.facts.ImageOwner.String())
	f.add("enrolled_before", a.facts.Enrolled)
}

// addDecision adds the policy's decision, and the names in it that other instances hold.
func (a *audit) addDecision(f *fields) {
	f.text("policy_sha256", a.policy)
	d := a.decision
	if d.Rule == "" {
		return
	}
	f.add("rule", d.Rule)
	if a.grant == nil {
		f.add("hostname", d.Hostname)
	} else {
		a.addClaim(f)
	}
	if len(a.heldBy) > 0 {
		f.add("held_by_others", a.heldBy)
	}
	if len(a.released) > 0 {
		f.add("released", a.released)
	}
	f.text("address", d.Address)
	f.add("lifetime_s", int64(d.Lifetime.Seconds()))
	f.list("skipped_tags", d.SkippedTags)
	f.list("notes", d.Notes)
}

// addClaim adds what the ledger granted of the decision.
func (a *audit) addClaim(f *fields) {
	hostname := a.grant.node.Hostname
	f.add("hostname", hostname)
	if hostname != a.decision.Hostname {
		f.add("hostname_wanted", a.decision.Hostname)
	}
	if hostname != a.record.ConfirmedHostname {
		f.text("renamed_from", a.record.ConfirmedHostname)
	}
	f.list("skipped_principals", without(a.decision.Names, a.grant.names))
	f.text("rekey_permitted_by", a.grant.held.PermittedBy)
}

// certificateLine describes one certificate in the line.
type certificateLine struct {
	Fingerprint string `json:"fingerprint"` // of the host key
	// Serial is text: JSON numbers lose the last digits of 64 bits.
	Serial string    `json:"serial"`
	KeyID  string    `json:"key_id"`
	Until  time.Time `json:"valid_until"`
}

// addIssued adds the certificates that the cluster signed. The machine got them only if
// the code is granted.
func (a *audit) addIssued(f *fields) {
	if len(a.certificates) == 0 {
		return
	}
	f.list("principals", a.grant.principals)
	lines := make([]certificateLine, len(a.certificates))
	for i, c := range a.certificates {
		lines[i] = certificateLine{
			Fingerprint: ssh.FingerprintSHA256(c.Key),
			Serial:      strconv.FormatUint(c.Serial, 10),
			KeyID:       c.KeyId,
			// hostcert.Check has bounded it.
			Until: time.Unix(int64(c.ValidBefore), 0).UTC(), //nolint:gosec // see above
		}
	}
	f.add("certificates", lines)
}

// fields are the attributes of a line. Unknown values are left out.
type fields []slog.Attr

func (f *fields) add(key string, value any) { *f = append(*f, slog.Any(key, value)) }

func (f *fields) text(key, value string) {
	if value != "" {
		f.add(key, value)
	}
}

func (f *fields) list(key string, values []string) {
	if len(values) > 0 {
		f.add(key, values)
	}
}

func (f *fields) time(key string, t time.Time) {
	if !t.IsZero() {
		f.add(key, t.UTC())
	}
}

// isAlarm reports whether an operator should look at the error now: a key conflict means
// either that an image contains host keys or that a machine poses as another.
func isAlarm(err error) bool {
	if err == nil {
		return false
	}
	code := codeOf(err)
	return code == protocol.CodeKeyConflict || code == protocol.CodeKeyInUse
}

func shorten(text string) string {
	if len(text) <= maxLoggedError {
		return text
	}
	return strings.ToValidUTF8(text[:maxLoggedError], "") + "…"
}
