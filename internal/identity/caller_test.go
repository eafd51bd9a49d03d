package identity

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"github.com/hallmark-ssh/hallmark/e2e/fake/sts"
	"github.com/hallmark-ssh/hallmark/internal/clocktest"
	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
)

const (
	callerRegion   = "hm-test-1"
	callerAccount  = "111122223333"
	callerInstance = "i-0123456789abcdef0"
	callerARN      = "arn:aws:sts::" + callerAccount + ":assumed-role/aws:ec2-instance/" + callerInstance
)

var callerNow = time.Date(2026, 3, 4, 5, 6, 7, 890, time.UTC)

func callerCredentials() Credentials {
	return Credentials{
		AccessKeyID:     "ASIAHALLMARKTESTKEY0",
		SecretAccessKey: "test/secret+key",
		SessionToken:    "IQoJb3JpZ2luX2VjEXAMPLE//////////wEaCXVzLXdlc3QtMiJHMEUCIQ==",
	}
}

// attempt is one call of Verify and the STS that it meets. It is good until a row of a table
// changes it.
type attempt struct {
	proof      protocol.CallerProof
	binding    protocol.Binding
	instance   ec2ref.Instance
	registered sts.Credential
	stsTime    time.Time
}

func newAttempt(t testing.TB) *attempt {
	t.Helper()
	b := protocol.Bind([]byte("payload"))
	proof, err := SignCaller(t.Context(), callerCredentials(), callerRegion, false, b, callerNow)
	if err != nil {
		t.Fatal(err)
	}
	creds := callerCredentials()
	return &attempt{
		proof: proof, binding: b,
		instance: ec2ref.Instance{Account: callerAccount, Region: callerRegion, ID: callerInstance},
		registered: sts.Credential{
			AccessKeyID: creds.AccessKeyID, SecretAccessKey: creds.SecretAccessKey, SessionToken: creds.SessionToken,
			ARN: callerARN, Expires: callerNow.Add(time.Hour),
		},
		stsTime: callerNow,
	}
}

// verify runs the attempt against a real check of its signature.
func (a *attempt) verify(t *testing.T) (calls int, err error) {
	t.Helper()
	endpoint := sts.New(sts.Options{Region: string(a.instance.Region), Now: func() time.Time { return a.stsTime }})
	endpoint.Register(a.registered)
	server := httptest.NewServer(endpoint)
	defer server.Close()
	v := CallerVerifier{Endpoint: server.URL}
	err = v.Verify(t.Context(), a.proof, a.binding, a.instance)
	return endpoint.Calls(), err
}

// replace changes one part of the Authorization header, which must be there.
func (a *attempt) replace(t *testing.T, old, new string) {
	t.Helper()
	changed := strings.Replace(a.proof.Authorization, old, new, 1)
	if changed == a.proof.Authorization {
		t.Fatalf("%q is not in %q", old, a.proof.Authorization)
	}
	a.proof.Authorization = changed
}

func TestGoodCallerProof(t *testing.T) {
	a := newAttempt(t)
	calls, err := a.verify(t)
	if err != nil {
		t.Error(err)
	}
	if calls != 1 {
		t.Errorf("STS was called %d times, want 1", calls)
	}
}

