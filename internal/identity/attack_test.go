package identity

import (
	"bytes"
	"math/big"
	"slices"
	"testing"

	"github.com/hallmark-ssh/hallmark/internal/identity/identitytest"
)

// attack is the material for a row of the table: a good message from the region, and a rogue
// who has a key but not the region's.
type attack struct {
	*identitytest.Message
	t             *testing.T
	region, rogue *identitytest.Region
}

// forged is a document that the region never signed.
var forged = bytes.Replace([]byte(madeUpDocument), []byte("i-0123456789abcdef0"), []byte("i-0eeeeeeeeeeeeeee0"), 1)

func (a *attack) sign(by *identitytest.Region, attributes ...[]byte) identitytest.Signer {
	a.t.Helper()
	signer, err := by.SignAttributes(attributes...)
	if err != nil {
		a.t.Fatal(err)
	}
	return signer
}

// resign replaces the signer with one of the region's with other attributes. AWS would not
// sign them: such a row shows that a check works by itself.
func (a *attack) resign(attributes ...[]byte) {
	a.Signers[0] = a.sign(a.region, attributes...)
}

// Each row changes one thing in a good message and names the check that has to stop it. A row
// without a check must verify: strict does not mean brittle.
func TestVerifyAttacks(t *testing.T) {
	region, rogue := newRegion(t, madeUpRegion), newRegion(t, madeUpRegion)
	keys := keysOf(t, region)
	attributes := identitytest.Attributes([]byte(madeUpDocument))
	contentType, signingTime, digest := attributes[0], attributes[1], attributes[3]

	for _, test := range []struct {
		name   string
		mutate func(*attack)
		check  string
	}{
		{"nothing changed", func(*attack) {}, ""},
		{"certificate of the region in the bag", func(a *attack) {
			a.Certificates = [][]byte{a.region.CertificateDER()}
		}, ""},
		{"new certificate, other serial number", func(a *attack) {
			a.Signers[0].ID = identitytest.Sequence(identitytest.Sequence(), identitytest.Integer(big.NewInt(7)))
		}, ""},
		{"rsaEncryption named as the signature algorithm", func(a *attack) {
			a.Signers[0].SignatureAlgorithm = identitytest.Algorithm(identitytest.OIDRSA)
		}, ""},
		{"algorithms without parameters", func(a *attack) {
			sha256 := identitytest.Sequence(identitytest.OID(identitytest.OIDSHA256))
			a.DigestAlgorithms[0], a.Signers[0].DigestAlgorithm = sha256, sha256
			a.Signers[0].SignatureAlgorithm = identitytest.Sequence(identitytest.OID(identitytest.OIDSHA256WithRSA))
		}, ""},
		{"required attributes only", func(a *attack) { a.resign(contentType, digest) }, ""},

		// Who signed it.
		{"signed by a rogue", func(a *attack) {
			a.Signers[0] = a.sign(a.rogue, attributes...)
		}, checkSignature},
		{"signed by a rogue, his certificate in the bag, forged document", func(a *attack) {
			a.Content = forged
			a.Certificates = [][]byte{a.rogue.CertificateDER()}
			a.Signers[0] = a.sign(a.rogue, identitytest.Attributes(forged)...)
			a.Signers[0].ID = a.sign(a.region).ID
		}, checkSignature},
		{"signature emptied", func(a *attack) { a.Signers[0].Signature = nil }, checkSignature},
		{"signature one byte longer", func(a *attack) {
			a.Signers[0].Signature = append([]byte{0}, a.Signers[0].Signature...)
		}, checkSignature},
		{"signature of zeros", func(a *attack) { a.Signers[0].Signature = make([]byte, 256) }, checkSignature},
		{"no signers", func(a *attack) { a.Signers = nil }, checkSigners},
		{"the same signer twice", func(a *attack) { a.Signers = append(a.Signers, a.Signers[0]) }, checkSigners},
		{"a rogue's signer first", func(a *attack) {
			a.Signers = []identitytest.Signer{a.sign(a.rogue, attributes...), a.Signers[0]}
		}, checkSigners},
		{"a rogue's signer second, for a forged document", func(a *attack) {
			a.Content = forged
			a.Signers = append(a.Signers, a.sign(a.rogue, identitytest.Attributes(forged)...))
		}, checkSigners},
		{"signer of version 3", func(a *attack) { a.Signers[0].Version = 3 }, checkStructure},
		{"signer named by key identifier", func(a *attack) {
			a.Signers[0].ID = append([]byte{0x80, 20}, make([]byte, 20)...)
		}, checkStructure},

		// What the signature covers.
		{"content forged", func(a *attack) { a.Content = forged }, checkDigest},
		{"content and digest forged", func(a *attack) {
			a.Content = forged
			a.Signers[0].Attributes = identitytest.Attributes(forged)
		}, checkSignature},
		{"detached", func(a *attack) { a.Content = nil }, checkContent},
		{"empty content", func(a *attack) { a.Content = []byte{} }, checkDigest},
		{"attributes passed off as the content", func(a *attack) {
			a.Content = identitytest.SortedSet(a.Signers[0].Attributes...)
			a.Signers[0].Attributes = nil
		}, checkAttributes},
		{"no attributes, signature over the content", func(a *attack) {
			signer, err := a.region.SignContent(a.Content)
			if err != nil {
				a.t.Fatal(err)
			}
			signer.Attributes = nil
			a.Signers[0] = signer
		}, checkAttributes},
		{"content of another type", func(a *attack) { a.ContentType = identitytest.OIDSignedData }, checkStructure},

		// The attributes.
		{"no contentType", func(a *attack) { a.resign(digest) }, checkAttributes},
		{"no messageDigest", func(a *attack) { a.resign(contentType, signingTime) }, checkAttributes},
		{"contentType twice, equal", func(a *attack) { a.resign(contentType, contentType, digest) }, checkAttributes},
		{"contentType twice, one of another type", func(a *attack) {
			a.resign(contentType, identitytest.Attribute(identitytest.OIDContentType, identitytest.OID(identitytest.OIDSignedData)), digest)
		}, checkAttributes},
		{"messageDigest twice, one for a forged document", func(a *attack) {
			two := [][]byte{digest, identitytest.MessageDigest(forged)}
			slices.SortFunc(two, bytes.Compare)
			a.resign(contentType, two[0], two[1])
		}, checkAttributes},
		{"messageDigest with two values", func(a *attack) {
			a.resign(contentType, twoDigests(forged))
		}, checkAttributes},
		{"contentType with two values", func(a *attack) {
			a.resign(identitytest.Attribute(identitytest.OIDContentType,
				identitytest.OID(identitytest.OIDData), identitytest.OID(identitytest.OIDSignedData)), digest)
		}, checkAttributes},
		{"messageDigest without a value", func(a *attack) {
			a.resign(identitytest.Attribute(identitytest.OIDMessageDigest), contentType)
		}, checkAttributes},
		{"messageDigest cut short", func(a *attack) {
			a.resign(contentType, identitytest.Attribute(identitytest.OIDMessageDigest, identitytest.OctetString(nil)))
		}, checkAttributes},
		{"contentType of another type", func(a *attack) {
			a.resign(identitytest.Attribute(identitytest.OIDContentType, identitytest.OID(identitytest.OIDSignedData)), digest)
		}, checkAttributes},
		{"an attribute nobody reads, twice", func(a *attack) {
			a.resign(contentType, signingTime, signingTime, digest)
		}, checkAttributes},
		{"attributes in another order than DER's", func(a *attack) {
			slices.Reverse(a.Signers[0].Attributes)
		}, checkAttributes},
		{"something else among the attributes", func(a *attack) {
			a.resign(identitytest.Integer(big.NewInt(1)), contentType, digest)
		}, checkAttributes},
		{"unsigned attributes", func(a *attack) {
			a.Signers[0].Unsigned = [][]byte{digest}
		}, checkStructure},

		// The algorithms.
		{"digest named SHA-1", func(a *attack) {
			a.DigestAlgorithms[0] = identitytest.Algorithm(identitytest.OIDSHA1)
		}, checkForm},
		{"signer's digest named SHA-1", func(a *attack) {
			a.Signers[0].DigestAlgorithm = identitytest.Algorithm(identitytest.OIDSHA1)
		}, checkForm},
		{"signer's digest named SHA-512", func(a *attack) {
			a.Signers[0].DigestAlgorithm = identitytest.Algorithm(identitytest.OIDSHA512)
		}, checkForm},
		{"signature named RSA with SHA-1", func(a *attack) {
			a.Signers[0].SignatureAlgorithm = identitytest.Algorithm(identitytest.OIDSHA1WithRSA)
		}, checkForm},
		{"signature named DSA", func(a *attack) {
			a.Signers[0].SignatureAlgorithm = identitytest.Algorithm(identitytest.OIDDSAWithSHA1)
		}, checkForm},
		{"algorithm with parameters", func(a *attack) {
			a.Signers[0].SignatureAlgorithm = identitytest.Sequence(identitytest.OID(identitytest.OIDRSA), identitytest.OctetString([]byte("x")))
		}, checkStructure},
		{"algorithm with NULL that is not empty", func(a *attack) {
			a.DigestAlgorithms[0] = identitytest.Sequence(identitytest.OID(identitytest.OIDSHA256), []byte{0x05, 0x01, 0x00})
		}, checkStructure},
		{"no digest algorithm", func(a *attack) { a.DigestAlgorithms = nil }, checkStructure},
		{"two digest algorithms", func(a *attack) {
			a.DigestAlgorithms = append(a.DigestAlgorithms, identitytest.Algorithm(identitytest.OIDSHA512))
		}, checkStructure},
	} {
		t.Run(test.name, func(t *testing.T) {
			message, err := region.Message([]byte(madeUpDocument))
			if err != nil {
				t.Fatal(err)
			}
			a := &attack{Message: message, t: t, region: region, rogue: rogue}
			before := a.BER()
			test.mutate(a)
			if test.name != "nothing changed" && bytes.Equal(before, a.BER()) {
				t.Fatal("the row changes nothing")
			}
			for _, encoded := range [][]byte{a.BER(), a.DER()} {
				document, err := keys.Verify(encoded)
				wantCheck(t, err, test.check)
				if err == nil && string(document.Content) != madeUpDocument {
					t.Errorf("the document became %s", document.Content)
				}
			}
		})
	}
}

