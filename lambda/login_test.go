package main

import (
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"

	"github.com/hallmark-ssh/hallmark/e2e/fake/sts"
	"github.com/hallmark-ssh/hallmark/internal/signer/teleport"
	"github.com/hallmark-ssh/hallmark/internal/signer/teleport/teleporttest"
)

const secretARN = "arn:aws:secretsmanager:eu-west-1:111122223333:secret:hallmark/signer-AbCdEf"

// The whole signer, logged in as a bot by the function's own credentials, at either
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

func TestSTSHostFIPS(t *testing.T) {
	for region, want := range map[string]string{
		"":              "sts-fips.us-west-2.amazonaws.com",
		"us-east-1":     "sts-fips.us-east-1.amazonaws.com",
		"us-gov-west-1": "sts.us-gov-west-1.amazonaws.com",
		"eu-west-1":     "",
		"cn-north-1":    "",
	} {
		got, err := login{Method: loginIAM, Region: region, FIPS: true}.with(aws.Config{Region: "us-west-2"})
		if want == "" {
			if err == nil || !strings.Contains(err.Error(), "fips: STS has no FIPS endpoint in "+region) {
				t.Errorf("region %q: %+v, error %v", region, got, err)
			}
			continue
		}
		if err != nil || got.(teleport.Bot).STSHost != want {
			t.Errorf("region %q: %+v, error %v", region, got, err)
		}
	}
	// The function's own region may be the one without.
	if _, err := (login{Method: loginIAM, FIPS: true}).with(aws.Config{Region: "eu-west-1"}); err == nil {
		t.Error("the function's region has no FIPS endpoint: accepted")
	}
}

func TestSTSHost(t *testing.T) {
	for region, want := range map[string]string{
		"":           "sts.us-west-2.amazonaws.com",
		"eu-west-1":  "sts.eu-west-1.amazonaws.com",
		"cn-north-1": "sts.cn-north-1.amazonaws.com.cn",
	} {
		got, err := login{Method: loginIAM, Region: region}.with(aws.Config{Region: "us-west-2"})
		if err != nil || got.(teleport.Bot).STSHost != want {
			t.Errorf("region %q: %+v, error %v", region, got, err)
		}
	}
	if _, err := (login{Method: loginIAM}).with(aws.Config{}); err == nil {
		t.Error("no region at all: accepted")
	}
}

func TestReadSecret(t *testing.T) {
	for name, tt := range map[string]struct {
		status       int
		answer, want string
		wantErr      string
	}{
		"text":      {200, `{"SecretString": "a\nb"}`, "a\nb", ""},
		"binary":    {200, `{"SecretBinary": "YQpi"}`, "a\nb", ""},
		"denied":    {400, `{"__type": "AccessDeniedException", "Message": "not authorized"}`, "", "AccessDeniedException: not authorized; the function's role"},
		"not found": {400, `{"__type": "ResourceNotFoundException", "message": "can't find it"}`, "", "can't find it"},
		"no JSON":   {502, `<html>`, "", "502"},
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				body, _ := io.ReadAll(r.Body)
				if string(body) != `{"SecretId":"`+secretARN+`"}` || r.Header.Get("X-Amz-Target") != "secretsmanager.GetSecretValue" ||
					!strings.Contains(r.Header.Get("Authorization"), "/eu-west-1/secretsmanager/aws4_request") {
					t.Errorf("request %s, headers %v", body, r.Header)
				}
				w.WriteHeader(tt.status)
				_, _ = io.WriteString(w, tt.answer)
			}))
			defer server.Close()
			t.Setenv("AWS_ENDPOINT_URL_SECRETS_MANAGER", server.URL)
			cfg, err := config.LoadDefaultConfig(t.Context(), config.WithRegion("us-west-2"), config.WithRetryMaxAttempts(1),
				config.WithCredentialsProvider(credentials.NewStaticCredentialsProvider("ASIATESTTESTTESTTEST", "secret", "token")))
			if err != nil {
				t.Fatal(err)
			}
			got, err := readSecret(t.Context(), cfg, secretARN)
			if tt.wantErr != "" {
				if err == nil || !strings.Contains(err.Error(), tt.wantErr) {
					t.Errorf("got %v, want %q in it", err, tt.wantErr)
				}
				return
			}
			if err != nil || string(got) != tt.want {
				t.Errorf("got %q, error %v", got, err)
			}
		})
	}
}

// A login that cannot work is an answer and a line in the log that says what to
// change, not a signer that does not start.
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
	s, err := build(w.t.Context(), slog.New(slog.NewJSONHandler(w.log, nil)))
	if err != nil {
		w.t.Fatal(err)
	}
	w.handler = handler{s.Enroll, s.Log}
}
