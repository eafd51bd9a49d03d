// Package signerclient asks the signer, and checks that an answer matches the request.
package signerclient

import (
	"bytes"
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/backoff"
	"github.com/hallmark-ssh/hallmark/internal/buildinfo"
	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/identity"
	"github.com/hallmark-ssh/hallmark/internal/machine/config"
	"github.com/hallmark-ssh/hallmark/internal/machine/fault"
	"github.com/hallmark-ssh/hallmark/internal/machine/imds"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
)

const (
	hintSignerURL  = "check that signer_url is the signer's address, and that nothing in between answers in its place"
	hintSignerDown = "sshd works as before; hallmark.service retries in a few minutes"
)

const (
	// manyAttempts is more than a run can make: the run's deadline limits the attempts.
	manyAttempts = 1000
	// attemptTimeout bounds one attempt.
	attemptTimeout = 30 * time.Second
)

// profile has the credentials with which signer_auth: aws_iam signs requests.
type profile interface {
	ProfileCredentials(ctx context.Context) (identity.Credentials, error)
}

// Client asks the signer.
type Client struct {
	url      string
	function *function // nil if the signer is asked at url
	Auth     string    // a value of Config.SignerAuth
	http     *http.Client
	retry    backoff.Policy
	profile  profile
	Attempt  time.Duration // for one question
	now      func() time.Time
}

// New returns a client for the signer that a configuration names.
func New(c config.Config, r backoff.Policy, p profile, now func() time.Time) (*Client, error) {
	client, err := newHTTPClient(c.SignerCAFile)
	if err != nil {
		return nil, err
	}
	f, err := newFunction(c)
	if err != nil {
		return nil, &fault.Error{Kind: fault.Misconfigured, Hint: "check signer_function in the configuration", Err: err}
	}
	return &Client{url: c.SignerURL, function: f, Auth: c.SignerAuth, http: client, retry: r, profile: p, Attempt: attemptTimeout, now: now}, nil
}

// newHTTPClient returns a client for the signer: TLS 1.2 or later, the system's roots and
// those in caFile, proxies from the environment, no redirects.
func newHTTPClient(caFile string) (*http.Client, error) {
	transport, err := newTransport(caFile)
	if err != nil {
		return nil, &fault.Error{Kind: fault.Misconfigured, Hint: "check signer_ca_file in the configuration", Err: err}
	}
	return &http.Client{
		Transport: transport,
		// A redirect would carry the proof to a host that nobody configured.
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}, nil
}

// newTransport trusts the roots in caFile and the system's. It reads the system's roots only
// if the others did not issue the signer's certificate: reading some 140 certificates, most of
// them twice, takes a fifth of an enrollment's memory and CPU time.
func newTransport(caFile string) (http.RoundTripper, error) {
	system := systemTransport(sync.OnceValues(func() (http.RoundTripper, error) {
		roots, err := systemRoots()
		if err != nil {
			return nil, fmt.Errorf("read the system's CAs: %w", err)
		}
		return transportWith(roots), nil
	}))
	if caFile == "" {
		return system, nil
	}
	data, err := os.ReadFile(caFile)
	if err != nil {
		return nil, fmt.Errorf("read the signer's CA: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(data) {
		return nil, fmt.Errorf("read the signer's CA: %s contains no PEM certificate", caFile)
	}
	return ownFirst{transportWith(roots), system}, nil
}

// systemTransport creates a transport when the first request needs it.
type systemTransport func() (http.RoundTripper, error)

func (t systemTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	transport, err := t()
	if err != nil {
		return nil, err
	}
	return transport.RoundTrip(r)
}

// transportWith returns a transport that trusts the roots.
func transportWith(roots *x509.CertPool) *http.Transport {
	return &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
		TLSHandshakeTimeout: 10 * time.Second,
		TLSClientConfig:     &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS12},
		ForceAttemptHTTP2:   true,
	}
}

// ownFirst sends a request over the first transport, and over the second if the first does not
// trust the server's certificate.
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

// systemRoots returns the CAs in the system's bundle, like curl. Go's library would also read
// the folder of single certificates: the same ones again, for 9 ms of the 30 that a wake-up
// may take.
func systemRoots() (*x509.CertPool, error) {
	if os.Getenv("SSL_CERT_FILE") == "" && os.Getenv("SSL_CERT_DIR") == "" {
		for _, bundle := range []string{"/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt"} {
			roots := x509.NewCertPool()
			if data, err := os.ReadFile(bundle); err == nil && roots.AppendCertsFromPEM(data) {
				return roots, nil
			}
		}
	}
	roots, err := x509.SystemCertPool()
	if err != nil && os.IsNotExist(err) {
		return x509.NewCertPool(), nil // a machine without CAs: then only signer_ca_file counts
	}
	return roots, err
}

