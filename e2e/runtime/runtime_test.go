//go:build e2e

// Package runtime runs the functions' real program in AWS's own Lambda Runtime Interface
// Emulator, with every kind of event that the stack sends it.
package runtime

import (
	"encoding/json"
	"errors"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-lambda-go/events"

	"github.com/hallmark-ssh/hallmark/e2e/fake/lambdahost"
	"github.com/hallmark-ssh/hallmark/internal/signer/entry"
	"github.com/hallmark-ssh/hallmark/internal/signer/entry/entrytest"
)

const settings = `audience: hallmark.example.com
accounts: ["111122223333"]
regions: [us-west-2]
teleport:
  address: %s
  login: {method: iam, token: hallmark-enroll, role: hallmark-enroll}
  fleet_login: {method: iam, token: hallmark-fleet, role: hallmark-fleet}
`

// silent returns the address of a service that takes connections and never answers.
func silent(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l.Addr().String() // the kernel accepts; nobody reads
}

// closed returns an address at which nobody listens.
func closed(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// start returns a function as the stack makes it. All its services are at one address.
func start(t *testing.T, handler, service string, change func(*lambdahost.Function)) (*lambdahost.Host, *lambdahost.Log) {
	t.Helper()
	root, log := t.TempDir(), new(lambdahost.Log)
	text := strings.Replace(settings, "%s", service, 1)
	if err := os.WriteFile(filepath.Join(root, "deployment.yaml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	f := lambdahost.Function{
		Name: "hallmark-" + handler, Program: program(t, "bootstrap"), Emulator: program(t, "aws-lambda-rie"),
		Handler: handler, TaskRoot: root, Region: "us-west-2", Timeout: 5 * time.Minute, Log: log,
		Environment: []string{
			"HALLMARK_LEDGER_TABLE=hallmark", "HALLMARK_AUDIENCE=hallmark.example.com",
			"AWS_ACCESS_KEY_ID=AKIAIOSFODNN7EXAMPLE", "AWS_SECRET_ACCESS_KEY=example", "AWS_ENDPOINT_URL=http://" + service,
		},
	}
	if change != nil {
		change(&f)
	}
	host := lambdahost.New(f)
	t.Cleanup(host.Close)
	return host, log
}

func program(t *testing.T, name string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join("..", "..", "bin", name))
	if err == nil {
		_, err = os.Stat(path)
	}
	if err != nil {
		t.Fatalf("%v: run 'make build bin/aws-lambda-rie'", err)
	}
	return path
}

func encode(t *testing.T, event any) []byte {
	t.Helper()
	data, err := json.Marshal(event)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// urlEvent is a request to the function URL.
func urlEvent(method, body string) events.LambdaFunctionURLRequest {
	e := events.LambdaFunctionURLRequest{Version: "2.0", Headers: map[string]string{"content-type": "application/json"}, Body: body}
	e.RequestContext.HTTP.Method, e.RequestContext.HTTP.SourceIP = method, "192.0.2.1"
	return e
}

func TestEnroll(t *testing.T) {
	host, log := start(t, "enroll", silent(t), nil)
	for _, test := range []struct {
		name   string
		event  any
		status int
		body   string
	}{
		{"a request that proves nothing", urlEvent("POST", "{}"), 400, "malformed"},
		{"the same again, in a warm environment", urlEvent("POST", "{}"), 400, "malformed"},
		{"a method that is not served", urlEvent("DELETE", ""), 405, ""},
		{"the question for CAs, while Teleport does not answer", urlEvent("GET", ""), 503, "unavailable"},
		{"another kind of event", events.SQSEvent{Records: []events.SQSMessage{{MessageId: "1", Body: "{}"}}}, 400, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			data, err := host.Invoke(t.Context(), encode(t, test.event))
			if err != nil {
				t.Fatalf("%v\n%s", err, log)
			}
			var answer events.LambdaFunctionURLResponse
			if err := json.Unmarshal(data, &answer); err != nil || answer.StatusCode != test.status || !strings.Contains(answer.Body, test.body) {
				t.Errorf("answer %s (%v), want status %d and %q", data, err, test.status, test.body)
			}
		})
	}
}

// Each entry has a form of event of its own, and refuses the others' without asking anybody.
func TestEntries(t *testing.T) {
	kinds := []entry.Kind{entry.URL, entry.PrivateAPI, entry.Invoke}
	for _, kind := range kinds {
		t.Run(string(kind), func(t *testing.T) {
			host, log := start(t, "enroll", closed(t), func(f *lambdahost.Function) {
				f.Environment = append(f.Environment, "HALLMARK_ENTRY="+string(kind))
			})
			for _, form := range kinds {
				want := http.StatusBadRequest
				if form == kind {
					want = http.StatusServiceUnavailable // it asks Teleport
				}
				event, err := entrytest.Event(form, entry.Request{ID: "1", Method: http.MethodGet, Source: "192.0.2.1", Endpoint: "vpce-0a1b2c3d4e5f60718"})
				if err != nil {
					t.Fatal(err)
				}
				data, err := host.Invoke(t.Context(), event)
				if err != nil {
					t.Fatalf("%v\n%s", err, log)
				}
				if answer, err := entrytest.Answer(kind, data); err != nil || answer.Status != want {
					t.Errorf("answer %s (%v) to the form of %s, want status %d", data, err, form, want)
				}
			}
		})
	}
}

// The function answers before Lambda ends it, also if nobody answers the function.
func TestTheFunctionAnswersBeforeItsTimeout(t *testing.T) {
	host, log := start(t, "enroll", silent(t), func(f *lambdahost.Function) { f.Timeout = 5 * time.Second })
	data, err := host.Invoke(t.Context(), encode(t, urlEvent("GET", "")))
	if err != nil {
		t.Fatalf("%v\n%s", err, log)
	}
	var answer events.LambdaFunctionURLResponse
	if err := json.Unmarshal(data, &answer); err != nil || answer.StatusCode != http.StatusServiceUnavailable {
		t.Errorf("answer %s (%v)", data, err)
	}
}

// message is an event of EventBridge in the queue.
func message(id, account string) events.SQSMessage {
	return events.SQSMessage{MessageId: id, EventSource: "aws:sqs", Body: `{"source": "aws.ec2", "detail-type": "EC2 Instance State-change Notification",
		"account": "` + account + `", "region": "us-west-2", "time": "2026-11-26T12:00:00Z",
		"detail": {"instance-id": "i-0a1b2c3d4e5f60718", "state": "terminated"}}`}
}

func TestFleetEvents(t *testing.T) {
	host, log := start(t, "fleet", silent(t), nil)
	for _, test := range []struct {
		name   string
		batch  []events.SQSMessage
		failed []string
	}{
		{"what nobody can act on is dropped", []events.SQSMessage{{MessageId: "1", EventSource: "aws:sqs", Body: "nonsense"}, message("2", "999999999999")}, nil},
		{"what fails comes again", []events.SQSMessage{{MessageId: "1", EventSource: "aws:sqs", Body: "nonsense"}, message("2", "111122223333")}, []string{"2"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			data, err := host.Invoke(t.Context(), encode(t, events.SQSEvent{Records: test.batch}))
			if err != nil {
				t.Fatalf("%v\n%s", err, log)
			}
			var answer events.SQSEventResponse
			if err := json.Unmarshal(data, &answer); err != nil {
				t.Fatal(err)
			}
			var failed []string
			for _, item := range answer.BatchItemFailures {
				failed = append(failed, item.ItemIdentifier)
			}
			if strings.Join(failed, " ") != strings.Join(test.failed, " ") {
				t.Errorf("failed %q, want %q\n%s", failed, test.failed, log)
			}
		})
	}
}

// A sweep that cannot begin is a failed invocation: Lambda tries it again.
func TestSweepsThatCannotBegin(t *testing.T) {
	for name, event := range map[string]string{
		"by schedule": `{"version": "0", "id": "1", "detail-type": "Scheduled Event", "source": "aws.events", "account": "111122223333",
			"time": "2026-11-26T12:00:00Z", "region": "us-west-2", "resources": [], "detail": {}}`,
		"by hand": `{"sweep": {"limit": 5}}`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			host, log := start(t, "fleet", closed(t), nil)
			_, err := host.Invoke(t.Context(), []byte(event))
			if _, failed := errors.AsType[*lambdahost.FunctionError](err); !failed {
				t.Errorf("got %v, want a function error\n%s", err, log)
			}
			if strings.Contains(errorText(err), "timed out") {
				t.Errorf("Lambda ended the sweep, not its own deadline: %v", err)
			}
		})
	}
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

