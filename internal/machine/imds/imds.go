// Package imds asks the instance metadata service about this instance.
package imds

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/backoff"
	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/identity"
	"github.com/hallmark-ssh/hallmark/internal/machine/fault"
)

const (
	metadataTimeout  = 5 * time.Second // of one request; a healthy service takes milliseconds
	metadataAttempts = 4
	maxMetadataBytes = 32 << 10

	hintMetadata = "check that the instance metadata service is on (HttpEndpoint) and that nothing on the machine blocks its address"
	hintRole     = "the instance identity role's credentials are missing: retry, and compare " +
		"/latest/meta-data/identity-credentials/ec2/info on another instance"
	// HintProfile is for a request that an instance profile's role must sign.
	HintProfile = "give the instance an instance profile whose role may call the signer (lambda:InvokeFunctionUrl, execute-api:Invoke or lambda:InvokeFunction, depending on how the signer is deployed)"

	documentPage = "/latest/dynamic/instance-identity/document"
)

// Instance is which instance this is, according to its metadata.
type Instance struct {
	AccountID  ec2ref.Account    `json:"accountId"`
	Region     ec2ref.Region     `json:"region"`
	InstanceID ec2ref.InstanceID `json:"instanceId"`
	// Started is when it last started, as the document says. A reboot does not change it.
	Started string `json:"pendingTime"`
}

// Ref returns the instance's account, region and id, without parsing them.
func (i Instance) Ref() ec2ref.Instance {
	return ec2ref.Instance{Account: i.AccountID, Region: i.Region, ID: i.InstanceID}
}

// Client speaks only IMDSv2: anything that forwards requests from outside could make a request
// without a session token.
type Client struct {
	Endpoint string
	http     *http.Client
	retry    backoff.Policy
	Timeout  time.Duration // of one request
	token    string
}

// errMissing says that the metadata service has no such page.
var errMissing = errors.New("not found")

// New takes the address from the AWS SDKs' variables. Its client ignores proxies, which would
// see credentials, and follows no redirect.
func New(r backoff.Policy) *Client {
	endpoint := os.Getenv("AWS_EC2_METADATA_SERVICE_ENDPOINT")
	if endpoint == "" {
		endpoint = "http://169.254.169.254"
		if strings.EqualFold(os.Getenv("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE"), "ipv6") {
			endpoint = "http://[fd00:ec2::254]"
		}
	}
	return &Client{
		Endpoint: strings.TrimSuffix(endpoint, "/"),
		http: &http.Client{
			Transport:     &http.Transport{Proxy: nil, DialContext: (&net.Dialer{Timeout: 2 * time.Second}).DialContext},
			CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		},
		retry: r, Timeout: metadataTimeout,
	}
}

// Instance returns which instance this is. Only root on the machine can falsify this, and the
// signer does not trust the machine's own statement.
func (m *Client) Instance(ctx context.Context) (Instance, error) {
	var i Instance
	text, err := m.get(ctx, documentPage)
	if err != nil {
		return i, metadataError("the instance's identity", hintMetadata, err)
	}
	if err := json.Unmarshal(text, &i); err != nil {
		return i, fault.Newf(fault.Failed, hintMetadata, "metadata service: identity document: %w", err)
	}
	if i.AccountID == "" || i.Region == "" || i.InstanceID == "" {
		return i, fault.Newf(fault.Failed, hintMetadata, "metadata service: identity document has no accountId, region or instanceId")
	}
	return i, nil
}

// IdentityDocument returns the base64 text of the document's RSA-2048 form.
func (m *Client) IdentityDocument(ctx context.Context) (string, error) {
	text, err := m.get(ctx, "/latest/dynamic/instance-identity/rsa2048")
	if err != nil {
		return "", metadataError("the identity document", hintMetadata, err)
	}
	return strings.TrimSpace(string(text)), nil
}

// RoleCredentials returns the credentials of the instance identity role. Every instance has
// this role, which may do nothing but identify itself.
func (m *Client) RoleCredentials(ctx context.Context) (identity.Credentials, error) {
	const page = "/latest/meta-data/identity-credentials/ec2/security-credentials/ec2-instance"
	text, err := m.get(ctx, page)
	if errors.Is(err, errMissing) {
		return identity.Credentials{}, fault.Newf(fault.Failed, hintRole, "metadata service has no instance identity role (%s)", page)
	}
	if err != nil {
		return identity.Credentials{}, metadataError("the identity role's credentials", hintMetadata, err)
	}
	return parseCredentials(text, "identity role", hintRole)
}

