package sts

import (
	"bufio"
	"net/http"
	"strings"
	"testing"
)

// The secret and the session token of the AWS SigV4 test suite, which are no
// secrets.
const (
	suiteSecret = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"
	suiteToken  = "AQoDYXdzEPT//////////wEXAMPLEtc764bNrC9SAPBSM22wDOk4x4HIZ8j4FZTwdQWLWsKWHGBuFqwAeMicRXmxfpSPfIeoIYRqTflfKD8YUuwthAx7mSEI/qkPpKPi/kMcGdQrmGdeehM4IC1NtBmUpp2wUE8phUZampKsburEDy0KPkyQDYwT7WZ0wq5VSXDvp75YU9HFvlRd8Tx6q6fE8YQcHNVXAkiY9q6d+xo0rKwT38xVqr7ZD0u0iPPkUL64lIZbqBAz+scqKmlzm8FDrypNC9Yjc8fPOLn9FX9KSYvKTr4rvx3iSIlTJabIQwj2ICCR/oLxBA=="
)

// TestPublishedVectors holds the check against signatures that AWS published,
// so that it does not only agree with the SDK.
func TestPublishedVectors(t *testing.T) {
	for name, v := range map[string]struct {
		line, headers, body      string
		signedHeaders, signature string
	}{
		"get-vanilla": {
			line:          "GET /",
			signedHeaders: "host;x-amz-date",
			signature:     "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31",
		},
		"get-vanilla-query-order-key-case": {
			line:          "GET /?Param2=value2&Param1=value1",
			signedHeaders: "host;x-amz-date",
			signature:     "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500",
		},
		"get-header-value-trim": {
			line:          "GET /",
			headers:       "My-Header1:  value1\r\nMy-Header2: \"a   b   c\"\r\n",
			signedHeaders: "host;my-header1;my-header2;x-amz-date",
			signature:     "acc3ed3afb60bb290fc8d2dd0098b9911fcaa05412b367055dee359757a9c736",
		},
		"post-vanilla": {
			line:          "POST /",
			signedHeaders: "host;x-amz-date",
			signature:     "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b",
		},
		"post-sts-header-before": {
			line:          "POST /",
			headers:       "X-Amz-Security-Token: " + suiteToken + "\r\n",
			signedHeaders: "host;x-amz-date;x-amz-security-token",
			signature:     "85d96828115b5dc0cfc3bd16ad9e210dd772bbebba041836c64533a82be05ead",
		},
		"post-x-www-form-urlencoded": {
			line:          "POST /",
			headers:       "Content-Type: application/x-www-form-urlencoded\r\n",
			body:          "Param1=value1",
			signedHeaders: "content-type;host;x-amz-date",
			signature:     "ff11897932ad3f4e8b18135d722051e5ac45fc38421b1da7b9d196a0fe09473a",
		},
	} {
		t.Run(name, func(t *testing.T) {
			raw := v.line + " HTTP/1.1\r\nHost: example.amazonaws.com\r\nX-Amz-Date: 20150830T123600Z\r\n" + v.headers +
				"Authorization: AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, " +
				"SignedHeaders=" + v.signedHeaders + ", Signature=" + v.signature + "\r\n\r\n"
			r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(raw)))
			if err != nil {
				t.Fatal(err)
			}
			sig, f := parseSignature(r)
			if f != nil {
				t.Fatal(f.message)
			}
			if !sig.matches(r, []byte(v.body), suiteSecret) {
				t.Error("the published signature does not match")
			}
			if sig.matches(r, []byte(v.body+"x"), suiteSecret) {
				t.Error("the signature matches another body")
			}
			if sig.matches(r, []byte(v.body), suiteSecret+"x") {
				t.Error("the signature matches another secret")
			}
			r.Host = "example.org"
			if sig.matches(r, []byte(v.body), suiteSecret) {
				t.Error("the signature matches another host")
			}
		})
	}
}
