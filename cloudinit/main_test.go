package main

import (
	"path/filepath"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"hallmark": main})
}

// TestScript runs the command lines in testdata/script against the real main.
// A script finds test data by $TESTDATA and that of the verifier by $IDENTITY.
func TestScript(t *testing.T) {
	testdata, err := filepath.Abs("testdata")
	if err != nil {
		t.Fatal(err)
	}
	identity, err := filepath.Abs(filepath.Join("..", "internal", "identity", "testdata"))
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
