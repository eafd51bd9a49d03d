package teleport

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"strings"
	"time"

	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

const (
	// callerIdentity is the body that Teleport requires, byte for byte.
	callerIdentity = "Action=GetCallerIdentity&Version=2011-06-15"

	challengeHeader = "X-Teleport-Challenge"
)

// maxChallenge bounds a challenge, in bytes. Teleport's have 43.
const maxChallenge = 1024

// checkChallenge refuses characters that must not be in a header of a signed request,
// such as a line break followed by another header.
func checkChallenge(challenge string) error {
	if challenge == "" || len(challenge) > maxChallenge {
		return fmt.Errorf("the server's challenge has %d bytes, want 1 to %d", len(challenge), maxChallenge)
	}
	for _, c := range []byte(challenge) {
		if c <= ' ' || c > '~' {
			return fmt.Errorf("the server's challenge has byte %#x; want printable ASCII", c)
		}
	}
	return nil
}

// signChallenge returns an STS GetCallerIdentity request as HTTP/1.1 bytes, signed with
// the challenge among its headers. Teleport sends it, and learns from the answer who
// signed it.
func (b Bot) signChallenge(ctx context.Context, challenge string, now time.Time) ([]byte, error) {
	if err := checkChallenge(challenge); err != nil {
		return nil, err
	}
	credentials, err := b.Credentials.Retrieve(ctx)
	if err != nil {
		return nil, fmt.Errorf("get AWS credentials: %w", err)
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+b.STSHost+"/", strings.NewReader(callerIdentity))
	if err != nil {
		return nil, err
	}
	request.Header.Set("Accept", "application/json") // Teleport does not parse XML
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded; charset=utf-8")
	request.Header.Set(challengeHeader, challenge)
	sum := sha256.Sum256([]byte(callerIdentity))
	if err := v4.NewSigner().SignHTTP(ctx, credentials, request, hex.EncodeToString(sum[:]), "sts", string(b.Region), now); err != nil {
		return nil, fmt.Errorf("sign for STS: %w", err)
	}
	var wire bytes.Buffer
	if err := request.Write(&wire); err != nil {
		return nil, err
	}
	return wire.Bytes(), nil
}
