package command

import (
	"os"
	"testing"

	"github.com/hallmark-ssh/hallmark/internal/cli/clitest"
)

// Whatever is wrong with a command line, the message says so in our words. No good line can
// change the machine that runs the test: each names a folder, or no time.
func TestMessages(t *testing.T) {
	good := clitest.Commands{
		"enroll":          {"--config", "wrong-missing"},
		"renew":           {"--config", "wrong-missing"},
		"status":          {},
		"doctor":          {},
		"install":         {"--from", "wrong-folder", "--root", "image"},
		"seal":            {"--root", "image"},
		"unenroll":        {"--timeout", "0s"},
		"identity verify": {"document"},
		"version":         {},
	}
	if os.Geteuid() != 0 { // nobody else comes as far as the folders
		good["install"], good["seal"] = nil, nil
	}
	clitest.Mistakes(t, New, good, map[string]string{
		"document": "-----BEGIN PKCS7-----\n-----END PKCS7-----\n", "image/etc/empty": "", "image/usr/sbin/sshd": "",
	})
}
