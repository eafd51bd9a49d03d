package sts

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/aws/aws-sdk-go-v2/credentials"
	awssts "github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"
)

const (
	testRegion = "hm-test-1"
	testARN    = "arn:aws:sts::123456789012:assumed-role/aws:ec2-instance/i-0123456789abcdef0"
)

func testCredential() Credential {
	return Credential{
		AccessKeyID: "ASIAHALLMARKTESTKEY0", SecretAccessKey: "test-secret", SessionToken: "test/token+==", ARN: testARN,
	}
}

// start serves s and returns an HTTP client that reaches it by every host name.
func start(t *testing.T, s *Server) *http.Client {
	t.Helper()
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	return dialing(t, server.Listener.Addr().String())
}

// dialing returns a client for which every host name leads to the address, so
// that requests are signed for the real name.
func dialing(t *testing.T, address string) *http.Client {
	t.Helper()
	transport := &http.Transport{
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, address)
		},
	}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport}
}

// client is the AWS SDK's own client, signing with c.
func client(httpClient *http.Client, region string, c Credential) *awssts.Client {
	return awssts.New(awssts.Options{
		Region:       region,
		BaseEndpoint: aws.String("http://sts." + region + ".amazonaws.com"),
		Credentials:  credentials.NewStaticCredentialsProvider(c.AccessKeyID, c.SecretAccessKey, c.SessionToken),
		HTTPClient:   httpClient,
		Retryer:      aws.NopRetryer{},
	})
}

func TestSDKIsAnswered(t *testing.T) {
	s := New(Options{Region: testRegion})
	s.Register(testCredential())
	out, err := client(start(t, s), testRegion, testCredential()).GetCallerIdentity(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := aws.ToString(out.Arn); got != testARN {
		t.Errorf("Arn = %q, want %q", got, testARN)
	}
	if got, want := aws.ToString(out.Account), "123456789012"; got != want {
		t.Errorf("Account = %q, want %q", got, want)
	}
	if got, want := aws.ToString(out.UserId), "123456789012:aws:ec2-instance:i-0123456789abcdef0"; got != want {
		t.Errorf("UserId = %q, want %q", got, want)
	}
	if s.Calls() != 1 {
		t.Errorf("Calls = %d, want 1", s.Calls())
	}
}

func TestSDKIsRefused(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*Credential)
		region string        // signed for; empty means the right one
		skew   time.Duration // of the server's clock
		status int
		code   string
	}{
		"wrong secret":      {change: func(c *Credential) { c.SecretAccessKey += "x" }, status: 403, code: "SignatureDoesNotMatch"},
		"unknown key":       {change: func(c *Credential) { c.AccessKeyID = "ASIASOMEBODYELSE0000" }, status: 403, code: "InvalidClientTokenId"},
		"other token":       {change: func(c *Credential) { c.SessionToken = "other" }, status: 403, code: "InvalidClientTokenId"},
		"no token":          {change: func(c *Credential) { c.SessionToken = "" }, status: 403, code: "InvalidClientTokenId"},
		"other region":      {region: "us-west-2", status: 403, code: "SignatureDoesNotMatch"},
		"signature too old": {skew: 15*time.Minute + 5*time.Second, status: 403, code: "SignatureDoesNotMatch"},
		"signature ahead":   {skew: -15*time.Minute - 5*time.Second, status: 403, code: "SignatureDoesNotMatch"},
		"token expired":     {skew: 10 * time.Minute, status: 403, code: "ExpiredToken"},
	} {
		t.Run(name, func(t *testing.T) {
			s := New(Options{Region: testRegion, Now: func() time.Time { return time.Now().Add(tc.skew) }})
			registered := testCredential()
			registered.Expires = time.Now().Add(5 * time.Minute)
			s.Register(registered)

			c, region := testCredential(), testRegion
			if tc.change != nil {
				tc.change(&c)
			}
			if tc.region != "" {
				region = tc.region
			}
			_, err := client(start(t, s), region, c).GetCallerIdentity(t.Context(), nil)
			if api, ok := errors.AsType[smithy.APIError](err); !ok || api.ErrorCode() != tc.code {
				t.Fatalf("error = %v, want code %s", err, tc.code)
			}
			if response, ok := errors.AsType[*smithyhttp.ResponseError](err); !ok || response.HTTPStatusCode() != tc.status {
				t.Errorf("error = %v, want status %d", err, tc.status)
			}
			if s.Calls() != 1 {
				t.Errorf("Calls = %d, want 1", s.Calls())
			}
		})
	}
}

