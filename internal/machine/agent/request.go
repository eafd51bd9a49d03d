package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/buildinfo"
	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/identity"
	"github.com/hallmark-ssh/hallmark/internal/machine/config"
	"github.com/hallmark-ssh/hallmark/internal/machine/fault"
	"github.com/hallmark-ssh/hallmark/internal/machine/hostkey"
	"github.com/hallmark-ssh/hallmark/internal/machine/imds"
	"github.com/hallmark-ssh/hallmark/internal/machine/signerclient"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
)

// obtain asks the signer and checks its answer.
func (r *run) obtain(ctx context.Context) (*protocol.Response, *signerclient.Grant, error) {
	document, err := r.metadata.IdentityDocument(ctx)
	if err != nil {
		return nil, nil, err
	}
	creds, err := r.metadata.RoleCredentials(ctx)
	if err != nil {
		return nil, nil, err
	}
	report := &protocol.Report{Rejected: r.plan.rejected, Program: protocol.ProgramVersion(buildinfo.Version())}
	region := r.seen.instance.Region
	answer, err := r.signer.Ask(ctx, region, func(ctx context.Context, version int) ([]byte, error) {
		return r.newRequest(ctx, version, region, document, creds, r.seen.keys, report)
	})
	if err != nil {
		return nil, nil, err
	}
	g, err := r.check(ctx, answer, r.seen.keys, r.seen.instance)
	if err != nil && fault.KindOf(err) != fault.Temporary {
		err = reject(protocol.RejectedAnswer, answer.RequestID, err)
	}
	return answer, g, err
}

// check decides whether an answer is what was asked for.
func (e *Enroller) check(ctx context.Context, answer *protocol.Response, keys []hostkey.Key, instance imds.Instance) (*signerclient.Grant, error) {
	var err error
	var own map[string]bool
	if further := signerclient.FurtherPrincipals(answer); len(further) > 0 { // few policies add them; otherwise nothing asks the metadata service
		if own, err = e.metadata.Names(ctx, further); err != nil {
			return nil, err
		}
	}
	g, err := signerclient.Check(answer, keys, instance, own, e.now())
	if errors.Is(err, signerclient.ErrNewAddress) {
		return nil, fault.Newf(fault.Temporary, "nothing was changed; wait until the metadata service shows the address, then run hallmark again",
			"the signer's answer (request %.64q): %w", answer.RequestID, err)
	}
	if err != nil {
		return nil, fault.Newf(fault.Failed, "nothing was changed; look up the request id in the signer's log",
			"rejected the signer's answer (request %.64q): %w", answer.RequestID, err)
	}
	return g, nil
}

// newRequest makes a request with fresh proofs.
func (e *Enroller) newRequest(ctx context.Context, version int, region ec2ref.Region, document string, creds identity.Credentials, keys []hostkey.Key, report *protocol.Report) ([]byte, error) {
	p := protocol.Payload{Version: version, IdentityDocument: document}
	if p.Version > protocol.FirstVersion {
		p.Report = report
	}
	return e.prove(ctx, region, creds, keys, p)
}

// prove completes a payload and adds fresh proofs.
func (e *Enroller) prove(ctx context.Context, region ec2ref.Region, creds identity.Credentials, keys []hostkey.Key, p protocol.Payload) ([]byte, error) {
	now := e.now().UTC().Truncate(time.Second)
	p.Audience, p.IssuedAt = e.Config.Audience, now
	for _, key := range keys {
		p.HostKeys = append(p.HostKeys, key.Line())
	}
	payload, err := json.Marshal(p)
	if err != nil {
		return nil, fmt.Errorf("encode the request: %w", err)
	}
	binding := protocol.Bind(payload)
	if _, err := ec2ref.STSHost(region, e.Config.FIPS); err != nil {
		return nil, fault.Newf(fault.Misconfigured, "remove fips from "+config.File+", or use a region that has a FIPS endpoint", "prove the caller: %w", err)
	}
	caller, err := identity.SignCaller(ctx, creds, region, e.Config.FIPS, binding, now)
	if err != nil {
		return nil, fmt.Errorf("prove the caller: %w", err)
	}
	signatures, err := hostkey.Sign(keys, binding)
	if err != nil {
		return nil, err
	}
	body, err := json.Marshal(protocol.Request{Payload: payload, Caller: caller, Signatures: signatures})
	if err != nil {
		return nil, fmt.Errorf("encode the request: %w", err)
	}
	return body, nil
}
