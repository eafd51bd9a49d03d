package sshdconf

import (
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/hallmark-ssh/hallmark/internal/golden"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func compare(t *testing.T, name string, got []byte) {
	t.Helper()
	golden.Compare(t, filepath.Join("testdata", name), got, *update)
}

func TestRender(t *testing.T) {
	compare(t, "default.golden", DefaultOptions().Render())
	compare(t, "least.golden", Options{TrustedUserCAKeys: "/a", HostCertificates: []string{"/b"}}.Render())
	exempt := DefaultOptions()
	exempt.PenaltyExempt = "10.0.0.0/8,192.0.2.7"
	compare(t, "exempt.golden", exempt.Render())
}

// sshd would take a path with a blank for two arguments.
func TestRenderBlanks(t *testing.T) {
	want := []string{"/srv/host keys/b-cert.pub"}
	for line := range strings.Lines(string(Options{TrustedUserCAKeys: "/a", HostCertificates: want}.Render())) {
		if keyword, arguments := SplitDirective(line); keyword == "hostcertificate" && !slices.Equal(arguments, want) {
			t.Errorf("%q has arguments %q", line, arguments)
		}
	}
}

// The template is for people to read and copy: it must be what is rendered.
func TestTemplateIsRendered(t *testing.T) {
	got, err := os.ReadFile(filepath.Join("..", "..", "..", "templates", "sshd", "00-hallmark.conf"))
	if err != nil {
		t.Fatal(err)
	}
	compare(t, "default.golden", got)
}

func TestCheckMaxStartups(t *testing.T) {
	for _, good := range []string{"10", "10:30:100", "100:30:200", "5:100:5"} {
		if err := CheckMaxStartups(good); err != nil {
			t.Errorf("%q: %v", good, err)
		}
	}
	for _, bad := range []string{"", "0", "10:30", "10:101:100", "10:0:100", "100:30:99", "1:2:3:4", "10\nPermitRootLogin yes", " 10", "10 ", "-1", "9999999"} {
		if CheckMaxStartups(bad) == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}
