// Package awscall sends single requests to AWS services, with the SDK's credentials, signer
// and HTTP client.
//
// The SDK's own packages for these services cost too much. Teleport's library uses templates,
// which make the linker keep every method of every type: all 700 actions of EC2 would add
// 30 MB to the function. The ssm package describes all of SSM when a program starts, which
// took a tenth of the signer's cold start.
package awscall

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
)

var (
	// ErrNoAnswer marks a request without a complete answer. The service may answer it soon.
	ErrNoAnswer = errors.New("did not answer")
	// ErrForeign marks an answer that is not the service's. It proves nothing.
	ErrForeign = errors.New("not the service's answer")
)

// defaultTimeout bounds one call, so a region that hangs does not use up the time for the others.
const defaultTimeout = 20 * time.Second

// Client sends requests. HTTP and Now are required.
type Client struct {
	HTTP aws.HTTPClient
	Now  func() time.Time
	// Timeout bounds one call; 0 means 20 seconds.
	Timeout time.Duration
}

// Request is a POST request to a service, before it is signed.
type Request struct {
	Service     string // the service's name in signatures, such as ec2
	Region      ec2ref.Region
	Endpoint    string // the URL of the service in that region
	ContentType string
	Target      string // the header X-Amz-Target of JSON APIs, or empty
	Body        []byte
	// MaxBytes bounds a good answer. An error is cut at this length.
	MaxBytes int64
}

// Send signs the request with the credentials, sends it once, and returns the answer's HTTP
// status and body. It fails if it cannot get the credentials, with ErrNoAnswer, or with
// ErrForeign.
func (c Client) Send(ctx context.Context, as aws.CredentialsProvider, r Request) (status int, body []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, cmp.Or(c.Timeout, defaultTimeout))
	defer cancel()
	request, err := c.sign(ctx, as, r)
	if err != nil {
		return 0, nil, err
	}
	response, err := c.HTTP.Do(request)
	if err != nil {
		return 0, nil, fmt.Errorf("%w: %w", ErrNoAnswer, err)
	}
	defer func() { _ = response.Body.Close() }()
	// The client follows some redirects. An answer from a host that we did not call proves
	// nothing.
	if from := response.Request; from != nil && from.URL.String() != request.URL.String() {
		return 0, nil, fmt.Errorf("%w: it came from %.128q by a redirect", ErrForeign, from.URL.Host)
	}
	body, err = io.ReadAll(io.LimitReader(response.Body, r.MaxBytes+1))
	switch {
	case err != nil:
		return 0, nil, fmt.Errorf("%w: read the answer: %w", ErrNoAnswer, err)
	case int64(len(body)) <= r.MaxBytes:
		return response.StatusCode, body, nil
	case response.StatusCode == http.StatusOK:
		return 0, nil, fmt.Errorf("%w: it has more than %d bytes", ErrForeign, r.MaxBytes)
	default:
		return response.StatusCode, body[:r.MaxBytes], nil
	}
}

func (c Client) sign(ctx context.Context, as aws.CredentialsProvider, r Request) (*http.Request, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, r.Endpoint, bytes.NewReader(r.Body))
	if err != nil {
		return nil, err
	}
	request.Header.Set("Content-Type", r.ContentType)
	if r.Target != "" {
		request.Header.Set("X-Amz-Target", r.Target)
	}
	credentials, err := as.Retrieve(ctx)
	if err != nil {
		return nil, fmt.Errorf("get AWS credentials: %w", err)
	}
	sum := sha256.Sum256(r.Body)
	err = v4.NewSigner().SignHTTP(ctx, credentials, request, hex.EncodeToString(sum[:]), r.Service, string(r.Region), c.Now())
	return request, err
}
