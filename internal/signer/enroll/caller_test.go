package enroll

import (
	"net/http"
	"net/netip"
	"testing"

	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"github.com/hallmark-ssh/hallmark/internal/signer/entry"
)

func TestSources(t *testing.T) {
	tests := []struct {
		source  string
		allowed bool
	}{
		{"192.0.2.1", true},
		{"::ffff:192.0.2.1", true},
		{"2001:db8::7", true},
		{"192.0.3.1", false},
		{"2001:db9::7", false},
		{"", false},
		{"192.0.2.1, 10.0.0.1", false},
		{"192.0.2.1:443", false},
		{"2001:db8::7%eth0", false},
	}
	for _, tt := range tests {
		t.Run(tt.source, func(t *testing.T) {
			w := newWorld(t)
			w.signer.Sources = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24"), netip.MustParsePrefix("2001:db8::/32")}
			a := newAttempt(t, w.now)
			a.http = func(r *entry.Request) { r.Source = tt.source }
			status, _, refused := w.enroll(a)
			if (status == http.StatusOK) != tt.allowed {
				t.Errorf("status %d, %+v", status, refused)
			}
			if !tt.allowed && (refused.Code != protocol.CodeNotAllowed || w.upstream() != untilNothing) {
				t.Errorf("code %q after calls %q", refused.Code, w.upstream())
			}
		})
	}
}

// The signer reads nothing of a request before it has checked the source: the content must not
// change the answer.
func TestTheSourceIsCheckedFirst(t *testing.T) {
	w := newWorld(t)
	w.signer.Sources = []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24")}
	for _, r := range []entry.Request{
		{Source: "192.0.2.1", Method: http.MethodGet},
		{Source: "192.0.2.1", Method: http.MethodPost, ContentType: "application/json", Body: []byte("{")},
		{Source: "192.0.2.1", Method: http.MethodPost, Body: make([]byte, protocol.MaxRequestBytes+1)},
	} {
		if answer := w.signer.Enroll(t.Context(), r); answer.Status != outcomes()[protocol.CodeNotAllowed].status {
			t.Errorf("%s with %d bytes: status %d", r.Method, len(r.Body), answer.Status)
		}
	}
}

func TestIAMCaller(t *testing.T) {
	const role = "arn:aws:sts::" + testAccount + ":assumed-role/web/"
	tests := map[string]struct {
		required bool
		caller   *entry.IAMCaller
		allowed  bool
	}{
		"none, and none required":          {false, nil, true},
		"none, but required":               {true, nil, false},
		"the instance's own profile":       {true, &entry.IAMCaller{Account: testAccount, ARN: role + testInstance}, true},
		"the profile of another instance":  {true, &entry.IAMCaller{Account: testAccount, ARN: role + "i-0123456789abcdef0"}, false},
		"even if none is required":         {false, &entry.IAMCaller{Account: testAccount, ARN: role + "i-0123456789abcdef0"}, false},
		"a session of another kind":        {true, &entry.IAMCaller{Account: testAccount, ARN: role + "deploy"}, true},
		"a user":                           {true, &entry.IAMCaller{Account: testAccount, ARN: "arn:aws:iam::" + testAccount + ":user/i-am-a-user"}, true},
		"another account":                  {true, &entry.IAMCaller{Account: "999999999999", ARN: "arn:aws:sts::999999999999:assumed-role/web/" + testInstance}, false},
		"an account other than the ARN's":  {true, &entry.IAMCaller{Account: testAccount, ARN: "arn:aws:sts::999999999999:assumed-role/web/" + testInstance}, false},
		"an account unlike the ARN's":      {true, &entry.IAMCaller{Account: "999999999999", ARN: role + testInstance}, false},
		"no ARN":                           {true, &entry.IAMCaller{Account: testAccount, ARN: ""}, false},
		"an instance id with more to it":   {true, &entry.IAMCaller{Account: testAccount, ARN: role + testInstance + "0"}, false},
		"a role with a path in its ARN":    {true, &entry.IAMCaller{Account: testAccount, ARN: "arn:aws:sts::" + testAccount + ":assumed-role/a/b/i-0123456789abcdef0"}, false},
		"the GovCloud partition's session": {true, &entry.IAMCaller{Account: testAccount, ARN: "arn:aws-us-gov:sts::" + testAccount + ":assumed-role/web/i-0123456789abcdef0"}, false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.signer.RequireIAM = tt.required
			a := newAttempt(t, w.now)
			a.http = func(r *entry.Request) { r.IAM = tt.caller }
			status, _, refused := w.enroll(a)
			if (status == http.StatusOK) != tt.allowed {
				t.Errorf("status %d, %+v, log %s", status, refused, w.log.String())
			}
			if !tt.allowed && (refused.Code != protocol.CodeNotAllowed || w.upstream() != untilNothing) {
				t.Errorf("code %q after calls %q", refused.Code, w.upstream())
			}
		})
	}
}
