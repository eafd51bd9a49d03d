// Package calls records which permissions a function needs: it stands between the function
// and emulated AWS services, and notes each request as IAM would judge it.
package calls

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"regexp"
	"slices"
	"strings"
	"sync"
)

// maxRequest bounds a request. The largest that DynamoDB takes has 16 MB.
const maxRequest = 16 << 20

// Call is what requests of one kind need permission for.
type Call struct {
	// By is the function, or what else Recorder.Roles names, or the name of a role that one
	// of them has assumed.
	By string `json:"by"`
	// Action is IAM's name of the action, such as dynamodb:PutItem.
	Action string `json:"action"`
	// Resource is an ARN, or the name that Recorder.Name gave it. Empty means that the
	// action knows no resource.
	Resource string `json:"resource,omitempty"`
	// Context has the values of IAM's condition keys. Those of several requests are added
	// up: the conditions in the template ask for all values of a set.
	Context map[string][]string `json:"context,omitempty"`
}

const (
	// enclosing is the condition key that names the transaction. Requests that differ in it
	// are different calls.
	enclosing = "dynamodb:EnclosingOperation"
	// attributes is the condition key that names the item's attributes in the request.
	attributes = "dynamodb:Attributes"
)

// same orders calls by what must be equal to add two up.
func same(a, b Call) int {
	return cmp.Or(cmp.Compare(a.By, b.By), cmp.Compare(a.Action, b.Action), cmp.Compare(a.Resource, b.Resource),
		slices.Compare(a.Context[enclosing], b.Context[enclosing]))
}

// Recorder notes the requests of the functions that it knows. It is safe for concurrent use.
type Recorder struct {
	// Roles names who signs with an access key. Requests of others are passed on unseen. The
	// recorder adds the sessions of roles that these assume.
	Roles map[string]string
	// Name returns a name for an ARN, the same in every run. Nil keeps ARNs.
	Name func(arn string) string
	// Region and Account are where the functions run.
	Region, Account string

	mu    sync.Mutex
	calls []Call // sorted by same
	wrong []error
}

// Handler returns a handler that notes each request and passes it on.
func (r *Recorder) Handler(backend http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, req.Body, maxRequest))
		if err != nil {
			http.Error(w, err.Error(), http.StatusRequestEntityTooLarge)
			return
		}
		assumed := r.note(req.Header, body)
		req.Body = io.NopCloser(bytes.NewReader(body))
		if assumed == "" {
			backend.ServeHTTP(w, req)
			return
		}
		answer := &answer{ResponseWriter: w, status: http.StatusOK}
		backend.ServeHTTP(answer, req)
		r.learn(assumed, answer.body.Bytes()) // before the caller can use the session
		answer.send()
	})
}

// answer holds an answer back.
type answer struct {
	http.ResponseWriter
	status int
	body   bytes.Buffer
}

func (a *answer) WriteHeader(status int)      { a.status = status }
func (a *answer) Write(p []byte) (int, error) { return a.body.Write(p) }

func (a *answer) send() {
	a.ResponseWriter.WriteHeader(a.status)
	_, _ = a.body.WriteTo(a.ResponseWriter) // the caller may have left
}

var (
	signedBy = regexp.MustCompile(`Credential=([A-Za-z0-9]+)/`)
	// sessionKey is in an answer to AssumeRole (AWS STS API Reference, Credentials).
	sessionKey = regexp.MustCompile(`<AccessKeyId>([A-Za-z0-9]+)</AccessKeyId>`)
)

// learn notes whose session the answer to AssumeRole has. A refusal has none.
func (r *Recorder) learn(role string, answer []byte) {
	key := sessionKey.FindSubmatch(answer)
	if key == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.Roles[string(key[1])] = role
}

