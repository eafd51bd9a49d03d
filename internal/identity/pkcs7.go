package identity

import (
	"bytes"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	encodingasn1 "encoding/asn1"
	"errors"
	"fmt"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

// Object identifiers of PKCS#7 and CMS (RFC 5652) and of their algorithms.
const (
	oidData          = "1.2.840.113549.1.7.1"
	oidSignedData    = "1.2.840.113549.1.7.2"
	oidContentType   = "1.2.840.113549.1.9.3"
	oidMessageDigest = "1.2.840.113549.1.9.4"
	oidSHA256        = "2.16.840.1.101.3.4.2.1"
	oidRSA           = "1.2.840.113549.1.1.1"
	oidSHA256WithRSA = "1.2.840.113549.1.1.11"
)

// context0 is the tag [0], constructed.
const context0 = asn1.Tag(0x80 | constructed)

// signedMessage is a PKCS#7 SignedData of the one form that AWS sends, whose digest matches
// its content. Its signature is not verified yet.
type signedMessage struct {
	content    []byte
	attributes []byte // DER of the SET OF signed attributes: what the signature covers
	signature  []byte
}

// parseMessage reads a message in DER. It looks at no certificate: the sender chooses which
// certificates are in the bag, and which one the signer names.
func parseMessage(der []byte) (*signedMessage, error) {
	signedData, err := openContentInfo(der)
	if err != nil {
		return nil, err
	}
	var (
		version                      int
		algorithms, content, signers cryptobyte.String
	)
	if !signedData.ReadASN1Integer(&version) || version != 1 ||
		!signedData.ReadASN1(&algorithms, asn1.SET) ||
		!signedData.ReadASN1(&content, asn1.SEQUENCE) ||
		!signedData.SkipOptionalASN1(context0) || // certificates
		!signedData.ReadASN1(&signers, asn1.SET) ||
		!signedData.Empty() {
		return nil, failed(checkStructure, errors.New("not a SignedData of version 1"))
	}
	if err := requireDigest(&algorithms); err != nil {
		return nil, err
	}
	if !algorithms.Empty() {
		return nil, failed(checkStructure, errors.New("more than one digest algorithm"))
	}

	m := &signedMessage{}
	if m.content, err = parseContent(content); err != nil {
		return nil, err
	}
	if m.attributes, m.signature, err = parseSigners(signers); err != nil {
		return nil, err
	}
	if err := m.checkAttributes(); err != nil {
		return nil, err
	}
	return m, nil
}

func openContentInfo(der []byte) (signedData cryptobyte.String, err error) {
	var (
		input          = cryptobyte.String(der)
		info, explicit cryptobyte.String
		kind           encodingasn1.ObjectIdentifier
	)
	if !input.ReadASN1(&info, asn1.SEQUENCE) || !input.Empty() ||
		!info.ReadASN1ObjectIdentifier(&kind) || kind.String() != oidSignedData ||
		!info.ReadASN1(&explicit, context0) || !info.Empty() ||
		!explicit.ReadASN1(&signedData, asn1.SEQUENCE) || !explicit.Empty() {
		return nil, failed(checkStructure, errors.New("not a PKCS#7 SignedData"))
	}
	return signedData, nil
}

func parseContent(in cryptobyte.String) ([]byte, error) {
	var (
		kind              encodingasn1.ObjectIdentifier
		explicit, content cryptobyte.String
	)
	if !in.ReadASN1ObjectIdentifier(&kind) || kind.String() != oidData {
		return nil, failed(checkStructure, errors.New("the content is not of type data"))
	}
	if in.Empty() {
		// If a document is sent apart from its signature, one part of a program could verify
		// one document and another part could read a different one.
		return nil, failed(checkContent, errors.New("the signature is detached: the document is not inside"))
	}
	if !in.ReadASN1(&explicit, context0) || !in.Empty() ||
		!explicit.ReadASN1(&content, asn1.OCTET_STRING) || !explicit.Empty() {
		return nil, failed(checkStructure, errors.New("the content is not one octet string"))
	}
	return content, nil
}

// parseSigners reads the only SignerInfo. With two of them, one with a valid signature would
// lend credibility to what the other says.
func parseSigners(in cryptobyte.String) (attributes, signature []byte, err error) {
	var info cryptobyte.String
	if in.Empty() {
		return nil, nil, failed(checkSigners, errors.New("nobody signed it"))
	}
	if !in.ReadASN1(&info, asn1.SEQUENCE) {
		return nil, nil, failed(checkStructure, errors.New("malformed SignerInfo"))
	}
	if !in.Empty() {
		return nil, nil, failed(checkSigners, errors.New("more than one signer"))
	}
	return parseSigner(info)
}

func parseSigner(in cryptobyte.String) (attributes, signature []byte, err error) {
	var version int
	if !in.ReadASN1Integer(&version) || version != 1 || !in.SkipASN1(asn1.SEQUENCE) { // issuer and serial number
		return nil, nil, failed(checkStructure, errors.New("not a SignerInfo of version 1"))
	}
	if err := requireDigest(&in); err != nil {
		return nil, nil, err
	}
	var (
		set, octets cryptobyte.String
		present     bool
	)
	if !in.ReadOptionalASN1(&set, &present, context0) {
		return nil, nil, failed(checkStructure, errors.New("malformed signed attributes"))
	}
	if !present {
		// Without attributes the signature covers the content itself, and an attacker could
		// pass off the attributes of a valid message as content.
		return nil, nil, failed(checkAttributes, errors.New("there are no signed attributes"))
	}
	if err := requireSignature(&in); err != nil {
		return nil, nil, err
	}
	// Unsigned attributes would follow the signature. AWS sends none.
	if !in.ReadASN1(&octets, asn1.OCTET_STRING) || !in.Empty() {
		return nil, nil, failed(checkStructure, errors.New("malformed signature, or something after it"))
	}

	// The set is sent under the tag [0] and signed under that of a SET OF
	// (RFC 5652, section 5.4).
	attributes, err = element{tag: asn1.SET, body: set}.encode()
	if err != nil {
		return nil, nil, failed(checkStructure, fmt.Errorf("encode signed attributes: %w", err))
	}
	return attributes, octets, nil
}

// checkAttributes requires the attributes that tie the signature to the content. It ignores
// others, such as the signing time, because nothing depends on them.
func (m *signedMessage) checkAttributes() error {
	values, err := parseAttributes(m.attributes)
	if err != nil {
		return failed(checkAttributes, err)
	}
	var kind encodingasn1.ObjectIdentifier
	contentType := values[oidContentType]
	if !contentType.ReadASN1ObjectIdentifier(&kind) || !contentType.Empty() || kind.String() != oidData {
		return failed(checkAttributes, errors.New("contentType is not data"))
	}
	var digest cryptobyte.String
	messageDigest := values[oidMessageDigest]
	if !messageDigest.ReadASN1(&digest, asn1.OCTET_STRING) || !messageDigest.Empty() {
		return failed(checkAttributes, errors.New("messageDigest is not one octet string"))
	}
	if sum := sha256.Sum256(m.content); !bytes.Equal(digest, sum[:]) {
		return failed(checkDigest, errors.New("messageDigest is not the SHA-256 of the content"))
	}
	return nil
}

// parseAttributes returns the values of each attribute by its object identifier. DER sorts a
// SET OF. If the order differs, the signature covers other bytes than these. An attribute that
// appears twice gives two answers to one question.
func parseAttributes(der []byte) (map[string]cryptobyte.String, error) {
	var (
		input    = cryptobyte.String(der)
		set      cryptobyte.String
		previous cryptobyte.String
		values   = map[string]cryptobyte.String{}
	)
	if !input.ReadASN1(&set, asn1.SET) {
		return nil, errors.New("malformed set")
	}
	for !set.Empty() {
		var (
			raw, attribute, value cryptobyte.String
			id                    encodingasn1.ObjectIdentifier
		)
		if !set.ReadASN1Element(&raw, asn1.SEQUENCE) {
			return nil, errors.New("malformed attribute")
		}
		if bytes.Compare(previous, raw) > 0 {
			return nil, errors.New("not in the order of DER")
		}
		previous = raw
		if !raw.ReadASN1(&attribute, asn1.SEQUENCE) ||
			!attribute.ReadASN1ObjectIdentifier(&id) ||
			!attribute.ReadASN1(&value, asn1.SET) || !attribute.Empty() {
			return nil, errors.New("malformed attribute")
		}
		if _, twice := values[id.String()]; twice {
			return nil, fmt.Errorf("attribute %s appears twice", id)
		}
		values[id.String()] = value
	}
	return values, nil
}

// verify checks the signature. The caller provides the key; it never comes from the message.
func (m *signedMessage) verify(key *rsa.PublicKey) error {
	sum := sha256.Sum256(m.attributes)
	return rsa.VerifyPKCS1v15(key, crypto.SHA256, sum[:], m.signature)
}

func requireDigest(in *cryptobyte.String) error {
	id, err := readAlgorithm(in)
	if err != nil {
		return err
	}
	if id != oidSHA256 {
		return failed(checkForm, fmt.Errorf("digest algorithm %s is not SHA-256: %w", describe(id), errForm))
	}
	return nil
}

func requireSignature(in *cryptobyte.String) error {
	id, err := readAlgorithm(in)
	if err != nil {
		return err
	}
	if id != oidRSA && id != oidSHA256WithRSA {
		return failed(checkForm, fmt.Errorf("signature algorithm %s is not RSA with SHA-256: %w", describe(id), errForm))
	}
	return nil
}

// readAlgorithm reads an AlgorithmIdentifier whose parameters are absent or NULL. None of the
// accepted algorithms has parameters, and unread parameters can hide data.
func readAlgorithm(in *cryptobyte.String) (string, error) {
	var (
		algorithm, null cryptobyte.String
		id              encodingasn1.ObjectIdentifier
		hasNull         bool
	)
	if !in.ReadASN1(&algorithm, asn1.SEQUENCE) ||
		!algorithm.ReadASN1ObjectIdentifier(&id) ||
		!algorithm.ReadOptionalASN1(&null, &hasNull, asn1.NULL) ||
		!null.Empty() || !algorithm.Empty() {
		return "", failed(checkStructure, errors.New("malformed algorithm identifier"))
	}
	return id.String(), nil
}

// describe names the algorithms that people see when they use another form of the document.
func describe(oid string) string {
	switch oid {
	case "1.3.14.3.2.26":
		return "SHA-1"
	case "1.2.840.10040.4.1", "1.2.840.10040.4.3":
		return "DSA"
	default:
		return oid
	}
}