var roleName = regexp.MustCompile(`^[A-Za-z0-9_+=,.@-]{1,64}$`)

// ProfileCredentials returns the credentials of the instance profile's role, with which
// requests are signed for signer_auth: aws_iam. They do not prove which instance this is: the
// instance's owner chooses the profile.
func (m *Client) ProfileCredentials(ctx context.Context) (identity.Credentials, error) {
	const folder = "/latest/meta-data/iam/security-credentials/"
	list, err := m.get(ctx, folder)
	if errors.Is(err, errMissing) {
		return identity.Credentials{}, fault.Newf(fault.Misconfigured, HintProfile, "requests to the signer must be signed, but the instance has no instance profile")
	}
	if err != nil {
		return identity.Credentials{}, metadataError("the instance profile", hintMetadata, err)
	}
	role, _, _ := strings.Cut(strings.TrimSpace(string(list)), "\n")
	if !roleName.MatchString(role) { // it becomes part of a path
		return identity.Credentials{}, fault.Newf(fault.Failed, HintProfile, "metadata service: %.64q is not a role name", role)
	}
	text, err := m.get(ctx, folder+role)
	if err != nil {
		return identity.Credentials{}, metadataError("the instance profile's credentials", HintProfile, err)
	}
	return parseCredentials(text, "instance profile", HintProfile)
}

func parseCredentials(text []byte, whose, hint string) (identity.Credentials, error) {
	var c struct{ Code, AccessKeyID, SecretAccessKey, Token string }
	if err := json.Unmarshal(text, &c); err != nil { // the error may quote a secret
		return identity.Credentials{}, fault.Newf(fault.Failed, hint, "metadata service: %s's credentials cannot be read", whose)
	}
	if c.Code != "Success" || c.AccessKeyID == "" || c.SecretAccessKey == "" || c.Token == "" {
		return identity.Credentials{}, fault.Newf(fault.Temporary, hint, "metadata service: %s's credentials have code %q", whose, c.Code)
	}
	return identity.Credentials{AccessKeyID: c.AccessKeyID, SecretAccessKey: c.SecretAccessKey, SessionToken: c.Token}, nil
}

// optional returns a page that not every instance has, or "".
func (m *Client) optional(ctx context.Context, page string) (string, error) {
	text, err := m.get(ctx, page)
	if errors.Is(err, errMissing) {
		return "", nil
	}
	if err != nil {
		return "", metadataError("this machine's names and addresses", hintMetadata, err)
	}
	return strings.TrimSpace(string(text)), nil
}

// PublicAddress returns the public IPv4 address, or "" without one.
func (m *Client) PublicAddress(ctx context.Context) (string, error) {
	return m.optional(ctx, PublicAddressPage)
}

// PublicAddressPage is the path of the public IPv4 address (EC2 User Guide, "Instance
// metadata categories").
const PublicAddressPage = "/latest/meta-data/public-ipv4"

// Names returns the addresses and names that AWS gave this instance, each in the only form
// that a certificate may contain. It also includes every name in inQuestion that follows EC2's
// own naming rule.
func (m *Client) Names(ctx context.Context, inQuestion []string) (map[string]bool, error) {
	text, err := m.get(ctx, documentPage)
	if err != nil {
		return nil, metadataError("this machine's addresses", hintMetadata, err)
	}
	var document struct {
		Instance
		PrivateIP string `json:"privateIp"`
	}
	if err := json.Unmarshal(text, &document); err != nil {
		return nil, fault.Newf(fault.Failed, hintMetadata, "metadata service: identity document: %w", err)
	}
	own := map[string]bool{}
	addAddress(own, document.PrivateIP)
	for _, page := range []string{PublicAddressPage, "/latest/meta-data/ipv6"} {
		address, err := m.optional(ctx, page)
		if err != nil {
			return nil, err
		}
		addAddress(own, address)
	}
	name, err := m.optional(ctx, "/latest/meta-data/local-hostname")
	if err != nil {
		return nil, err
	}
	if IsDNSName(name) && strings.Contains(name, ".") { // not localhost
		own[name] = true
	}
	for _, name := range inQuestion {
		own[name] = own[name] || isPrivateDNS(name, document.Instance, document.PrivateIP)
	}
	return own, nil
}

