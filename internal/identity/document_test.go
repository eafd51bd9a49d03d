package identity

import (
	"bytes"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/identity/identitytest"
)

const madeUpRegion = "hm-test-1"

// madeUpDocument is a document in AWS's format, from a made-up region.
const madeUpDocument = `{
  "accountId" : "111122223333",
  "architecture" : "arm64",
  "availabilityZone" : "hm-test-1a",
  "billingProducts" : null,
  "devpayProductCodes" : null,
  "marketplaceProductCodes" : [ "abc" ],
  "imageId" : "ami-0123456789abcdef0",
  "instanceId" : "i-0123456789abcdef0",
  "instanceType" : "m7g.large",
  "kernelId" : null,
  "pendingTime" : "2026-01-02T03:04:05Z",
  "privateIp" : "10.1.2.3",
  "ramdiskId" : null,
  "region" : "hm-test-1",
  "version" : "2017-09-30"
}`

func TestVerifyRealDocument(t *testing.T) {
	for _, path := range []string{"real/us-west-2/rsa2048.txt", "attacks/genuine.der"} {
		t.Run(path, func(t *testing.T) {
			got, err := shippedKeys(t).Verify(decodeFile(t, path))
			if err != nil {
				t.Fatal(err)
			}
			want := Document{
				Instance:         ec2ref.Instance{Account: "278576220453", Region: "us-west-2", ID: "i-078517ca8a70a1dde"},
				AvailabilityZone: "us-west-2a",
				ImageID:          "ami-0fa9e1f64142cde17",
				InstanceType:     "t2.medium",
				Architecture:     "x86_64",
				PrivateIP:        "10.0.0.209",
				PendingTime:      time.Date(2021, 9, 3, 21, 25, 44, 0, time.UTC),
				RegionKeySHA256:  regionIndex(t)["us-west-2"],
				Content:          readTestdata(t, "real/us-west-2/document.json"),
			}
			if !reflect.DeepEqual(got, &want) {
				t.Errorf("got  %+v\nwant %+v", got, want)
			}
		})
	}
}

// The real document must not verify with any key except its own region's.
func TestVerifyRealDocumentUnderOtherKeys(t *testing.T) {
	message, shipped := decodeFile(t, "real/us-west-2/rsa2048.txt"), shippedKeys(t)
	for region, key := range shipped.keys {
		k := &Keyring{keys: map[ec2ref.Region]func() (regionKey, error){"us-west-2": key}}
		if _, err := k.Verify(message); region == "us-west-2" {
			if err != nil {
				t.Errorf("under its own key: %v", err)
			}
		} else {
			wantCheck(t, err, checkSignature)
		}
	}
}

func TestVerifyRefusesOtherForms(t *testing.T) {
	for _, test := range []struct {
		name  string
		input []byte
		check string
		names string // part of the message
	}{
		{"DSA, the pkcs7 form", readTestdata(t, "real/dsa-only/pkcs7.txt"), checkForm, "rsa2048"},
		{"RSA-1024, the signature form", identitytest.Text(bytes.Repeat([]byte{0x35}, 128)), checkForm, "rsa2048"},
		{"no signature, the document form", readTestdata(t, "real/dsa-only/document.json"), checkForm, "rsa2048"},
		{"rogue certificate in the bag", readTestdata(t, "attacks/A1_rogue_cert_in_bag.der"), checkSignature, "us-west-2"},
		{"no signer", readTestdata(t, "attacks/A4_no_signers.der"), checkSigners, "nobody"},
		{"changed content", readTestdata(t, "attacks/A5_content_changed.der"), checkDigest, "SHA-256"},
		{"detached", readTestdata(t, "attacks/A6_detached.der"), checkContent, "detached"},
	} {
		t.Run(test.name, func(t *testing.T) {
			document, err := decodeAndVerify(shippedKeys(t), test.input)
			wantCheck(t, err, test.check)
			if document != nil {
				t.Errorf("a refused document was returned: %+v", document)
			}
			if err != nil && !strings.Contains(err.Error(), test.names) {
				t.Errorf("%q does not mention %q", err, test.names)
			}
		})
	}
}

func TestVerifyMadeUpRegion(t *testing.T) {
	region := newRegion(t, madeUpRegion)
	text, err := region.Sign([]byte(madeUpDocument))
	if err != nil {
		t.Fatal(err)
	}
	got, err := decodeAndVerify(keysOf(t, region), text)
	if err != nil {
		t.Fatal(err)
	}
	if got.Instance.ID != "i-0123456789abcdef0" || string(got.Content) != madeUpDocument {
		t.Errorf("got %+v", got)
	}
	_, err = decodeAndVerify(shippedKeys(t), text)
	wantCheck(t, err, checkRegion)
}

