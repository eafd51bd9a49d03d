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
	"sync"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
)

// regionFiles are the certificates that AWS publishes, one for each region
// (https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/regions-certs.html).
//
//go:embed regions/*.pem
var regionFiles embed.FS

// Keyring holds the public key with which each region signs identity documents. It never
// changes and is safe for concurrent use.
type Keyring struct {
	// keys are parsed when they are needed: parsing all of them takes a millisecond at every
	// start of the signer, and few signers serve more than a few regions.
	keys map[ec2ref.Region]func() (regionKey, error)
}

// regionKey is all that we use of a region's certificate. AWS has issued new certificates for
// the same key with other serial numbers and dates, so these say nothing.
type regionKey struct {
	public *rsa.PublicKey
	sha256 string // hex, of the SubjectPublicKeyInfo
}

// Regions returns the keys of the AWS regions that this build knows, in the partitions aws,
// aws-cn, aws-us-gov and aws-eusc.
func Regions() (*Keyring, error) {
	files, err := regionFiles.ReadDir("regions")
	if err != nil {
		return nil, fmt.Errorf("list certificates of regions: %w", err)
	}
	k := &Keyring{keys: make(map[ec2ref.Region]func() (regionKey, error), len(files))}
	for _, file := range files {
		k.keys[ec2ref.Region(strings.TrimSuffix(file.Name(), ".pem"))] = sync.OnceValues(func() (regionKey, error) {
			data, err := regionFiles.ReadFile(path.Join("regions", file.Name()))
			if err != nil {
				return regionKey{}, err
			}
			return parseRegionKey(data)
		})
	}
	return k, nil
}

// With returns a keyring with one more region, given its certificate in PEM. A region that is
// already known is an error: a person who may add a region must not be able to sign for
// another.
func (k *Keyring) With(region ec2ref.Region, certificatePEM []byte) (*Keyring, error) {
	if _, err := ec2ref.ParseRegion(string(region)); err != nil {
		return nil, err
	}
	if k.Has(region) {
		return nil, fmt.Errorf("the key of region %s is fixed and cannot be replaced: remove its certificate", region)
	}
	wider := &Keyring{keys: maps.Clone(k.keys)}
	wider.keys[region] = sync.OnceValues(func() (regionKey, error) { return parseRegionKey(certificatePEM) })
	if _, err := wider.key(region); err != nil {
		return nil, err
	}
	return wider, nil
}

// Has reports whether the keyring knows the region's key.
func (k *Keyring) Has(region ec2ref.Region) bool {
	_, known := k.keys[region]
	return known
}

// key returns the region's key.
func (k *Keyring) key(region ec2ref.Region) (regionKey, error) {
	read, known := k.keys[region]
	if !known {
		return regionKey{}, fmt.Errorf("no key is known for region %s", region)
	}
	key, err := read()
	if err != nil {
		return regionKey{}, fmt.Errorf("certificate of region %s: %w", region, err)
	}
	return key, nil
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
