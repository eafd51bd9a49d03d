package signer

import (
	"context"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/identity"
	"github.com/hallmark-ssh/hallmark/internal/policy"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
)

// codeGranted stands in the log where a refusal has its code.
const codeGranted = "granted"

// maxLoggedError bounds what a caller's nonsense can put into the log.
const maxLoggedError = 1 << 10

// audit gathers what the one line about a request says. It has no room for
// secrets: no token, no Authorization, no raw document.
type audit struct {
	now     func() time.Time
	request Request
	start   time.Time

	keys         []string           // fingerprints, claimed until proved is set
	document     *identity.Document // verified
	proved       bool               // the caller is that instance and holds the keys
	policy       string
	decision     policy.Decision
	certificates []*ssh.Certificate
	steps        []slog.Attr
}

// step runs one step under its own deadline and notes how long it took.
func (a *audit) step(ctx context.Context, name string, timeout time.Duration, run func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	start := a.now()
	err := run(ctx)
	a.steps = append(a.steps, slog.Int64(name, a.now().Sub(start).Milliseconds()))
	return err
}

func (a *audit) log(ctx context.Context, log *slog.Logger, status int, err error) {
	level, code := slog.LevelInfo, codeGranted
	if err != nil {
		level, code = slog.LevelWarn, string(codeOf(err))
	}
	if status >= 500 || isAlarm(err) {
		level = slog.LevelError
	}
	attrs := []slog.Attr{
		slog.String("request_id", a.request.ID),
		slog.String("code", code),
		slog.Int("status", status),
		slog.String("source", a.request.Source),
		slog.Bool("proved", a.proved),
	}
	attrs = append(attrs, a.who()...)
	attrs = append(attrs, a.what()...)
	attrs = append(attrs,
		slog.Int64("total_ms", a.now().Sub(a.start).Milliseconds()),
		slog.GroupAttrs("steps_ms", a.steps...))
	if isAlarm(err) {
		attrs = append(attrs, slog.Bool("alarm", true))
	}
	if err != nil {
		attrs = append(attrs, slog.String("error", shorten(err.Error())))
	}
	log.LogAttrs(ctx, level, "enroll", attrs...)
}

func (a *audit) who() []slog.Attr {
	var attrs []slog.Attr
	if len(a.keys) > 0 {
		attrs = append(attrs, slog.Any("host_keys", a.keys))
	}
	if d := a.document; d != nil {
		attrs = append(attrs,
			slog.String("account", d.AccountID),
			slog.String("region", d.Region),
			slog.String("instance", d.InstanceID),
			slog.String("node_id", protocol.NodeID(d.AccountID, d.Region, d.InstanceID)))
	}
	return attrs
}

func (a *audit) what() []slog.Attr {
	if a.policy == "" {
		return nil
	}
	attrs := []slog.Attr{slog.String("policy_sha256", a.policy)}
	if a.decision.Rule == "" {
		return attrs
	}
	attrs = append(attrs,
		slog.String("rule", a.decision.Rule),
		slog.String("hostname", a.decision.Hostname),
		slog.String("address", a.decision.Address),
		slog.Int64("lifetime_s", int64(a.decision.Lifetime.Seconds())))
	if len(a.decision.SkippedTags) > 0 {
		attrs = append(attrs, slog.Any("skipped_tags", a.decision.SkippedTags))
	}
	if len(a.certificates) > 0 {
		attrs = append(attrs, slog.Any("certificate_serials", serials(a.certificates)))
	}
	return attrs
}

// serials are text: JSON's numbers lose the last digits of 64 bits.
func serials(certificates []*ssh.Certificate) []string {
	list := make([]string, len(certificates))
	for i, certificate := range certificates {
		list[i] = strconv.FormatUint(certificate.Serial, 10)
	}
	return list
}

// isAlarm reports whether somebody should look at it now: a key conflict is
// either an image with host keys in it or an attempt to pose as another machine.
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
