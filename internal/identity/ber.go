package identity

import (
	"errors"
	"fmt"

	"golang.org/x/crypto/cryptobyte"
	"golang.org/x/crypto/cryptobyte/asn1"
)

const (
	// maxDepth bounds nesting, so a message that consists of nothing but opening tags can't
	// exhaust the stack. AWS's messages are 11 deep.
	maxDepth = 32

	constructed = 0x20

	// constructedOctets is the tag of an octet string sent in segments.
	constructedOctets = asn1.OCTET_STRING | constructed
)

// definite re-encodes one BER element (X.690) as DER, so that later code reads only one form.
// It undoes what the metadata service does: indefinite lengths, and octet strings sent in
// segments. It refuses everything else that BER allows and DER does not, because two ways to
// write the same thing let two readers disagree.
//
// The order of SET OF elements and the contents of primitive elements stay as they are.
func definite(input []byte) ([]byte, error) {
	e, rest, err := readElement(input, maxDepth)
	if err != nil {
		return nil, err
	}
	if len(rest) > 0 {
		// Bytes after the signature are not signed, and another reader might take them for the
		// message.
		return nil, fmt.Errorf("%d bytes after the end of the message", len(rest))
	}
	return e.encode()
}

// element is a BER element. The body of a constructed element is DER already.
type element struct {
	tag  asn1.Tag
	body []byte
}

func (e element) encode() ([]byte, error) {
	var b cryptobyte.Builder
	b.AddASN1(e.tag, func(b *cryptobyte.Builder) { b.AddBytes(e.body) })
	return b.Bytes()
}

var errShort = errors.New("the message ends early")

func readElement(input []byte, depth int) (e element, rest []byte, err error) {
	if depth == 0 {
		return element{}, nil, fmt.Errorf("elements nested deeper than %d", maxDepth)
	}
	if len(input) < 2 {
		return element{}, nil, errShort
	}
	e.tag, rest = asn1.Tag(input[0]), input[1:]
	if e.tag&0x1f == 0x1f || e.tag == 0 {
		return element{}, nil, fmt.Errorf("unexpected tag %#x", uint8(e.tag))
	}
	length, indefinite, rest, err := readLength(rest)
	if err != nil {
		return element{}, nil, err
	}
	if e.tag&constructed == 0 {
		if indefinite {
			return element{}, nil, fmt.Errorf("primitive element %#x of indefinite length", uint8(e.tag))
		}
		e.body = rest[:length]
		return e, rest[length:], nil
	}
	if !indefinite {
		e.body, _, err = readChildren(e.tag, rest[:length], false, depth-1)
		rest = rest[length:]
	} else {
		e.body, rest, err = readChildren(e.tag, rest, true, depth-1)
	}
	if e.tag == constructedOctets {
		e.tag = asn1.OCTET_STRING
	}
	return e, rest, err
}

// readLength reads a length and makes sure that input has that many bytes.
func readLength(input []byte) (length int, indefinite bool, rest []byte, err error) {
	first, rest := input[0], input[1:]
	switch {
	case first < 0x80:
		length = int(first)
	case first == 0x80:
		return 0, true, rest, nil
	case first == 0x81 && len(rest) >= 1 && rest[0] >= 0x80:
		length, rest = int(rest[0]), rest[1:]
	case first == 0x82 && len(rest) >= 2 && rest[0] != 0:
		length, rest = int(rest[0])<<8|int(rest[1]), rest[2:]
	default:
		return 0, false, nil, errors.New("a length that is cut off, too large, or not in its shortest form")
	}
	if length > len(rest) {
		return 0, false, nil, errShort
	}
	return length, false, rest, nil
}

// readChildren reads the elements inside a constructed element, up to the end of input or, if
// the length is indefinite, up to the end-of-contents octets.
func readChildren(parent asn1.Tag, input []byte, indefinite bool, depth int) (body, rest []byte, err error) {
	switch {
	case parent == asn1.SEQUENCE, parent == asn1.SET, parent == constructedOctets:
	case parent&0xc0 == 0:
		return nil, nil, fmt.Errorf("constructed element of universal type %#x", uint8(parent))
	}
	for {
		switch {
		case !indefinite && len(input) == 0:
			return body, nil, nil
		case indefinite && len(input) >= 2 && input[0] == 0 && input[1] == 0:
			return body, input[2:], nil
		}
		var child element
		child, input, err = readElement(input, depth)
		if err != nil {
			return nil, nil, err
		}
		encoded := child.body
		if parent != constructedOctets {
			encoded, err = child.encode()
		} else if child.tag != asn1.OCTET_STRING {
			err = fmt.Errorf("element %#x among the segments of an octet string", uint8(child.tag))
		}
		if err != nil {
			return nil, nil, err
		}
		body = append(body, encoded...)
	}
}