// isPrivateDNS reports whether EC2 gives an instance this name: by its private address or its
// id, in the domain of its region (EC2 User Guide, "EC2 instance hostnames and domains"). The
// metadata service does not always know such names: if a VPC's DHCP options have their own
// domain, it returns a name in that domain.
func isPrivateDNS(name string, i Instance, privateIP string) bool {
	host, domain, _ := strings.Cut(name, ".")
	byAddress := false
	if a, err := netip.ParseAddr(privateIP); err == nil && a.Is4() {
		byAddress = host == "ip-"+strings.ReplaceAll(a.String(), ".", "-")
	}
	if !byAddress && (i.InstanceID == "" || host != i.InstanceID.String()) {
		return false
	}
	if domain == "ec2.internal" {
		return i.Region == "us-east-1"
	}
	region, ok := strings.CutSuffix(domain, ".compute.internal")
	if !ok || region == i.Region.String() {
		return ok
	}
	// For a region that this build does not know, the name of its domain is not known either.
	known, err := identity.Regions()
	return err == nil && !known.Has(i.Region) && isRegion(region)
}

func isRegion(text string) bool {
	_, err := ec2ref.ParseRegion(text)
	return err == nil
}

func addAddress(own map[string]bool, text string) {
	// Every machine has loopback addresses and the like: a certificate for one would be valid
	// for every machine.
	if a, err := netip.ParseAddr(text); err == nil && a.IsGlobalUnicast() && a.Zone() == "" {
		own[a.String()] = true
	}
}

func metadataError(what, hint string, err error) error {
	if errors.Is(err, errMissing) {
		return fault.Newf(fault.Failed, hint, "ask the metadata service for %s: %w", what, err)
	}
	return fault.Newf(fault.Temporary, hint, "ask the metadata service for %s: %w", what, err)
}

// errTokenRefused says that the metadata service does not know the session token.
var errTokenRefused = errors.New("the session token was refused")

// get returns a page, and first gets a session token if it has none. A service that was
// restarted has forgotten the token, and issues a new one
// (https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html).
func (m *Client) get(ctx context.Context, page string) ([]byte, error) {
	known := m.token != ""
	if !known {
		token, err := m.request(ctx, http.MethodPut, "/latest/api/token", "X-aws-ec2-metadata-token-ttl-seconds", "300")
		if err != nil {
			return nil, fmt.Errorf("get a session token (IMDSv2): %w", err)
		}
		m.token = strings.TrimSpace(string(token))
	}
	text, err := m.request(ctx, http.MethodGet, page, "X-aws-ec2-metadata-token", m.token)
	if errors.Is(err, errTokenRefused) {
		m.token = ""
		if known {
			return m.get(ctx, page)
		}
	}
	return text, err
}

func (m *Client) request(ctx context.Context, method, page, header, value string) (body []byte, err error) {
	err = m.retry.Do(ctx, metadataAttempts, func(ctx context.Context) (again bool, after time.Duration, err error) {
		body, again, err = m.once(ctx, method, page, header, value)
		return again, 0, err
	})
	return body, err
}

func (m *Client) once(ctx context.Context, method, page, header, value string) (body []byte, again bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, m.Timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, m.Endpoint+page, nil)
	if err != nil {
		return nil, false, err
	}
	req.Header.Set(header, value)
	resp, err := m.http.Do(req)
	if err != nil {
		return nil, true, err
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(io.LimitReader(resp.Body, maxMetadataBytes+1))
	if err != nil {
		return nil, true, err
	}
	switch {
	case len(body) > maxMetadataBytes:
		return nil, false, fmt.Errorf("%s has more than %d bytes", page, maxMetadataBytes)
	case resp.StatusCode == http.StatusOK:
		return body, false, nil
	case resp.StatusCode == http.StatusNotFound:
		return nil, false, fmt.Errorf("%s: %w", page, errMissing)
	case resp.StatusCode == http.StatusUnauthorized:
		return nil, false, fmt.Errorf("%s: answered %s: %w", page, resp.Status, errTokenRefused)
	}
	again = resp.StatusCode >= 500 || resp.StatusCode == http.StatusTooManyRequests
	return nil, again, fmt.Errorf("%s: answered %s", page, resp.Status)
}

var dnsSyntax = regexp.MustCompile(`^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$`)

// IsDNSName reports whether a name is a DNS name in lower case. It checks the length itself:
// compiling a regular expression that counts to 253 takes a millisecond at each start of the
// program.
func IsDNSName(name string) bool { return len(name) <= 253 && dnsSyntax.MatchString(name) }