// TestMalformedSignatures sends what no SDK would.
func TestMalformedSignatures(t *testing.T) {
	const scope = "20150830/" + testRegion + "/sts/aws4_request"
	mac := strings.Repeat("0", 64)
	key := testCredential().AccessKeyID
	good := "AWS4-HMAC-SHA256 Credential=" + key + "/" + scope + ", SignedHeaders=host;x-amz-date;x-amz-security-token, Signature=" + mac
	for name, tc := range map[string]struct {
		authorization string
		date          string
		status        int
		code, message string
	}{
		"none":            {"", "20150830T123600Z", 403, "MissingAuthenticationToken", ""},
		"algorithm":       {"AWS4-HMAC-SHA1 x", "20150830T123600Z", 400, "IncompleteSignature", "algorithm"},
		"no signature":    {strings.TrimSuffix(good, ", Signature="+mac), "20150830T123600Z", 400, "IncompleteSignature", "'Signature'"},
		"not hexadecimal": {strings.Replace(good, mac, "xyz", 1), "20150830T123600Z", 400, "IncompleteSignature", "hexadecimal"},
		"short scope":     {strings.Replace(good, "/sts", "", 1), "20150830T123600Z", 400, "IncompleteSignature", "Credential"},
		"date":            {good, "2015-08-30", 400, "IncompleteSignature", "Date"},
		"scope's date":    {strings.Replace(good, "/20150830/", "/2015083012360000000000/", 1), "20150830T123600Z", 403, "SignatureDoesNotMatch", "Date in Credential scope"},
		"other service":   {strings.Replace(good, "/sts/", "/ec2/", 1), "20150830T123600Z", 403, "SignatureDoesNotMatch", "scoped"},
		"other region":    {strings.Replace(good, testRegion, "us-west-2", 1), "20150830T123600Z", 403, "SignatureDoesNotMatch", "scoped"},
		"unsorted":        {strings.Replace(good, "host;x-amz-date", "x-amz-date;host", 1), "20150830T123600Z", 403, "SignatureDoesNotMatch", "'Host'"},
		"host unsigned":   {strings.Replace(good, "host;", "", 1), "20150830T123600Z", 403, "SignatureDoesNotMatch", "'Host'"},
		"token unsigned":  {strings.Replace(good, ";x-amz-security-token", "", 1), "20150830T123600Z", 403, "SignatureDoesNotMatch", "'x-amz-security-token'"},
		"signature":       {good, "20150830T123600Z", 403, "SignatureDoesNotMatch", "we calculated"},
	} {
		t.Run(name, func(t *testing.T) {
			s := New(Options{Region: testRegion, Now: func() time.Time { return time.Date(2015, 8, 30, 12, 40, 0, 0, time.UTC) }})
			s.Register(testCredential())
			r := httptest.NewRequest(http.MethodPost, "http://sts."+testRegion+".amazonaws.com/", strings.NewReader("Action=GetCallerIdentity&Version=2011-06-15"))
			r.Header.Set("Accept", "application/json")
			r.Header.Set("X-Amz-Date", tc.date)
			r.Header.Set("X-Amz-Security-Token", testCredential().SessionToken)
			if tc.authorization != "" {
				r.Header.Set("Authorization", tc.authorization)
			}
			w := httptest.NewRecorder()
			s.ServeHTTP(w, r)
			var answer errorAnswer
			if err := json.Unmarshal(w.Body.Bytes(), &answer); err != nil {
				t.Fatal(err)
			}
			if w.Code != tc.status || answer.Error.Code != tc.code || !strings.Contains(answer.Error.Message, tc.message) {
				t.Errorf("answer = %d %+v, want %d %s %q", w.Code, answer.Error, tc.status, tc.code, tc.message)
			}
		})
	}
}

// TestOtherEndpoints signs correctly, for another address than the endpoint's.
func TestOtherEndpoints(t *testing.T) {
	for _, target := range []string{
		"http://sts.us-west-2.amazonaws.com/", "http://sts.amazonaws.com/", "http://127.0.0.1/",
		"http://sts." + testRegion + ".amazonaws.com/other",
	} {
		s := New(Options{Region: testRegion})
		s.Register(testCredential())
		const body = "Action=GetCallerIdentity&Version=2011-06-15"
		r := httptest.NewRequest(http.MethodPost, target, strings.NewReader(body))
		c := testCredential()
		creds := aws.Credentials{AccessKeyID: c.AccessKeyID, SecretAccessKey: c.SecretAccessKey, SessionToken: c.SessionToken}
		if err := v4.NewSigner().SignHTTP(t.Context(), creds, r, digest([]byte(body)), "sts", testRegion, time.Now()); err != nil {
			t.Fatal(err)
		}
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		if w.Code != http.StatusForbidden || !strings.Contains(w.Body.String(), "not signed for this endpoint") {
			t.Errorf("%s: answer = %d %s, want it refused", target, w.Code, w.Body)
		}
	}
}

