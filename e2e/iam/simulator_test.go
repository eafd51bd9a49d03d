//go:build e2e

package iam

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// question is a request to AWS, with the policies that decide on it, as iam-simulate reads it.
type question struct {
	Request          request    `json:"request"`
	IdentityPolicies []document `json:"identityPolicies,omitempty"`
	ResourcePolicy   *document  `json:"resourcePolicy,omitempty"`
	Name             string     `json:"-"` // of the request, for messages
	Want             bool       `json:"-"`
}

type request struct {
	// Principal is an ARN, a service, or the object that stands for anybody.
	Principal        any            `json:"principal"`
	Action           string         `json:"action"`
	Resource         target         `json:"resource"`
	ContextVariables map[string]any `json:"contextVariables"`
}

type target struct {
	Resource  string `json:"resource"`
	AccountID string `json:"accountId"`
}

// document is a policy document.
type document struct {
	Version   string           `json:"Version"`
	Statement []map[string]any `json:"Statement"`
}

func policy(statements ...map[string]any) document {
	return document{Version: "2012-10-17", Statement: statements}
}

// anybody sends requests without a signature.
func anybody() any { return map[string]string{"type": "Anonymous"} }

// verdict is iam-simulate's answer.
type verdict struct {
	Result  string          `json:"result"`
	Errors  json.RawMessage `json:"errors"`
	Ignored []string        `json:"ignored"` // condition keys that the action does not know
}

// simulator is a running iam-simulate, which reads questions and writes verdicts.
type simulator struct {
	in  io.WriteCloser
	out *json.Decoder
}

func startSimulator(t *testing.T) *simulator {
	t.Helper()
	program, err := filepath.Abs(filepath.Join("..", "..", "bin", "iam-simulate", "simulate.mjs"))
	if err == nil {
		_, err = os.Stat(program)
	}
	if err != nil {
		t.Fatalf("%v: run 'make bin/iam-simulate/simulate.mjs'", err)
	}
	cmd := exec.CommandContext(t.Context(), "node", program)
	cmd.Stderr = t.Output()
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Wait() // the context may have ended it
	})
	return &simulator{in, json.NewDecoder(out)}
}

// judge has all questions answered: allowed or not. It fails the test if one makes no sense.
func (s *simulator) judge(t *testing.T, questions []question) []bool {
	t.Helper()
	written := make(chan error, 1)
	go func() { // meanwhile: the simulator waits when nobody reads its answers
		encoder := json.NewEncoder(s.in)
		for _, q := range questions {
			if err := encoder.Encode(q); err != nil {
				written <- err
				return
			}
		}
		written <- nil
	}()
	allowed := make([]bool, 0, len(questions))
	for _, q := range questions {
		var v verdict
		if err := s.out.Decode(&v); err != nil {
			t.Fatalf("read the simulator's answer: %v", err)
		}
		if v.Errors != nil || len(v.Ignored) > 0 {
			t.Errorf("%s: %s on %s: %s, unknown condition keys %q", q.Name, q.Request.Action, q.Request.Resource.Resource, v.Errors, v.Ignored)
		}
		allowed = append(allowed, v.Result == "Allowed")
	}
	if err := <-written; err != nil {
		t.Fatal(err)
	}
	return allowed
}

// check has the questions answered, and compares the answers with what they want.
func (s *simulator) check(t *testing.T, questions []question) {
	t.Helper()
	for n, allowed := range s.judge(t, questions) {
		q := questions[n]
		if allowed != q.Want {
			t.Errorf("%s: allowed is %t, want %t: %s on %s as %v with %v", q.Name, allowed, q.Want,
				q.Request.Action, q.Request.Resource.Resource, q.Request.Principal, q.Request.ContextVariables)
		}
	}
}

// ask returns a question about a request.
func ask(name string, want bool, principal any, action, resource string, context ...string) question {
	q := question{Name: name, Want: want, Request: request{
		Principal: principal, Action: action, Resource: target{resource, account}, ContextVariables: make(map[string]any),
	}}
	if parts := strings.SplitN(resource, ":", 6); len(parts) == 6 && parts[4] != "" {
		q.Request.Resource.AccountID = parts[4]
	}
	for _, pair := range context {
		key, value, found := strings.Cut(pair, "=")
		if !found {
			panic(fmt.Sprintf("context %q", pair))
		}
		q.Request.ContextVariables[key] = values(key, strings.Split(value, ","))
	}
	return q
}

// values returns a condition key's values as iam-simulate wants them: a list only if the key
// may have several.
func values(key string, all []string) any {
	switch key {
	case "dynamodb:LeadingKeys", "dynamodb:Attributes", "events:source":
		return all
	}
	return all[0]
}
