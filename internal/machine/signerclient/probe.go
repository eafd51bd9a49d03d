package signerclient

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"slices"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
)

// Probe is what a signer shows to anyone.
type Probe struct {
	// CAs are the cluster's, or nil if the signer does not tell.
	CAs *CAs
	// Date is the time of the answer by the signer's clock, or zero if it does not say.
	Date time.Time
}

// Probe asks once for the cluster's CAs.
func (c *Client) Probe(ctx context.Context, region ec2ref.Region) (Probe, error) {
	status, data, err := c.send(ctx, region, http.MethodGet, http.Header{}, nil)
	if err != nil {
		return Probe{}, err
	}
	p := Probe{Date: status.date}
	switch status.code {
	case http.StatusOK:
		p.CAs, err = readCAs(data)
		return p, err
	case http.StatusNotFound, http.StatusMethodNotAllowed, http.StatusNotImplemented:
		return p, nil // an old signer, which sends its CAs with certificates
	}
	return p, c.refusal(status, data, protocol.Version)
}

// CheckAudience asks whether the signer accepts an audience and this protocol version, with a
// request that has no proof in it. A signer checks version and audience first, and refuses the
// request for its host key before it verifies anything. So the probe costs nothing and proves
// nothing. The error is any other refusal, or why there is no answer.
func (c *Client) CheckAudience(ctx context.Context, region ec2ref.Region, audience string) error {
	version := protocol.Version
	err := c.probeAudience(ctx, region, audience, version)
	if older := olderVersion(err, version); older > 0 {
		err = c.probeAudience(ctx, region, audience, older)
	}
	// What a signer refuses after the audience. A busy signer or a proxy says nothing about it.
	later := []protocol.Code{
		protocol.CodeHostKeyInvalid, protocol.CodeHostKeyUnproved, protocol.CodeIdentityInvalid, protocol.CodeCallerProofInvalid,
	}
	if slices.Contains(later, CodeOf(err)) {
		return nil
	}
	return err
}

func (c *Client) probeAudience(ctx context.Context, region ec2ref.Region, audience string, version int) error {
	payload, err := json.Marshal(protocol.Payload{
		Version: version, Audience: audience, IssuedAt: c.now().UTC().Truncate(time.Second),
		IdentityDocument: "probe", HostKeys: []string{"probe"},
	})
	if err != nil {
		return fmt.Errorf("encode the probe: %w", err)
	}
	body, err := json.Marshal(protocol.Request{Payload: payload, Signatures: []string{"probe"}})
	if err != nil {
		return fmt.Errorf("encode the probe: %w", err)
	}
	_, err = c.post(ctx, region, version, body)
	return err
}