// TestFIPSCallerProof signs for the FIPS endpoint. The signature covers the host, so nobody
// can move the proof from one endpoint to the other.
func TestFIPSCallerProof(t *testing.T) {
	for name, row := range map[string]struct {
		signed, claimed bool
		region          ec2ref.Region
		calls           int
		want            string
	}{
		"good":                         {signed: true, claimed: true, region: "us-east-1", calls: 1},
		"ordinary endpoint":            {signed: false, claimed: false, region: "us-east-1", calls: 1},
		"the claim removed":            {signed: true, claimed: false, region: "us-east-1", calls: 1, want: "SignatureDoesNotMatch"},
		"the claim added":              {signed: false, claimed: true, region: "us-east-1", calls: 1, want: "SignatureDoesNotMatch"},
		"a region without, claimed":    {signed: false, claimed: true, region: callerRegion, calls: 0, want: "no FIPS endpoint"},
		"GovCloud, where they are one": {signed: false, claimed: true, region: "us-gov-west-1", calls: 1},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAttempt(t)
			a.instance.Region = row.region
			if row.region == "us-gov-west-1" {
				a.registered.ARN = strings.Replace(callerARN, "arn:aws:", "arn:aws-us-gov:", 1)
			}
			var err error
			if a.proof, err = SignCaller(t.Context(), callerCredentials(), row.region, row.signed, a.binding, callerNow); err != nil {
				t.Fatal(err)
			}
			a.proof.FIPS = row.claimed
			calls, err := a.verify(t)
			if calls != row.calls {
				t.Errorf("STS was called %d times, want %d", calls, row.calls)
			}
			if row.want == "" && err != nil || row.want != "" && (!errors.Is(err, ErrCallerProof) || !strings.Contains(err.Error(), row.want)) {
				t.Errorf("error = %v, want %q", err, row.want)
			}
		})
	}
	if proof, err := SignCaller(t.Context(), callerCredentials(), callerRegion, true, protocol.Binding{}, callerNow); err == nil {
		t.Errorf("a region without a FIPS endpoint: SignCaller = %v, want an error", proof)
	}
}

// TestCallerProofWithLength accepts a client that signs the length of the body,
// as the AWS SDKs do when they send the request themselves.
func TestCallerProofWithLength(t *testing.T) {
	a := newAttempt(t)
	req, err := newCallerRequest(t.Context(), a.instance.Region, false, a.binding, strings.NewReader(callerBody))
	if err != nil {
		t.Fatal(err)
	}
	creds := aws.Credentials{
		AccessKeyID: a.registered.AccessKeyID, SecretAccessKey: a.registered.SecretAccessKey, SessionToken: a.registered.SessionToken,
	}
	hash := sha256.Sum256([]byte(callerBody))
	if err := v4.NewSigner().SignHTTP(t.Context(), creds, req, hex.EncodeToString(hash[:]), "sts", string(a.instance.Region), callerNow); err != nil {
		t.Fatal(err)
	}
	a.proof.Authorization = req.Header.Get("Authorization")
	if !strings.Contains(a.proof.Authorization, signedHeadersWithLength) {
		t.Fatalf("Authorization = %s, want the length signed", a.proof.Authorization)
	}
	if _, err := a.verify(t); err != nil {
		t.Error(err)
	}
}

