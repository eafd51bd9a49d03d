//go:build e2e

package lambdahost_test

import (
	"os"
	"path/filepath"
	"testing"
)

// emulator makes the same tests run in AWS's emulator: both must keep the same contract.
func emulator(t *testing.T) string {
	t.Helper()
	path, err := filepath.Abs("../../../bin/aws-lambda-rie")
	if err == nil {
		_, err = os.Stat(path)
	}
	if err != nil {
		t.Fatalf("AWS's Lambda emulator is missing (%v): run 'make bin/aws-lambda-rie'", err)
	}
	return path
}
