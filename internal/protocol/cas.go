package protocol

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
)

// CAs is the signer's answer to a GET on its URL: the cluster's current CAs, which are public.
// Machines ask every hour, so the signer answers from a cache: it asks Teleport at most once
// in a few minutes, for any number of callers, and verifies nothing about them.
//
// The answer has the header ETag with the value of ETag. A request with the same value in
// If-None-Match gets 304 without a body (RFC 9110, section 13.1.2). A signer that answers 404,
// 405 or 501 does not offer this, and the machine gets new CAs when it next enrolls.
type CAs struct {
	Version int `json:"version"` // CAsVersion
	// OpenSSHCAs and HostCAs are those of Response: plain keys in authorized_keys
	// form without comment, the one that Teleport signs with first.
	OpenSSHCAs []string `json:"opensshCAs"`
	HostCAs    []string `json:"hostCAs"`
}

// CAsVersion is the version of CAs. A GET states no version, so every machine gets this one.
const CAsVersion = 1

// Encode returns the body of the answer. The same CAs always encode to the same bytes, so
// a machine can compute the entity tag from an enrollment's answer.
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
