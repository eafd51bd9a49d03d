package teleport_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/gravitational/trace"

	"github.com/hallmark-ssh/hallmark/internal/signer/teleport"
	"github.com/hallmark-ssh/hallmark/internal/signer/teleport/teleporttest"
)

// A server with the new join service is not asked for the old one. A server without it is
// asked for the new one once.
func TestJoinService(t *testing.T) {
	for name, tt := range map[string]struct {
		options teleporttest.Options
		hideNew bool // a proxy from before 18 is in front
		calls   map[string]int
	}{
		"13":                       {teleporttest.Options{Generation: teleporttest.Generation13}, false, map[string]int{oldJoin: 2}},
		"19":                       {teleporttest.Options{}, false, map[string]int{newJoin: 2}},
		"19 without the old one":   {teleporttest.Options{NoOldJoin: true}, false, map[string]int{newJoin: 2}},
		"19 without the new one":   {teleporttest.Options{}, true, map[string]int{newJoin: 1, oldJoin: 2}},
		"19 without either of two": {teleporttest.Options{NoOldJoin: true}, true, nil},
	} {
		t.Run(name, func(t *testing.T) {
			j := newJoinable(t, tt.options)
			j.Intercept(func(_ context.Context, method string) error {
				if method == newJoin && tt.hideNew {
					return trace.NotImplemented("unknown service teleport.join.v1.JoinService")
				}
				return nil
			})
			if tt.calls == nil {
				_, err := teleport.Dial(timeout(t, time.Minute), j.config())
				expect(t, err, teleport.ErrDenied, "TELEPORT_UNSTABLE_NO_AGENT_ID_SELECTION")
				return
			}
			client := dial(t, j.config())
			j.clock.advance(45 * time.Minute)
			if err := signOne(t, client); err != nil {
				t.Error(err)
			}
			for _, method := range []string{newJoin, oldJoin} {
				if got := j.Calls()[method]; got != tt.calls[method] {
					t.Errorf("%d calls of %s, want %d", got, method, tt.calls[method])
				}
			}
		})
	}
}

// An updated server may have switched off the old service: then the client finds the new one.
func TestJoinServiceAfterUpdate(t *testing.T) {
	j := newJoinable(t, teleporttest.Options{})
	var updated bool
	j.Intercept(func(_ context.Context, method string) error {
		switch {
		case method == newJoin && !updated:
			return trace.NotImplemented("unknown service teleport.join.v1.JoinService")
		case method == oldJoin && updated:
			return trace.AccessDenied("legacy join service has been disabled in this environment")
		}
		return nil
	})
	client := dial(t, j.config())
	updated = true
	for _, rest := range []time.Duration{45 * time.Minute, time.Minute} {
		j.clock.advance(rest)
		if err := signOne(t, client); err != nil {
			t.Fatal(err)
		}
	}
	if calls := j.Calls(); calls[newJoin] != 2 || calls[oldJoin] != 2 {
		t.Errorf("calls %v, want two of each service", calls)
	}
}

// Only a server without the new service is asked for the old one.
func TestNoOldJoinAfterRefusal(t *testing.T) {
	for _, answer := range []error{
		trace.AccessDenied("token expired or not found"),
		trace.BadParameter("client requested join method iam, provision token only supports method token"),
		trace.LimitExceeded("slow down"),
		trace.ConnectionProblem(nil, "restarting"),
		trace.Errorf("something else"),
	} {
		t.Run(answer.Error(), func(t *testing.T) {
			j := newJoinable(t, teleporttest.Options{})
			j.Intercept(func(_ context.Context, method string) error {
				if method == newJoin {
					return answer
				}
				return nil
			})
			_, err := teleport.Dial(timeout(t, time.Minute), j.config())
			if err == nil || !strings.Contains(err.Error(), answer.Error()) {
				t.Errorf("got %v, want %v in it", err, answer)
			}
			if n := j.Calls()[oldJoin]; n != 0 {
				t.Errorf("%d calls of the old service", n)
			}
		})
	}
}

// A bot of a FIPS cluster joins only through STS's FIPS endpoint.
func TestJoinFIPS(t *testing.T) {
	for name, generation := range generations() {
		t.Run(name, func(t *testing.T) {
			j := newJoinable(t, teleporttest.Options{Generation: generation, FIPS: true})
			_, err := teleport.Dial(timeout(t, time.Minute), j.config())
			expect(t, err, teleport.ErrDenied, "fips: true")

			config, login := j.config(), bot()
			login.STSHost = "sts-fips." + botRegion + ".amazonaws.com"
			config.Login = login
			dial(t, config)
		})
	}
}

// Without AWS credentials the bot gives up, and the server learns nothing more.
func TestJoinGivesUp(t *testing.T) {
	j := newJoinable(t, teleporttest.Options{})
	config, login := j.config(), bot()
	login.Credentials = aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
		return aws.Credentials{}, trace.Errorf("the role cannot be assumed")
	})
	config.Login = login
	_, err := teleport.Dial(timeout(t, time.Minute), config)
	if err == nil || !strings.Contains(err.Error(), "the role cannot be assumed") {
		t.Errorf("got %v", err)
	}
	if got := j.GaveUp(); len(got) != 1 || got[0] != "REASON_CHALLENGE_SOLUTION_FAILED" {
		t.Errorf("the server was told %q", got)
	}
}
