package agent

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/buildinfo"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
)

const (
	hintSignerURL  = "see that signer_url in the configuration is the signer's, and that nothing in between answers for it"
	hintSignerDown = "sshd works as before; hallmark.timer tries again every few minutes"
)

// newSignerClient returns a client for the signer: TLS 1.2 or later, the system's
// roots and those in caFile, proxies as the environment says, no redirects.
func newSignerClient(caFile string) (*http.Client, error) {
	transport, err := newTransport(caFile)
	if err != nil {
		return nil, &Error{Kind: Misconfigured, Hint: "see signer_ca_file in the configuration", Err: err}
	}
	return &http.Client{
		Transport: transport,
		// A redirect would carry the proof to a host that nobody configured.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}, nil
}

// newTransport trusts the roots in caFile and those of the system. The system's are
// read only if the others do not vouch for the signer: reading some 140 certificates,
// most of them twice, is a fifth of an enrollment's memory and CPU time.
func newTransport(caFile string) (http.RoundTripper, error) {
	system := transportWith(nil)
	if caFile == "" {
		return system, nil
	}
	data, err := os.ReadFile(caFile)
	if err != nil {
		return nil, fmt.Errorf("read the signer's CA: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(data) {
		return nil, fmt.Errorf("read the signer's CA: %s holds no PEM certificate", caFile)
	}
	return ownFirst{transportWith(roots), system}, nil
}

// transportWith returns a transport that trusts the roots; nil means the system's.
func transportWith(roots *x509.CertPool) *http.Transport {
	return &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
		TLSHandshakeTimeout: 10 * time.Second,
		TLSClientConfig:     &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		ForceAttemptHTTP2:   true,
	}
}

// ownFirst makes a request by the first transport, and by the second if the first does
// not know who vouches for the server.
type ownFirst struct{ own, system http.RoundTripper }

func (t ownFirst) RoundTrip(r *http.Request) (*http.Response, error) {
	response, err := t.own.RoundTrip(r)
	if _, ok := errors.AsType[x509.UnknownAuthorityError](err); !ok {
		return response, err
	}
	// Nothing has been sent yet: the handshake comes first.
	again := r.Clone(r.Context())
	if r.GetBody != nil {
		if again.Body, err = r.GetBody(); err != nil {
			return nil, err
		}
	}
	return t.system.RoundTrip(again)
}

// ask posts a request until it is answered, and makes it anew each time: a proof
// is good for minutes only.
func (e *Enroller) ask(ctx context.Context, newRequest func(context.Context) ([]byte, error)) (*protocol.Response, error) {
	var answer *protocol.Response
	err := e.retry.do(ctx, manyAttempts, func(ctx context.Context) (again bool, after time.Duration, err error) {
		body, err := newRequest(ctx)
		if err != nil {
			return false, 0, err
		}
		answer, after, err = e.post(ctx, body)
		return kindOf(err) == Temporary, after, err
	})
	return answer, err
}

// post sends one request. after is the wait that the signer asked for.
func (e *Enroller) post(ctx context.Context, body []byte) (answer *protocol.Response, after time.Duration, err error) {
	ctx, cancel := context.WithTimeout(ctx, signerTimeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, e.Config.SignerURL, bytes.NewReader(body))
	if err != nil {
		return nil, 0, fmt.Errorf("ask the signer: %w", err)
	}
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("User-Agent", "hallmark/"+strings.Trim(buildinfo.Version(), "()"))
	resp, err := e.http.Do(req)
	if err != nil {
		return nil, 0, unreachable(err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, protocol.MaxResponseBytes+1))
	if err != nil {
		return nil, 0, failf(Temporary, hintSignerDown, "read the signer's answer: %w", err)
	}
	answer, err = readAnswer(resp.StatusCode, data)
	return answer, retryAfter(resp.Header.Get("Retry-After"), e.now()), err
}

// unreachable explains why no answer came. A certificate that does not verify is
// worth waiting for as well: the clock may be wrong, and set right in a minute.
func unreachable(err error) error {
	hint := hintSignerDown
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		hint = "the signer's TLS certificate does not verify: see signer_ca_file, signer_url and the machine's clock"
	}
	return failf(Temporary, hint, "ask the signer: %w", err)
}