// TestCallerProofRefusedBeforeSTS has proofs of the wrong form. None of them may cost a call.
func TestCallerProofRefusedBeforeSTS(t *testing.T) {
	const scope = "20260304/hm-test-1/sts/aws4_request"
	for name, row := range map[string]struct {
		change func(*testing.T, *attempt)
		want   string
	}{
		"no authorization": {func(_ *testing.T, a *attempt) { a.proof.Authorization = "" }, "is not AWS4-HMAC-SHA256"},
		"asymmetric signature": {func(t *testing.T, a *attempt) {
			a.replace(t, "AWS4-HMAC-SHA256", "AWS4-ECDSA-P256-SHA256")
		}, "is not AWS4-HMAC-SHA256"},
		"signature of version 2": {func(_ *testing.T, a *attempt) {
			a.proof.Authorization = "AWS ASIAHALLMARKTESTKEY0:c2lnbmF0dXJl"
		}, "is not AWS4-HMAC-SHA256"},
		"leading space": {func(_ *testing.T, a *attempt) {
			a.proof.Authorization = " " + a.proof.Authorization
		}, "is not AWS4-HMAC-SHA256"},
		"over-long": {func(_ *testing.T, a *attempt) {
			a.proof.Authorization += strings.Repeat("0", maxAuthorization)
		}, "more than 512"},
		"field missing": {func(_ *testing.T, a *attempt) {
			a.proof.Authorization, _, _ = strings.Cut(a.proof.Authorization, ", Signature=")
		}, "three fields"},
		"field twice": {func(_ *testing.T, a *attempt) {
			a.proof.Authorization += ", SignedHeaders=host"
		}, "three fields"},
		"fields in another order": {func(t *testing.T, a *attempt) {
			a.replace(t, "SignedHeaders=", "Signature=")
		}, "fields are not"},
		"second header by line break": {func(_ *testing.T, a *attempt) {
			a.proof.Authorization += "\r\nX-Amz-Target: evil"
		}, "signature is not"},
		"access key in lower case": {func(t *testing.T, a *attempt) {
			a.replace(t, "ASIAHALLMARKTESTKEY0", "asiahallmarktestkey0")
		}, "access key id"},
		"access key too short": {func(t *testing.T, a *attempt) {
			a.replace(t, "ASIAHALLMARKTESTKEY0", "ASIA")
		}, "access key id"},
		"access key with a line break": {func(t *testing.T, a *attempt) {
			a.replace(t, "ASIAHALLMARKTESTKEY0", "ASIAHALLMARKTESTKEY0\n")
		}, "access key id"},
		"scope of another day": {func(t *testing.T, a *attempt) {
			a.replace(t, scope, "20260303/hm-test-1/sts/aws4_request")
		}, "credential scope"},
		"scope of another region": {func(t *testing.T, a *attempt) {
			a.replace(t, scope, "20260304/us-west-2/sts/aws4_request")
		}, "credential scope"},
		"scope of another service": {func(t *testing.T, a *attempt) {
			a.replace(t, scope, "20260304/hm-test-1/iam/aws4_request")
		}, "credential scope"},
		"scope with a sixth part": {func(t *testing.T, a *attempt) {
			a.replace(t, scope, scope+"/x")
		}, "credential scope"},
		"no scope": {func(t *testing.T, a *attempt) { a.replace(t, "/"+scope, "") }, "credential scope"},
		"region of the document differs": {func(_ *testing.T, a *attempt) {
			a.instance.Region = "us-west-2"
		}, "credential scope"},
		"binding not signed": {func(t *testing.T, a *attempt) {
			a.replace(t, ";x-hallmark-binding", "")
		}, "signed headers"},
		"host not signed": {func(t *testing.T, a *attempt) { a.replace(t, "host;", "") }, "signed headers"},
		"token not signed": {func(t *testing.T, a *attempt) {
			a.replace(t, "x-amz-security-token;", "")
		}, "signed headers"},
		"one header more": {func(t *testing.T, a *attempt) {
			a.replace(t, ";x-hallmark-binding", ";x-amz-target;x-hallmark-binding")
		}, "signed headers"},
		"header twice": {func(t *testing.T, a *attempt) { a.replace(t, "host;", "host;host;") }, "signed headers"},
		"headers in another order": {func(t *testing.T, a *attempt) {
			a.replace(t, "content-type;host", "host;content-type")
		}, "signed headers"},
		"header in upper case": {func(t *testing.T, a *attempt) { a.replace(t, "host;", "Host;") }, "signed headers"},
		"signature too short": {func(_ *testing.T, a *attempt) {
			a.proof.Authorization = a.proof.Authorization[:len(a.proof.Authorization)-1]
		}, "signature is not"},
		"signature in upper case": {func(_ *testing.T, a *attempt) {
			head, signature, _ := strings.Cut(a.proof.Authorization, "Signature=")
			a.proof.Authorization = head + "Signature=" + strings.ToUpper(signature[:63]) + "A"
		}, "signature is not"},

		"no date":             {func(_ *testing.T, a *attempt) { a.proof.Date = "" }, "date is not"},
		"date of HTTP":        {func(_ *testing.T, a *attempt) { a.proof.Date = "Wed, 04 Mar 2026 05:06:07 GMT" }, "date is not"},
		"date with fraction":  {func(_ *testing.T, a *attempt) { a.proof.Date = "20260304T050607.5Z" }, "date is not"},
		"date with line feed": {func(_ *testing.T, a *attempt) { a.proof.Date += "\n" }, "date is not"},
		"no such day":         {func(_ *testing.T, a *attempt) { a.proof.Date = "20260230T050607Z" }, "date is not"},

		"no token": {func(_ *testing.T, a *attempt) { a.proof.SecurityToken = "" }, "security token"},
		"token with line break": {func(_ *testing.T, a *attempt) {
			a.proof.SecurityToken += "\r\nHost: evil.example"
		}, "security token"},
		"token with space": {func(_ *testing.T, a *attempt) { a.proof.SecurityToken += " " }, "security token"},
		"token over-long": {func(_ *testing.T, a *attempt) {
			a.proof.SecurityToken = strings.Repeat("A", maxSecurityToken+1)
		}, "more than 8192"},

		"region that is a host": {func(_ *testing.T, a *attempt) {
			a.instance.Region = "evil.example/"
		}, "is not an AWS region"},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAttempt(t)
			row.change(t, a)
			calls, err := a.verify(t)
			if !errors.Is(err, ErrCallerProof) || !strings.Contains(err.Error(), row.want) {
				t.Errorf("error = %v, want %v with %q", err, ErrCallerProof, row.want)
			}
			if calls != 0 {
				t.Errorf("STS was called %d times, want 0", calls)
			}
			checkNoSecret(t, err, newAttempt(t).proof)
		})
	}
}

