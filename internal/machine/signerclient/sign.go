package signerclient

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/machine/fault"
)

// scope is the AWS service and the region that a request is signed for.
type scope struct {
	service string
	region  ec2ref.Region
}

// scopeOf returns the scope of a function URL, <id>.lambda-url.<region>.on.aws, or of a
// private API, <id>.execute-api.<region>.amazonaws.com, where <id> may include the VPC
// endpoint. The operator's own host name stands for a function URL in the machine's region.
func scopeOf(host string, own ec2ref.Region) scope {
	labels := strings.Split(host, ".")
	if len(labels) > 3 {
		switch labels[1] {
		case "lambda-url":
			return scope{"lambda", ec2ref.Region(labels[2])}
		case "execute-api":
			return scope{"execute-api", ec2ref.Region(labels[2])}
		}
	}
	return scope{"lambda", own}
}

// badSignature returns an error if AWS refused a request's signature, and nil otherwise. name
// is the header X-Amzn-Errortype. The clock may be wrong now and right in a minute, and the
// next attempt gets new credentials.
func badSignature(status int, name string) error {
	switch name = errorType(name); name {
	case "InvalidSignatureException", "ExpiredTokenException", "RequestExpired":
		return fault.Newf(fault.Temporary, "set the machine's clock, for example with chrony or systemd-timesyncd",
			"AWS refused the signature of the request to the signer: %d %s", status, name)
	}
	return nil
}

// errorType returns the name in an X-Amzn-Errortype header, which a URL may follow.
func errorType(header string) string {
	name, _, _ := strings.Cut(header, ":")
	return name
}

// signRequest signs a request with the credentials of the instance profile
// (https://docs.aws.amazon.com/lambda/latest/dg/urls-auth.html).
func (c *Client) signRequest(ctx context.Context, req *http.Request, s scope, body []byte) error {
	creds, err := c.profile.ProfileCredentials(ctx)
	if err != nil {
		return err
	}
	digest := sha256.Sum256(body)
	err = v4.NewSigner().SignHTTP(ctx, aws.Credentials{
		AccessKeyID: creds.AccessKeyID, SecretAccessKey: creds.SecretAccessKey, SessionToken: creds.SessionToken,
	}, req, hex.EncodeToString(digest[:]), s.service, s.region.String(), c.now())
	if err != nil {
		return fmt.Errorf("sign the request to the signer: %w", err)
	}
	return nil
}