// twoDigests is one attribute with the digests of two contents.
func twoDigests(other []byte) []byte {
	value := func(attribute []byte) []byte { return attribute[len(attribute)-34:] } // OCTET STRING of a SHA-256
	return identitytest.Attribute(identitytest.OIDMessageDigest,
		value(identitytest.MessageDigest([]byte(madeUpDocument))), value(identitytest.MessageDigest(other)))
}

// These rows change what surrounds a good message, or how it is encoded.
func TestVerifyEncodingAttacks(t *testing.T) {
	served := decodeFile(t, "real/us-west-2/rsa2048.txt")
	der := readTestdata(t, "attacks/genuine.der")
	splice := func(message []byte, from, to int, with ...byte) []byte {
		return slices.Concat(message[:from], with, message[to:])
	}
	for _, test := range []struct {
		name    string
		message []byte
		check   string
	}{
		{"a byte after it", append(bytes.Clone(served), 0), checkStructure},
		{"end-of-contents after it", append(bytes.Clone(served), 0, 0), checkStructure},
		{"itself again after it", append(bytes.Clone(served), served...), checkStructure},
		{"a byte after it, DER", append(bytes.Clone(der), 0), checkStructure},
		{"a byte before it", append([]byte{0}, served...), checkStructure},
		{"empty", nil, checkStructure},
		{"too long", append(bytes.Clone(served), make([]byte, MaxBytes)...), checkSize},
		{"only opening tags", bytes.Repeat([]byte{0x30, 0x80}, MaxBytes/2), checkStructure},
		{"an element after the SignedData", splice(served, len(served)-4, len(served)-4, 0x05, 0x00), checkStructure},
		{"an element after the content type's content", splice(served, 537, 537, 0x05, 0x00), checkStructure},
		{"outer length in a longer form", splice(der, 1, 4, 0x83, 0x00, der[2], der[3]), checkStructure},
		{"outer length of 126 bytes", splice(der, 1, 4, 0xfe), checkStructure},
		{"content in two segments", twoSegments(served), ""},
		{"content in segments of another type", splice(served, 54, 55, 0x0c), checkStructure},
		{"content a UTF8String", splice(der, 62, 63, 0x0c), checkStructure},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := shippedKeys(t).Verify(test.message)
			wantCheck(t, err, test.check)
		})
	}
}

