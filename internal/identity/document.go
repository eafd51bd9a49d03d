// Package identity decides who is calling: it verifies the instance identity documents that
// AWS signs, and creates and verifies the proofs of an instance and its host keys.
//
// The metadata service offers several signatures of a document. Only the RSA-2048 one binds
// the document to a region, and this package accepts only that one. It has its own strict
// parser: the PKCS#7 libraries that we tried trusted certificates in the message, accepted two
// signers, or required no signed attributes.
package identity

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
)

// Document is an instance identity document with a verified signature. Every field comes from
// the signed content.
// (https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instance-identity-documents.html)
type Document struct {
	Instance         ec2ref.Instance
	AvailabilityZone string
	ImageID          string
	InstanceType     string
	Architecture     string
	PrivateIP        string    // empty for an instance without IPv4
	PendingTime      time.Time // of the last start; a reboot does not change it

	// RegionKeySHA256 identifies the key that verified the document: the hex
	// SHA-256 of its SubjectPublicKeyInfo.
	RegionKeySHA256 string

	// Content is the JSON that AWS signed, byte for byte.
	Content []byte
}

// CheckError says which check a signed document failed: size, encoding, form,
// structure, content, signers, attributes, digest, region, signature or document.
type CheckError struct {
	Check string
	Err   error
}

func (e *CheckError) Error() string { return e.Check + " check failed: " + e.Err.Error() }

// Unwrap returns the reason.
func (e *CheckError) Unwrap() error { return e.Err }

// The names of the checks.
const (
	checkSize       = "size"
	checkEncoding   = "encoding"
	checkForm       = "form"
	checkStructure  = "structure"
	checkContent    = "content"
	checkSigners    = "signers"
	checkAttributes = "attributes"
	checkDigest     = "digest"
	checkRegion     = "region"
	checkSignature  = "signature"
	checkDocument   = "document"
)

var errForm = errors.New("only the rsa2048 form is accepted, from /latest/dynamic/instance-identity/rsa2048")

func failed(check string, err error) *CheckError { return &CheckError{Check: check, Err: err} }

func tooLarge(size int) *CheckError {
	return failed(checkSize, fmt.Errorf("%d bytes, at most %d are allowed", size, MaxBytes))
}

// rsa1024Bytes is the length of the metadata service's bare "signature" form.
const rsa1024Bytes = 1024 / 8

// Verify checks a message from Decode and returns the document in it. It refuses with a
// *CheckError.
//
// The same document may verify in more than one encoding: the signature covers neither the
// name of the signer's certificate nor added certificates. Verify reads neither, so do not use
// a message as a key of a cache or a replay list.
func (k *Keyring) Verify(message []byte) (*Document, error) {
	switch {
	case len(message) > MaxBytes:
		return nil, tooLarge(len(message))
	case len(message) == rsa1024Bytes:
		return nil, failed(checkForm, fmt.Errorf("a bare RSA-1024 signature: %w", errForm))
	}
	der, err := definite(message)
	if err != nil {
		return nil, failed(checkStructure, err)
	}
	signed, err := parseMessage(der)
	if err != nil {
		return nil, err
	}
	fields, err := parseFields(signed.content)
	if err != nil {
		return nil, failed(checkContent, err)
	}

	// Until the signature is verified, read only the region from the content: it selects the
	// key.
	region, err := parse(fields, "region", ec2ref.ParseRegion)
	if err != nil {
		return nil, failed(checkRegion, err)
	}
	key, err := k.key(region)
	if err != nil {
		return nil, failed(checkRegion, err)
	}
	if err := signed.verify(key.public); err != nil {
		return nil, failed(checkSignature, fmt.Errorf("not signed by the key of region %s", region))
	}

	document, err := fields.document()
	if err != nil {
		return nil, failed(checkDocument, err)
	}
	document.RegionKeySHA256 = key.sha256
	document.Content = signed.content
	return document, nil
}

// The syntax of the fields. Their values end up in names, labels, paths and requests.
var (
	zoneSyntax         = regexp.MustCompile(`^[a-z0-9-]{1,48}$`)
	imageSyntax        = regexp.MustCompile(`^ami-[0-9a-f]{8,17}$`)
	instanceTypeSyntax = regexp.MustCompile(`^[a-z0-9][a-z0-9.-]{0,47}$`)
	architectureSyntax = regexp.MustCompile(`^[a-z0-9_]{1,32}$`)
)

// fields are the members of a document, by their exact names.
type fields map[string]json.RawMessage

