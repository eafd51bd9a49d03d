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
	// callerIdentity is the body that Teleport insists on, byte by byte.
	callerIdentity = "Action=GetCallerIdentity&Version=2011-06-15"

	challengeHeader = "X-Teleport-Challenge"
)

// signChallenge returns a request of STS GetCallerIdentity in the bytes of HTTP
// 1.1, signed with the challenge among its headers. Teleport sends it, and reads
// from the answer who signed.
func (b Bot) signChallenge(ctx context.Context, challenge string, now time.Time) ([]byte, error) {
	credentials, err := b.Credentials.Retrieve(ctx)
	if err != nil {
		return nil, fmt.Errorf("get AWS credentials: %w", err)
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+b.STSHost+"/", strings.NewReader(callerIdentity))
	if err != nil {
		return nil, err
	}
	request.Header.Set("Accept", "application/json") // Teleport reads no XML
	request.Header.Set("Content-Type", "application/x-www-form-urlencoded; charset=utf-8")
	request.Header.Set(challengeHeader, challenge)
	sum := sha256.Sum256([]byte(callerIdentity))
	if err := v4.NewSigner().SignHTTP(ctx, credentials, request, hex.EncodeToString(sum[:]), "sts", b.Region, now); err != nil {
		return nil, fmt.Errorf("sign for STS: %w", err)
	}
	var wire bytes.Buffer
	if err := request.Write(&wire); err != nil {
		return nil, err
	}
	return wire.Bytes(), nil
}