// requestMaker creates a request in a version of the protocol.
type requestMaker func(ctx context.Context, version int) ([]byte, error)

// Ask posts requests until one is answered. It creates a new one each time, because a proof is
// valid for minutes only. It begins with the latest version of the protocol, because an older
// signer may have been updated since the last run.
func (c *Client) Ask(ctx context.Context, region ec2ref.Region, newRequest requestMaker) (*protocol.Response, error) {
	var answer *protocol.Response
	version := protocol.Version
	err := c.retry.Do(ctx, manyAttempts, func(ctx context.Context) (again bool, after time.Duration, err error) {
		answer, err = c.askOnce(ctx, region, version, newRequest)
		if older := olderVersion(err, version); older > 0 {
			version = older
			answer, err = c.askOnce(ctx, region, version, newRequest)
		}
		return fault.KindOf(err) == fault.Temporary, waitOf(err), err
	})
	return answer, err
}

func (c *Client) askOnce(ctx context.Context, region ec2ref.Region, version int, newRequest requestMaker) (*protocol.Response, error) {
	body, err := newRequest(ctx, version)
	if err != nil {
		return nil, err
	}
	return c.post(ctx, region, version, body)
}

// versionError says that the signer does not speak the request's version.
type versionError struct {
	asked     int
	signers   []int // those that it speaks, or none if it does not say
	requestID string
}

func (e *versionError) Error() string {
	return fmt.Sprintf("the signer does not support this machine's protocol version %d%s (request %.64q)", e.asked, spoken(e.signers), e.requestID)
}

// olderVersion returns the latest version, below the one that the signer refused, that both
// sides speak, or 0. A signer that does not list its versions is an old one, and speaks the
// first.
func olderVersion(err error, asked int) (older int) {
	e, ok := errors.AsType[*versionError](err)
	if !ok {
		return 0
	}
	signers := e.signers
	if len(signers) == 0 {
		signers = []int{protocol.FirstVersion}
	}
	for _, version := range protocol.SupportedVersions() {
		if version < asked && slices.Contains(signers, version) {
			older = max(older, version)
		}
	}
	return older
}

func (c *Client) post(ctx context.Context, region ec2ref.Region, version int, body []byte) (*protocol.Response, error) {
	data, err := c.postBody(ctx, region, version, body)
	if err != nil {
		return nil, err
	}
	return readAnswer(data)
}

// postBody posts a request in a version, and returns the body of the answer if it was granted.
func (c *Client) postBody(ctx context.Context, region ec2ref.Region, version int, body []byte) ([]byte, error) {
	header := http.Header{"Content-Type": {"application/json"}}
	status, data, err := c.send(ctx, region, http.MethodPost, header, body)
	if err != nil {
		return nil, err
	}
	if status.code != http.StatusOK {
		return nil, c.refusal(status, data, version)
	}
	return data, nil
}

// CAs asks once for the cluster's current CAs, and returns nil if they still have the entity
// tag, or if the signer does not offer the list: the next enrollment brings them. The request
// carries the machine's health, the value of protocol.HealthHeader, unless it is empty.
func (c *Client) CAs(ctx context.Context, etag, health string, region ec2ref.Region) (current *CAs, newETag string, err error) {
	header := http.Header{}
	if etag != "" {
		header.Set("If-None-Match", etag)
	}
	if health != "" {
		header.Set(protocol.HealthHeader, health)
	}
	status, data, err := c.send(ctx, region, http.MethodGet, header, nil)
	if err != nil {
		return nil, "", err
	}
	switch status.code {
	case http.StatusOK:
		current, err = readCAs(data)
		return current, protocol.ETag(data), err
	case http.StatusNotModified, http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusNotImplemented:
		return nil, "", nil
	}
	return nil, "", c.refusal(status, data, protocol.Version)
}

func readCAs(data []byte) (*CAs, error) {
	const hint = "nothing was changed; check that signer_url is the signer's address"
	if len(data) > protocol.MaxResponseBytes {
		return nil, fault.Newf(fault.Failed, hint, "the signer's list of CAs has more than %d bytes", protocol.MaxResponseBytes)
	}
	var list protocol.CAs
	if err := json.Unmarshal(data, &list); err != nil {
		return nil, fault.Newf(fault.Failed, hint, "the signer's list of CAs is not a valid Hallmark response: %w", err)
	}
	if list.Version != protocol.CAsVersion {
		return nil, fault.Newf(fault.Failed, "update hallmark on this machine, or the signer",
			"the signer's list of CAs has protocol version %d, not %d", list.Version, protocol.CAsVersion)
	}
	a, err := readCAKeys(list.OpenSSHCAs, list.HostCAs)
	if err != nil {
		return nil, fault.Newf(fault.Failed, hint, "rejected the signer's list of CAs: %w", err)
	}
	return &a, nil
}