// TestCallerProofRefusedBySTS has proofs of the right form that prove something else. Each
// costs exactly one call.
func TestCallerProofRefusedBySTS(t *testing.T) {
	const unlike = "SignatureDoesNotMatch"
	sign := func(t *testing.T, a *attempt, creds Credentials, region ec2ref.Region) {
		t.Helper()
		var err error
		if a.proof, err = SignCaller(t.Context(), creds, region, false, a.binding, callerNow); err != nil {
			t.Fatal(err)
		}
	}
	for name, row := range map[string]struct {
		change func(*testing.T, *attempt)
		want   string
	}{
		"binding of another payload": {func(_ *testing.T, a *attempt) {
			a.binding = protocol.Bind([]byte("payload with other keys"))
		}, unlike},
		"changed signature": {func(t *testing.T, a *attempt) {
			a.proof.Authorization = a.proof.Authorization[:len(a.proof.Authorization)-64] + strings.Repeat("0", 64)
		}, unlike},
		"changed date": {func(_ *testing.T, a *attempt) { a.proof.Date = "20260304T050608Z" }, unlike},
		"length claimed but not signed": {func(t *testing.T, a *attempt) {
			a.replace(t, signedHeaders, signedHeadersWithLength)
		}, unlike},
		"signed for another region, scope rewritten": {func(t *testing.T, a *attempt) {
			sign(t, a, callerCredentials(), "us-west-2")
			a.replace(t, "/us-west-2/", "/hm-test-1/")
		}, unlike},
		"wrong secret": {func(t *testing.T, a *attempt) {
			creds := callerCredentials()
			creds.SecretAccessKey += "x"
			sign(t, a, creds, callerRegion)
		}, unlike},
		"unknown access key": {func(t *testing.T, a *attempt) {
			a.replace(t, "ASIAHALLMARKTESTKEY0", "ASIASOMEBODYELSE0000")
		}, "InvalidClientTokenId"},
		"token of another session": {func(_ *testing.T, a *attempt) {
			a.proof.SecurityToken = "b3RoZXI="
		}, "InvalidClientTokenId"},
		"expired credentials": {func(_ *testing.T, a *attempt) { a.registered.Expires = callerNow }, "ExpiredToken"},
		"old signature": {func(_ *testing.T, a *attempt) {
			a.stsTime = callerNow.Add(16 * time.Minute)
		}, "Signature expired: 20260304T050607Z"},

		"another instance": {func(_ *testing.T, a *attempt) { a.instance.ID = "i-0fedcba9876543210" }, "STS names"},
		"another account":  {func(_ *testing.T, a *attempt) { a.instance.Account = "444455556666" }, "STS names"},
		"role of another name with the instance as session": {func(_ *testing.T, a *attempt) {
			a.registered.ARN = "arn:aws:sts::111122223333:assumed-role/web/" + callerInstance
		}, "STS names"},
		"role of the same name under a path": {func(_ *testing.T, a *attempt) {
			a.registered.ARN = "arn:aws:sts::111122223333:assumed-role/x/aws:ec2-instance/" + callerInstance
		}, "STS names"},
		"session that begins with the instance": {func(_ *testing.T, a *attempt) {
			a.registered.ARN = callerARN + "0"
		}, "STS names"},
		"instance in another case": {func(_ *testing.T, a *attempt) {
			a.registered.ARN = strings.Replace(callerARN, "abcdef", "ABCDEF", 1)
		}, "STS names"},
		"a user": {func(_ *testing.T, a *attempt) {
			a.registered.ARN = "arn:aws:iam::111122223333:user/aws:ec2-instance/" + callerInstance
		}, "STS names"},
		"another partition": {func(_ *testing.T, a *attempt) {
			a.registered.ARN = strings.Replace(callerARN, "arn:aws:", "arn:aws-cn:", 1)
		}, "STS names"},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAttempt(t)
			row.change(t, a)
			calls, err := a.verify(t)
			if !errors.Is(err, ErrCallerProof) || errors.Is(err, ErrSTSUnavailable) || !strings.Contains(err.Error(), row.want) {
				t.Errorf("error = %v, want %v with %q", err, ErrCallerProof, row.want)
			}
			if calls != 1 {
				t.Errorf("STS was called %d times, want 1", calls)
			}
			checkNoSecret(t, err, a.proof)
		})
	}
}

