package identity

import (
	"strings"
	"testing"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/identity/identitytest"
)

// The embedded certificates are the reviewed ones, with one key for each region.
func TestRegions(t *testing.T) {
	keyring, want := shippedKeys(t), regionIndex(t)
	if len(want) != 39 || len(keyring.keys) != len(want) {
		t.Fatalf("%d regions are embedded, %d are listed, want 39", len(keyring.keys), len(want))
	}
	holder := map[string]ec2ref.Region{}
	for region := range keyring.keys {
		key, err := keyring.key(region)
		if err != nil {
			t.Fatal(err)
		}
		if key.sha256 != want[string(region)] {
			t.Errorf("key of %s is %s, want %s", region, key.sha256, want[string(region)])
		}
		if other, shared := holder[key.sha256]; shared {
			t.Errorf("%s and %s have the same key, so a document does not prove its region", region, other)
		}
		holder[key.sha256] = region
	}
}

func TestKeyringWith(t *testing.T) {
	region := newRegion(t, madeUpRegion)
	small, err := identitytest.NewRegionWithKeySize(madeUpRegion, 1024)
	if err != nil {
		t.Fatal(err)
	}
	good := string(region.CertificatePEM())
	for _, test := range []struct {
		name, region, certificate string
		says                      string // empty: it is added
	}{
		{"made-up region", madeUpRegion, good, ""},
		{"blank lines around", madeUpRegion, "\n" + good + "\n", ""},
		{"shipped region", "us-west-2", good, "cannot be replaced"},
		{"not a region", "../x", good, "is not an AWS region"},
		{"empty name", "", good, "is not an AWS region"},
		{"no PEM", madeUpRegion, "hello", "exactly one PEM block"},
		{"two certificates", madeUpRegion, good + good, "exactly one PEM block"},
		{"a key", madeUpRegion, strings.ReplaceAll(good, "CERTIFICATE", "PRIVATE KEY"), "exactly one PEM block"},
		{"damaged", madeUpRegion, strings.Replace(good, "\nMI", "\nMJ", 1), "certificate of region"},
		{"RSA-1024", madeUpRegion, string(small.CertificatePEM()), "rsa2048"},
	} {
		t.Run(test.name, func(t *testing.T) {
			shipped := shippedKeys(t)
			_, err := shipped.With(ec2ref.Region(test.region), []byte(test.certificate))
			switch {
			case test.says == "" && err != nil:
				t.Error(err)
			case test.says != "" && (err == nil || !strings.Contains(err.Error(), test.says)):
				t.Errorf("got %v, want an error that says %q", err, test.says)
			}
			if _, known := shipped.keys[madeUpRegion]; known {
				t.Error("the keyring itself was changed")
			}
		})
	}
}

// regionIndex returns the SHA-256 of every region's public key, as listed.
func regionIndex(t testing.TB) map[string]string {
	t.Helper()
	index := map[string]string{}
	for line := range strings.Lines(string(readTestdata(t, "regions.tsv"))) {
		if fields := strings.Split(line, "\t"); fields[0] == "rsa2048" {
			index[fields[1]] = fields[10]
		}
	}
	return index
}
