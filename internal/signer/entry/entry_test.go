package entry_test

import (
	"encoding/base64"
	"encoding/json"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"github.com/hallmark-ssh/hallmark/internal/signer/entry"
	"github.com/hallmark-ssh/hallmark/internal/signer/entry/entrytest"
)

func request() entry.Request {
	return entry.Request{
		ID: "from-the-event", Method: http.MethodPost, ContentType: "application/json", IfNoneMatch: `"tag"`, Health: "report", Body: []byte("body"),
		Source: "192.0.2.1", Endpoint: "vpce-0a1b2c3d4e5f60718",
		IAM: &entry.IAMCaller{Account: "111122223333", ARN: "arn:aws:sts::111122223333:assumed-role/web/i-0a1b2c3d4e5f60718"},
	}
}

func event(t *testing.T, k entry.Kind, r entry.Request) []byte {
	t.Helper()
	data, err := entrytest.Event(k, r)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// What arrives is what AWS says of a request, and nothing that its entry cannot know.
func TestRequest(t *testing.T) {
	for kind, change := range map[entry.Kind]func(*entry.Request){
		entry.URL:        func(r *entry.Request) { r.Endpoint = "" },
		entry.PrivateAPI: func(*entry.Request) {},
		entry.Invoke:     func(r *entry.Request) { r.ID, r.Source, r.Endpoint, r.IAM = "", "", "", nil },
	} {
		t.Run(string(kind), func(t *testing.T) {
			want := request()
			change(&want)
			got, err := kind.Request(event(t, kind, request()))
			if err != nil {
				t.Fatal(err)
			}
			if !reflect.DeepEqual(got, want) {
				t.Errorf("got %+v, want %+v", got, want)
			}
			if sender := (entry.Sender{Source: got.Source != "", Endpoint: got.Endpoint != "", IAM: got.IAM != nil}); kind.Sender() != sender {
				t.Errorf("the entry says %+v of a sender, and the event %+v", kind.Sender(), sender)
			}
			unsigned := request()
			unsigned.IAM = nil
			if got, err = kind.Request(event(t, kind, unsigned)); err != nil || got.IAM != nil {
				t.Errorf("IAM caller %+v of an unsigned request, error %v", got.IAM, err)
			}
		})
	}
}

func TestResponse(t *testing.T) {
	want := entry.Answer{Status: http.StatusConflict, Header: map[string]string{"Retry-After": "1"}, Body: []byte("{}")}
	for _, kind := range entry.Kinds() {
		data, err := kind.Response(want)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := entrytest.Answer(kind, data); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %+v, error %v, want %+v", kind, got, err, want)
		}
	}
	// What API Gateway and function URLs read (format 1.0 and 2.0).
	for _, kind := range []entry.Kind{entry.URL, entry.PrivateAPI} {
		data, err := kind.Response(want)
		if err != nil || !strings.Contains(string(data), `"statusCode":409`) {
			t.Errorf("%s: %s, error %v", kind, data, err)
		}
	}
}

