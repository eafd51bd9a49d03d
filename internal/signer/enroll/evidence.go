package enroll

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"mime"
	"net/http"
	"slices"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/identity"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"github.com/hallmark-ssh/hallmark/internal/signer/entry"
	"github.com/hallmark-ssh/hallmark/internal/signer/organization"
	"github.com/hallmark-ssh/hallmark/internal/sshkey"
)

// caller is a caller that proved its identity, with its host keys.
type caller struct {
	document *identity.Document
	keys     []ssh.PublicKey
	version  int // protocol version
	purpose  protocol.Purpose
	issuedAt time.Time
	program  string // version of the machine's program, as it says
}

// evidence is a parsed request. Nothing in it is proved.
type evidence struct {
	proof      protocol.CallerProof
	binding    protocol.Binding
	payload    *protocol.Payload
	signatures []string
	keys       []ssh.PublicKey
}

// authenticate takes the steps up to and including STS.
func (s *Signer) authenticate(ctx context.Context, r entry.Request, a *audit) (caller, error) {
	e, document, err := s.examine(ctx, r, a)
	if err != nil {
		return caller{}, err
	}
	if err := s.limitAttempts(ctx, e, r, a); err != nil {
		return caller{}, err
	}
	err = a.step(ctx, "sts", stsTimeout, func(ctx context.Context) error {
		return s.Callers.Verify(ctx, e.proof, e.binding, document.Instance)
	})
	if err != nil {
		return caller{}, refuseCaller(err)
	}
	a.proved, a.report = true, e.payload.Report
	if err := s.limitProved(ctx, e, a); err != nil {
		return caller{}, err
	}
	p := e.payload
	who := caller{document: document, keys: e.keys, version: p.Version, purpose: p.Purpose, issuedAt: p.IssuedAt}
	if p.Report != nil {
		who.program = p.Report.Program
	}
	return who, nil
}

// examine checks everything that needs no call to a service, except for the shared read of
// an organization's stored list.
func (s *Signer) examine(ctx context.Context, r entry.Request, a *audit) (*evidence, *identity.Document, error) {
	if err := s.checkSender(r); err != nil {
		return nil, nil, err
	}
	e, err := s.readEvidence(r)
	if err != nil {
		return nil, nil, err
	}
	a.keys, a.purpose = sshkey.Fingerprints(e.keys), e.payload.Purpose
	document, err := s.verifyDocument(e.payload.IdentityDocument)
	if err != nil {
		return nil, nil, err
	}
	a.document = document
	if err := s.checkListed(ctx, document, a); err != nil {
		return nil, nil, err
	}
	if err := checkIAM(r.IAM, document); err != nil {
		return nil, nil, err
	}
	if err := checkTime(e, s.now()); err != nil {
		return nil, nil, err
	}
	return e, document, checkSignatures(e)
}

// readEvidence checks everything that needs neither a signature nor a clock.
func (s *Signer) readEvidence(r entry.Request) (*evidence, error) {
	if r.Method != http.MethodPost {
		return nil, refuse(protocol.CodeMethodNotAllowed, fmt.Errorf("method %.16q", r.Method))
	}
	if len(r.Body) > protocol.MaxRequestBytes {
		return nil, refuse(protocol.CodeTooLarge, fmt.Errorf("more than %d bytes", protocol.MaxRequestBytes))
	}
	if media, _, err := mime.ParseMediaType(r.ContentType); err != nil || media != "application/json" {
		return nil, refuse(protocol.CodeMalformed, fmt.Errorf("content type %.64q", r.ContentType))
	}
	request, err := protocol.ParseRequest(r.Body)
	if err != nil {
		return nil, refuse(protocol.CodeMalformed, err)
	}
	payload, err := s.readPayload(request.Payload)
	if err != nil {
		return nil, err
	}
	keys, err := identity.ParseHostKeys(payload.HostKeys)
	if err != nil {
		return nil, refuse(protocol.CodeHostKeyInvalid, err)
	}
	return &evidence{
		proof:      request.Caller,
		binding:    protocol.Bind(request.Payload),
		payload:    payload,
		signatures: request.Signatures,
		keys:       keys,
	}, nil
}

