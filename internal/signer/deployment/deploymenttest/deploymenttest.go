// Package deploymenttest writes deployments for tests.
package deploymenttest

import (
	"os"
	"path/filepath"
	"testing"
)

// Minimal is the shortest deployment.yaml. It names a file, identity.pem.
const Minimal = `
audience: hallmark.example.com
accounts: ["111122223333"]
regions: [us-west-2]
teleport: {address: "proxy.example.com:443", login: {method: identity-file, file: identity.pem}}
`

// Write writes files into a new folder and returns the path of deployment.yaml.
func Write(t *testing.T, files map[string]string) string {
	t.Helper()
	folder := t.TempDir()
	for name, content := range files {
		path := filepath.Join(folder, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return filepath.Join(folder, "deployment.yaml")
}
