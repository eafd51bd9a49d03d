package identity

import (
	"bytes"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"embed"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"path"
	"strings"
)

// regionFiles are the certificates that AWS publishes, one per region
// (https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/regions-certs.html).
//
//go:embed regions/*.pem
var regionFiles embed.FS

// Keyring holds the public key with which each region signs identity documents.
// It never changes and may be used by several goroutines at once.
type Keyring struct {
	keys map[string]regionKey
}

// regionKey is all that is taken from a region's certificate. AWS has issued
// certificates anew for the same key, with other serial numbers and dates, so
// these say nothing.
type regionKey struct {
	public *rsa.PublicKey
	sha256 string // hex, of the SubjectPublicKeyInfo
}

// Regions returns the keys of the AWS regions that are known to this build, of
// the partitions aws, aws-cn, aws-us-gov and aws-eusc.
func Regions() (*Keyring, error) {
	files, err := regionFiles.ReadDir("regions")
	if err != nil {
		return nil, fmt.Errorf("list certificates of regions: %w", err)
	}
	k := &Keyring{keys: make(map[string]regionKey, len(files))}
	for _, file := range files {
		data, err := regionFiles.ReadFile(path.Join("regions", file.Name()))
		if err != nil {
			return nil, fmt.Errorf("read certificate of region: %w", err)
		}
		if err := k.add(strings.TrimSuffix(file.Name(), ".pem"), data); err != nil {
			return nil, err
		}
	}
	return k, nil
}

// With returns a keyring that knows one more region by its certificate, in PEM.
// A region that is known already is an error: who may add a region must not be
// able to speak for another.
func (k *Keyring) With(region string, certificatePEM []byte) (*Keyring, error) {
	wider := &Keyring{keys: maps.Clone(k.keys)}
	if err := wider.add(region, certificatePEM); err != nil {
		return nil, err
	}
	return wider, nil
}

// Has reports whether the keyring knows the region's key.
func (k *Keyring) Has(region string) bool {
	_, known := k.keys[region]
	return known
}

func (k *Keyring) add(region string, certificatePEM []byte) error {
	if !regionSyntax.MatchString(region) {
		return fmt.Errorf("%.64q is not the name of a region", region)
	}
	if k.Has(region) {
		return fmt.Errorf("the key of region %s is fixed and cannot be replaced: remove its certificate", region)
	}
	key, err := parseRegionKey(certificatePEM)
	if err != nil {
		return fmt.Errorf("certificate of region %s: %w", region, err)
	}
	k.keys[region] = key
	return nil
}

func parseRegionKey(certificatePEM []byte) (regionKey, error) {
	block, rest := pem.Decode(certificatePEM)
	if block == nil || block.Type != "CERTIFICATE" || len(bytes.TrimSpace(rest)) > 0 {
		return regionKey{}, errors.New("want exactly one PEM block of type CERTIFICATE")
	}
	certificate, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return regionKey{}, err
	}
	public, ok := certificate.PublicKey.(*rsa.PublicKey)
	if !ok || public.N.BitLen() != 2048 {
		// AWS publishes DSA and RSA-1024 certificates on the same page.
		return regionKey{}, errors.New("its key is not RSA-2048: take the certificate for the rsa2048 signature")
	}
	sum := sha256.Sum256(certificate.RawSubjectPublicKeyInfo)
	return regionKey{public: public, sha256: hex.EncodeToString(sum[:])}, nil
}