func checkNoSecret(t *testing.T, err error, proof protocol.CallerProof) {
	t.Helper()
	_, signature, _ := strings.Cut(proof.Authorization, "Signature=")
	for _, secret := range []string{proof.SecurityToken, signature} {
		if err != nil && secret != "" && strings.Contains(err.Error(), secret) {
			t.Errorf("error repeats a secret: %v", err)
		}
	}
}

// TestRequestSentToSTS checks every byte that is sent: everything except three values is the
// verifier's own.
func TestRequestSentToSTS(t *testing.T) {
	a := newAttempt(t)
	var sent *http.Request
	var body []byte
	transport := roundTrip(func(r *http.Request) (*http.Response, error) {
		sent = r
		body, _ = io.ReadAll(r.Body)
		return nil, errors.New("not sent")
	})
	v := CallerVerifier{HTTP: &http.Client{Transport: transport}}
	if err := v.Verify(t.Context(), a.proof, a.binding, a.instance); !errors.Is(err, ErrSTSUnavailable) {
		t.Fatalf("error = %v, want %v", err, ErrSTSUnavailable)
	}
	if got, want := sent.Method+" "+sent.URL.String(), "POST https://sts.hm-test-1.amazonaws.com/"; got != want {
		t.Errorf("request = %s, want %s", got, want)
	}
	if got, want := string(body), "Action=GetCallerIdentity&Version=2011-06-15"; got != want {
		t.Errorf("body = %q, want %q", got, want)
	}
	want := http.Header{
		"Authorization":        {a.proof.Authorization},
		"Content-Type":         {"application/x-www-form-urlencoded; charset=utf-8"},
		"Idempotency-Key":      nil, // not sent
		"User-Agent":           {"hallmark"},
		"X-Amz-Date":           {"20260304T050607Z"},
		"X-Amz-Security-Token": {a.proof.SecurityToken},
		"X-Hallmark-Binding":   {a.binding.String()},
	}
	if got, want := fmt.Sprint(sent.Header), fmt.Sprint(want); got != want {
		t.Errorf("header = %s, want %s", got, want)
	}
	deadline, ok := sent.Context().Deadline()
	if left := time.Until(deadline); !ok || left > stsTimeout {
		t.Errorf("the request may take %v, want at most %v", left, stsTimeout)
	}
}

type roundTrip func(*http.Request) (*http.Response, error)

