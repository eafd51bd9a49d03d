package command

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/hallmark-ssh/hallmark/internal/cli"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"hallmark": func() { os.Exit(cli.Run(context.Background(), New(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) },
	})
}

// TestScript runs the command lines in testdata/script against the real command.
// A script finds test data by $TESTDATA and that of the verifier by $IDENTITY.
func TestScript(t *testing.T) {
	testdata, err := filepath.Abs("testdata")
	if err != nil {
		t.Fatal(err)
	}
	identity, err := filepath.Abs(filepath.Join("..", "..", "identity", "testdata"))
	if err != nil {
		t.Fatal(err)
	}
	testscript.Run(t, testscript.Params{
		Dir: filepath.Join("testdata", "script"),
		Setup: func(env *testscript.Env) error {
			env.Setenv("TESTDATA", testdata)
			env.Setenv("IDENTITY", identity)
			return nil
		},
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"sign-identity": signIdentity,
		},
	})
}

// Commands that only root can run say so, and root is asked for a folder that is there.
func TestRoot(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "config.yaml")
	if err := os.WriteFile(file, []byte("signer_url: https://127.0.0.1:1/\naudience: hallmark.example.com\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	missing := filepath.Join(dir, "missing")
	commands := map[string][]string{"install": {"install", "--from", dir, "--root", missing}}
	want := ": --root: no folder " + missing + "\nhint: "
	if os.Geteuid() != 0 {
		want = " must run as root\nhint: run it with sudo"
		commands["enroll"], commands["seal"] = []string{"enroll", "--config", file}, []string{"seal"}
	}
	for name, args := range commands {
		var out, errs bytes.Buffer
		code := cli.Run(t.Context(), New(), args, strings.NewReader(""), &out, &errs)
		if code != cli.Failed || !strings.HasPrefix(errs.String(), "hallmark: error: "+name+want) {
			t.Errorf("%s: exit code %d, %s", name, code, &errs)
		}
	}
}