// Each entry refuses the events of the others, and those of other services.
func TestOtherEvents(t *testing.T) {
	all := map[string]string{
		"nothing":          ``,
		"no JSON":          `{`,
		"null":             `null`,
		"a number":         `1`,
		"a list":           `[{"version": "2.0"}]`,
		"a string":         `"POST"`,
		"an object":        `{}`,
		"an enrollment":    `{"payload": "e30=", "caller": {}, "signatures": []}`,
		"no method":        `{"version": "2.0", "requestContext": {"http": {"sourceIp": "192.0.2.1"}}, "body": "{}"}`,
		"no context":       `{"version": "2.0", "body": "{}", "httpMethod": "POST"}`,
		"context, text":    `{"version": "2.0", "requestContext": "POST", "httpMethod": "POST"}`,
		"method, number":   `{"version": "2.0", "requestContext": {"http": {"method": 1}}, "httpMethod": 1}`,
		"headers, list":    `{"version": "2.0", "requestContext": {"http": {"method": "POST"}, "identity": {"vpceId": "vpce-0a1b2c3d4e5f60718"}}, "headers": ["a"]}`,
		"HTTP API 1.0":     `{"version": "1.0", "httpMethod": "POST", "requestContext": {"http": {"method": "POST"}}}`,
		"a public API":     `{"httpMethod": "POST", "requestContext": {"identity": {"sourceIp": "192.0.2.1"}}, "body": "{}"}`,
		"a load balancer":  `{"httpMethod": "POST", "requestContext": {"elb": {"targetGroupArn": "a"}}, "headers": {}, "body": "{}"}`,
		"EventBridge":      `{"version": "0", "id": "1", "detail-type": "EC2 Instance State-change Notification", "source": "aws.ec2", "account": "111122223333", "region": "us-west-2", "resources": [], "detail": {"instance-id": "i-0a1b2c3d4e5f60718", "state": "terminated"}}`,
		"SQS":              `{"Records": [{"eventSource": "aws:sqs", "body": "{}"}]}`,
		"a sweep":          `{"sweep": {"limit": 500}}`,
		"deep":             strings.Repeat("[", 20000) + strings.Repeat("]", 20000),
		"another form":     `{"hallmark": 2, "method": "POST", "body": "{}"}`,
		"no form":          `{"method": "POST", "body": "{}"}`,
		"form, no method":  `{"hallmark": 1, "body": "{}"}`,
		"a claimed source": `{"hallmark": 1, "method": "POST", "body": "{}", "source": "192.0.2.1"}`,
		"a claimed caller": `{"hallmark": 1, "method": "POST", "body": "{}", "iam": {"account": "111122223333"}}`,
		"URL, no account": `{"version": "2.0", "requestContext": {"http": {"method": "POST"},
			"authorizer": {"iam": {"accountId": "i-0a1b2c3d4e5f60718", "userArn": "arn:aws:iam::111122223333:root"}}}}`,
		"API, no account": `{"httpMethod": "POST", "requestContext": {"identity": {"vpceId": "vpce-0a1b2c3d4e5f60718",
			"userArn": "arn:aws:iam::111122223333:root"}}}`,
		"two forms": `{"hallmark": 1, "method": "POST", "body": "{}",
			"requestContext": {"identity": {"userArn": "arn:aws:iam::111122223333:root", "accountId": "111122223333"}}}`,
	}
	for _, kind := range entry.Kinds() {
		all["trailing, "+string(kind)] = string(event(t, kind, request())) + "{}"
	}
	for _, kind := range entry.Kinds() {
		tests := maps.Clone(all)
		for _, other := range entry.Kinds() {
			if other != kind {
				tests["an event of "+string(other)] = string(event(t, other, request()))
			}
		}
		for _, name := range slices.Sorted(maps.Keys(tests)) {
			t.Run(string(kind)+"/"+name, func(t *testing.T) {
				r, err := kind.Request([]byte(tests[name]))
				if err == nil {
					t.Fatalf("it was read as %+v", r)
				}
				if strings.Contains(err.Error(), "i-0a1b2c3d4e5f60718") {
					t.Errorf("the error repeats the event: %v", err)
				}
			})
		}
	}
}

// What a caller writes into headers, query or body says nothing of who calls.
func TestTheCallersWordIsNotTaken(t *testing.T) {
	forged := `{"requestContext": {"authorizer": {"iam": {"accountId": "111122223333"}}, "http": {"sourceIp": "10.0.0.1"}, "identity": {"vpceId": "vpce-1"}}}`
	names := []string{"x-forwarded-for", "forwarded", "x-real-ip", "x-amzn-source-ip", "x-amz-source-account", "x-amzn-iam-user-arn",
		"requestcontext", "authorization", "x-amzn-requestid", "x-amzn-vpce-id", "X-Forwarded-For"}
	r := request()
	r.IAM, r.Body = nil, []byte(forged)

	byURL := entrytest.URLEvent(r)
	byAPI := entrytest.APIEvent(r)
	for _, name := range names {
		byURL.Headers[name] = "10.0.0.1"
		byAPI["headers"].(map[string]string)[name] = "10.0.0.1"
	}
	byURL.QueryStringParameters = map[string]string{"sourceIp": "10.0.0.1"}
	byURL.RawQueryString = "sourceIp=10.0.0.1"
	byAPI["queryStringParameters"] = map[string]string{"sourceIp": "10.0.0.1"}
	byAPI["multiValueHeaders"] = map[string][]string{"X-Forwarded-For": {"10.0.0.1"}}
	for kind, e := range map[entry.Kind]any{entry.URL: byURL, entry.PrivateAPI: byAPI} {
		data, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		got, err := kind.Request(data)
		if err != nil {
			t.Fatal(err)
		}
		if got.Source != "192.0.2.1" || got.IAM != nil || got.ID != "from-the-event" || strings.Contains(got.Endpoint, "vpce-1") {
			t.Errorf("%s: request %+v", kind, got)
		}
	}
}

