package agent

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/hallmark-ssh/hallmark/internal/machine/config"
	"github.com/hallmark-ssh/hallmark/internal/machine/fault"
	"github.com/hallmark-ssh/hallmark/internal/machine/machinetest"
)

const profileFolder = "/latest/meta-data/iam/security-credentials/"

// signed verifies a request as AWS does: by signing it again with the secret that AWS knows.
func signed(t *testing.T, r *http.Request, region string) {
	t.Helper()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		t.Error(err)
		return
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	at, err := time.Parse("20060102T150405Z", r.Header.Get("X-Amz-Date"))
	if err != nil || time.Since(at).Abs() > time.Hour {
		t.Errorf("X-Amz-Date: %q", r.Header.Get("X-Amz-Date"))
	}
	again, err := http.NewRequestWithContext(r.Context(), r.Method, "https://"+r.Host+r.URL.Path, bytes.NewReader(body))
	if err != nil {
		t.Error(err)
		return
	}
	got := r.Header.Get("Authorization")
	_, list, _ := strings.Cut(got, "SignedHeaders=")
	list, _, _ = strings.Cut(list, ",")
	for name := range strings.SplitSeq(list, ";") {
		if name != "host" && name != "content-length" && name != "x-amz-security-token" {
			again.Header.Set(name, r.Header.Get(name))
		}
	}
	digest := sha256.Sum256(body)
	creds := aws.Credentials{AccessKeyID: "ASIAPROFILE", SecretAccessKey: "profile-secret", SessionToken: "profile-token"}
	if err := v4.NewSigner().SignHTTP(r.Context(), creds, again, hex.EncodeToString(digest[:]), "lambda", region, at); err != nil {
		t.Error(err)
		return
	}
	if want := again.Header.Get("Authorization"); got != want {
		t.Errorf("Authorization\n%s\nwant\n%s", got, want)
	}
	if !strings.Contains(got, "/"+region+"/lambda/aws4_request") || r.Header.Get("X-Amz-Security-Token") != "profile-token" {
		t.Errorf("scope of %q, token %q", got, r.Header.Get("X-Amz-Security-Token"))
	}
}

func TestSignerAuthIAM(t *testing.T) {
	m := newMachine(t)
	m.imds.pages[profileFolder] = "web-role"
	m.imds.pages[profileFolder+"web-role"] = `{"Code":"Success","AccessKeyId":"ASIAPROFILE","SecretAccessKey":"profile-secret","Token":"profile-token"}`
	m.signer.Auth = config.AuthIAM
	m.answerInstead = func(_ http.ResponseWriter, r *http.Request, _ int) bool {
		signed(t, m.last, testRegion)
		return r == nil
	}
	if _, err := m.Enroll(t.Context()); err != nil {
		t.Fatal(err)
	}
	m.get = func(w http.ResponseWriter, r *http.Request) { signed(t, r, testRegion); m.serveCAs(w, r) }
	now := time.Now().Add(20 * time.Minute)
	m.now = func() time.Time { return now }
	m.renew()
	if m.gets != 1 {
		t.Errorf("%d GETs, want 1", m.gets)
	}
}

func TestSignerAuthNone(t *testing.T) {
	for _, auth := range []string{"", config.AuthNone} {
		m := newMachine(t)
		m.signer.Auth = auth
		if _, err := m.Enroll(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := m.last.Header.Get("Authorization"); got != "" {
			t.Errorf("%q: Authorization %q", auth, got)
		}
	}
}

func TestSignerAuthIAMGoesWrong(t *testing.T) {
	for _, test := range []struct {
		name    string
		pages   map[string]string
		status  int
		kind    fault.Kind
		message string
		hint    string
	}{
		{"no profile", nil, 0, fault.Misconfigured, "no instance profile", "lambda:InvokeFunctionUrl"},
		{"a path for a role", map[string]string{profileFolder: "../../user-data"}, 0, fault.Failed, "is not a role name", ""},
		{"credentials not ready", map[string]string{profileFolder: "r", profileFolder + "r": `{"Code":"Failed"}`}, 0, fault.Temporary, "instance profile's credentials have code", ""},
		{"credentials unreadable", map[string]string{profileFolder: "r", profileFolder + "r": `<`}, 0, fault.Failed, "cannot be read", ""},
		{"not permitted", map[string]string{
			profileFolder: "r", profileFolder + "r": `{"Code":"Success","AccessKeyId":"A","SecretAccessKey":"top-secret","Token":"T"}`,
		}, http.StatusForbidden, fault.Refused, "403 Forbidden", "lambda:InvokeFunctionUrl"},
	} {
		t.Run(test.name, func(t *testing.T) {
			m := newMachine(t)
			m.signer.Auth = config.AuthIAM
			for page, content := range test.pages {
				m.imds.pages[page] = content
			}
			m.answerInstead = func(w http.ResponseWriter, _ *http.Request, _ int) bool {
				w.WriteHeader(test.status)
				_, _ = w.Write([]byte(`{"Message":"Forbidden"}`))
				return true
			}
			_, err := m.Enroll(t.Context())
			machinetest.WantError(t, err, test.kind, test.message, test.hint)
			if strings.Contains(err.Error(), "top-secret") {
				t.Errorf("a secret in %q", err)
			}
			if asked := len(m.requests) > 0; asked != (test.status != 0) {
				t.Errorf("asked the signer: %v", asked)
			}
		})
	}
}
