package entry

import (
	"encoding/base64"
	"io"
	"strings"

	"github.com/hallmark-ssh/hallmark/internal/protocol"
)

// body returns at most one byte more of a request's body than the signer accepts, and decodes
// no further. Broken base64 gives an empty body, which is not a request.
func body(text string, isBase64 bool) []byte {
	var r io.Reader = strings.NewReader(text)
	if isBase64 {
		r = base64.NewDecoder(base64.StdEncoding, r)
	}
	data, err := io.ReadAll(io.LimitReader(r, protocol.MaxRequestBytes+1))
	if err != nil {
		return nil
	}
	return data
}
