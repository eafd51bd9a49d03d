package signerclient

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/machine/config"
	"github.com/hallmark-ssh/hallmark/internal/machine/fault"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
)

const (
	hintFunction   = "check signer_function, and that the instance has a profile whose role may call lambda:InvokeFunction for it"
	hintInvocation = "nothing was changed; check that signer_function is the ARN of the signer's function, deployed with the entry invoke"
)

// maxInvocationBytes bounds the answer to an invocation. JSON quotes the body, which at most
// doubles the size of a body that is JSON itself.
const maxInvocationBytes = 2*protocol.MaxResponseBytes + 4096

// function is a signer that the machine calls with Lambda's Invoke operation
// (https://docs.aws.amazon.com/lambda/latest/api/API_Invoke.html).
type function struct {
	url    string
	region ec2ref.Region
}

// newFunction returns the function that a configuration names, or nil if it names none.
func newFunction(c config.Config) (*function, error) {
	if c.SignerFunction == "" {
		return nil, nil
	}
	region, err := config.FunctionRegion(c.SignerFunction)
	if err != nil {
		return nil, err
	}
	endpoint, err := c.SignerAddress()
	if err != nil {
		return nil, err
	}
	return &function{
		// Escape colons as AWS's SDKs do: the signature covers the path.
		url:    strings.TrimSuffix(endpoint, "/") + "/2015-03-31/functions/" + strings.ReplaceAll(c.SignerFunction, ":", "%3A") + "/invocations",
		region: region,
	}, nil
}

// invoke sends a request as an invocation instead of over HTTP, and returns the signer's
// answer as if it had come over HTTP. An answer from Lambda itself, such as a missing
// permission, has another form and is an error.
func (c *Client) invoke(ctx context.Context, method string, header http.Header, body []byte) (status, []byte, error) {
	event, err := json.Marshal(protocol.Invocation{
		Hallmark: protocol.InvocationVersion, Method: method, IfNoneMatch: header.Get("If-None-Match"), Health: header.Get(protocol.HealthHeader), Body: string(body),
	})
	if err != nil {
		return status{}, nil, fmt.Errorf("ask the signer: %w", err)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.function.url, bytes.NewReader(event))
	if err != nil {
		return status{}, nil, fmt.Errorf("ask the signer: %w", err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("X-Amz-Invocation-Type", "RequestResponse")
	if err := c.signRequest(ctx, req, scope{"lambda", c.function.region}, event); err != nil {
		return status{}, nil, err
	}
	code, lambda, data, err := c.do(req, maxInvocationBytes)
	if err != nil {
		return status{}, nil, err
	}
	if code != http.StatusOK {
		return status{}, nil, notInvoked(code, lambda.Get("X-Amzn-Errortype"))
	}
	if reason := lambda.Get("X-Amz-Function-Error"); reason != "" {
		return status{}, nil, fault.Newf(fault.Temporary, hintSignerDown, "the signer's function failed: %.64q; see its log for the reason", reason)
	}
	if len(data) > maxInvocationBytes {
		return status{}, nil, fault.Newf(fault.Failed, hintInvocation, "the answer of signer_function has more than %d bytes", maxInvocationBytes)
	}
	var answer protocol.InvocationAnswer
	if err := json.Unmarshal(data, &answer); err != nil || answer.Status == 0 {
		return status{}, nil, fault.Newf(fault.Failed, hintInvocation, "the answer of signer_function is not a valid Hallmark response")
	}
	seen := c.newStatus(answer.Status, lambda)
	seen.after = retryAfter(answer.Header["Retry-After"], c.now())
	return seen, []byte(answer.Body), nil
}

// notInvoked explains an answer from Lambda itself, which names the error in a header.
func notInvoked(status int, name string) error {
	if err := badSignature(status, name); err != nil {
		return err
	}
	name = errorType(name)
	if temporary(status) {
		return fault.Newf(fault.Temporary, hintSignerDown, "invoke signer_function: Lambda answered %d %.64q", status, name)
	}
	return fault.Newf(fault.Refused, hintFunction, "invoke signer_function: Lambda answered %d %.64q", status, name)
}
