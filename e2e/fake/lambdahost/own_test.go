//go:build !e2e

package lambdahost_test

import "testing"

// emulator makes the tests run on the package's own Runtime API.
func emulator(*testing.T) string { return "" }
