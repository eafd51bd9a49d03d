package deployment

import (
	"bytes"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/credentials"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/signer/deployment/deploymenttest"
	"github.com/hallmark-ssh/hallmark/internal/signer/emf/emftest"
	"github.com/hallmark-ssh/hallmark/internal/signer/teleport"
)

const secretARN = "arn:aws:secretsmanager:eu-west-1:111122223333:secret:hallmark/signer-AbCdEf"

func TestSTSHostFIPS(t *testing.T) {
	for region, want := range map[string]string{
		"":              "sts-fips.us-west-2.amazonaws.com",
		"us-east-1":     "sts-fips.us-east-1.amazonaws.com",
		"us-gov-west-1": "sts.us-gov-west-1.amazonaws.com",
		"eu-west-1":     "",
		"cn-north-1":    "",
	} {
		got, err := login{Method: loginIAM, Region: ec2ref.Region(region), FIPS: true}.with(aws.Config{Region: "us-west-2"})
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
		got, err := login{Method: loginIAM, Region: ec2ref.Region(region)}.with(aws.Config{Region: "us-west-2"})
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

func TestFleetLogin(t *testing.T) {
	for name, tt := range map[string]struct {
		login   string
		want    login
		wantErr string
	}{
		"default of iam": {
			"login: {method: iam, token: t, role: r, region: us-east-1, fips: true}",
			login{Method: loginIAM, Token: "hallmark-fleet", Role: "hallmark-fleet", Region: "us-east-1", FIPS: true}, "",
		},
		"its own": {
			"login: {method: iam, token: t, role: r}, fleet_login: {method: iam, token: f, role: g}",
			login{Method: loginIAM, Token: "f", Role: "g"}, "",
		},
		"no default of a secret": {
			"login: {method: identity-secret, secret: \"" + secretARN + "\"}", login{}, "teleport.fleet_login: missing",
		},
		"its own, wrong": {
			"login: {method: iam, token: t, role: r}, fleet_login: {method: iam, token: f}", login{}, "teleport.fleet_login.role: missing",
		},
		"its own, unknown key": {
			"login: {method: iam, token: t, role: r}, fleet_login: {method: iam, token: f, role: g, host_cert: true}", login{}, "host_cert",
		},
	} {
		t.Run(name, func(t *testing.T) {
			var got login
			d, err := parseDeployment([]byte(strings.Replace(deploymenttest.Minimal, "login: {method: identity-file, file: identity.pem}", tt.login, 1)))
			if err == nil {
				got, err = d.fleetLogin()
			}
			if got != tt.want || (err == nil) != (tt.wantErr == "") || err != nil && !strings.Contains(err.Error(), tt.wantErr) {
				t.Errorf("got %+v, error %v", got, err)
			}
		})
	}
	path := deploymenttest.Write(t, map[string]string{
		"deployment.yaml": strings.Replace(deploymenttest.Minimal, "identity.pem}", "identity.pem}, fleet_login: {method: identity-file, file: fleet.pem}", 1),
		"identity.pem":    "",
	})
	if _, err := readDeployment(path); err == nil || !strings.Contains(err.Error(), "teleport.fleet_login.file") {
		t.Errorf("error %v of a file that is missing", err)
	}
}

// The log says how long a login is valid, for logins that somebody has to replace, and not at
// every call.
func TestLoginIsWatched(t *testing.T) {
	log, now := new(bytes.Buffer), time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	watch := &loginWatch{signer: "hallmark.example.com", log: slog.New(slog.NewJSONHandler(log, nil)), now: func() time.Time { return now }}
	end := now.Add(time.Hour)
	for range 3 {
		watch.loggedIn(end)
	}
	var line map[string]any
	if err := json.Unmarshal(log.Bytes(), &line); err != nil { // of one line
		t.Fatal(err)
	}
	emftest.Check(t, line, now)
	if line["login_left_s"] != 3600.0 || line["signer"] != "hallmark.example.com" {
		t.Errorf("line %v", line)
	}
	now = now.Add(loginPause)
	watch.loggedIn(end)
	if n := strings.Count(log.String(), "\n"); n != 2 {
		t.Errorf("%d lines", n)
	}
}
