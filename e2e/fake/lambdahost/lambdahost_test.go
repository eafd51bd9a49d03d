package lambdahost_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-lambda-go/events"
	"github.com/aws/aws-lambda-go/lambda"

	"github.com/hallmark-ssh/hallmark/e2e/fake/lambdahost"
)

// TestMain makes of this test the program that the host runs, too: on AWS's own
// runtime client.
func TestMain(m *testing.M) {
	if os.Getenv("_HANDLER") != "" {
		lambda.Start(handle)
		return
	}
	os.Exit(m.Run())
}

func handle(ctx context.Context, e events.LambdaFunctionURLRequest) (any, error) {
	switch e.RawPath {
	case "/echo":
		body, err := json.Marshal(e)
		return events.LambdaFunctionURLResponse{
			StatusCode: http.StatusTeapot, Body: string(body), Headers: map[string]string{"Retry-After": "7"},
		}, err
	case "/binary":
		return events.LambdaFunctionURLResponse{StatusCode: http.StatusOK, Body: "AP8=", IsBase64Encoded: true}, nil
	case "/plain":
		return map[string]int{"process": os.Getpid()}, nil
	case "/error":
		return nil, errors.New("secret detail")
	case "/panic":
		panic("secret detail")
	case "/exit":
		os.Exit(3)
	case "/long":
		return strings.Repeat("x", 7<<20), nil
	}
	<-ctx.Done() // /hang: Lambda's deadline
	select {}
}

func start(t *testing.T, change func(*lambdahost.Function)) string {
	t.Helper()
	f := lambdahost.Function{
		Name: "test", Program: must(os.Executable()), Handler: "test", TaskRoot: t.TempDir(), Region: "hm-test-1",
		Timeout: time.Minute, Emulator: emulator(t),
	}
	if change != nil {
		change(&f)
	}
	host := lambdahost.New(f)
	server := httptest.NewServer(host.FunctionURL())
	t.Cleanup(host.Close)
	t.Cleanup(server.Close)
	return server.URL
}

func must[T any](value T, err error) T {
	if err != nil {
		panic(err)
	}
	return value
}

// answer is what a response has besides its body.
type answer struct {
	StatusCode int
	Header     http.Header
}

func send(t *testing.T, method, url, contentType, body string) (answer, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", contentType)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer{res.StatusCode, res.Header}, string(data)
}

func TestEventAndResponse(t *testing.T) {
	url := start(t, nil)
	res, body := send(t, http.MethodPost, url+"/echo?a=1&a=2", "application/json", `{"x":1}`)
	if res.StatusCode != http.StatusTeapot || res.Header.Get("Retry-After") != "7" || res.Header.Get("X-Amzn-Requestid") == "" {
		t.Errorf("answer %d, headers %v", res.StatusCode, res.Header)
	}
	var e events.LambdaFunctionURLRequest
	if err := json.Unmarshal([]byte(body), &e); err != nil {
		t.Fatal(err)
	}
	for _, check := range []struct{ what, got, want string }{
		{"version", e.Version, "2.0"},
		{"body", e.Body, `{"x":1}`},
		{"query", e.RawQueryString, "a=1&a=2"},
		{"parameter", e.QueryStringParameters["a"], "1,2"},
		{"header", e.Headers["content-type"], "application/json"},
		{"method", e.RequestContext.HTTP.Method, "POST"},
		{"source", e.RequestContext.HTTP.SourceIP, "127.0.0.1"},
		{"request id", e.RequestContext.RequestID, res.Header.Get("X-Amzn-Requestid")},
	} {
		if check.got != check.want {
			t.Errorf("%s is %q, want %q", check.what, check.got, check.want)
		}
	}
}

func TestBinaryBodies(t *testing.T) {
	url := start(t, nil)
	_, body := send(t, http.MethodPost, url+"/echo", "application/octet-stream", "\x00\xff")
	if !strings.Contains(body, `"body":"AP8=","isBase64Encoded":true`) {
		t.Errorf("event %s", body)
	}
	if _, body := send(t, http.MethodGet, url+"/binary", "", ""); body != "\x00\xff" {
		t.Errorf("body %q, want two bytes", body)
	}
}

// A caller learns nothing of why a function failed, and the next one gets a
// function that works.
func TestFailures(t *testing.T) {
	for _, path := range []string{"/error", "/panic", "/exit", "/long", "/hang"} {
		t.Run(path[1:], func(t *testing.T) {
			url := start(t, func(f *lambdahost.Function) {
				if path == "/hang" {
					f.Timeout = 5 * time.Second // and afterwards the next environment has to answer within it
				}
			})
			res, body := send(t, http.MethodPost, url+path, "text/plain", "")
			if res.StatusCode != http.StatusBadGateway || strings.Contains(body, "secret") {
				t.Errorf("answer %d: %s", res.StatusCode, body)
			}
			if res, body := send(t, http.MethodPost, url+"/plain", "text/plain", ""); res.StatusCode != http.StatusOK {
				t.Errorf("afterwards %d: %s", res.StatusCode, body)
			}
		})
	}
}

func TestEnvironmentIsKept(t *testing.T) {
	url := start(t, nil)
	_, first := send(t, http.MethodGet, url+"/plain", "", "")
	if _, second := send(t, http.MethodGet, url+"/plain", "", ""); second != first || first == "" {
		t.Errorf("processes %s and %s, want one", first, second)
	}
}

func TestLimits(t *testing.T) {
	url := start(t, func(f *lambdahost.Function) { f.Timeout = 2 * time.Second })
	if res, _ := send(t, http.MethodPost, url+"/plain", "text/plain", strings.Repeat("x", 6<<20+1)); res.StatusCode != http.StatusRequestEntityTooLarge {
		t.Errorf("more than 6 MB: %d, want 413", res.StatusCode)
	}

	// One environment is busy until its deadline; another request meets it.
	hung := make(chan int, 1)
	go func() {
		status := http.StatusTooManyRequests // while it is the one that came second
		for status == http.StatusTooManyRequests {
			res, err := http.Get(url + "/hang")
			if err != nil {
				status = 0
				break
			}
			res.Body.Close()
			status = res.StatusCode
		}
		hung <- status
	}()
	throttled := false
	for {
		select {
		case status := <-hung:
			if status != http.StatusBadGateway || !throttled {
				t.Errorf("the request that hangs: %d, want 502; the other throttled: %t, want true", status, throttled)
			}
			return
		default:
			res, _ := send(t, http.MethodGet, url+"/plain", "", "")
			throttled = throttled || res.StatusCode == http.StatusTooManyRequests
		}
	}
}

func TestProgramThatDoesNotStart(t *testing.T) {
	url := start(t, func(f *lambdahost.Function) { f.Program = "/bin/false" })
	if res, _ := send(t, http.MethodGet, url+"/", "", ""); res.StatusCode != http.StatusBadGateway {
		t.Errorf("answer %d, want 502", res.StatusCode)
	}
}
