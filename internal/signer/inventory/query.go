package inventory

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
)

// The calls are made here, on the SDK's credentials, signer and HTTP client,
// because the SDK's own EC2 package cannot be had in parts: Teleport's library
// uses templates, with which the linker keeps every method of every type, and all
// 700 actions of EC2 would add 30 MB to the function.

const (
	apiVersion = "2016-11-15"
	// maxAnswerBytes bounds an answer on one instance or image.
	maxAnswerBytes = 1 << 20
	// maxListBytes bounds a page of a thousand instances, of 5 KB each and more with many
	// tags.
	maxListBytes = 32 << 20
	// callTimeout bounds one call, so that a region that hangs is given up before a sweep
	// of all regions runs out of time.
	callTimeout = 20 * time.Second
)

// errBusy marks what EC2 may answer better in a moment.
var errBusy = errors.New("EC2 is busy or did not answer")

// apiError is an error that EC2 answered.
type apiError struct {
	status        int
	code, message string
}

func (e *apiError) Error() string { return fmt.Sprintf("EC2: %s: %s", e.code, e.message) }

// Is makes throttling and failures of EC2's own count as errBusy.
func (e *apiError) Is(target error) bool {
	return target == errBusy && (e.status >= 500 || e.code == "RequestLimitExceeded" || e.code == "Throttling")
}

// call sends an action of EC2's Query API (Amazon EC2 API Reference, "Query
// requests") and returns the answer, which has no more than limit bytes.
func (e *EC2) call(ctx context.Context, at ec2ref.Place, form url.Values, limit int64) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	form.Set("Version", apiVersion)
	request, err := e.newRequest(ctx, at, form.Encode())
	if err != nil {
		return nil, err
	}
	response, err := e.http.Do(request)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errBusy, err)
	}
	defer func() { _ = response.Body.Close() }()
	// The client follows some redirects. Whoever is there is not whom we asked.
	if from := response.Request; from != nil && from.URL.String() != request.URL.String() {
		return nil, fmt.Errorf("%w: it came from %.128q by a redirect", errAnswer, from.URL.Host)
	}
	data, err := io.ReadAll(io.LimitReader(response.Body, limit+1))
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w: read the answer: %w", errBusy, err)
	case response.StatusCode != http.StatusOK:
		return nil, newAPIError(response.StatusCode, data)
	case int64(len(data)) > limit:
		return nil, fmt.Errorf("%w: it has more than %d bytes", errAnswer, limit)
	}
	return data, nil
}

func (e *EC2) newRequest(ctx context.Context, at ec2ref.Place, body string) (*http.Request, error) {
	// A stranger's account with a role of the expected name would let the signer in:
	// an account that is not listed gets no call, not even of STS.
	provider, listed := e.credentials[at.Account]
	if !listed {
		return nil, ErrNotListed
	}
	endpoint, err := e.endpoint(at.Region)
	if err != nil {
		return nil, err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, endpoint, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded; charset=utf-8")
	credentials, err := provider.Retrieve(ctx)
	if err != nil {
		return nil, fmt.Errorf("get AWS credentials: %w", err)
	}
	sum := sha256.Sum256([]byte(body))
	err = v4.NewSigner().SignHTTP(ctx, credentials, request, hex.EncodeToString(sum[:]), "ec2", string(at.Region), e.now())
	return request, err
}

func newAPIError(status int, data []byte) error {
	code, message, ok := parseError(data)
	if !ok {
		// A proxy on the way answers 403 too. Only EC2's own error says something.
		code, message = fmt.Sprintf("HTTP status %d", status), ""
	}
	return &apiError{status: status, code: code, message: message}
}