// Each row changes one thing in a content that the region's own key then signs. A good row is
// something that the verifier must accept.
func TestVerifyContent(t *testing.T) {
	region := newRegion(t, madeUpRegion)
	keys := keysOf(t, region)
	for _, test := range []struct {
		name, old, new string
		check          string // empty: it verifies
	}{
		{"unchanged", "", "", ""},
		{"unknown member", `"version"`, `"somethingNew": {"a": [1]}, "version"`, ""},
		{"no IPv4 address", `"10.1.2.3"`, `null`, ""},
		{"local zone", `"hm-test-1a"`, `"hm-test-1-lax-1a"`, ""},
		{"short ids", `i-0123456789abcdef0`, `i-f79fe56c`, ""},

		{"same key twice", `"accountId" :`, `"accountId" : "444455556666", "accountId" :`, checkContent},
		{"same key twice, escaped", `"accountId" :`, `"account\u0049d" : "444455556666", "accountId" :`, checkContent},
		{"unused key twice", `"version" :`, `"version" : "1", "version" :`, checkContent},
		{"second object", `}`, `}{}`, checkContent},
		{"text after the object", `}`, `} x`, checkContent},
		{"array", madeUpDocument, `["accountId"]`, checkContent},
		{"null", madeUpDocument, `null`, checkContent},
		{"empty", madeUpDocument, ``, checkContent},
		{"not JSON", `,`, `;`, checkContent},
		{"not UTF-8", `m7g.large`, "m7g\xff", checkContent},
		{"byte order mark", `{`, "\ufeff{", checkContent},

		{"region missing", `"region"`, `"x"`, checkRegion},
		{"region in another case", `"region"`, `"Region"`, checkRegion},
		{"region a number", `"hm-test-1"`, `1`, checkRegion},
		{"region null", `"hm-test-1"`, `null`, checkRegion},
		{"region a path", `"hm-test-1"`, `"../hm-test-1"`, checkRegion},
		{"region of nobody", `"hm-test-1"`, `"hm-test-2"`, checkRegion},
		{"region of another key", `"hm-test-1"`, `"us-west-2"`, checkSignature},

		{"account missing", `"accountId"`, `"x"`, checkDocument},
		{"account in another case", `"accountId"`, `"accountID"`, checkDocument},
		{"account a number", `"111122223333"`, `111122223333`, checkDocument},
		{"account too short", `"111122223333"`, `"11112222333"`, checkDocument},
		{"account not ASCII", `"111122223333"`, `"11112222333٣"`, checkDocument},
		{"account with a line break", `"111122223333"`, `"111122223333\n"`, checkDocument},
		{"instance null", `"i-0123456789abcdef0"`, `null`, checkDocument},
		{"instance upper case", `i-0123456789abcdef0`, `i-0123456789ABCDEF0`, checkDocument},
		{"instance too long", `i-0123456789abcdef0`, `i-0123456789abcdef01`, checkDocument},
		{"instance a path", `i-0123456789abcdef0`, `i-../../etc`, checkDocument},
		{"image of another kind", `ami-`, `aki-`, checkDocument},
		{"zone of another region", `"hm-test-1a"`, `"us-west-2a"`, checkDocument},
		{"type with a space", `m7g.large`, `m7g large`, checkDocument},
		{"address a name", `10.1.2.3`, `localhost`, checkDocument},
		{"address not normal", `10.1.2.3`, `010.1.2.3`, checkDocument},
		{"address of IPv6", `10.1.2.3`, `::1`, checkDocument},
		{"address a list", `"10.1.2.3"`, `["10.1.2.3"]`, checkDocument},
		{"time without zone", `05Z`, `05`, checkDocument},
		{"time missing", `"pendingTime"`, `"x"`, checkDocument},
	} {
		t.Run(test.name, func(t *testing.T) {
			content := strings.Replace(madeUpDocument, test.old, test.new, 1)
			if test.old != "" && content == madeUpDocument {
				t.Fatal("the row changes nothing")
			}
			text, err := region.Sign([]byte(content))
			if err != nil {
				t.Fatal(err)
			}
			_, err = decodeAndVerify(keys, text)
			wantCheck(t, err, test.check)
		})
	}
}

