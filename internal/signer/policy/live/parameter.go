package live

import (
	"bytes"
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
	// The client follows some redirects. Whoever is there is not whom we asked.
	if from := response.Request; from != nil && from.URL.String() != request.URL.String() {
		return nil, fmt.Errorf("the answer came from %.128q by a redirect", from.URL.Host)
	}
	data, err := io.ReadAll(io.LimitReader(response.Body, maxAnswerBytes))
	if err != nil {
		return nil, fmt.Errorf("%w: read the answer: %w", errBusy, err)
	}
	return p.parseAnswer(response.StatusCode, data)
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

// parseAnswer returns the value in an answer about the parameter. No error shows any of it.
func (p Parameter) parseAnswer(status int, data []byte) ([]byte, error) {
	answer, decodeErr := members(data)
	kind, message := text(answer["__type"]), text(answer["message"]) // of an error
	switch {
	case status >= http.StatusInternalServerError || strings.HasSuffix(kind, "ThrottlingException"):
		return nil, fmt.Errorf("%w: HTTP status %d: %.100s: %.300s", errBusy, status, kind, message)
	case status != http.StatusOK || kind != "":
		return nil, fmt.Errorf("SSM: HTTP status %d: %.100s: %.300s", status, kind, message)
	case decodeErr != nil:
		return nil, fmt.Errorf("the answer of SSM is not JSON of the expected form: %w", decodeErr)
	}
	parameter, err := members(answer["Parameter"])
	if err != nil {
		return nil, fmt.Errorf("the answer of SSM holds no parameter: %w", err)
	}
	if !p.isNamed(text(parameter["Name"]), text(parameter["ARN"])) {
		return nil, errors.New("the answer of SSM is about another parameter")
	}
	return bounded(text(parameter["Value"]))
}

// isNamed reports whether an answer's name or ARN is the parameter's. A version or label
// behind a colon is not part of the answer's name.
func (p Parameter) isNamed(name, arn string) bool {
	selected := func(full string) bool {
		return full != "" && (p.Name == full || strings.HasPrefix(p.Name, full+":"))
	}
	return name == "" && arn == "" || selected(name) || selected(arn)
}

// members reads a JSON object that is the whole of data and has each name once.
// encoding/json alone would take the last of several, in any case.
func members(data []byte) (map[string]json.RawMessage, error) {
	d := json.NewDecoder(bytes.NewReader(data))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, errors.New("it is not an object")
	}
	object := make(map[string]json.RawMessage)
	for d.More() {
		t, err := d.Token()
		name, _ := t.(string)
		if _, twice := object[name]; err != nil || twice {
			return nil, errors.New("a name is broken or comes twice")
		}
		var value json.RawMessage
		if d.Decode(&value) != nil {
			return nil, errors.New("a value is broken")
		}
		object[name] = value
	}
	if _, err := d.Token(); err != nil {
		return nil, errors.New("it ends too early")
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("something follows it")
	}
	return object, nil
}

// text returns a JSON string's value, and nothing for all else.
func text(value json.RawMessage) (s string) {
	if json.Unmarshal(value, &s) != nil {
		return ""
	}
	return s
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
