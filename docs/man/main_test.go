package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Every command has a page, and each page its flags.
func TestPages(t *testing.T) {
	t.Setenv("SOURCE_DATE_EPOCH", "1767323045") // 2026-01-02
	dir := filepath.Join(t.TempDir(), "man")
	if err := run([]string{dir}); err != nil {
		t.Fatal(err)
	}
	for page, want := range map[string]string{
		"hallmark.8":                      "hallmark-enroll(8)",
		"hallmark-enroll.8":               `\fB--timeout\fP`,
		"hallmark-identity-verify.8":      `\fB--certificates\fP`,
		"hallmark-seal.8":                 `\fB--host-keys-elsewhere\fP`,
		"hallmark-signer.1":               "hallmark-signer-end(1)",
		"hallmark-signer-policy-check.1":  `\fB--deployment\fP`,
		"hallmark-signer-permit-rekey.1":  "ssh-keygen -lf",
		"hallmark-signer-policy-schema.1": "Jan 2026",
	} {
		text, err := os.ReadFile(filepath.Join(dir, page))
		if err != nil || !strings.Contains(string(text), want) {
			t.Errorf("%s: error %v, or no %q in it:\n%s", page, err, want, text)
		}
	}
}

func TestUsage(t *testing.T) {
	if err := run(nil); err == nil {
		t.Error("no folder: no error")
	}
}
