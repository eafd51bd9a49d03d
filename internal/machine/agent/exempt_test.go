package agent

import (
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sync/errgroup"

	"github.com/hallmark-ssh/hallmark/internal/machine/machinetest"
	"github.com/hallmark-ssh/hallmark/internal/machine/sshdconf"
	"github.com/hallmark-ssh/hallmark/internal/sshkey/sshkeytest"
)

// Everybody who comes through a Teleport proxy has the proxy's address. With proxy_sources, as
// hallmark install writes it, 200 failed logins from there and 50 logins at once lock nobody
// out. Without it, sshd drops connections from that address (OpenSSH 9.8 and later).
func TestOneSourceForEverybody(t *testing.T) {
	program := machinetest.FindSSHD(t)
	for name, sources := range map[string][]string{"exempt": {"127.0.0.1"}, "not exempt": nil} {
		t.Run(name, func(t *testing.T) {
			s := machinetest.NewSSHD(t, program, t.TempDir(), sshkeytest.NewSigner(t).PublicKey())
			penalties := machinetest.HandsOver(t, program)
			s.Stop()
			lines := "LogLevel VERBOSE\n" + s.HallmarkLines()
			if penalties && len(sources) > 0 {
				lines += "PerSourcePenaltyExemptList " + sshdconf.JoinSources("none", sources) + "\n"
			}
			s.Configure(lines)
			s.Run()

			stranger := sshkeytest.NewSigner(t)
			failures := 200
			if len(sources) == 0 || !penalties {
				failures = 20 // enough to be locked out
			}
			for range failures {
				if err := s.TryLogin(stranger, ssh.InsecureIgnoreHostKey()); err == nil {
					t.Fatal("a stranger logs in")
				}
			}
			var logins errgroup.Group
			for range 50 {
				logins.Go(func() error { return s.TryLogin(s.Login, ssh.InsecureIgnoreHostKey()) })
			}
			err := logins.Wait()
			log := string(machinetest.ReadFile(t, filepath.Join(s.Dir, "sshd.log")))
			dropped := strings.Contains(log, "drop connection")
			if wantDropped := penalties && len(sources) == 0; dropped != wantDropped || (err != nil) != wantDropped {
				t.Errorf("logins: %v; dropped: %v, want %v\n%s", err, dropped, wantDropped, lastOf(log))
			}
		})
	}
}

// lastOf returns the end of a log.
func lastOf(log string) string { return log[max(0, len(log)-2000):] }