func (f roundTrip) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func TestSignedHeaders(t *testing.T) {
	a := newAttempt(t)
	if want := ", SignedHeaders=content-type;host;x-amz-date;x-amz-security-token;x-hallmark-binding, "; !strings.Contains(a.proof.Authorization, want) {
		t.Errorf("Authorization = %s, want it to hold %s", a.proof.Authorization, want)
	}
}

func TestSignCallerRefuses(t *testing.T) {
	for name, change := range map[string]func(*Credentials, *ec2ref.Region){
		"no access key":    func(c *Credentials, _ *ec2ref.Region) { c.AccessKeyID = "" },
		"no secret":        func(c *Credentials, _ *ec2ref.Region) { c.SecretAccessKey = "" },
		"no session token": func(c *Credentials, _ *ec2ref.Region) { c.SessionToken = "" },
		"malformed region": func(_ *Credentials, region *ec2ref.Region) { *region = "evil.example/" },
	} {
		creds, region := callerCredentials(), ec2ref.Region(callerRegion)
		change(&creds, &region)
		if proof, err := SignCaller(t.Context(), creds, region, false, protocol.Binding{}, callerNow); err == nil {
			t.Errorf("%s: SignCaller = %v, want an error", name, proof)
		}
	}
}

func TestProofTime(t *testing.T) {
	got, err := ProofTime(newAttempt(t).proof)
	if want := callerNow.Truncate(time.Second); err != nil || !got.Equal(want) {
		t.Errorf("ProofTime = %v, %v, want %v", got, err, want)
	}
	// A clock in another zone signs the same instant.
	zone := time.FixedZone("", 2*60*60)
	proof, err := SignCaller(t.Context(), callerCredentials(), callerRegion, false, protocol.Binding{}, callerNow.In(zone))
	if err != nil {
		t.Fatal(err)
	}
	if want := "20260304T050607Z"; proof.Date != want {
		t.Errorf("Date = %s, want %s", proof.Date, want)
	}
}

func TestCallerEndpoint(t *testing.T) {
	for endpoint, want := range map[string]string{
		"http://127.0.0.1:4566":            "http://127.0.0.1:4566/",
		"https://vpce-1.sts.example":       "https://vpce-1.sts.example/",
		"https://vpce-1.sts.example/":      "https://vpce-1.sts.example/",
		"https://sts.example/path":         "",
		"https://sts.example/?x=y":         "",
		"https://user:secret@sts.example/": "",
		"ftp://sts.example/":               "",
		"sts.example":                      "",
		"https://":                         "",
		"http://[::1":                      "",
	} {
		u, err := parseEndpoint(endpoint)
		if want == "" {
			if err == nil {
				t.Errorf("parseEndpoint(%q) = %v, want an error", endpoint, u)
			}
			continue
		}
		if err != nil || u.String() != want {
			t.Errorf("parseEndpoint(%q) = %v, %v, want %s", endpoint, u, err, want)
		}
	}
	a := newAttempt(t)
	v := CallerVerifier{Endpoint: "sts.example"}
	if err := v.Verify(t.Context(), a.proof, a.binding, a.instance); !errors.Is(err, ErrSTSUnavailable) {
		t.Errorf("error = %v, want %v", err, ErrSTSUnavailable)
	}
}

