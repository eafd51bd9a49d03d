// Package identitytest signs instance identity documents for made-up regions, byte for byte in
// the form in which the EC2 metadata service serves them, and builds the messages that a
// forger would send.
//
// It is for tests and for the demo. Only a verifier that was given a made-up region's
// certificate trusts the region.
package identitytest

import (
	"crypto"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"time"
)

// Region is a region with its own key to sign identity documents.
type Region struct {
	Name string

	key         *rsa.PrivateKey
	certificate []byte // DER
}

// NewRegion creates a region with a new RSA-2048 key and a self-signed certificate, such as
// AWS publishes for every region.
func NewRegion(name string) (*Region, error) {
	return NewRegionWithKeySize(name, 2048)
}

// NewRegionWithKeySize is NewRegion with a key of another size, which verifiers must refuse.
func NewRegionWithKeySize(name string, bits int) (*Region, error) {
	key, err := rsa.GenerateKey(rand.Reader, bits)
	if err != nil {
		return nil, fmt.Errorf("generate key of region %s: %w", name, err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 63))
	if err != nil {
		return nil, fmt.Errorf("choose serial number of region %s: %w", name, err)
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject: pkix.Name{
			Country:      []string{"US"},
			Province:     []string{"Test"},
			Locality:     []string{name},
			Organization: []string{"Hallmark test region, not AWS"},
		},
		NotBefore: time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC),
		NotAfter:  time.Date(2195, 1, 1, 0, 0, 0, 0, time.UTC),
	}
	certificate, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, fmt.Errorf("sign certificate of region %s: %w", name, err)
	}
	return &Region{Name: name, key: key, certificate: certificate}, nil
}

// CertificatePEM returns the region's certificate.
func (r *Region) CertificatePEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: r.certificate})
}

// CertificateDER returns the region's certificate, to put into a bag.
func (r *Region) CertificateDER() []byte { return r.certificate }

// Sign signs a document as the metadata service does and returns the text that
// it serves at /latest/dynamic/instance-identity/rsa2048: PKCS#7 in BER of
// indefinite length, in base64 of 76 columns, without armor.
func (r *Region) Sign(document []byte) ([]byte, error) {
	message, err := r.Message(document)
	if err != nil {
		return nil, err
	}
	return Text(message.BER()), nil
}

// Message returns the parts of a good message, for tests that change one of them.
func (r *Region) Message(document []byte) (*Message, error) {
	signer, err := r.SignAttributes(Attributes(document)...)
	if err != nil {
		return nil, err
	}
	return &Message{
		ContentType:      OIDData,
		DigestAlgorithms: [][]byte{Algorithm(OIDSHA256)},
		Content:          document,
		Signers:          []Signer{signer},
	}, nil
}

// SignAttributes returns a signer whose signature covers the attributes, sorted as DER
// requires. Without attributes it signs the empty set.
func (r *Region) SignAttributes(attributes ...[]byte) (Signer, error) {
	set := SortedSet(attributes...)
	signature, err := r.signature(set)
	if err != nil {
		return Signer{}, err
	}
	certificate, err := x509.ParseCertificate(r.certificate)
	if err != nil {
		return Signer{}, fmt.Errorf("parse certificate of region %s: %w", r.Name, err)
	}
	return Signer{
		Version:            1,
		ID:                 Sequence(certificate.RawIssuer, Integer(certificate.SerialNumber)),
		DigestAlgorithm:    Algorithm(OIDSHA256),
		Attributes:         attributes,
		SignatureAlgorithm: Algorithm(OIDSHA256WithRSA),
		Signature:          signature,
	}, nil
}

// SignContent returns a signer without attributes, whose signature covers the
// content itself.
func (r *Region) SignContent(content []byte) (Signer, error) {
	signer, err := r.SignAttributes()
	if err != nil {
		return Signer{}, err
	}
	signer.Signature, err = r.signature(content)
	return signer, err
}

func (r *Region) signature(data []byte) ([]byte, error) {
	sum := sha256.Sum256(data)
	signature, err := rsa.SignPKCS1v15(rand.Reader, r.key, crypto.SHA256, sum[:])
	if err != nil {
		return nil, fmt.Errorf("sign with key of region %s: %w", r.Name, err)
	}
	return signature, nil
}
