package live

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
)

// answer is what SSM answers to one request.
type answer struct {
	status int
	body   string
}

func found(text string) answer {
	encoded, err := json.Marshal(map[string]any{"Parameter": map[string]string{"Name": "/hallmark/policy", "Value": text}})
	if err != nil {
		panic(err)
	}
	return answer{http.StatusOK, string(encoded)}
}

// serve answers requests one after the other, repeating the last answer. It returns the
// parameter at that server and the number of requests so far.
func serve(t *testing.T, answers ...answer) (Parameter, *int) {
	t.Helper()
	asked := new(int)
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil || string(body) != `{"Name":"/hallmark/policy","WithDecryption":true}` {
			t.Errorf("body %s, error %v", body, err)
		}
		if r.Header.Get("X-Amz-Target") != "AmazonSSM.GetParameter" || r.Header.Get("Content-Type") != "application/x-amz-json-1.1" {
			t.Errorf("headers %v", r.Header)
		}
		if !strings.Contains(r.Header.Get("Authorization"), "Credential=AKIATEST/20260102/us-west-2/ssm/aws4_request") {
			t.Errorf("authorization %q", r.Header.Get("Authorization"))
		}
		a := answers[min(*asked, len(answers)-1)]
		*asked++
		w.WriteHeader(a.status)
		_, _ = io.WriteString(w, a.body)
	}))
	t.Cleanup(server.Close)
	return Parameter{
		AWS: aws.Config{
			Region: "us-west-2", HTTPClient: server.Client(),
			Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
				return aws.Credentials{AccessKeyID: "AKIATEST", SecretAccessKey: "secret"}, nil
			}),
		},
		Endpoint: server.URL, Name: "/hallmark/policy",
		Now: func() time.Time { return time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC) },
	}, asked
}

func TestParameter(t *testing.T) {
	busy := answer{http.StatusServiceUnavailable, "<html>"}
	throttled := answer{http.StatusBadRequest, `{"__type":"ThrottlingException","message":"Rate exceeded"}`}
	missing := answer{http.StatusBadRequest, `{"__type":"ParameterNotFound"}`}
	tests := map[string]struct {
		answers []answer
		asked   int
		want    string // of the error
	}{
		"good":        {[]answer{found(good)}, 1, ""},
		"busy once":   {[]answer{busy, found(good)}, 2, ""},
		"throttled":   {[]answer{throttled, throttled, found(good)}, 3, ""},
		"always busy": {[]answer{busy}, 3, "get parameter /hallmark/policy: SSM is busy"},
		"missing":     {[]answer{missing}, 1, "HTTP status 400: ParameterNotFound"},
		"not JSON":    {[]answer{{http.StatusOK, "<html>swordfish"}}, 1, "not JSON"},
		"no value":    {[]answer{{http.StatusOK, `{"Parameter":{"Name":"/hallmark/policy"}}`}}, 1, "empty"},

		"no parameter":             {[]answer{{http.StatusOK, "{}"}}, 1, "no parameter"},
		"an error with status 200": {[]answer{{http.StatusOK, `{"__type":"AccessDenied","Parameter":{"Value":"swordfish"}}`}}, 1, "AccessDenied"},
		"a block page":             {[]answer{{http.StatusForbidden, "<html>swordfish"}}, 1, "HTTP status 403"},
		"another parameter":        {[]answer{{http.StatusOK, `{"Parameter":{"Name":"/other","Value":"swordfish"}}`}}, 1, "another parameter"},
		"two values":               {[]answer{{http.StatusOK, `{"Parameter":{"Value":"swordfish","Value":"b"}}`}}, 1, "no parameter"},
		"two parameters":           {[]answer{{http.StatusOK, `{"Parameter":{"Value":"a"},"Parameter":{"Value":"swordfish"}}`}}, 1, "not JSON"},
		"another case":             {[]answer{{http.StatusOK, `{"parameter":{"value":"swordfish"}}`}}, 1, "no parameter"},
		"another form":             {[]answer{{http.StatusOK, `{"Parameter":["swordfish"]}`}}, 1, "no parameter"},
		"a value of another type":  {[]answer{{http.StatusOK, `{"Parameter":{"Value":["swordfish"]}}`}}, 1, "empty"},
		"two answers":              {[]answer{{http.StatusOK, found(good).body + found("swordfish").body}}, 1, "not JSON"},
		"cut short":                {[]answer{{http.StatusOK, `{"Parameter":{"Value":"swordfish"`}}, 1, "not JSON"},
		"too long":                 {[]answer{found(strings.Repeat("x", maxTextBytes+1))}, 1, "more than"},
		"huge":                     {[]answer{found(strings.Repeat("x", maxAnswerBytes))}, 1, "more than"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			p, asked := serve(t, tt.answers...)
			text, err := p.Fetch(t.Context())
			if *asked != tt.asked {
				t.Errorf("asked %d times, want %d", *asked, tt.asked)
			}
			if tt.want == "" {
				if err != nil || string(text) != good {
					t.Errorf("text %q, error %v", text, err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "swordfish") {
				t.Errorf("error %v; want %q", err, tt.want)
			}
		})
	}
}

func TestParameterNames(t *testing.T) {
	const arn = "arn:aws:ssm:us-west-2:111122223333:parameter/hallmark/policy"
	for asked, want := range map[string]bool{
		"/hallmark/policy": true, "/hallmark/policy:3": true, "/hallmark/policy:prod": true, arn: true, arn + ":3": true,
		"/hallmark/policy2": false, "/hallmark": false, "/hallmark/": false, strings.Replace(arn, "1111", "9999", 1): false,
	} {
		p := Parameter{Name: asked}
		if got := p.isNamed("/hallmark/policy", arn); got != want {
			t.Errorf("an answer about %q: %v", asked, got)
		}
	}
}

func TestARedirectIsNoAnswerOfSSM(t *testing.T) {
	p, _ := serve(t, found(good))
	there := p.Endpoint
	elsewhere := httptest.NewServer(http.RedirectHandler(there, http.StatusTemporaryRedirect))
	t.Cleanup(elsewhere.Close)
	p.Endpoint = elsewhere.URL
	if text, err := p.Fetch(t.Context()); err == nil || !strings.Contains(err.Error(), "redirect") {
		t.Errorf("text %q, error %v", text, err)
	}
}

func TestParameterWithoutCredentials(t *testing.T) {
	p, asked := serve(t, found(good))
	p.AWS.Credentials = aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
		return aws.Credentials{}, fmt.Errorf("no role")
	})
	if _, err := p.Fetch(t.Context()); err == nil || !strings.Contains(err.Error(), "no role") || *asked != 0 {
		t.Errorf("error %v after %d requests", err, *asked)
	}
}

func TestParameterEndsWithItsContext(t *testing.T) {
	p, asked := serve(t, answer{http.StatusServiceUnavailable, ""})
	ctx, cancel := context.WithTimeout(t.Context(), pause/2)
	defer cancel()
	if _, err := p.Fetch(ctx); err == nil || *asked > 1 {
		t.Errorf("error %v after %d requests", err, *asked)
	}
}
