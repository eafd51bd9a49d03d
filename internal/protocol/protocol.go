// Package protocol defines what an instance and the signer exchange: requests to enroll and
// to leave, the binding that every proof in them signs, and the answers.
//
// A request carries its payload as the exact bytes that were signed. Neither side re-encodes
// anything before hashing: the signer hashes what it received, and only then parses it.
package protocol

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"time"
)

const (
	// Version is the latest protocol version. Machines first ask in this version.
	Version = 2
	// FirstVersion is the earliest version that was released. It has no Report.
	FirstVersion = 1

	// MaxRequestBytes bounds an encoded request. A function URL allows 6 MB;
	// a request with five host keys needs less than 16 KiB.
	MaxRequestBytes = 64 << 10

	// MaxResponseBytes bounds an encoded response.
	MaxResponseBytes = 256 << 10

	// MaxHostKeys bounds the host keys in one request. OpenSSH generates three by default.
	MaxHostKeys = 5

	// MaxClockSkew is how far the issued-at time may be from the signer's clock,
	// in either direction.
	MaxClockSkew = 5 * time.Minute

	// BindingHeader is the HTTP header that carries the binding inside the signed
	// GetCallerIdentity request. It is lower case, as SigV4 signs it.
	BindingHeader = "x-hallmark-binding"

	// SignatureNamespace is the SSHSIG namespace under which host keys sign the
	// binding (OpenSSH PROTOCOL.sshsig).
	SignatureNamespace = "hallmark-enroll"

	// bindingDomain distinguishes a binding from any other SHA-256 that somebody might sign.
	bindingDomain = "hallmark-enroll-v1\x00"
)

// Request asks for host certificates, or to leave. It is the body of an HTTP POST.
type Request struct {
	// Payload is an encoded Payload, in the exact bytes that Bind hashed.
	Payload []byte `json:"payload"`
	// Caller proves which instance is calling.
	Caller CallerProof `json:"caller"`
	// Signatures holds one armored SSHSIG over Binding.Message for each host key
	// of the payload, in the same order.
	Signatures []string `json:"signatures"`
}

// CallerProof is what the signer needs of an STS GetCallerIdentity request that the instance
// signed with its identity role's credentials. Method, path and body are fixed, and the host
// is one of two; the signer writes all of them itself.
type CallerProof struct {
	// Authorization is the value of the SigV4 Authorization header.
	Authorization string `json:"authorization"`
	// Date is the value of the X-Amz-Date header: "20060102T150405Z".
	Date string `json:"date"`
	// SecurityToken is the value of the X-Amz-Security-Token header.
	SecurityToken string `json:"securityToken"`
	// FIPS says that the request was signed for the FIPS endpoint of STS. The signature covers
	// the host, so nobody can change this on the way. Signers from before this member refuse
	// it.
	FIPS bool `json:"fips,omitempty"`
}

// Payload is what the instance states. Every proof binds it.
type Payload struct {
	Version  int    `json:"version"`
	Audience string `json:"audience"`
	// IssuedAt is the same instant as CallerProof.Date, in whole seconds, UTC.
	IssuedAt time.Time `json:"issuedAt"`
	// IdentityDocument is the base64 text that the metadata service returns at
	// /latest/dynamic/instance-identity/rsa2048.
	IdentityDocument string `json:"identityDocument"`
	// HostKeys are public keys in authorized_keys form, without comment.
	HostKeys []string `json:"hostKeys"`
	// Purpose is what the request asks for. Version 1 has only PurposeEnroll.
	//
	// It is part of the bytes that every proof binds. Otherwise someone with a captured
	// request to enroll could have the signer delete the node, and a captured request to
	// leave could bring the node back. A signer that does not know the field refuses the
	// whole payload, so it never takes one request for the other.
	Purpose Purpose `json:"purpose,omitempty"`
	// Report is what the machine says about itself, or nil. Version 1 has none.
	Report *Report `json:"report,omitempty"`
}

// Purpose is what a request asks for.
type Purpose string

