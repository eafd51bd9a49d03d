package protocol

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// HealthState says whether people can reach a machine's sshd, as far as the machine can see.
type HealthState string

// The states that a machine reports about itself.
const (
	HealthOK          HealthState = "ok"
	HealthUnreachable HealthState = "unreachable" // sshd does not answer at the node's port
	HealthCertificate HealthState = "certificate" // sshd does not present the machine's certificates
)

// HealthStates returns all states.
func HealthStates() []HealthState {
	return []HealthState{HealthOK, HealthUnreachable, HealthCertificate}
}

const (
	// HealthHeader carries a SignedHealth with a GET. Signers that do not know it ignore it.
	HealthHeader = "X-Hallmark-Health"

	// MaxHealthBytes bounds the header's value: API Gateway allows 10,240 bytes for all
	// headers. A certificate of a 4,096-bit key and its signature need about 5,000.
	MaxHealthBytes = 8 << 10

	// HealthNamespace is the SSHSIG namespace under which a host key signs a health
	// report. It differs from SignatureNamespace, so neither kind of signature passes for
	// the other.
	HealthNamespace = "hallmark-health"

	healthDomain = "hallmark-health-v1\x00"
)

// Health is a machine's report about itself.
type Health struct {
	// Audience is the signer that the report is made for: another signer's operator cannot
	// pass it on.
	Audience string `json:"audience"`
	// Instance is the instance as account/region/id. The certificate that comes with the
	// report names its node.
	Instance string `json:"instance"`
	// At is when the machine looked, in whole seconds, UTC.
	At    time.Time   `json:"at"`
	State HealthState `json:"state"`
}

// SignedHealth is a health report and the proof of who made it. Its JSON in base64 (RFC
// 4648, section 5, without padding) is the value of HealthHeader.
type SignedHealth struct {
	// Report is an encoded Health, in the exact bytes that BindHealth hashed.
	Report []byte `json:"report"`
	// Certificate is a host certificate of the machine in authorized_keys form.
	Certificate string `json:"certificate"`
	// Signature is an armored SSHSIG by the certificate's key over the message of
	// BindHealth.
	Signature string `json:"signature"`
}

// BindHealth returns the binding of a report's exact bytes.
func BindHealth(report []byte) Binding {
	return bind(healthDomain, report)
}

// Encode returns the header's value.
func (s SignedHealth) Encode() (string, error) {
	data, err := json.Marshal(s)
	if err != nil {
		return "", fmt.Errorf("encode health report: %w", err)
	}
	value := base64.RawURLEncoding.EncodeToString(data)
	if len(value) > MaxHealthBytes {
		return "", fmt.Errorf("health report has %d bytes, more than %d", len(value), MaxHealthBytes)
	}
	return value, nil
}

// ParseSignedHealth decodes a header's value as strictly as ParseRequest.
func ParseSignedHealth(value string) (*SignedHealth, error) {
	if len(value) > MaxHealthBytes {
		return nil, fmt.Errorf("health report has %d bytes, more than %d", len(value), MaxHealthBytes)
	}
	data, err := base64.RawURLEncoding.Strict().DecodeString(value)
	if err != nil || strings.ContainsAny(value, "\r\n") { // which the decoder ignores
		return nil, errors.New("health report is not base64")
	}
	var s SignedHealth
	err = object{"report": &s.Report, "certificate": &s.Certificate, "signature": &s.Signature}.decode(data)
	if err != nil {
		return nil, fmt.Errorf("decode health report: %w", err)
	}
	return &s, nil
}

// ParseHealth decodes a report as strictly as ParseRequest.
func ParseHealth(report []byte) (*Health, error) {
	var h Health
	err := object{"audience": &h.Audience, "instance": &h.Instance, "at": &h.At, "state": &h.State}.decode(report)
	switch {
	case err != nil:
		return nil, fmt.Errorf("decode health report: %w", err)
	case !slices.Contains(HealthStates(), h.State):
		return nil, fmt.Errorf("health report: %.32q is not a state", h.State)
	}
	return &h, nil
}
