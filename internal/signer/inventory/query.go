package inventory

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/signer/awscall"
)

const (
	apiVersion = "2016-11-15"
	// maxAnswerBytes bounds an answer about one instance or image.
	maxAnswerBytes = 1 << 20
	// maxListBytes bounds a page of a thousand instances, with 5 KB each and more for
	// instances with many tags.
	maxListBytes = 32 << 20
)

// errBusy marks a request that EC2 may answer soon.
var errBusy = errors.New("EC2 is busy or did not answer")

// apiError is an error that EC2 returned.
type apiError struct {
	status        int
	code, message string
}

func (e *apiError) Error() string { return fmt.Sprintf("EC2: %s: %s", e.code, e.message) }

// Is makes throttling and EC2's own failures count as errBusy.
func (e *apiError) Is(target error) bool {
	return target == errBusy && (e.status >= 500 || e.code == "RequestLimitExceeded" || e.code == "Throttling")
}

// call sends an action of EC2's Query API (Amazon EC2 API Reference, "Query requests") and
// returns the answer, which has at most limit bytes.
func (e *EC2) call(ctx context.Context, at ec2ref.Place, form url.Values, limit int64) ([]byte, error) {
	// An attacker's account with a role of the expected name would let the signer in. So an
	// account that is not listed causes no call, not even to STS.
	provider, listed := e.credentials.of(at.Account)
	if !listed {
		return nil, ErrNotListed
	}
	endpoint, err := e.endpoint(at.Region)
	if err != nil {
		return nil, err
	}
	form.Set("Version", apiVersion)
	status, data, err := e.client.Send(ctx, provider, awscall.Request{
		Service: "ec2", Region: at.Region, Endpoint: endpoint,
		ContentType: "application/x-www-form-urlencoded; charset=utf-8",
		Body:        []byte(form.Encode()), MaxBytes: limit,
	})
	switch {
	case errors.Is(err, awscall.ErrNoAnswer):
		return nil, fmt.Errorf("%w: %w", errBusy, err)
	case errors.Is(err, awscall.ErrForeign):
		return nil, fmt.Errorf("%w: %w", errAnswer, err)
	case err != nil:
		return nil, err
	case status != http.StatusOK:
		return nil, newAPIError(status, data)
	}
	return data, nil
}

func newAPIError(status int, data []byte) error {
	code, message, ok := parseError(data)
	if !ok {
		// A proxy on the way answers 403 too. Only EC2's own error counts.
		code, message = fmt.Sprintf("HTTP status %d", status), ""
	}
	return &apiError{status: status, code: code, message: message}
}
