package main

import (
	"log/slog"
	"net/http"
	"strings"
	"testing"

	"github.com/hallmark-ssh/hallmark/e2e/fake/sts"
	"github.com/hallmark-ssh/hallmark/internal/signer/deployment"
	"github.com/hallmark-ssh/hallmark/internal/signer/entry"
	"github.com/hallmark-ssh/hallmark/internal/signer/teleport/teleporttest"
)

// This is the whole signer, logged in as a bot with the function's own credentials, to each
// generation of Teleport.
func TestEnrollAsBot(t *testing.T) {
	for name, tt := range map[string]struct {
		generation teleporttest.Generation
		want       map[string]int // calls
	}{
		"13": {teleporttest.Generation13, map[string]int{"RegisterUsingIAMMethod": 1, "/v2/ca/host/certs": 2}},
		"19": {teleporttest.Generation19, map[string]int{"Join": 1, "GenerateHostCert": 2}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorldWithBot(t, tt.generation)
			w.deploy("method: iam, token: hallmark-enroll, role: hallmark-enroll, region: us-west-2")
			for range 2 {
				if status, body := w.post(testAudience); status != http.StatusOK {
					t.Fatalf("status %d, %s; log: %s", status, body, w.log)
				}
			}
			calls := w.cluster.Calls()
			for method, want := range tt.want {
				if calls[method] != want {
					t.Errorf("%d calls of %s, want %d; all: %v", calls[method], method, want, calls)
				}
			}
		})
	}
}

func newWorldWithBot(t *testing.T, generation teleporttest.Generation) *world {
	t.Helper()
	const functionARN = "arn:aws:sts::111122223333:assumed-role/hallmark-EnrollRole/enroll"
	functionSTS := sts.New(sts.Options{Region: "us-west-2"})
	functionSTS.Register(sts.Credential{
		AccessKeyID: "ASIAFUNCTIONFUNCTION", SecretAccessKey: "function", SessionToken: "function-token", ARN: functionARN,
	})
	w := newWorldOn(t, teleporttest.Options{STS: functionSTS, Generation: generation})
	w.cluster.AddBot(teleporttest.Bot{
		Name: "hallmark-enroll", Token: "hallmark-enroll", AWSARN: strings.Replace(functionARN, "/enroll", "/*", 1), Roles: []string{"hallmark-enroll"},
	})
	for name, value := range map[string]string{
		"AWS_ACCESS_KEY_ID": "ASIAFUNCTIONFUNCTION", "AWS_SECRET_ACCESS_KEY": "function", "AWS_SESSION_TOKEN": "function-token",
	} {
		t.Setenv(name, value)
	}
	return w
}

// A login that cannot work gives an answer, and a line in the log that says what to change.
// The signer still starts.
func TestLoginFailsInTheOpen(t *testing.T) {
	w := newWorldOn(t, teleporttest.Options{STS: sts.New(sts.Options{Region: "us-west-2"})})
	w.deploy("method: iam, token: hallmark-enroll, role: hallmark-enroll, region: us-west-2")
	status, body := w.post(testAudience)
	if status != http.StatusForbidden || !strings.Contains(body, "teleport_refused") || strings.Contains(body, "token") {
		t.Errorf("status %d, %s", status, body)
	}
	if !strings.Contains(w.log.String(), "teleport.login.token") {
		t.Errorf("log %s", w.log)
	}
}

// deploy starts the signer again with another login.
func (w *world) deploy(login string) {
	w.t.Helper()
	w.t.Setenv("HALLMARK_DEPLOYMENT", w.writeDeployment(login))
	s, _, err := deployment.NewSigner(w.t.Context(), slog.New(slog.NewJSONHandler(w.log, nil)))
	if err != nil {
		w.t.Fatal(err)
	}
	w.handler = handler{entry.URL, s.Enroll, s.Log}
}
