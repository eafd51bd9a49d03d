package teleport

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"time"

	trustpb "github.com/gravitational/teleport/api/gen/proto/go/teleport/trust/v1"
	"github.com/gravitational/teleport/api/types"
	"github.com/gravitational/trace"
	"google.golang.org/protobuf/types/known/durationpb"
)

const (
	// hostCertURL is where Teleport 13 and 14 sign host keys. Every auth service has this
	// host name.
	hostCertURL = "https://teleport.cluster.local/v2/ca/host/certs"

	// maxAnswer bounds the answer: a certificate, or an error with its trace.
	maxAnswer = 64 << 10
)

// hostCertRequest is the body of a request to hostCertURL. With a host ID, Teleport would
// add localhost, 127.0.0.1 and ::1 to the principals, and each machine could pose as
// another's loopback. So both fields are always empty.
type hostCertRequest struct {
	Key         []byte             `json:"key"`
	HostID      string             `json:"hostname"`
	NodeName    string             `json:"node_name"`
	Principals  []string           `json:"principals"`
	ClusterName string             `json:"auth_domain"`
	Roles       []types.SystemRole `json:"roles"` // exactly one
	TTL         time.Duration      `json:"ttl"`
}

// signOnce requests a host certificate with the role in the request and returns it as one
// line. It asks newer servers over gRPC, and those without that call over HTTP.
func (c *connection) signOnce(ctx context.Context, request hostCertRequest) (string, error) {
	if c.overHTTP.Load() {
		return c.postHostKey(ctx, request)
	}
	response, err := c.api.TrustClient().GenerateHostCert(ctx, &trustpb.GenerateHostCertRequest{
		Key:         request.Key,
		HostId:      request.HostID,
		NodeName:    request.NodeName,
		Principals:  request.Principals,
		ClusterName: request.ClusterName,
		Role:        string(request.Roles[0]),
		Ttl:         durationpb.New(request.TTL),
	})
	if trace.IsNotImplemented(err) {
		c.overHTTP.Store(true)
		return c.postHostKey(ctx, request)
	}
	if err != nil {
		return "", err
	}
	return string(response.SshCertificate), nil
}

// postHostKey is signOnce over HTTP. Like a gRPC call it retries if the server cannot be
// reached.
func (c *connection) postHostKey(ctx context.Context, request hostCertRequest) (line string, err error) {
	ctx, cancel := withDeadline(ctx)
	defer cancel()
	body, err := json.Marshal(request)
	if err != nil {
		return "", err
	}
	err = retry(ctx, func() (err error) {
		line, err = c.post(ctx, body)
		return err
	}, func(err error) bool { return trace.IsConnectionProblem(err) && !turnedAway(err) })
	return line, err
}

func (c *connection) post(ctx context.Context, body []byte) (line string, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, hostCertURL, bytes.NewReader(body))
	if err != nil {
		return "", err
	}
	request.Header.Set("Content-Type", "application/json")
	response, err := c.http.Do(request)
	if err != nil {
		return "", trace.ConnectionProblem(err, "%v", err)
	}
	defer func() { _ = response.Body.Close() }()
	data, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	if err != nil {
		return "", trace.ConnectionProblem(err, "read the answer: %v", err)
	}
	switch {
	case response.StatusCode == http.StatusNotFound:
		// The server supports neither.
		return "", fmt.Errorf("%w: this Teleport version does not sign host keys for Hallmark, which works with versions %d to 19", ErrDenied, oldest)
	case response.StatusCode == http.StatusBadGateway, response.StatusCode == http.StatusServiceUnavailable:
		return "", trace.ConnectionProblem(nil, "HTTP status %s", response.Status)
	case response.StatusCode != http.StatusOK:
		return "", trace.ReadError(response.StatusCode, data)
	}
	if err := json.Unmarshal(data, &line); err != nil {
		return "", fmt.Errorf("decode the answer: %w", err)
	}
	return line, nil
}
