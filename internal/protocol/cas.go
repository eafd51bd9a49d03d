package protocol

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
)

// CAs is the signer's answer to a GET on its URL: the cluster's certificate
// CAs as they are now. They are public. Machines ask every hour, so the
// answer is one that a signer keeps at hand: it asks Teleport for it at most once in
// a few minutes, whoever asks, and verifies nothing about the caller.
//
// The answer carries the header ETag as ETag returns it. A request whose header
// If-None-Match has the same value is answered 304 without a body (RFC 9110,
// section 13.1.2). A signer that answers 404, 405 or 501 does not offer this, and
// the machine learns of new CAs when it next enrolls.
type CAs struct {
	Version int `json:"version"` // CAsVersion
	// OpenSSHCAs and HostCAs are those of Response: plain keys in authorized_keys
	// form without comment, the one that Teleport signs with first.
	OpenSSHCAs []string `json:"opensshCAs"`
	HostCAs    []string `json:"hostCAs"`
}

// CAsVersion is the version of CAs. A GET says none, so every machine gets the same one.
const CAsVersion = 1

// Encode returns the body of the answer. Everyone who encodes the same CAs
// gets the same bytes: a machine knows the entity tag of what an enrollment told it.
func (c CAs) Encode() ([]byte, error) {
	body, err := json.Marshal(c)
	if err != nil {
		return nil, fmt.Errorf("encode CAs: %w", err)
	}
	return body, nil
}

// ETag returns the entity tag of a body: its SHA-256 in lower-case hexadecimal, in
// double quotes.
func ETag(body []byte) string {
	sum := sha256.Sum256(body)
	return `"` + hex.EncodeToString(sum[:]) + `"`
}
