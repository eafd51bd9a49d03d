package live

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

// Parameter is an SSM parameter. The role that the configuration's credentials are
// of needs ssm:GetParameter on it, and kms:Decrypt on its key if it is a
// SecureString.
//
// The one call is made here, on the SDK's credentials, signer and HTTP client: the
// SDK's ssm package describes all of SSM when a program starts, which was a tenth
// of the signer's cold start.
type Parameter struct {
	// AWS has the credentials, the HTTP client and the parameter's region.
	AWS aws.Config
	// Endpoint is the URL of SSM in that region.
	Endpoint string
	// Name is the parameter's name or ARN.
	Name string
	Now  func() time.Time
}

const (
	// maxAnswerBytes bounds an answer, in which the text is escaped.
	maxAnswerBytes = 1 << 20
	// attempts and pause bound how often SSM is asked, and how fast, when it is busy.
	attempts = 3
	pause    = 200 * time.Millisecond
)

// errBusy marks what SSM may answer better in a moment.
var errBusy = errors.New("SSM is busy or did not answer")

// Fetch returns the parameter's value. It is a Config.Fetch.
func (p Parameter) Fetch(ctx context.Context) ([]byte, error) {
	for attempt := 1; ; attempt++ {
		text, err := p.get(ctx)
		if err == nil {
			return text, nil
		}
		if attempt < attempts && errors.Is(err, errBusy) && rest(ctx, time.Duration(attempt)*pause) == nil {
			continue
		}
		return nil, fmt.Errorf("get parameter %s: %w", p.Name, err)
	}
}

func rest(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// get calls GetParameter (AWS Systems Manager API Reference).
func (p Parameter) get(ctx context.Context) ([]byte, error) {
	request, err := p.newRequest(ctx)
	if err != nil {
		return nil, err
	}
	response, err := p.AWS.HTTPClient.Do(request)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errBusy, err)
	}
	defer func() { _ = response.Body.Close() }()
	data, err := io.ReadAll(io.LimitReader(response.Body, maxAnswerBytes))
	if err != nil {
		return nil, fmt.Errorf("%w: read the answer: %w", errBusy, err)
	}
	return parseAnswer(response.StatusCode, data)
}

func (p Parameter) newRequest(ctx context.Context) (*http.Request, error) {
	body, err := json.Marshal(map[string]any{"Name": p.Name, "WithDecryption": true})
	if err != nil {
		return nil, err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, p.Endpoint, strings.NewReader(string(body)))
	if err != nil {
		return nil, err
	}
	request.Header.Set("Content-Type", "application/x-amz-json-1.1")
	request.Header.Set("X-Amz-Target", "AmazonSSM.GetParameter")
	credentials, err := p.AWS.Credentials.Retrieve(ctx)
	if err != nil {
		return nil, fmt.Errorf("get AWS credentials: %w", err)
	}
	sum := sha256.Sum256(body)
	err = v4.NewSigner().SignHTTP(ctx, credentials, request, hex.EncodeToString(sum[:]), "ssm", p.AWS.Region, p.Now())
	return request, err
}

// parseAnswer returns the value in an answer. No error shows any of it.
func parseAnswer(status int, data []byte) ([]byte, error) {
	var answer struct {
		Type      string `json:"__type"` // of an error, as its message
		Message   string `json:"message"`
		Parameter struct{ Value string }
	}
	decodeErr := json.Unmarshal(data, &answer)
	switch {
	case status >= http.StatusInternalServerError || strings.HasSuffix(answer.Type, "ThrottlingException"):
		return nil, fmt.Errorf("%w: HTTP status %d: %.100s: %.300s", errBusy, status, answer.Type, answer.Message)
	case status != http.StatusOK:
		return nil, fmt.Errorf("SSM: HTTP status %d: %.100s: %.300s", status, answer.Type, answer.Message)
	case decodeErr != nil:
		return nil, errors.New("the answer of SSM is not JSON")
	}
	return bounded(answer.Parameter.Value)
}

// maxTextBytes bounds a text from outside. A parameter of the advanced tier has at
// most 8 KiB (AWS Systems Manager User Guide, "Managing parameter tiers").
const maxTextBytes = 64 << 10

func bounded(text string) ([]byte, error) {
	switch {
	case text == "":
		return nil, errors.New("it is empty")
	case len(text) > maxTextBytes:
		return nil, fmt.Errorf("%d bytes, more than %d", len(text), maxTextBytes)
	}
	return []byte(text), nil
}