// The purposes of a request.
const (
	// PurposeEnroll asks for host certificates.
	PurposeEnroll Purpose = ""
	// PurposeLeave asks the signer to delete the instance's node, and to forget none of its
	// keys and names. At least one host key of the request must be recorded.
	PurposeLeave Purpose = "leave"
)

// LeaveResponse is the signer's answer to a granted request to leave.
type LeaveResponse struct {
	Version   int    `json:"version"` // that of the request
	RequestID string `json:"requestId"`
	// NodeID is the node that is gone.
	NodeID string `json:"nodeId"`
}

// Response is the signer's answer to a granted request to enroll.
type Response struct {
	Version   int    `json:"version"` // the version of the request
	RequestID string `json:"requestId"`
	Node      Node   `json:"node"`
	// Principals are exactly the principals of every certificate.
	Principals []string `json:"principals"`
	// Certificates holds one host certificate in authorized_keys form for each
	// host key of the request, in the same order.
	Certificates []string `json:"certificates"`
	// OpenSSHCAs are the keys that sign user certificates for OpenSSH nodes, the
	// one that Teleport signs with first.
	OpenSSHCAs []string `json:"opensshCAs"`
	// HostCAs are the keys that sign host certificates, the one that Teleport
	// signs with first.
	HostCAs []string `json:"hostCAs"`
	// RenewAfter is when the instance should ask again.
	RenewAfter time.Time `json:"renewAfter"`
	// MetadataOptions are those that EC2 returned for this request. Signers from before this
	// member omit it, and older machines ignore it.
	MetadataOptions MetadataOptions `json:"metadataOptions,omitzero"`
}

// Node is the instance as Teleport knows it.
type Node struct {
	// ID is the node's name in Teleport, the UUID that NodeID gives.
	ID       string `json:"id"`
	Hostname string `json:"hostname"`
	Address  string `json:"address"`
	Cluster  string `json:"cluster"`
}

// Code is a stable code for why the signer refused a request.
type Code string

// The codes of the protocol. A caller that has proved nothing only sees those up to
// CodeCallerProofInvalid.
const (
	CodeMalformed          Code = "malformed"            // 400: not a request of this protocol
	CodeTooLarge           Code = "too_large"            // 413
	CodeMethodNotAllowed   Code = "method_not_allowed"   // 405
	CodeUnsupportedVersion Code = "unsupported_version"  // 400
	CodeIdentityInvalid    Code = "identity_invalid"     // 401: the identity document does not verify
	CodeNotAllowed         Code = "not_allowed"          // 403: the signer does not list the account or region
	CodeAudienceMismatch   Code = "audience_mismatch"    // 401: the request was made for another signer
	CodeClockSkew          Code = "clock_skew"           // 401: issued-at is too far from the signer's clock
	CodeHostKeyInvalid     Code = "host_key_invalid"     // 400: a host key of a kind or size that is not accepted
	CodeHostKeyUnproved    Code = "host_key_unproved"    // 401: a host key did not sign the binding
	CodeCallerProofInvalid Code = "caller_proof_invalid" // 401: STS does not confirm the instance

	CodeInstanceUnknown  Code = "instance_unknown"     // 403: EC2 does not know the instance
	CodeInstanceState    Code = "instance_state"       // 403: neither pending nor running
	CodeInstanceMismatch Code = "instance_mismatch"    // 403: EC2 and the document disagree
	CodePolicyRefused    Code = "policy_refused"       // 403: no rule of the policy admits the instance
	CodeKeyConflict      Code = "host_key_conflict"    // 409: the instance is known with other host keys
	CodeKeyInUse         Code = "host_key_in_use"      // 409: another instance holds one of the host keys
	CodeNameInUse        Code = "host_name_in_use"     // 409: somebody else's node holds the host name
	CodeInstanceEnded    Code = "instance_ended"       // 403: the instance was off-boarded
	CodeNotEnrolled      Code = "not_enrolled"         // 403: the instance never enrolled, or it left
	CodeRateLimited      Code = "rate_limited"         // 429, with Retry-After
	CodeUpstream         Code = "upstream_unavailable" // 503: AWS or Teleport did not answer
	CodeTeleportRefused  Code = "teleport_refused"     // 403: Teleport refuses the signer's login, or refuses it for this request
	CodeInternal         Code = "internal"             // 500
)