// TestAnswersInXML pins the text of an answer to the form that AWS documents.
func TestAnswersInXML(t *testing.T) {
	w := httptest.NewRecorder()
	writeIdentity(w, httptest.NewRequest(http.MethodPost, "/", nil), testARN)
	id := w.Header().Get("X-Amzn-Requestid")
	want := `<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/">
  <GetCallerIdentityResult>
    <Arn>` + testARN + `</Arn>
    <UserId>123456789012:aws:ec2-instance:i-0123456789abcdef0</UserId>
    <Account>123456789012</Account>
  </GetCallerIdentityResult>
  <ResponseMetadata>
    <RequestId>` + id + `</RequestId>
  </ResponseMetadata>
</GetCallerIdentityResponse>
`
	if got := w.Body.String(); got != want {
		t.Errorf("answer:\n%s\nwant:\n%s", got, want)
	}
	if got := w.Header().Get("Content-Type"); got != "text/xml" {
		t.Errorf("Content-Type = %q, want text/xml", got)
	}
}

func TestAnswersInJSON(t *testing.T) {
	r := httptest.NewRequest(http.MethodPost, "/", nil)
	r.Header.Set("Accept", "application/json")
	w := httptest.NewRecorder()
	writeIdentity(w, r, testARN)
	want := `{"GetCallerIdentityResponse":{"GetCallerIdentityResult":{"Arn":"` + testARN + `",` +
		`"UserId":"123456789012:aws:ec2-instance:i-0123456789abcdef0","Account":"123456789012"},` +
		`"ResponseMetadata":{"RequestId":"` + w.Header().Get("X-Amzn-Requestid") + `"}}}`
	if got := w.Body.String(); got != want {
		t.Errorf("answer: %s\nwant: %s", got, want)
	}
}

func TestOtherActionsArePassedOn(t *testing.T) {
	var action, authorization string
	backend := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		action, authorization = r.FormValue("Action"), r.Header.Get("Authorization")
		_, _ = io.WriteString(w, `<AssumeRoleResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleResult><Credentials>`+
			`<AccessKeyId>ASIAFROMTHEBACKEND00</AccessKeyId></Credentials></AssumeRoleResult></AssumeRoleResponse>`)
	}))
	defer backend.Close()
	target, err := url.Parse(backend.URL)
	if err != nil {
		t.Fatal(err)
	}
	s := New(Options{Region: testRegion, Backend: target})
	out, err := client(start(t, s), testRegion, testCredential()).AssumeRole(t.Context(), &awssts.AssumeRoleInput{
		RoleArn: aws.String("arn:aws:iam::123456789012:role/reader"), RoleSessionName: aws.String("test"),
	})
	if err != nil {
		t.Fatal(err)
	}
	if got, want := aws.ToString(out.Credentials.AccessKeyId), "ASIAFROMTHEBACKEND00"; got != want {
		t.Errorf("AccessKeyId = %q, want %q", got, want)
	}
	if action != "AssumeRole" || !strings.HasPrefix(authorization, "AWS4-HMAC-SHA256 ") {
		t.Errorf("the backend saw action %q with authorization %q", action, authorization)
	}
	if s.Calls() != 0 {
		t.Errorf("Calls = %d, want 0: only GetCallerIdentity counts", s.Calls())
	}
}

func TestOtherActionsWithoutBackend(t *testing.T) {
	for body, code := range map[string]string{
		"Action=AssumeRole":                      "InvalidAction",
		"Version=2011-06-15":                     "MissingAction",
		"Action=" + strings.Repeat("a", maxBody): "RequestEntityTooLarge",
	} {
		w := httptest.NewRecorder()
		New(Options{Region: testRegion}).ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/", strings.NewReader(body)))
		if w.Code < 400 || !strings.Contains(w.Body.String(), "<Code>"+code+"</Code>") {
			t.Errorf("answer to %.40q = %d %s, want %s", body, w.Code, w.Body, code)
		}
	}
}
