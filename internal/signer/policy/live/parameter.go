package live

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"

	"github.com/hallmark-ssh/hallmark/internal/backoff"
	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/signer/awscall"
)

// Parameter is an SSM parameter. The configuration's credentials need ssm:GetParameter on it,
// and kms:Decrypt on its key if it is a SecureString.
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
	// maxAnswerBytes bounds an answer, which contains the text with escapes.
	maxAnswerBytes = 1 << 20
	// attempts bounds how often SSM is asked; pause is the first pause when it is busy.
	attempts = 3
	pause    = 200 * time.Millisecond
)

// errBusy marks a request that SSM may answer soon.
var errBusy = errors.New("SSM is busy or did not answer")

// Fetch returns the parameter's value. It is a Config.Fetch.
func (p Parameter) Fetch(ctx context.Context) ([]byte, error) {
	var text []byte
	policy := backoff.Policy{Growth: backoff.Growth{First: pause, Longest: 2 * pause}}
	err := policy.Do(ctx, attempts, func(ctx context.Context) (again bool, after time.Duration, err error) {
		text, err = p.get(ctx)
		return errors.Is(err, errBusy), 0, err
	})
	if err != nil {
		return nil, fmt.Errorf("get parameter %s: %w", p.Name, err)
	}
	return text, nil
}

// get calls GetParameter (AWS Systems Manager API Reference).
func (p Parameter) get(ctx context.Context) ([]byte, error) {
	body, err := json.Marshal(map[string]any{"Name": p.Name, "WithDecryption": true})
	if err != nil {
		return nil, err
	}
	client := awscall.Client{HTTP: p.AWS.HTTPClient, Now: p.Now}
	status, data, err := client.Send(ctx, p.AWS.Credentials, awscall.Request{
		Service: "ssm", Region: ec2ref.Region(p.AWS.Region), Endpoint: p.Endpoint,
		ContentType: "application/x-amz-json-1.1", Target: "AmazonSSM.GetParameter",
		Body: body, MaxBytes: maxAnswerBytes,
	})
	if errors.Is(err, awscall.ErrNoAnswer) {
		return nil, fmt.Errorf("%w: %w", errBusy, err)
	}
	if err != nil {
		return nil, err
	}
	return p.parseAnswer(status, data)
}

// parseAnswer returns the value in an answer about the parameter. No error shows any of it.
func (p Parameter) parseAnswer(status int, data []byte) ([]byte, error) {
	answer, decodeErr := awscall.Members(data)
	kind, message := awscall.Text(answer["__type"]), awscall.Text(answer["message"]) // in an error
	switch {
	case status >= http.StatusInternalServerError || strings.HasSuffix(kind, "ThrottlingException"):
		return nil, fmt.Errorf("%w: HTTP status %d: %.100s: %.300s", errBusy, status, kind, message)
	case status != http.StatusOK || kind != "":
		return nil, fmt.Errorf("SSM: HTTP status %d: %.100s: %.300s", status, kind, message)
	case decodeErr != nil:
		return nil, fmt.Errorf("the answer of SSM is not JSON of the expected form: %w", decodeErr)
	}
	parameter, err := awscall.Members(answer["Parameter"])
	if err != nil {
		return nil, fmt.Errorf("the answer of SSM holds no parameter: %w", err)
	}
	if !p.isNamed(awscall.Text(parameter["Name"]), awscall.Text(parameter["ARN"])) {
		return nil, errors.New("the answer of SSM is about another parameter")
	}
	return bounded(awscall.Text(parameter["Value"]))
}

// isNamed reports whether an answer's name or ARN is the parameter's. The answer's name does
// not include a version or label after a colon.
func (p Parameter) isNamed(name, arn string) bool {
	selected := func(full string) bool {
		return full != "" && (p.Name == full || strings.HasPrefix(p.Name, full+":"))
	}
	return name == "" && arn == "" || selected(name) || selected(arn)
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
