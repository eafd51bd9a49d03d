//go:build linux

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/aws/aws-lambda-go/events"

	"github.com/hallmark-ssh/hallmark/e2e/fake/lambdahost"
)

// collect is the GOGC of template.yaml.
const collect = "400"

// coldStarts is how many processes of each kind to start.
const coldStarts = 31

// The deployment of the signer, with a policy that it parses at the start. Its rule
// has a condition, because compiling one costs the most.
const (
	coldDeployment = `audience: hallmark.example.com
accounts: ["111122223333"]
regions: [us-west-2]
teleport: {address: "proxy.example.com:443", login: {method: identity-file, file: identity.pem}}
`
	coldPolicy = `version: 1
rules:
  - name: web
    match: {image_owners: [self], max_age: 1h}
    when: 'tags.get("Role") == "web" && !public_ip.startsWith("203.0.113.")'
`
)

// printColdStarts compares the signer's first answer with that of a function that
// does nothing. The signer refuses the request for its form alone, so the figure
// contains no other service's time. Both programs are in the page cache and have the
// whole processor; in Lambda both are slower.
func printColdStarts(ctx context.Context, bootstrap, empty string) error {
	plain, err := writePackage(nil)
	if err != nil {
		return err
	}
	defer os.RemoveAll(plain)
	conditional, err := writePackage([]byte(coldPolicy))
	if err != nil {
		return err
	}
	defer os.RemoveAll(conditional)
	functions := []lambdahost.Function{
		{Program: empty, TaskRoot: plain},
		{Program: bootstrap, TaskRoot: plain},
		{Program: bootstrap, TaskRoot: conditional},
	}
	medians, err := firstAnswers(ctx, functions)
	if err != nil {
		return err
	}
	least := medians[0]
	fmt.Printf("%-46s %9.1f ms\n", "cold start to first answer, empty function", milliseconds(least))
	for i, policy := range []string{"default policy", "a policy with a condition"} {
		fmt.Printf("%-46s %9.1f ms\n", "cold start, "+policy, milliseconds(medians[i+1]))
		show("cold start over the empty one, "+policy, float64(medians[i+1])/float64(least), 3, "x")
	}
	return nil
}

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// writePackage returns a folder as Lambda unpacks it. With nil the package has the
// default policy.
func writePackage(policy []byte) (string, error) {
	folder, err := os.MkdirTemp("", "bench-")
	if err != nil {
		return "", err
	}
	files := map[string][]byte{"deployment.yaml": []byte(coldDeployment), "identity.pem": nil}
	if policy != nil {
		files["deployment.yaml"] = []byte(coldDeployment + "policy_file: policy.yaml\n")
		files["policy.yaml"] = policy
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(folder, name), content, 0o600); err != nil {
			return "", errors.Join(err, os.RemoveAll(folder))
		}
	}
	return folder, nil
}

// firstAnswers starts the functions in turns, so that other load on the machine
// affects all of them, and returns the median of each.
func firstAnswers(ctx context.Context, functions []lambdahost.Function) ([]time.Duration, error) {
	times := make([][]time.Duration, len(functions))
	for range coldStarts {
		for i, f := range functions {
			took, err := firstAnswer(ctx, f)
			if err != nil {
				return nil, fmt.Errorf("cold start of %s: %w", f.Program, err)
			}
			times[i] = append(times[i], took)
		}
	}
	medians := make([]time.Duration, len(functions))
	for i := range times {
		slices.Sort(times[i])
		medians[i] = times[i][coldStarts/2]
	}
	return medians, nil
}

func firstAnswer(ctx context.Context, f lambdahost.Function) (time.Duration, error) {
	var log bytes.Buffer
	f.Name, f.Handler, f.Region, f.Log = "bench", "enroll", "us-west-2", &log
	// The signer calls none of these before a caller is proved.
	f.Environment = []string{"AWS_ACCESS_KEY_ID=bench", "AWS_SECRET_ACCESS_KEY=bench", "HALLMARK_LEDGER_TABLE=bench", "GOGC=" + collect}
	var err error
	if f.Program, err = filepath.Abs(f.Program); err != nil {
		return 0, err
	}
	host := lambdahost.New(f)
	defer host.Close()
	event, err := json.Marshal(events.LambdaFunctionURLRequest{
		Version: "2.0", Headers: map[string]string{"content-type": "application/json"}, Body: "{}",
		RequestContext: events.LambdaFunctionURLRequestContext{
			HTTP: events.LambdaFunctionURLRequestContextHTTPDescription{Method: http.MethodPost, SourceIP: "192.0.2.1"},
		},
	})
	if err != nil {
		return 0, err
	}
	start := time.Now()
	answer, err := host.Invoke(ctx, event)
	took := time.Since(start)
	if err != nil {
		host.Close()
		return 0, fmt.Errorf("%w: %s", err, log.String())
	}
	var response events.LambdaFunctionURLResponse
	if err := json.Unmarshal(answer, &response); err != nil {
		return 0, err
	}
	if response.StatusCode != http.StatusBadRequest {
		return 0, fmt.Errorf("answer %s, want status %d", answer, http.StatusBadRequest)
	}
	return took, nil
}
