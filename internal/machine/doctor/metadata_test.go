package doctor

import (
	"strings"
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/machine/imds"
	"github.com/hallmark-ssh/hallmark/internal/machine/state"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
)

// Each row is what the signer said about this instance, or another.
func TestMetadataOptions(t *testing.T) {
	const (
		modify   = "aws ec2 modify-instance-metadata-options --http-endpoint enabled "
		describe = "aws ec2 describe-instances "
		read     = "2026-03-01T12:00:00Z"
		again    = "2026-03-03T20:00:00Z"
	)
	enrolled := func(id imds.Instance, o protocol.MetadataOptions) *state.State {
		return &state.State{
			Instance: id, MetadataOptions: o,
			EnrolledAt: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC), RenewAfter: time.Date(2026, 3, 3, 20, 0, 0, 0, time.UTC),
		}
	}
	this, other := imds.Instance{InstanceID: "i-0123456789abcdef0"}, imds.Instance{InstanceID: "i-1"}
	for name, tt := range map[string]struct {
		state    *state.State
		hop      Level
		says     string // of the hop limit
		command  string
		tokens   Level  // empty without a finding
		requires string // the command of the finding about tokens
	}{
		"not enrolled":       {nil, OK, "cannot see", describe, "", ""},
		"an older signer":    {enrolled(this, protocol.MetadataOptions{}), OK, "cannot see", describe, "", ""},
		"another's state":    {enrolled(other, protocol.MetadataOptions{HTTPTokens: protocol.TokensOptional, HopLimit: 2}), OK, "cannot see", describe, "", ""},
		"as recommended":     {enrolled(this, protocol.MetadataOptions{HTTPTokens: protocol.TokensRequired, HopLimit: 1}), OK, "is 1, as EC2 said at " + read, "", OK, ""},
		"a limit of 2":       {enrolled(this, protocol.MetadataOptions{HTTPTokens: protocol.TokensRequired, HopLimit: 2}), Warning, "is 2, as EC2 said at " + read, modify + "--http-put-response-hop-limit 1 --http-tokens required ", OK, ""},
		"a limit of 64":      {enrolled(this, protocol.MetadataOptions{HopLimit: 64}), Warning, "is 64, as EC2 said at " + read, modify + "--http-put-response-hop-limit 1 --instance-id ", "", ""},
		"without tokens":     {enrolled(this, protocol.MetadataOptions{HTTPTokens: protocol.TokensOptional, HopLimit: 1}), OK, "is 1, ", "", Warning, modify + "--http-tokens required "},
		"both":               {enrolled(this, protocol.MetadataOptions{HTTPTokens: protocol.TokensOptional, HopLimit: 2}), Warning, "is 2, ", modify + "--http-put-response-hop-limit 1 --instance-id ", Warning, modify + "--http-tokens required "},
		"tokens alone known": {enrolled(this, protocol.MetadataOptions{HTTPTokens: protocol.TokensOptional}), OK, "cannot see", describe, Warning, modify + "--http-tokens required "},
	} {
		t.Run(name, func(t *testing.T) {
			f := &Facts{State: tt.state, Remote: &Remote{Instance: this}}
			hop := checkHopLimit(f)
			if len(hop) != 1 || hop[0].Check != "hop limit" || hop[0].Level != tt.hop || !strings.Contains(hop[0].Text, tt.says) {
				t.Fatalf("hop limit %+v, want %s: %s", hop, tt.hop, tt.says)
			}
			checkAdvice(t, hop[0], tt.command, again)
			tokens := checkTokens(f)
			if tt.tokens == "" {
				if len(tokens) > 0 {
					t.Errorf("session tokens %+v, want no finding", tokens)
				}
				return
			}
			if len(tokens) != 1 || tokens[0].Check != "session tokens" || tokens[0].Level != tt.tokens || !strings.Contains(tokens[0].Text, "as EC2 said at "+read) {
				t.Fatalf("session tokens %+v, want %s", tokens, tt.tokens)
			}
			checkAdvice(t, tokens[0], tt.requires, again)
		})
	}
}

// checkAdvice checks a finding's command, which is not for this machine. A warning says when
// the options are read again.
func checkAdvice(t *testing.T, f Finding, command, again string) {
	t.Helper()
	if command == "" {
		if f.Command != "" {
			t.Errorf("%+v, want no command", f)
		}
		return
	}
	if !f.Elsewhere || !strings.HasPrefix(f.Command, command) || !strings.HasSuffix(f.Command, " i-0123456789abcdef0") {
		t.Errorf("%+v, want a command %s… for a workstation", f, command)
	}
	if f.Level == Warning && !strings.Contains(f.Fix, again) {
		t.Errorf("%+v, want the time of the next reading, %s", f, again)
	}
}

// The options keep nobody out, so everything else that is wrong comes first.
func TestMetadataOptionsComeLast(t *testing.T) {
	w := newWorld(t)
	w.configure("")
	f := w.Examine(t.Context())
	f.State = &state.State{Instance: f.Remote.Instance, MetadataOptions: protocol.NewMetadataOptions(protocol.TokensOptional, 2), Waiting: &state.Waiting{
		Since: f.Now, AccessEnds: f.Now.Add(time.Hour), Reason: "port 2222",
	}}
	f.Remote.SELinux, f.Remote.Labels = true, []string{"/etc/ssh/x"}
	var warnings []string
	for _, found := range Full(f) {
		if found.Level == Warning {
			warnings = append(warnings, found.Check)
		}
	}
	if got := strings.Join(warnings, ", "); !strings.HasSuffix(got, "SELinux, hop limit, session tokens") {
		t.Errorf("warnings %s", got)
	}
}