// note notes a request. It returns the role that the request asks for, or "".
func (r *Recorder) note(header http.Header, body []byte) (assumed string) {
	key := signedBy.FindStringSubmatch(header.Get("Authorization"))
	if key == nil {
		return ""
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	by, known := r.Roles[key[1]]
	if !known {
		return ""
	}
	found, err := permissions(header, body, r.Region, r.Account)
	if err != nil {
		r.wrong = append(r.wrong, fmt.Errorf("request of %s: %w", by, err))
		return ""
	}
	for _, c := range found {
		if c.By = by; r.Name != nil && c.Resource != "" {
			c.Resource = r.Name(c.Resource)
		}
		r.add(c)
		if c.Action == "sts:AssumeRole" {
			assumed = c.Resource
		}
	}
	return assumed
}

// add adds a call to the one of its kind.
func (r *Recorder) add(c Call) {
	n, found := slices.BinarySearchFunc(r.calls, c, same)
	if !found {
		r.calls = slices.Insert(r.calls, n, Call{By: c.By, Action: c.Action, Resource: c.Resource, Context: make(map[string][]string)})
	}
	for key, values := range c.Context {
		all := append(r.calls[n].Context[key], values...)
		slices.Sort(all)
		r.calls[n].Context[key] = slices.Compact(all)
	}
}

// Calls returns what was noted, sorted. The error says which requests were not understood.
func (r *Recorder) Calls() ([]Call, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.wrong) > 0 {
		return nil, r.wrong[0]
	}
	return slices.Clone(r.calls), nil
}

// Write writes calls to a file, for people to read.
func Write(path string, calls []Call) error {
	var b bytes.Buffer
	for _, c := range calls {
		line, err := json.Marshal(c)
		if err != nil {
			return err
		}
		b.Write(append(line, '\n'))
	}
	return os.WriteFile(path, b.Bytes(), 0o644) //nolint:gosec // test data, for everybody
}

// Read reads what Write wrote.
func Read(path string) ([]Call, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var calls []Call
	for d := json.NewDecoder(bytes.NewReader(data)); d.More(); {
		var c Call
		if err := d.Decode(&c); err != nil {
			return nil, fmt.Errorf("read %s: %w", path, err)
		}
		calls = append(calls, c)
	}
	return calls, nil
}

// Merge returns the calls of several recordings, each once.
func Merge(recordings ...[]Call) []Call {
	var r Recorder
	for _, recorded := range recordings {
		for _, c := range recorded {
			r.add(c)
		}
	}
	return r.calls
}

// missing describes what was called and is not in the recording, one line each. The attributes
// of a written item may differ.
func missing(called, recorded []Call) []string {
	var lines []string
	for _, c := range called {
		n := slices.IndexFunc(recorded, func(r Call) bool { return same(c, r) == 0 })
		if n < 0 {
			lines = append(lines, fmt.Sprintf("%s calls %s on %s %v", c.By, c.Action, cmp.Or(c.Resource, "*"), c.Context[enclosing]))
			continue
		}
		for key, values := range c.Context {
			if c.Action == "dynamodb:PutItem" && key == attributes {
				continue // what a whole item has depends on the order of events
			}
			for _, value := range values {
				if !slices.Contains(recorded[n].Context[key], value) {
					lines = append(lines, fmt.Sprintf("%s calls %s on %s with %s %q", c.By, c.Action, cmp.Or(c.Resource, "*"), key, value))
				}
			}
		}
	}
	slices.Sort(lines)
	return lines
}

// Check compares what was called with the recordings in a file and in others. With update, it
// writes the file first.
func (r *Recorder) Check(path string, update bool, others ...string) error {
	called, err := r.Calls()
	if err != nil {
		return err
	}
	if update {
		if err := Write(path, called); err != nil {
			return err
		}
	}
	var recorded []Call
	for _, p := range append([]string{path}, others...) {
		calls, err := Read(p)
		if err != nil {
			return err
		}
		recorded = Merge(recorded, calls)
	}
	if missing := missing(called, recorded); len(missing) > 0 {
		return fmt.Errorf("%s lacks calls: run all tests of the package with -update, and read the changes:\n%s", path, strings.Join(missing, "\n"))
	}
	return nil
}
