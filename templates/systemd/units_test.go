package systemd

import (
	"os"
	"os/exec"
	"testing"
)

// systemd rates how much of the system the service can reach, from 0 to 10. The limit is 2.5:
// it needs the network, sshd's folder and three capabilities.
func TestExposure(t *testing.T) {
	program, err := exec.LookPath("systemd-analyze")
	if err != nil {
		if os.Getenv("HALLMARK_TEST_STRICT") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	command := exec.Command(program, "security", "--no-pager", "--offline=true", "--threshold=25", "./hallmark.service")
	if output, err := command.CombinedOutput(); err != nil {
		t.Errorf("the service can reach more than it may: %v\n%s", err, output)
	}
}