// TestSTSDoesNotAnswer has everything that can happen on the way. None of it says anything
// about the proof.
func TestSTSDoesNotAnswer(t *testing.T) {
	stop := make(chan struct{})
	defer close(stop)
	for name, row := range map[string]struct {
		handler http.HandlerFunc
		want    string
	}{
		"connection closed": {func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }, "EOF"},
		"no answer": {func(_ http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			select {
			case <-stop:
			case <-r.Context().Done():
			}
		}, context.DeadlineExceeded.Error()},
		"answer stalls": {func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body)
			_, _ = io.WriteString(w, "<GetCallerIdentityResponse")
			_ = http.NewResponseController(w).Flush()
			select {
			case <-stop:
			case <-r.Context().Done():
			}
		}, context.DeadlineExceeded.Error()},
		"answer without end": {func(w http.ResponseWriter, _ *http.Request) {
			for {
				if _, err := w.Write(make([]byte, 4096)); err != nil {
					return
				}
			}
		}, "more than 16384 bytes"},
		"answer cut off": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "1000")
			_, _ = io.WriteString(w, "<GetCallerIdentityResponse")
		}, "unexpected EOF"},
	} {
		t.Run(name, func(t *testing.T) {
			server := httptest.NewServer(row.handler)
			defer server.Close()
			timeout := time.Minute
			if row.want == context.DeadlineExceeded.Error() {
				timeout = 200 * time.Millisecond
			}
			ctx, cancel := context.WithTimeout(t.Context(), timeout)
			defer cancel()
			a := newAttempt(t)
			v := CallerVerifier{Endpoint: server.URL}
			err := v.Verify(ctx, a.proof, a.binding, a.instance)
			if !errors.Is(err, ErrSTSUnavailable) || errors.Is(err, ErrCallerProof) || !strings.Contains(err.Error(), row.want) {
				t.Errorf("error = %v, want %v with %q", err, ErrSTSUnavailable, row.want)
			}
			checkNoSecret(t, err, a.proof)
		})
	}
}

// TestRedirectIsNotFollowed redirects the verifier to a host that would confirm anything.
func TestRedirectIsNotFollowed(t *testing.T) {
	reached := false
	liar := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		reached = true
		_, _ = io.WriteString(w, identityAnswer(callerARN, callerAccount))
	}))
	defer liar.Close()
	for _, status := range []int{301, 302, 303, 307, 308} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			http.SetCookie(w, &http.Cookie{Name: "tracked", Value: "yes"})
			http.Redirect(w, r, liar.URL, status)
		}))
		jar, err := cookiejar.New(nil)
		if err != nil {
			t.Fatal(err)
		}
		client := &http.Client{Jar: jar} // whose defaults would follow
		a := newAttempt(t)
		v := CallerVerifier{HTTP: client, Endpoint: server.URL}
		err = v.Verify(t.Context(), a.proof, a.binding, a.instance)
		if !errors.Is(err, ErrSTSUnavailable) {
			t.Errorf("status %d: error = %v, want %v", status, err, ErrSTSUnavailable)
		}
		if client.CheckRedirect != nil || client.Jar == nil {
			t.Errorf("status %d: Verify changed its client", status)
		}
		for _, host := range []string{server.Listener.Addr().String(), "sts." + callerRegion + ".amazonaws.com"} {
			if cookies := jar.Cookies(&url.URL{Scheme: "http", Host: host}); len(cookies) > 0 {
				t.Errorf("status %d: Verify kept %v of %s", status, cookies, host)
			}
		}
		server.Close()
	}
	if reached {
		t.Error("a redirect was followed")
	}
}

// TestAccountBesideARN checks the account separately: an answer that contradicts itself
// confirms nobody.
func TestAccountBesideARN(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, identityAnswer(callerARN, "444455556666"))
	}))
	defer server.Close()
	a := newAttempt(t)
	v := CallerVerifier{Endpoint: server.URL}
	err := v.Verify(t.Context(), a.proof, a.binding, a.instance)
	if !errors.Is(err, ErrCallerProof) || !strings.Contains(err.Error(), `account "444455556666"`) {
		t.Errorf("error = %v, want %v with the account", err, ErrCallerProof)
	}
}

// STS closes the connections of a function that Lambda froze. The next proof must not fail
// because of that.
func TestSTSClosedItsConnections(t *testing.T) {
	a := newAttempt(t)
	endpoint := sts.New(sts.Options{Region: callerRegion, Now: func() time.Time { return a.stsTime }})
	endpoint.Register(a.registered)
	server, closed := clocktest.HangUp(t, endpoint)
	v := CallerVerifier{Endpoint: server.URL, HTTP: server.Client()}
	for tries := 1; closed.Load() == 0; tries++ { // package net/http may drop a connection by itself
		if err := v.Verify(t.Context(), a.proof, a.binding, a.instance); err != nil || tries > 100 {
			t.Fatalf("call %d: error %v", tries, err)
		}
	}
}
