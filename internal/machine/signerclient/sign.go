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
)

// scope is the AWS service and the region that a request is signed for.
type scope struct{ service, region string }

// scopeOf returns the scope of a function URL, <id>.lambda-url.<region>.on.aws, or of a
// private API, <id>.execute-api.<region>.amazonaws.com, where <id> may name the VPC
// endpoint, too. A host name of the operator's stands for a function URL in the machine's
// own region.
func scopeOf(host, own string) scope {
	labels := strings.Split(host, ".")
	if len(labels) > 3 {
		switch labels[1] {
		case "lambda-url":
			return scope{"lambda", labels[2]}
		case "execute-api":
			return scope{"execute-api", labels[2]}
		}
	}
	return scope{"lambda", own}
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
	}, req, hex.EncodeToString(digest[:]), s.service, s.region, c.now())
	if err != nil {
		return fmt.Errorf("sign the request to the signer: %w", err)
	}
	return nil
}
