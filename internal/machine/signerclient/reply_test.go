package signerclient

import (
	"errors"
	"fmt"
	"testing"
	"time"
)

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for value, want := range map[string]time.Duration{
		"": 0, "0": 0, "12": 12 * time.Second, "-3": 0, "soon": 0, "99999999999999999999": 0,
		"Sun, 01 Mar 2026 12:00:30 GMT": 30 * time.Second,
		"Sun, 01 Mar 2026 11:00:00 GMT": 0,
	} {
		if got := retryAfter(value, now); got != want {
			t.Errorf("retryAfter(%q) = %s, want %s", value, got, want)
		}
	}
}

func TestScope(t *testing.T) {
	for host, want := range map[string]scope{
		"abc123.lambda-url.eu-west-1.on.aws":                                    {"lambda", "eu-west-1"},
		"abc123.execute-api.eu-west-1.amazonaws.com":                            {"execute-api", "eu-west-1"},
		"abc123-vpce-0a1b2c3d4e5f60718.execute-api.us-west-2.amazonaws.com":     {"execute-api", "us-west-2"},
		"abc123-vpce-0a1b2c3d4e5f60718.execute-api.cn-north-1.amazonaws.com.cn": {"execute-api", "cn-north-1"},
		"signer.example.com":              {"lambda", "own"},
		"127.0.0.1":                       {"lambda", "own"},
		"a.lambda-url":                    {"lambda", "own"},
		"a.b.lambda-url.eu-west-1.on.aws": {"lambda", "own"},
	} {
		if got := scopeOf(host, "own"); got != want {
			t.Errorf("%s: %v, want %v", host, got, want)
		}
	}
}

// A machine never falls back twice, whatever a signer answers.
func TestOlderVersion(t *testing.T) {
	refusal := func(versions ...int) error { return fmt.Errorf("ask: %w", &versionError{asked: 2, signers: versions}) }
	for _, test := range []struct {
		err   error
		asked int
		want  int
	}{
		{refusal(1), 2, 1},
		{refusal(), 2, 1},
		{refusal(1), 1, 0},
		{refusal(), 1, 0},
		{refusal(0, -1), 2, 0},
		{refusal(2, 3), 2, 0},
		{errors.New("no"), 2, 0},
		{nil, 2, 0},
	} {
		if got := olderVersion(test.err, test.asked); got != test.want {
			t.Errorf("%v, asked in %d: %d, want %d", test.err, test.asked, got, test.want)
		}
	}
}