// ErrorResponse is the body of every answer that is not 200.
type ErrorResponse struct {
	Error Refusal `json:"error"`
}

// Refusal tells the caller why, in a stable code and one short sentence.
type Refusal struct {
	Code      Code   `json:"code"`
	Message   string `json:"message"`
	RequestID string `json:"requestId"`
	// ServerTime is set with CodeClockSkew.
	ServerTime *time.Time `json:"serverTime,omitempty"`
	// SupportedVersions is set with CodeUnsupportedVersion: the versions that the signer
	// accepts. A machine that speaks one of them asks again in the latest of those.
	SupportedVersions []int `json:"supportedVersions,omitempty"`
}

// SupportedVersions returns the versions that this package reads, in order.
func SupportedVersions() []int { return []int{FirstVersion, Version} }

// Binding ties every proof of a request to its payload.
type Binding [sha256.Size]byte

// Bind returns the binding of the payload's exact bytes.
func Bind(payload []byte) Binding {
	return bind(bindingDomain, payload)
}

// bind hashes the bytes after a prefix, so that a proof for one domain is none for another.
func bind(domain string, content []byte) Binding {
	h := sha256.New()
	h.Write([]byte(domain))
	h.Write(content)
	var b Binding
	h.Sum(b[:0])
	return b
}

// String returns the binding in lower-case hexadecimal: the value of
// BindingHeader.
func (b Binding) String() string { return hex.EncodeToString(b[:]) }

// Message returns the bytes that host keys sign: the text of String, so that
// ssh-keygen -Y verify can check a signature by hand.
func (b Binding) Message() []byte { return []byte(b.String()) }

// ParseRequest decodes a request strictly: unknown, repeated and wrongly cased
// fields, bad UTF-8, trailing data and more than MaxRequestBytes are errors.
func ParseRequest(body []byte) (*Request, error) {
	if len(body) > MaxRequestBytes {
		return nil, fmt.Errorf("request has %d bytes, more than %d", len(body), MaxRequestBytes)
	}
	var r Request
	err := object{
		"payload": &r.Payload,
		"caller": object{
			"authorization": &r.Caller.Authorization,
			"date":          &r.Caller.Date,
			"securityToken": &r.Caller.SecurityToken,
			"fips":          &r.Caller.FIPS,
		},
		"signatures": &r.Signatures,
	}.decode(body)
	if err != nil {
		return nil, fmt.Errorf("decode request: %w", err)
	}
	return &r, nil
}

// ParsePayload decodes a payload as strictly as ParseRequest. Only the Report may have unknown
// members.
func ParsePayload(payload []byte) (*Payload, error) {
	var p Payload
	err := object{
		"version":          &p.Version,
		"audience":         &p.Audience,
		"issuedAt":         &p.IssuedAt,
		"identityDocument": &p.IdentityDocument,
		"hostKeys":         &p.HostKeys,
		"purpose":          p.readPurpose,
		"report": func(data []byte) (err error) {
			p.Report, err = parseReport(data)
			return err
		},
	}.decode(payload)
	if err != nil {
		return nil, fmt.Errorf("decode payload: %w", err)
	}
	if p.Version < 2 && p.Report != nil {
		return nil, fmt.Errorf("decode payload: version %d has no field %q", p.Version, "report")
	}
	if p.Version < 2 && p.Purpose != PurposeEnroll {
		return nil, fmt.Errorf("decode payload: version %d has no field %q", p.Version, "purpose")
	}
	return &p, nil
}

// readPurpose accepts only a purpose that is known. An enrollment has no such field, so
// there is one way to write each request.
func (p *Payload) readPurpose(data []byte) error {
	if err := json.Unmarshal(data, &p.Purpose); err != nil {
		return err
	}
	if p.Purpose != PurposeLeave {
		return fmt.Errorf("unknown purpose %.64q", p.Purpose)
	}
	return nil
}
