package signerclient

import (
	"context"
	"encoding/json"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/machine/fault"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
)

// Leave posts requests to leave until one is answered. Unlike Ask, it never falls back to an
// earlier version of the protocol: version 1 has no purpose, so the same request would be one
// to enroll.
func (c *Client) Leave(ctx context.Context, region ec2ref.Region, newRequest requestMaker) (*protocol.LeaveResponse, error) {
	var answer *protocol.LeaveResponse
	err := c.retry.Do(ctx, manyAttempts, func(ctx context.Context) (again bool, after time.Duration, err error) {
		answer, err = c.leaveOnce(ctx, region, newRequest)
		return fault.KindOf(err) == fault.Temporary, waitOf(err), err
	})
	return answer, err
}

func (c *Client) leaveOnce(ctx context.Context, region ec2ref.Region, newRequest requestMaker) (*protocol.LeaveResponse, error) {
	body, err := newRequest(ctx, protocol.Version)
	if err != nil {
		return nil, err
	}
	data, err := c.postBody(ctx, region, protocol.Version, body)
	if err != nil {
		return nil, err
	}
	return readLeave(data)
}

// readLeave reads the body of an answer to a granted request to leave.
func readLeave(data []byte) (*protocol.LeaveResponse, error) {
	var answer protocol.LeaveResponse
	if len(data) > protocol.MaxResponseBytes {
		return nil, fault.Newf(fault.Failed, hintSignerURL, "the signer's answer has more than %d bytes", protocol.MaxResponseBytes)
	}
	if err := json.Unmarshal(data, &answer); err != nil {
		return nil, fault.Newf(fault.Failed, hintSignerURL, "the signer's answer is not a valid Hallmark response: %w", err)
	}
	if answer.Version != protocol.Version {
		return nil, fault.Newf(fault.Failed, hintVersions([]int{answer.Version}),
			"the signer's answer has protocol version %d, not %d", answer.Version, protocol.Version)
	}
	return &answer, nil
}
