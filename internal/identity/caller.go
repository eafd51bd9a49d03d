package identity

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

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
)

var (
	// ErrCallerProof means that the proof does not prove the instance: it is malformed, STS
	// refused it, or STS named another caller. The text around it is for the log, and contains
	// no secret.
	ErrCallerProof = errors.New("caller proof refused")

	// ErrSTSUnavailable means that the proof is neither confirmed nor refuted: STS could not
	// be reached, throttled the request, or something else answered in its place.
	ErrSTSUnavailable = errors.New("STS unavailable")
)

const (
	callerBody        = "Action=GetCallerIdentity&Version=2011-06-15"
	callerContentType = "application/x-www-form-urlencoded; charset=utf-8"

	// stsTimeout bounds one call, including reading the answer. STS answers in tens of
	// milliseconds, and the machine is waiting.
	stsTimeout = 5 * time.Second

	// maxSTSAnswer bounds an answer, which usually has about 500 bytes.
	maxSTSAnswer = 16 << 10
)

// Credentials are the temporary credentials of an instance's identity role, from
// /latest/meta-data/identity-credentials/ec2/security-credentials/ec2-instance.
type Credentials struct {
	AccessKeyID     string
	SecretAccessKey string
	SessionToken    string
}

// SignCaller proves that the holder of creds is calling now, and only for this binding: it
// signs, but does not send, a GetCallerIdentity request to the region's STS with the binding
// in a signed header. With fips, the request is for the FIPS endpoint; SignCaller fails if the
// region has none.
func SignCaller(ctx context.Context, creds Credentials, region ec2ref.Region, fips bool, b protocol.Binding, now time.Time) (protocol.CallerProof, error) {
	var none protocol.CallerProof
	if creds.AccessKeyID == "" || creds.SecretAccessKey == "" || creds.SessionToken == "" {
		return none, errors.New("sign caller proof: credentials of the instance identity role are incomplete")
	}
	req, err := newCallerRequest(ctx, region, fips, b, nil)
	if err != nil {
		return none, fmt.Errorf("sign caller proof: %w", err)
	}
	body := sha256.Sum256([]byte(callerBody))
	err = v4.NewSigner().SignHTTP(ctx, aws.Credentials{
		AccessKeyID:     creds.AccessKeyID,
		SecretAccessKey: creds.SecretAccessKey,
		SessionToken:    creds.SessionToken,
	}, req, hex.EncodeToString(body[:]), "sts", string(region), now)
	if err != nil {
		return none, fmt.Errorf("sign caller proof: %w", err)
	}
	return protocol.CallerProof{
		Authorization: req.Header.Get("Authorization"),
		Date:          req.Header.Get("X-Amz-Date"),
		SecurityToken: req.Header.Get("X-Amz-Security-Token"),
		FIPS:          fips,
	}, nil
}

// newCallerRequest builds the one request that is signed and sent. Both sides call it, so the
// request itself never travels.
func newCallerRequest(ctx context.Context, region ec2ref.Region, fips bool, b protocol.Binding, body io.Reader) (*http.Request, error) {
	host, err := ec2ref.STSHost(region, fips)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+host+"/", body)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", callerContentType)
	req.Header.Set(protocol.BindingHeader, b.String())
	return req, nil
}

// CallerVerifier asks STS who signed a caller proof. The zero value asks the real STS. It is
// safe for concurrent use.
type CallerVerifier struct {
	// HTTP sends the requests; nil means a client with the default transport. It never follows
	// redirects or keeps cookies.
	HTTP *http.Client
	// Endpoint is where to connect instead of the region's STS: the value of
	// AWS_ENDPOINT_URL_STS. The Host header and the signature stay those of the region.
	Endpoint string
}