// parseFields reads a JSON object more strictly than encoding/json, which takes the last of
// two equal keys, ignores case, and repairs bad UTF-8: three ways for two readers to see two
// different instances in one document.
func parseFields(content []byte) (fields, error) {
	if !utf8.Valid(content) {
		return nil, errors.New("not UTF-8")
	}
	if !json.Valid(content) {
		return nil, errors.New("not JSON")
	}
	decoder := json.NewDecoder(bytes.NewReader(content))
	if open, err := decoder.Token(); err != nil || open != json.Delim('{') {
		return nil, errors.New("not a JSON object")
	}
	members := fields{}
	for decoder.More() {
		token, err := decoder.Token()
		if err != nil {
			return nil, fmt.Errorf("read JSON: %w", err)
		}
		name, _ := token.(string)
		if _, twice := members[name]; twice {
			return nil, fmt.Errorf("%.64q appears twice", name)
		}
		var value json.RawMessage
		if err := decoder.Decode(&value); err != nil {
			return nil, fmt.Errorf("read JSON: %w", err)
		}
		members[name] = value
	}
	return members, nil
}

// text returns a member that must be a string.
func (f fields) text(name string) (string, error) {
	raw, ok := f[name]
	if !ok {
		return "", fmt.Errorf("%s is missing", name)
	}
	var value *string // a plain string would accept null as ""
	if err := json.Unmarshal(raw, &value); err != nil || value == nil {
		return "", fmt.Errorf("%s is not a string", name)
	}
	return *value, nil
}

// match returns a member that must be a string with the given syntax.
func (f fields) match(name string, syntax *regexp.Regexp) (string, error) {
	value, err := f.text(name)
	if err != nil {
		return "", err
	}
	if !syntax.MatchString(value) {
		return "", fmt.Errorf("%s is malformed: %.64q", name, value)
	}
	return value, nil
}

// parse returns a member that must be a string that the parser accepts.
func parse[T ~string](f fields, name string, parser func(string) (T, error)) (T, error) {
	value, err := f.text(name)
	if err != nil {
		return "", err
	}
	parsed, err := parser(value)
	if err != nil {
		return "", fmt.Errorf("%s is malformed: %w", name, err)
	}
	return parsed, nil
}

// document checks the form of every member that Hallmark uses.
func (f fields) document() (*Document, error) {
	instance, err := f.instance()
	if err != nil {
		return nil, err
	}
	d := Document{Instance: instance}
	for _, field := range []struct {
		name   string
		syntax *regexp.Regexp
		target *string
	}{
		{"availabilityZone", zoneSyntax, &d.AvailabilityZone},
		{"imageId", imageSyntax, &d.ImageID},
		{"instanceType", instanceTypeSyntax, &d.InstanceType},
		{"architecture", architectureSyntax, &d.Architecture},
	} {
		value, err := f.match(field.name, field.syntax)
		if err != nil {
			return nil, err
		}
		*field.target = value
	}
	if !strings.HasPrefix(d.AvailabilityZone, string(instance.Region)) {
		return nil, fmt.Errorf("availabilityZone %s is not in region %s", d.AvailabilityZone, instance.Region)
	}
	if d.PrivateIP, err = f.privateIP(); err != nil {
		return nil, err
	}
	d.PendingTime, err = f.pendingTime()
	return &d, err
}

// instance returns which instance the document describes.
func (f fields) instance() (i ec2ref.Instance, err error) {
	if i.Account, err = parse(f, "accountId", ec2ref.ParseAccount); err != nil {
		return i, err
	}
	if i.ID, err = parse(f, "instanceId", ec2ref.ParseInstanceID); err != nil {
		return i, err
	}
	i.Region, err = parse(f, "region", ec2ref.ParseRegion)
	return i, err
}

// privateIP returns the IPv4 address. An instance in an IPv6-only subnet has none.
func (f fields) privateIP() (string, error) {
	if raw, ok := f["privateIp"]; !ok || string(raw) == "null" {
		return "", nil
	}
	value, err := f.text("privateIp")
	if err != nil {
		return "", err
	}
	if address, err := netip.ParseAddr(value); err != nil || !address.Is4() {
		return "", fmt.Errorf("privateIp is not an IPv4 address: %.64q", value)
	}
	return value, nil
}

func (f fields) pendingTime() (time.Time, error) {
	value, err := f.text("pendingTime")
	if err != nil {
		return time.Time{}, err
	}
	pending, err := time.Parse("2006-01-02T15:04:05Z", value)
	if err != nil {
		return time.Time{}, fmt.Errorf("pendingTime is not a time in UTC: %.64q", value)
	}
	return pending, nil
}
