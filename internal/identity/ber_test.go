package identity

import (
	"bytes"
	"encoding/asn1"
	"encoding/hex"
	"strings"
	"testing"
)

// The real message, and the control that another program re-encoded with definite lengths, are
// the same in DER.
func TestDefiniteRealMessage(t *testing.T) {
	got, err := definite(decodeFile(t, "real/us-west-2/rsa2048.txt"))
	if err != nil {
		t.Fatal(err)
	}
	want, err := definite(readTestdata(t, "attacks/genuine.der"))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("got  %x\nwant %x", got, want)
	}
	var message struct {
		Type asn1.ObjectIdentifier
		Data asn1.RawValue `asn1:"explicit,tag:0"`
	}
	if rest, err := asn1.Unmarshal(got, &message); err != nil || len(rest) > 0 || message.Type.String() != oidSignedData {
		t.Errorf("encoding/asn1 reads %v, %d bytes after it: %v", message.Type, len(rest), err)
	}
}

func TestDefinite(t *testing.T) {
	long := strings.Repeat("00", 200)
	for _, test := range []struct{ name, input, want string }{
		{"primitive", "020101", "020101"},
		{"empty sequence", "3000", "3000"},
		{"indefinite", "30800201010000", "3003020101"},
		{"indefinite in indefinite", "3080a080020101 0000 0000", "3005a003020101"},
		{"indefinite in definite", "3007a0800201010000", "3005a003020101"},
		{"segments", "2480 040161 040162 0000", "04026162"},
		{"segments, definite", "2406 040161 040162", "04026162"},
		{"no segments", "24800000", "0400"},
		{"long", "308004 81c8" + long + "0000", "3081cb0481c8" + long},
		{"zeros inside a primitive", "308004020000 0000", "300404020000"},

		{"nothing", "", ""},
		{"tag only", "30", ""},
		{"end of contents alone", "0000", ""},
		{"end of contents in definite", "30020000", ""},
		{"end of contents missing", "3080020101", ""},
		{"end of contents cut off", "308002010100", ""},
		{"end of contents with a length", "3080 0001 00", ""},
		{"primitive of indefinite length", "0480 0000", ""},
		{"body cut off", "020201", ""},
		{"child longer than its parent", "3003 020201 01", ""},
		{"length of 1 in two bytes", "028101 01", ""},
		{"length of 200 in three bytes", "048200c8" + long, ""},
		{"length in three bytes", "04830000c8" + long, ""},
		{"length cut off", "0482 01", ""},
		{"length reserved", "04ff", ""},
		{"tag in more than one byte", "1f01 00", ""},
		{"segment of another type", "2403 020101", ""},
		{"segments in segments of another type", "2405 3003040161", ""},
		{"constructed integer", "2203 020101", ""},
		{"constructed string", "2c03 0c0161", ""},
		{"bytes after it", "020101 00", ""},
		{"too deep", strings.Repeat("3080", maxDepth+1) + strings.Repeat("0000", maxDepth+1), ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := definite(unhex(t, test.input))
			switch {
			case test.want == "" && err == nil:
				t.Errorf("accepted as %x", got)
			case test.want != "" && err != nil:
				t.Error(err)
			case test.want != "" && !bytes.Equal(got, unhex(t, test.want)):
				t.Errorf("got %x, want %s", got, test.want)
			}
		})
	}
}

func unhex(t *testing.T, text string) []byte {
	t.Helper()
	data, err := hex.DecodeString(strings.ReplaceAll(text, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return data
}