// twoSegments splits the content of the real message after its hundredth byte.
func twoSegments(served []byte) []byte {
	const header, start, end = 54, 58, 533 // of the one segment
	rest := end - start - 100
	return slices.Concat(served[:header],
		[]byte{0x04, 100}, served[start:start+100],
		[]byte{0x04, 0x82, byte(rest >> 8), byte(rest)}, served[start+100:end],
		served[end:])
}

func TestVerifyTruncated(t *testing.T) {
	keys := shippedKeys(t)
	for _, path := range []string{"real/us-west-2/rsa2048.txt", "attacks/genuine.der"} {
		message := decodeFile(t, path)
		for n := range message {
			_, err := keys.Verify(message[:n])
			if n == rsa1024Bytes {
				wantCheck(t, err, checkForm)
			} else {
				wantCheck(t, err, checkStructure)
			}
		}
	}
}

// Any change to one byte is refused, with one intended exception: the certificate that the
// signer names (bytes 552 to 656 of the message) is neither signed nor read, because AWS
// issues new certificates for a key. The document stays the same.
func TestVerifyChangedByte(t *testing.T) {
	const signerName, signerNameEnd = 552, 657
	keys, message := shippedKeys(t), decodeFile(t, "real/us-west-2/rsa2048.txt")
	want, err := keys.Verify(message)
	if err != nil {
		t.Fatal(err)
	}
	unread := 0
	for i := range message {
		for _, flip := range []byte{0x01, 0x02, 0x04, 0x08, 0x10, 0x20, 0x40, 0x80, 0xff} {
			changed := bytes.Clone(message)
			changed[i] ^= flip
			got, err := keys.Verify(changed)
			if err != nil {
				continue
			}
			unread++
			if i < signerName || i >= signerNameEnd || !bytes.Equal(got.Content, want.Content) {
				t.Errorf("byte %d changed by %#x: accepted", i, flip)
			}
		}
	}
	if unread == 0 {
		t.Error("no byte of the signer's name may be changed: it is read somewhere")
	}
}