// readPayload checks the version first, so that a caller with another version learns that
// instead of an error about its fields.
func (s *Signer) readPayload(data []byte) (*protocol.Payload, error) {
	var peek struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(data, &peek); err == nil && !slices.Contains(protocol.SupportedVersions(), peek.Version) {
		return nil, refuse(protocol.CodeUnsupportedVersion, fmt.Errorf("version %d", peek.Version))
	}
	payload, err := protocol.ParsePayload(data)
	if err != nil {
		return nil, refuse(protocol.CodeMalformed, err)
	}
	// This check stops evidence made for another signer, which could replay it here.
	if payload.Audience != s.Audience {
		return nil, refuse(protocol.CodeAudienceMismatch, fmt.Errorf("audience %.128q", payload.Audience))
	}
	return payload, nil
}

func (s *Signer) verifyDocument(text string) (*identity.Document, error) {
	message, err := identity.Decode([]byte(text))
	if err != nil {
		return nil, refuse(protocol.CodeIdentityInvalid, err)
	}
	document, err := s.Documents.Verify(message)
	if err != nil {
		return nil, refuse(protocol.CodeIdentityInvalid, err)
	}
	return document, nil
}

// checkListed stops a caller from an unlisted account before the signer calls any
// service. Only the log says whether the account or the region is not listed: the answer
// must not reveal the deployment's lists.
func (s *Signer) checkListed(ctx context.Context, d *identity.Document, a *audit) error {
	if !slices.Contains(s.Regions, d.Instance.Region) {
		return refuse(protocol.CodeNotAllowed, errors.New("region is not in the deployment's list"))
	}
	if slices.Contains(s.Accounts, d.Instance.Account) {
		return nil
	}
	members, err := s.members(ctx, a)
	if err != nil {
		return err
	}
	if !members.Has(d.Instance.Account) {
		return refuse(protocol.CodeNotAllowed, errors.New("account is not in the deployment's list, nor in the organization's units that it allows"))
	}
	return nil
}

// members returns the accounts of the organization that may call, none without one.
func (s *Signer) members(ctx context.Context, a *audit) (organization.View, error) {
	var members organization.View
	if s.Organization == nil {
		return members, nil
	}
	err := a.step(ctx, "members", ledgerTimeout, func(ctx context.Context) (err error) {
		members, err = s.Organization.Current(ctx)
		return err
	})
	if err != nil {
		return members, unanswered(serviceLedger, err)
	}
	return members, nil
}

// checkTime bounds how long a captured request is useful, to less than the 15 minutes of
// STS, and ties the payload's time to the one that STS verifies.
func checkTime(e *evidence, now time.Time) error {
	proved, err := identity.ProofTime(e.proof)
	if err != nil {
		return refuse(protocol.CodeCallerProofInvalid, err)
	}
	if !e.payload.IssuedAt.Equal(proved) {
		return refuse(protocol.CodeCallerProofInvalid,
			fmt.Errorf("issued at %s, but the caller proof is from %s", e.payload.IssuedAt, proved))
	}
	if skew := now.Sub(proved).Abs(); skew > protocol.MaxClockSkew {
		return refuse(protocol.CodeClockSkew, fmt.Errorf("issued at %s, %s from now", proved, skew))
	}
	return nil
}

// checkSignatures stops a caller from enrolling another host's key. With a certificate
// for that key the caller could not pose as that host, but that host could pose as the
// caller.
func checkSignatures(e *evidence) error {
	if len(e.signatures) != len(e.keys) {
		return refuse(protocol.CodeHostKeyUnproved, fmt.Errorf("%d signatures for %d host keys", len(e.signatures), len(e.keys)))
	}
	for i, key := range e.keys {
		if err := identity.VerifyBinding(key, e.binding, e.signatures[i]); err != nil {
			return refuse(protocol.CodeHostKeyUnproved, fmt.Errorf("host key %d: %w", i, err))
		}
	}
	return nil
}

func refuseCaller(err error) error {
	if errors.Is(err, identity.ErrCallerProof) {
		return refuse(protocol.CodeCallerProofInvalid, err)
	}
	return unanswered(serviceSTS, err)
}