// status describes the answer to a request.
type status struct {
	code  int
	after time.Duration // the wait that the signer asked for
	date  time.Time     // by the clock of the server, or zero if it does not say
}

// newStatus reads the headers of an answer. Those of Lambda's own answer have no wait.
func (c *Client) newStatus(code int, header http.Header) status {
	s := status{code: code, after: retryAfter(header.Get("Retry-After"), c.now())}
	if date, err := http.ParseTime(header.Get("Date")); err == nil {
		s.date = date
	}
	return s
}

// send sends one request. It returns at most one byte more than any answer may have.
func (c *Client) send(ctx context.Context, region ec2ref.Region, method string, header http.Header, body []byte) (status, []byte, error) {
	ctx, cancel := context.WithTimeout(ctx, c.Attempt)
	defer cancel()
	if c.function != nil {
		return c.invoke(ctx, method, header, body)
	}
	req, err := http.NewRequestWithContext(ctx, method, c.url, bytes.NewReader(body))
	if err != nil {
		return status{}, nil, fmt.Errorf("ask the signer: %w", err)
	}
	req.Header = header
	if c.Auth == config.AuthIAM {
		if err := c.signRequest(ctx, req, scopeOf(req.URL.Hostname(), region), body); err != nil {
			return status{}, nil, err
		}
	}
	code, answer, data, err := c.do(req, protocol.MaxResponseBytes)
	if err != nil {
		return status{}, nil, err
	}
	if c.Auth == config.AuthIAM && code == http.StatusForbidden {
		if err := badSignature(code, answer.Get("X-Amzn-Errortype")); err != nil {
			return status{}, nil, err
		}
	}
	return c.newStatus(code, answer), data, nil
}

// do sends a request, and returns the answer's status, its header, and at most limit bytes of
// its body, plus one.
func (c *Client) do(req *http.Request, limit int64) (code int, header http.Header, data []byte, err error) {
	req.Header.Set("User-Agent", "hallmark/"+strings.Trim(buildinfo.Version(), "()"))
	resp, err := c.http.Do(req)
	if err != nil {
		return 0, nil, nil, unreachable(err)
	}
	defer resp.Body.Close()
	data, err = io.ReadAll(io.LimitReader(resp.Body, limit+1))
	if err != nil {
		return 0, nil, nil, fault.Newf(fault.Temporary, hintSignerDown, "read the signer's answer: %w", err)
	}
	return resp.StatusCode, resp.Header, data, nil
}

// waitOf returns the wait that the signer asked for with an error.
func waitOf(err error) time.Duration {
	if e, ok := errors.AsType[*fault.Error](err); ok {
		return e.After
	}
	return 0
}

// unreachable explains why no answer came. A certificate that does not verify is also worth a
// retry: the clock may be wrong now, and right in a minute.
func unreachable(err error) error {
	hint := hintSignerDown
	if !isProxyAddress(cmp.Or(os.Getenv("HTTPS_PROXY"), os.Getenv("https_proxy"))) {
		hint = "HTTPS_PROXY is not the address of a proxy, such as http://proxy.example.com:3128; for hallmark.service, correct it in /etc/hallmark/environment"
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		hint = "the signer's TLS certificate cannot be verified: check signer_ca_file, signer_url and the machine's clock"
	}
	return fault.Newf(fault.Temporary, hint, "ask the signer: %w", err)
}

// isProxyAddress reports whether a text is empty or the address of a proxy. net/http ignores
// what it cannot parse, or takes the scheme of a broken URL for the proxy's name.
func isProxyAddress(text string) bool {
	if text == "" {
		return true
	}
	if !strings.Contains(text, "://") {
		text = "http://" + text
	}
	address, err := url.Parse(text)
	return err == nil && address.Hostname() != "" && slices.Contains([]string{"http", "https", "socks5", "socks5h"}, address.Scheme)
}

// readAnswer reads the body of an answer that grants certificates.
func readAnswer(data []byte) (*protocol.Response, error) {
	if len(data) > protocol.MaxResponseBytes {
		return nil, fault.Newf(fault.Failed, hintSignerURL, "the signer's answer has more than %d bytes", protocol.MaxResponseBytes)
	}
	var answer protocol.Response
	// An older machine ignores fields that a later signer adds.
	if err := json.Unmarshal(data, &answer); err != nil {
		return nil, fault.Newf(fault.Failed, hintSignerURL, "the signer's answer is not a valid Hallmark response: %w", err)
	}
	if !slices.Contains(protocol.SupportedVersions(), answer.Version) {
		return nil, fault.Newf(fault.Failed, hintVersions([]int{answer.Version}),
			"the signer's answer has protocol version %d, not %s", answer.Version, spokenHere())
	}
	return &answer, nil
}

