package identitytest

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"math/big"
	"time"
)

// Message is a PKCS#7 SignedData (RFC 2315, RFC 5652) in parts. It checks nothing, because a
// forger would not either.
type Message struct {
	ContentType      string   // object identifier
	DigestAlgorithms [][]byte // encoded AlgorithmIdentifiers
	Content          []byte   // nil leaves the content out: a detached signature
	Certificates     [][]byte // DER; none leaves the bag out, as the metadata service does
	Signers          []Signer
}

// Signer is one SignerInfo in parts.
type Signer struct {
	Version            int64
	ID                 []byte   // encoded signer identifier
	DigestAlgorithm    []byte   // encoded AlgorithmIdentifier
	Attributes         [][]byte // encoded signed attributes, in the order of sending; none leaves the field out
	SignatureAlgorithm []byte   // encoded AlgorithmIdentifier
	Signature          []byte
	Unsigned           [][]byte // encoded unsigned attributes; none leaves the field out
}

// Attributes returns the four attributes that AWS signs along with a document,
// in the order of their DER.
func Attributes(document []byte) [][]byte {
	return [][]byte{
		Attribute(OIDContentType, OID(OIDData)),
		Attribute(OIDSigningTime, signingTime(time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC))),
		Attribute(OIDAlgorithmProtection, Sequence(
			Algorithm(OIDSHA256),
			element(tagContext+1, Algorithm(OIDSHA256WithRSA)[2:]),
		)),
		MessageDigest(document),
	}
}

// MessageDigest returns the attribute that carries the SHA-256 of the content.
func MessageDigest(content []byte) []byte {
	sum := sha256.Sum256(content)
	return Attribute(OIDMessageDigest, OctetString(sum[:]))
}

// BER encodes the message as the metadata service does: the outer elements and the content
// with indefinite length, the signer in DER.
func (m *Message) BER() []byte { return m.encode(indefinite, segmented) }

// DER encodes the message with definite lengths throughout.
func (m *Message) DER() []byte { return m.encode(element, OctetString) }

func (m *Message) encode(wrap func(tag byte, parts ...[]byte) []byte, octets func([]byte) []byte) []byte {
	content := [][]byte{OID(m.ContentType)}
	if m.Content != nil {
		content = append(content, wrap(tagContext+0, octets(m.Content)))
	}
	signed := [][]byte{
		Integer(big.NewInt(1)),
		element(tagSet, m.DigestAlgorithms...),
		wrap(tagSequence, content...),
	}
	if len(m.Certificates) > 0 {
		signed = append(signed, wrap(tagContext+0, m.Certificates...))
	}
	var signers [][]byte
	for _, s := range m.Signers {
		signers = append(signers, s.encode())
	}
	signed = append(signed, element(tagSet, signers...))
	return wrap(tagSequence, OID(OIDSignedData), wrap(tagContext+0, wrap(tagSequence, signed...)))
}

func (s *Signer) encode() []byte {
	parts := [][]byte{Integer(big.NewInt(s.Version)), s.ID, s.DigestAlgorithm}
	if len(s.Attributes) > 0 {
		parts = append(parts, element(tagContext+0, s.Attributes...))
	}
	parts = append(parts, s.SignatureAlgorithm, OctetString(s.Signature))
	if len(s.Unsigned) > 0 {
		parts = append(parts, element(tagContext+1, s.Unsigned...))
	}
	return Sequence(parts...)
}

// Text encodes a message as the text that the metadata service serves.
func Text(message []byte) []byte {
	const columns = 76
	text := base64.StdEncoding.AppendEncode(nil, message)
	var lines []byte
	for len(text) > columns {
		lines = append(append(lines, text[:columns]...), '\n')
		text = text[columns:]
	}
	return append(append(lines, text...), '\n')
}

// Tags of the ASN.1 types in a message (X.680).
const (
	tagOctetString = 0x04
	tagNull        = 0x05
	tagSequence    = 0x30
	tagSet         = 0x31

	tagConstructed = 0x20
	tagContext     = 0xa0 // constructed; the number is added
)

// element encodes with a definite length, in its shortest form.
func element(tag byte, parts ...[]byte) []byte {
	var body []byte
	for _, p := range parts {
		body = append(body, p...)
	}
	switch n := len(body); {
	case n < 0x80:
		return append([]byte{tag, byte(n)}, body...)
	case n < 0x100:
		return append([]byte{tag, 0x81, byte(n)}, body...)
	default:
		header := binary.BigEndian.AppendUint16([]byte{tag, 0x82}, uint16(n)) //nolint:gosec // no test sends 64 KiB
		return append(header, body...)
	}
}

// indefinite encodes with the indefinite length of BER.
func indefinite(tag byte, parts ...[]byte) []byte {
	encoded := []byte{tag, 0x80}
	for _, p := range parts {
		encoded = append(encoded, p...)
	}
	return append(encoded, 0, 0)
}

// segmented encodes an octet string as the metadata service does: constructed,
// of indefinite length, with one segment inside.
func segmented(content []byte) []byte {
	return indefinite(tagOctetString|tagConstructed, OctetString(content))
}
