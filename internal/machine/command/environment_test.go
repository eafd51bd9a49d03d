package command

import (
	"maps"
	"os"
	"path/filepath"
	"testing"
)

func TestParseEnvironment(t *testing.T) {
	got := parseEnvironment("# comment\n; another\n\nHTTPS_PROXY=http://proxy:3128\nNO_PROXY=\"a, b\"\nA='x=y'\n B = c \nnothing\n=x\nBAD NAME=x\n")
	want := map[string]string{"HTTPS_PROXY": "http://proxy:3128", "NO_PROXY": "a, b", "A": "x=y", "B": "c"}
	if !maps.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestLoadEnvironment(t *testing.T) {
	path := filepath.Join(t.TempDir(), "environment")
	if err := loadEnvironment(path); err != nil {
		t.Errorf("without a file: %v", err)
	}
	if err := os.WriteFile(path, []byte("HALLMARK_TEST_NEW=file\nHALLMARK_TEST_SET=file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("HALLMARK_TEST_SET", "mine")
	t.Setenv("HALLMARK_TEST_NEW", "") // so that the test's end removes it
	if err := os.Unsetenv("HALLMARK_TEST_NEW"); err != nil {
		t.Fatal(err)
	}
	if err := loadEnvironment(path); err != nil {
		t.Fatal(err)
	}
	if got := os.Getenv("HALLMARK_TEST_NEW") + " " + os.Getenv("HALLMARK_TEST_SET"); got != "file mine" {
		t.Errorf("got %q, want what the file adds, and what was set", got)
	}
	if err := loadEnvironment(filepath.Dir(path)); err == nil {
		t.Error("a folder was read without an error")
	}
}
