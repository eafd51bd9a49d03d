package deployment

import (
	"log/slog"
	"slices"
	"strings"
	"testing"

	"github.com/hallmark-ssh/hallmark/internal/signer/deployment/deploymenttest"
	"github.com/hallmark-ssh/hallmark/internal/signer/entry"
)

// A setting that does not work with the entry is an error: it would look like protection.
func TestEntry(t *testing.T) {
	const endpoint = "vpce-0a1b2c3d4e5f60718"
	for name, test := range map[string]struct {
		entry, settings string
		want            entry.Kind
		err             string
	}{
		"by default":                  {"", "", entry.URL, ""},
		"url":                         {"url", "url_auth: aws_iam", entry.URL, ""},
		"private API":                 {"private-api", "url_auth: aws_iam\nallow_sources: [10.0.0.0/8, " + endpoint + "]", entry.PrivateAPI, ""},
		"invoke":                      {"invoke", "", entry.Invoke, ""},
		"unknown":                     {"alb", "", "", "HALLMARK_ENTRY"},
		"invoke, with networks":       {"invoke", "allow_sources: [10.0.0.0/8]", "", "allow_sources"},
		"invoke, with an endpoint":    {"invoke", "allow_sources: [" + endpoint + "]", "", "allow_sources"},
		"invoke, with url_auth":       {"invoke", "url_auth: aws_iam", "", "url_auth"},
		"url, with an endpoint":       {"url", "allow_sources: [" + endpoint + "]", "", "private-api"},
		"neither network nor ID":      {"private-api", "allow_sources: [vpce-1]", "", "VPC endpoint such as"},
		"an address, not the network": {"private-api", "allow_sources: [2001:db8::1/32]", "", "write the network"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("HALLMARK_DEPLOYMENT", deploymenttest.Write(t, map[string]string{
				"deployment.yaml": deploymenttest.Minimal + test.settings, "identity.pem": "",
			}))
			t.Setenv("HALLMARK_ENTRY", test.entry)
			t.Setenv("AWS_REGION", "us-west-2")
			s, kind, err := NewSigner(t.Context(), slog.New(slog.DiscardHandler))
			if test.err != "" {
				if err == nil || !strings.Contains(err.Error(), test.err) {
					t.Fatalf("error %v, want %q in it", err, test.err)
				}
				return
			}
			if err != nil || kind != test.want {
				t.Fatalf("entry %q, error %v, want %q", kind, err, test.want)
			}
			if test.want == entry.PrivateAPI && (!slices.Equal(s.Endpoints, []string{endpoint}) || len(s.Sources) != 1) {
				t.Errorf("endpoints %v, sources %v", s.Endpoints, s.Sources)
			}
		})
	}
}