// refusal turns any other answer into an error that says whether and when asking again may
// help.
func (c *Client) refusal(s status, data []byte, version int) error {
	refusal := readRefusal(s.code, data, version)
	refusal.After = s.after
	if s.code == http.StatusForbidden && c.Auth == config.AuthIAM && refusal.Hint == hintSignerURL {
		refusal.Hint = imds.HintProfile
	}
	return refusal
}

// readRefusal reads an answer other than 200 to a request in a version.
func readRefusal(status int, data []byte, asked int) *fault.Error {
	var r protocol.ErrorResponse
	if err := json.Unmarshal(data, &r); err != nil || r.Error.Code == "" {
		return unexplained(status)
	}
	if r.Error.Code == protocol.CodeClockSkew {
		return &fault.Error{
			Kind: fault.Temporary, Hint: "set the machine's clock, for example with chrony or systemd-timesyncd",
			Err: &refusedError{r.Error.Code, errors.New(explainSkew(r.Error))},
		}
	}
	if r.Error.Code == protocol.CodeUnsupportedVersion {
		return &fault.Error{Kind: fault.Refused, Hint: hintVersions(r.Error.SupportedVersions), Err: &versionError{asked, r.Error.SupportedVersions, r.Error.RequestID}}
	}
	// The signer is trusted to sign, not to draw on a terminal: %q.
	err := &refusedError{r.Error.Code, fmt.Errorf("the signer answered %d %.64q: %.300q (request %.64q)", status, r.Error.Code, r.Error.Message, r.Error.RequestID)}
	if temporary(status) {
		return &fault.Error{Kind: fault.Temporary, Hint: hintSignerDown, Err: err}
	}
	return &fault.Error{Kind: fault.Refused, Hint: hintRefused(r.Error.Code), Err: err}
}

// refusedError is an answer with an error code.
type refusedError struct {
	code protocol.Code
	err  error
}

func (e *refusedError) Error() string { return e.err.Error() }

// CodeOf returns the code with which the signer refused a request, or "" for an error of
// another kind.
func CodeOf(err error) protocol.Code {
	if e, ok := errors.AsType[*refusedError](err); ok {
		return e.code
	}
	if _, ok := errors.AsType[*versionError](err); ok {
		return protocol.CodeUnsupportedVersion
	}
	return ""
}

func explainSkew(r protocol.Refusal) string {
	if r.ServerTime == nil {
		return "the signer says that this machine's clock is wrong"
	}
	return fmt.Sprintf("this machine's clock is wrong: the signer's clock says %s", r.ServerTime.UTC().Format(time.RFC3339))
}

// hintVersions says which side is too old, judging by the versions that the signer speaks.
// Signers are updated first, so a signer knows later versions than its machines.
func hintVersions(signers []int) string {
	own := protocol.SupportedVersions()
	switch {
	case len(signers) == 0:
		return "update hallmark on this machine, or the signer"
	case slices.Min(signers) > slices.Max(own):
		return "update hallmark on this machine: bake a new image, or run a newer 'hallmark install'"
	default:
		return "update the signer: it is older than hallmark on this machine"
	}
}

// spokenHere lists this machine's versions.
func spokenHere() string {
	return fmt.Sprintf("%d to %d", protocol.FirstVersion, protocol.Version)
}

// spoken lists the versions that the signer named, if it named any.
func spoken(versions []int) string {
	if len(versions) == 0 {
		return "" // a signer from before signers listed their versions
	}
	return fmt.Sprintf(", but %d to %d", slices.Min(versions), slices.Max(versions))
}

// unexplained is for answers that came from something in front of the signer.
func unexplained(status int) *fault.Error {
	err := fmt.Errorf("the signer answered %d %s, without a Hallmark error code", status, http.StatusText(status))
	switch {
	case temporary(status):
		return &fault.Error{Kind: fault.Temporary, Hint: hintSignerDown, Err: err}
	case status >= 300 && status < 400:
		return &fault.Error{Kind: fault.Failed, Hint: "hallmark does not follow redirects: set signer_url to the final address", Err: err}
	}
	return &fault.Error{Kind: fault.Refused, Hint: hintSignerURL, Err: err}
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
		return "no rule of the signer's policy admits this instance: look up the request id in the signer's log"
	case protocol.CodeKeyConflict, protocol.CodeKeyInUse:
		return "each instance must generate its own host keys at first boot: end the bake with 'hallmark seal'"
	case protocol.CodeNameInUse:
		return "give the instance another name, or remove the node that holds it from Teleport"
	default:
		return "look up the request id in the signer's log"
	}
}

// retryAfter reads both forms of the header (RFC 9110, section 10.2.3).
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