// readAnswer turns what the signer said into an answer, or an error that knows
// whether asking again may help.
func readAnswer(status int, data []byte) (*protocol.Response, error) {
	if len(data) > protocol.MaxResponseBytes {
		return nil, failf(Failed, hintSignerURL, "the signer's answer has more than %d bytes", protocol.MaxResponseBytes)
	}
	if status != http.StatusOK {
		return nil, readRefusal(status, data)
	}
	var answer protocol.Response
	// Fields that a later signer adds do no harm to an older machine.
	if err := json.Unmarshal(data, &answer); err != nil {
		return nil, failf(Failed, hintSignerURL, "the signer's answer is not of this protocol: %w", err)
	}
	if answer.Version != protocol.Version {
		return nil, failf(Failed, "update hallmark on this machine, or the signer",
			"the signer's answer has protocol version %d, not %d", answer.Version, protocol.Version)
	}
	return &answer, nil
}

func readRefusal(status int, data []byte) error {
	var r protocol.ErrorResponse
	if err := json.Unmarshal(data, &r); err != nil || r.Error.Code == "" {
		return unexplained(status)
	}
	if r.Error.Code == protocol.CodeClockSkew {
		return failf(Temporary, "set the machine's clock, for example with chrony or systemd-timesyncd", "%s", explainSkew(r.Error))
	}
	// The signer is trusted to sign, not to draw on a terminal: %q.
	err := fmt.Errorf("the signer answered %d %.64q: %.300q (request %.64q)", status, r.Error.Code, r.Error.Message, r.Error.RequestID)
	if temporary(status) {
		return &Error{Kind: Temporary, Hint: hintSignerDown, Err: err}
	}
	return &Error{Kind: Refused, Hint: hintRefused(r.Error.Code), Err: err}
}

func explainSkew(r protocol.Refusal) string {
	if r.ServerTime == nil {
		return "the signer says that this machine's clock is wrong"
	}
	return fmt.Sprintf("this machine's clock is wrong: the signer's says %s", r.ServerTime.UTC().Format(time.RFC3339))
}

// unexplained is for answers that did not come from a signer, but from something
// in front of it.
func unexplained(status int) error {
	err := fmt.Errorf("the signer answered %d %s, without a reason of this protocol", status, http.StatusText(status))
	switch {
	case temporary(status):
		return &Error{Kind: Temporary, Hint: hintSignerDown, Err: err}
	case status >= 300 && status < 400:
		return &Error{Kind: Failed, Hint: "redirects are not followed: give the final address as signer_url", Err: err}
	}
	return &Error{Kind: Refused, Hint: hintSignerURL, Err: err}
}

func temporary(status int) bool {
	switch status {
	case http.StatusRequestTimeout, http.StatusTooEarly, http.StatusTooManyRequests:
		return true
	}
	return status >= 500
}

func hintRefused(code protocol.Code) string {
	switch code {
	case protocol.CodeNotAllowed:
		return "add this account and region to the signer's deployment, or correct signer_url"
	case protocol.CodeAudienceMismatch:
		return "audience in the configuration must be that of the signer's deployment"
	case protocol.CodePolicyRefused:
		return "no rule of the signer's policy admits this instance: its log says why, by the request id"
	case protocol.CodeKeyConflict, protocol.CodeKeyInUse:
		return "host keys must be made on each instance at first boot: end a bake with 'hallmark seal'"
	case protocol.CodeNameInUse:
		return "give the instance another name, or remove the node that holds it from Teleport"
	case protocol.CodeUnsupportedVersion:
		return "update hallmark on this machine, or the signer"
	default:
		return "the signer's log says more, by the request id"
	}
}

// retryAfter reads the header's two forms (RFC 9110, section 10.2.3).
func retryAfter(value string, now time.Time) time.Duration {
	if value == "" {
		return 0
	}
	if seconds, err := strconv.ParseUint(value, 10, 31); err == nil {
		return time.Duration(seconds) * time.Second
	}
	if at, err := http.ParseTime(value); err == nil {
		return max(at.Sub(now), 0)
	}
	return 0
}