func TestFunctionsThatCannotStart(t *testing.T) {
	without := func(name string) func(*lambdahost.Function) {
		return func(f *lambdahost.Function) {
			var kept []string
			for _, pair := range f.Environment {
				if !strings.HasPrefix(pair, name+"=") {
					kept = append(kept, pair)
				}
			}
			f.Environment = kept
		}
	}
	for _, test := range []struct {
		name    string
		handler string
		change  func(*lambdahost.Function)
		log     string
	}{
		{"no settings", "enroll", func(f *lambdahost.Function) { f.TaskRoot = t.TempDir() }, "deployment.yaml"},
		{"no ledger", "enroll", without("HALLMARK_LEDGER_TABLE"), "HALLMARK_LEDGER_TABLE"},
		{"another audience", "fleet", func(f *lambdahost.Function) {
			f.Environment = append(f.Environment, "HALLMARK_AUDIENCE=other.example.com")
		}, "audience"},
		{"an unknown handler", "sweep", nil, "sweep"},
	} {
		t.Run(test.name, func(t *testing.T) {
			host, log := start(t, test.handler, closed(t), test.change)
			_, err := host.Invoke(t.Context(), encode(t, urlEvent("GET", "")))
			if _, failed := errors.AsType[*lambdahost.FunctionError](err); !failed {
				t.Errorf("got %v, want a function error", err)
			}
			if !strings.Contains(log.String(), test.log) {
				t.Errorf("the log does not name %q:\n%s", test.log, log)
			}
		})
	}
}
