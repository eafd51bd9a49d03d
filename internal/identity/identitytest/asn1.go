package identitytest

import (
	"bytes"
	"encoding/asn1"
	"math/big"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Object identifiers of the messages, and of the algorithms that a forger or an older form of
// the document would use.
const (
	OIDData                = "1.2.840.113549.1.7.1"
	OIDSignedData          = "1.2.840.113549.1.7.2"
	OIDContentType         = "1.2.840.113549.1.9.3"
	OIDMessageDigest       = "1.2.840.113549.1.9.4"
	OIDSigningTime         = "1.2.840.113549.1.9.5"
	OIDAlgorithmProtection = "1.2.840.113549.1.9.52" // RFC 6211
	OIDSHA1                = "1.3.14.3.2.26"
	OIDSHA256              = "2.16.840.1.101.3.4.2.1"
	OIDSHA512              = "2.16.840.1.101.3.4.2.3"
	OIDRSA                 = "1.2.840.113549.1.1.1"
	OIDSHA1WithRSA         = "1.2.840.113549.1.1.5"
	OIDSHA256WithRSA       = "1.2.840.113549.1.1.11"
	OIDDSAWithSHA1         = "1.2.840.10040.4.3"
)

// OID encodes an object identifier. It panics if the identifier is malformed.
func OID(dotted string) []byte {
	var id asn1.ObjectIdentifier
	for part := range strings.SplitSeq(dotted, ".") {
		n, err := strconv.Atoi(part)
		if err != nil {
			panic("malformed object identifier " + dotted)
		}
		id = append(id, n)
	}
	return marshal(id)
}

// Algorithm encodes an AlgorithmIdentifier with NULL parameters.
func Algorithm(oid string) []byte { return Sequence(OID(oid), []byte{tagNull, 0}) }

// Attribute encodes an attribute with the given encoded values.
func Attribute(oid string, values ...[]byte) []byte {
	return Sequence(OID(oid), element(tagSet, values...))
}

// SortedSet encodes a SET OF in DER's order.
func SortedSet(elements ...[]byte) []byte {
	return element(tagSet, slices.SortedFunc(slices.Values(elements), bytes.Compare)...)
}

// Sequence encodes a SEQUENCE of encoded parts.
func Sequence(parts ...[]byte) []byte { return element(tagSequence, parts...) }

// OctetString encodes a primitive OCTET STRING.
func OctetString(content []byte) []byte { return element(tagOctetString, content) }

// Integer encodes an INTEGER.
func Integer(n *big.Int) []byte { return marshal(n) }

func signingTime(t time.Time) []byte { return marshal(t) }

func marshal(value any) []byte {
	encoded, err := asn1.Marshal(value)
	if err != nil {
		panic(err)
	}
	return encoded
}
