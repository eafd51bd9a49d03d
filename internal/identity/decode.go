package identity

import (
	"bytes"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
)

// MaxBytes bounds a signed document, both as text and decoded. AWS sends about 1.5 KB of text,
// or 3 KB with a certificate.
const MaxBytes = 16 << 10

// Decode returns the PKCS#7 message (BER) in the metadata service's answer: base64 in lines,
// as the service sends it; PEM; or the message itself. It refuses with a *CheckError.
func Decode(input []byte) ([]byte, error) {
	if len(input) > MaxBytes {
		return nil, tooLarge(len(input))
	}
	text := bytes.TrimSpace(input)
	switch {
	case len(text) == 0:
		return nil, failed(checkEncoding, errors.New("the document is empty"))
	case len(input) > 1 && input[0] == 0x30 && input[1] >= 0x80:
		return input, nil // text has no byte of 0x80 or more
	case text[0] == '{':
		return nil, failed(checkForm, fmt.Errorf("the document has no signature: %w", errForm))
	case bytes.HasPrefix(text, []byte("-----BEGIN ")):
		return decodePEM(text)
	}
	message, err := base64.StdEncoding.Strict().DecodeString(string(text))
	if err != nil {
		return nil, failed(checkEncoding, errors.New("neither base64, PEM nor DER: save the metadata service's answer at /latest/dynamic/instance-identity/rsa2048 unchanged"))
	}
	return message, nil
}

func decodePEM(text []byte) ([]byte, error) {
	block, rest := pem.Decode(text)
	switch {
	case block == nil:
		return nil, failed(checkEncoding, errors.New("malformed PEM"))
	case block.Type != "PKCS7" && block.Type != "CMS":
		return nil, failed(checkEncoding, fmt.Errorf("a PEM block of type %.32q, not PKCS7", block.Type))
	case len(rest) > 0:
		return nil, failed(checkEncoding, errors.New("more than one PEM block"))
	}
	return block.Bytes, nil
}