// Verify checks that the identity role of exactly this instance signed the proof for exactly
// this binding. It calls STS once, and not at all if the proof has the wrong form. The caller
// checks the proof's age with ProofTime; STS itself accepts a signature for 15 minutes.
//
// An error is ErrCallerProof or ErrSTSUnavailable.
func (v *CallerVerifier) Verify(ctx context.Context, proof protocol.CallerProof, b protocol.Binding, i ec2ref.Instance) error {
	partition, err := i.Region.Partition()
	if err != nil {
		return fmt.Errorf("%w: %w", ErrCallerProof, err)
	}
	ctx, cancel := context.WithTimeout(ctx, stsTimeout)
	defer cancel()
	req, err := rebuildCallerRequest(ctx, proof, b, i.Region)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrCallerProof, err)
	}
	status, body, err := v.send(req)
	if err != nil {
		return fmt.Errorf("%w: %w", ErrSTSUnavailable, err)
	}
	who, err := readSTSAnswer(status, body, proof)
	if err != nil {
		return err
	}
	// Nobody can name a role aws:ec2-instance, and only the instance gets a session of it: the
	// whole ARN, with the account, is the identity.
	want := fmt.Sprintf("arn:%s:sts::%s:assumed-role/aws:ec2-instance/%s", partition, i.Account, i.ID)
	if who.arn != want {
		return fmt.Errorf("%w: STS names %.256q, not %q", ErrCallerProof, who.arn, want)
	}
	if who.account != string(i.Account) {
		return fmt.Errorf("%w: STS names account %.32q beside %q", ErrCallerProof, who.account, want)
	}
	return nil
}

// rebuildCallerRequest writes the signed request again, from its parts. Forwarding the
// caller's request would let the caller choose the action or the host, and with them the
// answer (CVE-2020-16250). It uses only three checked values from the caller, and the choice
// between the region's two endpoints, which the signature covers.
func rebuildCallerRequest(ctx context.Context, proof protocol.CallerProof, b protocol.Binding, region ec2ref.Region) (*http.Request, error) {
	if _, err := ProofTime(proof); err != nil {
		return nil, err
	}
	if err := checkSecurityToken(proof.SecurityToken); err != nil {
		return nil, err
	}
	auth, err := parseAuthorization(proof.Authorization, region, proof.Date)
	if err != nil {
		return nil, err
	}
	req, err := newCallerRequest(ctx, region, proof.FIPS, b, strings.NewReader(callerBody))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", auth.header(region, proof.Date))
	req.Header.Set("X-Amz-Date", proof.Date)
	req.Header.Set("X-Amz-Security-Token", proof.SecurityToken)
	req.Header.Set("User-Agent", "hallmark") // for CloudTrail
	return req, nil
}

// send sends the request once and returns the whole answer.
func (v *CallerVerifier) send(req *http.Request) (status int, body []byte, err error) {
	if v.Endpoint != "" {
		// Host stays the name that was signed.
		if req.URL, err = parseEndpoint(v.Endpoint); err != nil {
			return 0, nil, err
		}
	}
	// STS closes idle connections while Lambda freezes the function. With this empty list,
	// which is not sent, package net/http retries on a new connection.
	req.Header["Idempotency-Key"] = nil
	var client http.Client
	if v.HTTP != nil {
		client = *v.HTTP
	}
	// A redirect would take the security token, and the decision, to another server.
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	client.Jar = nil

	resp, err := client.Do(req)
	if err != nil {
		return 0, nil, err
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(io.LimitReader(resp.Body, maxSTSAnswer+1))
	if err != nil {
		return 0, nil, fmt.Errorf("read answer: %w", err)
	}
	if len(body) > maxSTSAnswer {
		return 0, nil, fmt.Errorf("answer has more than %d bytes", maxSTSAnswer)
	}
	return resp.StatusCode, body, nil
}

// parseEndpoint reads an endpoint that replaces STS. It allows no path: the instance did not
// sign one.
func parseEndpoint(endpoint string) (*url.URL, error) {
	u, err := url.Parse(endpoint)
	if err != nil || (u.Scheme != "https" && u.Scheme != "http") || u.Host == "" || u.User != nil ||
		strings.Trim(u.Path, "/") != "" || u.RawQuery != "" || u.Fragment != "" {
		return nil, errors.New("AWS_ENDPOINT_URL_STS is not of the form https://host[:port]")
	}
	return &url.URL{Scheme: u.Scheme, Host: u.Host, Path: "/"}, nil
}
