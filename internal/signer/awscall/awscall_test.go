package awscall

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
)

func request(endpoint string) Request {
	return Request{
		Service: "ssm", Region: "us-west-2", Endpoint: endpoint,
		ContentType: "application/x-amz-json-1.1", Target: "AmazonSSM.GetParameter",
		Body: []byte("{}"), MaxBytes: 8,
	}
}

func credentials(context.Context) (aws.Credentials, error) {
	return aws.Credentials{AccessKeyID: "AKIATEST", SecretAccessKey: "secret"}, nil
}

func send(t *testing.T, r Request) (int, []byte, error) {
	t.Helper()
	c := Client{HTTP: http.DefaultClient, Now: func() time.Time { return time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC) }}
	return c.Send(t.Context(), aws.CredentialsProviderFunc(credentials), r)
}

func TestSend(t *testing.T) {
	tests := map[string]struct {
		status int
		body   string
		want   string // of the body
		err    error
	}{
		"good":                 {http.StatusOK, "12345678", "12345678", nil},
		"too long":             {http.StatusOK, "123456789", "", ErrForeign},
		"an error":             {http.StatusBadRequest, "busy", "busy", nil},
		"an error too long":    {http.StatusServiceUnavailable, "123456789", "12345678", nil},
		"a redirect to refuse": {http.StatusFound, "12345678", "", ErrForeign},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/elsewhere" {
					_, _ = io.WriteString(w, "swordfish")
					return
				}
				if body, err := io.ReadAll(r.Body); err != nil || string(body) != "{}" {
					t.Errorf("body %q, error %v", body, err)
				}
				for name, want := range map[string]string{
					"Content-Type":  "application/x-amz-json-1.1",
					"X-Amz-Target":  "AmazonSSM.GetParameter",
					"X-Amz-Date":    "20260102T030405Z",
					"Authorization": "AWS4-HMAC-SHA256 Credential=AKIATEST/20260102/us-west-2/ssm/aws4_request",
				} {
					if got := r.Header.Get(name); !strings.HasPrefix(got, want) {
						t.Errorf("%s: %q, want %q", name, got, want)
					}
				}
				w.Header().Set("Location", "/elsewhere")
				w.WriteHeader(test.status)
				_, _ = io.WriteString(w, test.body)
			}))
			defer server.Close()
			status, body, err := send(t, request(server.URL))
			if !errors.Is(err, test.err) || string(body) != test.want || err == nil && status != test.status {
				t.Errorf("status %d, body %q, error %v; want %q, %v", status, body, err, test.want, test.err)
			}
		})
	}
}

func TestNoAnswer(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Length", "8")
		_, _ = io.WriteString(w, "1234") // and closes the connection
	}))
	defer server.Close()
	if _, _, err := send(t, request(server.URL)); !errors.Is(err, ErrNoAnswer) {
		t.Errorf("cut short: %v", err)
	}
	server.Close()
	if _, _, err := send(t, request(server.URL)); !errors.Is(err, ErrNoAnswer) {
		t.Errorf("closed: %v", err)
	}
}

func TestNoCredentials(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("asked without credentials") }))
	defer server.Close()
	broken := errors.New("no role")
	_, _, err := Client{HTTP: http.DefaultClient, Now: time.Now}.Send(t.Context(), aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
		return aws.Credentials{}, broken
	}), request(server.URL))
	if !errors.Is(err, broken) || errors.Is(err, ErrNoAnswer) {
		t.Errorf("error %v", err)
	}
}

// hanging answers when the request's context ends.
type hanging struct{}

func (hanging) Do(r *http.Request) (*http.Response, error) {
	<-r.Context().Done()
	return nil, r.Context().Err()
}

func TestSendEndsInTime(t *testing.T) {
	for timeout, want := range map[time.Duration]time.Duration{0: 20 * time.Second, time.Minute: time.Minute} {
		synctest.Test(t, func(t *testing.T) {
			client, began := Client{HTTP: hanging{}, Now: time.Now, Timeout: timeout}, time.Now()
			_, _, err := client.Send(t.Context(), aws.CredentialsProviderFunc(credentials), request("https://example.com/"))
			if took := time.Since(began); !errors.Is(err, ErrNoAnswer) || took != want {
				t.Errorf("timeout %s: error %v after %s", timeout, err, took)
			}
		})
	}
}