// An unproved caller's data must not write its own lines into a log, nor fill it.
func TestVerifyErrorIsShortAndOneLine(t *testing.T) {
	region := newRegion(t, madeUpRegion)
	for _, member := range []string{`"hm-test-1"`, `"i-0123456789abcdef0"`, `"10.1.2.3"`, `"2026-01-02T03:04:05Z"`, `"version"`} {
		evil := `"\n` + strings.Repeat("x", 4000) + `"`
		content := strings.Replace(madeUpDocument, member, evil, 1)
		if member == `"version"` {
			content = strings.Replace(content, evil, evil+`:1,`+evil, 1)
		}
		text, err := region.Sign([]byte(content))
		if err != nil {
			t.Fatal(err)
		}
		_, err = decodeAndVerify(keysOf(t, region), text)
		if err == nil || strings.Contains(err.Error(), "\n") || len(err.Error()) > 200 {
			t.Errorf("%s: %v", member, err)
		}
	}
}

func TestDecode(t *testing.T) {
	var (
		text    = readTestdata(t, "real/us-west-2/rsa2048.txt")
		message = decodeFile(t, "real/us-west-2/rsa2048.txt")
		block   = func(kind string) []byte { return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: message}) }
	)
	for _, test := range []struct {
		name  string
		input []byte
		check string
	}{
		{"as served", text, ""},
		{"one line", []byte(base64.StdEncoding.EncodeToString(message)), ""},
		{"CRLF and blank lines", []byte("\r\n" + strings.ReplaceAll(string(text), "\n", "\r\n") + "\r\n"), ""},
		{"PEM PKCS7", block("PKCS7"), ""},
		{"PEM CMS", block("CMS"), ""},
		{"BER", message, ""},

		{"empty", nil, checkEncoding},
		{"blank", []byte(" \n"), checkEncoding},
		{"HTML", []byte("<html>404</html>"), checkEncoding},
		{"PEM of a certificate", block("CERTIFICATE"), checkEncoding},
		{"two PEM blocks", append(block("PKCS7"), block("PKCS7")...), checkEncoding},
		{"PEM cut off", block("PKCS7")[:200], checkEncoding},
		{"base64 cut off", bytes.TrimSpace(text)[:102], checkEncoding},
		{"base64 with loose bits", []byte("MIB="), checkEncoding},
		{"document", []byte(madeUpDocument), checkForm},
		{"too long", bytes.Repeat([]byte("A"), MaxBytes+1), checkSize},
	} {
		t.Run(test.name, func(t *testing.T) {
			got, err := Decode(test.input)
			wantCheck(t, err, test.check)
			if err == nil && !bytes.Equal(got, message) {
				t.Error("decoded to something else")
			}
		})
	}
}

func BenchmarkVerify(b *testing.B) {
	keys, text := shippedKeys(b), readTestdata(b, "real/us-west-2/rsa2048.txt")
	b.ReportAllocs()
	for b.Loop() {
		if _, err := decodeAndVerify(keys, text); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "documents/s")
}

func decodeAndVerify(keys *Keyring, input []byte) (*Document, error) {
	message, err := Decode(input)
	if err != nil {
		return nil, err
	}
	return keys.Verify(message)
}

// wantCheck fails the test unless err is a CheckError of that check, or nil if
// check is empty.
func wantCheck(t *testing.T, err error, check string) {
	t.Helper()
	if check == "" {
		if err != nil {
			t.Errorf("refused: %v", err)
		}
		return
	}
	failure, ok := errors.AsType[*CheckError](err)
	switch {
	case err == nil:
		t.Errorf("accepted, want check %q to fail", check)
	case !ok:
		t.Errorf("not a CheckError: %v", err)
	case failure.Check != check:
		t.Errorf("want check %q to fail, got: %v", check, err)
	}
}

func shippedKeys(t testing.TB) *Keyring {
	t.Helper()
	keys, err := Regions()
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

func newRegion(t testing.TB, name string) *identitytest.Region {
	t.Helper()
	region, err := identitytest.NewRegion(name)
	if err != nil {
		t.Fatal(err)
	}
	return region
}

// keysOf returns the shipped keys and that of a made-up region.
func keysOf(t testing.TB, region *identitytest.Region) *Keyring {
	t.Helper()
	keys, err := shippedKeys(t).With(ec2ref.Region(region.Name), region.CertificatePEM())
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

func readTestdata(t testing.TB, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata", filepath.FromSlash(path)))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func decodeFile(t testing.TB, path string) []byte {
	t.Helper()
	message, err := Decode(readTestdata(t, path))
	if err != nil {
		t.Fatal(err)
	}
	return message
}
