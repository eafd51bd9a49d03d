package identity

import (
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
)

const (
	// amzDate is the layout of X-Amz-Date (AWS, "Elements of an AWS API request
	// signature").
	amzDate = "20060102T150405Z"

	sigv4Algorithm = "AWS4-HMAC-SHA256"

	// signedHeaders are the headers that a caller proof signs, no more and no
	// less. With fewer, somebody else's binding could be slipped in; with more,
	// the caller would have a say in the request.
	signedHeaders = "content-type;host;x-amz-date;x-amz-security-token;" + protocol.BindingHeader

	// signedHeadersWithLength is the same set from a client that signs the length
	// of the body too, which is fixed.
	signedHeadersWithLength = "content-length;" + signedHeaders

	// maxAuthorization is room for the longest access key id (128 characters), the
	// scope and the signature.
	maxAuthorization = 512

	// maxSecurityToken bounds a session token. AWS promises no maximum; tokens of
	// today have about 1 KB.
	maxSecurityToken = 8 << 10
)

var (
	accessKeyID   = regexp.MustCompile(`^[A-Z0-9]+$`)
	sigv4Hex      = regexp.MustCompile(`^[0-9a-f]{64}$`)
	securityToken = regexp.MustCompile(`^[A-Za-z0-9+/=_.-]+$`)
)

// authorization holds the parts of a SigV4 Authorization header that a caller
// may choose. Everything else in the header is known beforehand.
type authorization struct {
	accessKeyID   string
	signedHeaders string
	signature     string
}

// parseAuthorization takes apart an Authorization header for a GetCallerIdentity
// request to the region's STS at the given X-Amz-Date. It accepts only what
// header would write again, and its errors never repeat what the caller sent.
func parseAuthorization(s string, region ec2ref.Region, date string) (authorization, error) {
	var a authorization
	if len(s) > maxAuthorization {
		return a, fmt.Errorf("authorization has %d bytes, more than %d", len(s), maxAuthorization)
	}
	rest, ok := strings.CutPrefix(s, sigv4Algorithm+" ")
	if !ok {
		return a, errors.New("authorization is not " + sigv4Algorithm)
	}
	fields := strings.Split(rest, ", ")
	if len(fields) != 3 {
		return a, errors.New("authorization does not have exactly three fields")
	}
	credential, ok1 := strings.CutPrefix(fields[0], "Credential=")
	headers, ok2 := strings.CutPrefix(fields[1], "SignedHeaders=")
	signature, ok3 := strings.CutPrefix(fields[2], "Signature=")
	if !ok1 || !ok2 || !ok3 {
		return a, errors.New("authorization fields are not Credential, SignedHeaders, Signature")
	}
	key, scope, _ := strings.Cut(credential, "/")
	if len(key) < 16 || len(key) > 128 || !accessKeyID.MatchString(key) {
		return a, errors.New("access key id is malformed")
	}
	if want := credentialScope(region, date); scope != want {
		return a, fmt.Errorf("credential scope is not %s", want)
	}
	if headers != signedHeaders && headers != signedHeadersWithLength {
		return a, fmt.Errorf("signed headers are not exactly %s", signedHeaders)
	}
	if !sigv4Hex.MatchString(signature) {
		return a, errors.New("signature is not 64 lower-case hexadecimal digits")
	}
	return authorization{accessKeyID: key, signedHeaders: headers, signature: signature}, nil
}

// header writes the Authorization header again, from its parts.
func (a authorization) header(region ec2ref.Region, date string) string {
	return fmt.Sprintf("%s Credential=%s/%s, SignedHeaders=%s, Signature=%s",
		sigv4Algorithm, a.accessKeyID, credentialScope(region, date), a.signedHeaders, a.signature)
}

// credentialScope returns the scope of a request to the region's STS. The date
// has passed ProofTime.
func credentialScope(region ec2ref.Region, date string) string {
	return date[:len("20060102")] + "/" + string(region) + "/sts/aws4_request"
}

// ProofTime returns the time at which a proof says that it was signed. The
// caller compares it with the clock and with Payload.IssuedAt.
func ProofTime(proof protocol.CallerProof) (time.Time, error) {
	t, err := time.Parse(amzDate, proof.Date)
	// time.Parse also takes fractions of a second, which SigV4 does not know.
	if err != nil || t.Format(amzDate) != proof.Date {
		return time.Time{}, errors.New("date is not of the form " + amzDate)
	}
	return t, nil
}

func checkSecurityToken(token string) error {
	if len(token) > maxSecurityToken {
		return fmt.Errorf("security token has %d bytes, more than %d", len(token), maxSecurityToken)
	}
	if !securityToken.MatchString(token) {
		return errors.New("security token is missing or malformed")
	}
	return nil
}