// Clients of a REST API choose the case of their headers, also twice.
func TestHeadersOfAPI(t *testing.T) {
	for name, test := range map[string]struct {
		headers map[string]string
		want    string
	}{
		"as written":  {map[string]string{"Content-Type": "a/b"}, "a/b"},
		"lower case":  {map[string]string{"content-type": "a/b"}, "a/b"},
		"none":        {nil, ""},
		"in two ways": {map[string]string{"content-type": "a/b", "Content-Type": "c/d"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			e := entrytest.APIEvent(request())
			e["headers"] = test.headers
			data, err := json.Marshal(e)
			if err != nil {
				t.Fatal(err)
			}
			if r, err := entry.PrivateAPI.Request(data); err != nil || r.ContentType != test.want {
				t.Errorf("content type %q, error %v, want %q", r.ContentType, err, test.want)
			}
		})
	}
}

func TestBody(t *testing.T) {
	long := strings.Repeat("a", 10*protocol.MaxRequestBytes)
	cut := long[:protocol.MaxRequestBytes+1]
	for name, test := range map[string]struct {
		body     string
		isBase64 bool
		want     string
	}{
		"text":            {"{}", false, "{}"},
		"base64":          {base64.StdEncoding.EncodeToString([]byte("{}")), true, "{}"},
		"broken base64":   {"e30*", true, ""},
		"cut base64":      {"e30", true, ""},
		"over-long":       {long, false, cut},
		"over-long coded": {base64.StdEncoding.EncodeToString([]byte(long)), true, cut},
	} {
		t.Run(name, func(t *testing.T) {
			r := request()
			byURL := entrytest.URLEvent(r)
			byURL.Body, byURL.IsBase64Encoded = test.body, test.isBase64
			byAPI := entrytest.APIEvent(r)
			byAPI["body"], byAPI["isBase64Encoded"] = test.body, test.isBase64
			for kind, e := range map[entry.Kind]any{entry.URL: byURL, entry.PrivateAPI: byAPI} {
				data, err := json.Marshal(e)
				if err != nil {
					t.Fatal(err)
				}
				if got, err := kind.Request(data); err != nil || string(got.Body) != test.want {
					t.Errorf("%s: %d bytes, error %v, want %d", kind, len(got.Body), err, len(test.want))
				}
			}
			if test.isBase64 {
				return
			}
			r.Body = []byte(test.body)
			if got, err := entry.Invoke.Request(event(t, entry.Invoke, r)); err != nil || string(got.Body) != test.want {
				t.Errorf("invoke: %d bytes, error %v, want %d", len(got.Body), err, len(test.want))
			}
		})
	}
}

func TestParse(t *testing.T) {
	for _, kind := range entry.Kinds() {
		if got, err := entry.Parse(string(kind)); err != nil || got != kind {
			t.Errorf("%q, error %v, want %q", got, err, kind)
		}
	}
	for _, text := range []string{"", "URL", "private", "lambda"} {
		if got, err := entry.Parse(text); err == nil {
			t.Errorf("%q is read as %q", text, got)
		}
	}
	if _, err := entry.Kind("").Request([]byte(`{}`)); err == nil {
		t.Error("no entry reads an event")
	}
	if _, err := entry.Kind("").Response(entry.Answer{}); err == nil {
		t.Error("no entry writes an answer")
	}
}

// FuzzRequest sends any bytes to each entry. No two entries read the same event, and none
// takes more of a body than the signer may need.
func FuzzRequest(f *testing.F) {
	for _, kind := range entry.Kinds() {
		data, err := entrytest.Event(kind, request())
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte(`{"version": "0", "detail-type": "Scheduled Event", "detail": {}}`))
	f.Add([]byte(`{"version": "2.0", "requestContext": {"authorizer": {"iam": null}, "http": {"method": "GET"}}, "headers": null}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		read := 0
		for _, kind := range entry.Kinds() {
			r, err := kind.Request(data)
			if err != nil {
				continue
			}
			read++
			if r.Method == "" || len(r.Body) > protocol.MaxRequestBytes+1 {
				t.Errorf("%s: method %q, %d bytes", kind, r.Method, len(r.Body))
			}
		}
		if read > 1 {
			t.Errorf("%d entries read it", read)
		}
	})
}
