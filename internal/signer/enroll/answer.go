package enroll

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strconv"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"github.com/hallmark-ssh/hallmark/internal/signer/entry"
	"github.com/hallmark-ssh/hallmark/internal/signer/teleport"
)

// refusal is an error with two messages: the caller gets a code and a sentence, the log
// gets the reason.
type refusal struct {
	code protocol.Code
	// public replaces the code's default sentence.
	public string
	// retryAfter replaces the code's default wait.
	retryAfter time.Duration
	// by is the service that did not answer, or empty.
	by  service
	err error
}

// service is a service that the signer calls, as the metrics name it.
type service string

const (
	serviceSTS      service = "sts"
	serviceEC2      service = "ec2"
	serviceLedger   service = "ledger"
	serviceTeleport service = "teleport"
)

func services() []service {
	return []service{serviceSTS, serviceEC2, serviceLedger, serviceTeleport}
}

func (r *refusal) Error() string { return fmt.Sprintf("%s: %v", r.code, r.err) }
func (r *refusal) Unwrap() error { return r.err }

func refuse(code protocol.Code, err error) *refusal { return &refusal{code: code, err: err} }

// unanswered refuses a request because a service failed. If Teleport refused, a retry
// does not help until an operator changes something.
func unanswered(by service, err error) *refusal {
	code := protocol.CodeUpstream
	if errors.Is(err, teleport.ErrDenied) {
		code = protocol.CodeTeleportRefused
	}
	return &refusal{code: code, by: by, err: err}
}

// withMessage sets the caller's message. Use it only for callers that proved their
// identity.
func (r *refusal) withMessage(public string) *refusal {
	r.public = public
	return r
}

// after sets when the caller should retry.
func (r *refusal) after(wait time.Duration) *refusal {
	r.retryAfter = wait
	return r
}

// outcome is the answer for a code.
type outcome struct {
	status     int
	message    string
	retryAfter time.Duration
}

// outcomes is the only table of codes. A caller that has proved nothing learns nothing
// but its sentences.
func outcomes() map[protocol.Code]outcome {
	return map[protocol.Code]outcome{
		protocol.CodeMalformed:          {status: http.StatusBadRequest, message: "not an enrollment request"},
		protocol.CodeTooLarge:           {status: http.StatusRequestEntityTooLarge, message: "the request is too large"},
		protocol.CodeMethodNotAllowed:   {status: http.StatusMethodNotAllowed, message: "use POST to enroll, GET for the CAs"},
		protocol.CodeUnsupportedVersion: {status: http.StatusBadRequest, message: "this signer does not speak that version of the protocol"},
		protocol.CodeIdentityInvalid:    {status: http.StatusUnauthorized, message: "the identity document does not verify"},
		protocol.CodeNotAllowed:         {status: http.StatusForbidden, message: "this signer does not serve the instance"},
		protocol.CodeAudienceMismatch:   {status: http.StatusUnauthorized, message: "the request is addressed to another signer; check audience in the machine's configuration"},
		protocol.CodeClockSkew:          {status: http.StatusUnauthorized, message: "the request's time is too far from the signer's; check the machine's clock"},
		protocol.CodeHostKeyInvalid:     {status: http.StatusBadRequest, message: "a host key is of a kind or size that is not accepted"},
		protocol.CodeHostKeyUnproved:    {status: http.StatusUnauthorized, message: "a host key did not sign the request"},
		protocol.CodeCallerProofInvalid: {status: http.StatusUnauthorized, message: "AWS does not confirm that the instance is calling"},

		protocol.CodeInstanceUnknown:  {status: http.StatusForbidden, message: "EC2 does not know the instance"},
		protocol.CodeInstanceState:    {status: http.StatusForbidden, message: "the instance is neither pending nor running"},
		protocol.CodeInstanceMismatch: {status: http.StatusForbidden, message: "EC2 and the identity document disagree; stop and start the instance to renew the document"},
		protocol.CodePolicyRefused:    {status: http.StatusForbidden, message: "the signer's policy does not admit the instance"},
		protocol.CodeKeyConflict:      {status: http.StatusConflict, message: "the instance is known with other host keys; restore them, or ask the signer's operator"},
		protocol.CodeKeyInUse:         {status: http.StatusConflict, message: "another instance holds one of the host keys; remove host keys from the image and generate new ones"},
		protocol.CodeNameInUse:        {status: http.StatusConflict, message: "another node holds the host name or the node's id"},
		protocol.CodeInstanceEnded:    {status: http.StatusForbidden, message: "the instance was off-boarded"},
		protocol.CodeNotEnrolled:      {status: http.StatusForbidden, message: "the instance is not enrolled"},
		protocol.CodeRateLimited:      {status: http.StatusTooManyRequests, message: "too many requests", retryAfter: 30 * time.Second},
		protocol.CodeUpstream:         {status: http.StatusServiceUnavailable, message: "a service behind the signer did not answer; try again", retryAfter: 10 * time.Second},
		protocol.CodeTeleportRefused:  {status: http.StatusForbidden, message: "Teleport refuses the signer's request; the signer's log has the reason under the request id"},
		protocol.CodeInternal:         {status: http.StatusInternalServerError, message: "the signer failed; its log has the reason under the request id"},
	}
}

// codeOf returns the code of an error from the signer's steps.
func codeOf(err error) protocol.Code {
	if r, ok := errors.AsType[*refusal](err); ok {
		return r.code
	}
	return protocol.CodeInternal
}

// missing returns the service that did not answer according to the error, or "".
func missing(err error) service {
	if r, ok := errors.AsType[*refusal](err); ok {
		return r.by
	}
	return ""
}

func newAnswer(response any, err error, requestID string, now time.Time) entry.Answer {
	if err != nil {
		return refusalAnswer(err, requestID, now)
	}
	return jsonAnswer(http.StatusOK, response)
}

func refusalAnswer(err error, requestID string, now time.Time) entry.Answer {
	code := codeOf(err)
	o := outcomes()[code]
	body := protocol.Refusal{Code: code, Message: o.message, RequestID: requestID}
	if r, ok := errors.AsType[*refusal](err); ok {
		body.Message = cmp.Or(r.public, o.message)
		o.retryAfter = cmp.Or(r.retryAfter, o.retryAfter)
	}
	if code == protocol.CodeClockSkew {
		serverTime := now.UTC().Truncate(time.Second)
		body.ServerTime = &serverTime
	}
	if code == protocol.CodeUnsupportedVersion {
		body.SupportedVersions = protocol.SupportedVersions()
	}
	answer := jsonAnswer(o.status, protocol.ErrorResponse{Error: body})
	if o.retryAfter > 0 {
		answer.Header["Retry-After"] = strconv.Itoa(int(math.Ceil(o.retryAfter.Seconds())))
	}
	if code == protocol.CodeMethodNotAllowed {
		answer.Header["Allow"] = http.MethodGet + ", " + http.MethodPost
	}
	return answer
}

func jsonAnswer(status int, value any) entry.Answer {
	body, err := json.Marshal(value)
	if err != nil { // the types of the protocol always marshal
		return entry.Answer{Status: http.StatusInternalServerError}
	}
	return entry.Answer{
		Status: status,
		Header: map[string]string{"Content-Type": "application/json", "Cache-Control": "no-store"},
		Body:   body,
	}
}
