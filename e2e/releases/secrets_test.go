//go:build e2e && linux

package releases

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/e2e/lab"
	"github.com/hallmark-ssh/hallmark/e2e/machine"
)

const (
	// recordFile is on the disk, so that the record of a bake stays in its image. To
	// hallmark.service, this folder is read-only; it writes to runRecord.
	recordFile = "/var/log/programs"
	runRecord  = "/run/programs"

	realFolder = "/usr/lib/recorded"
)

// recorder is a script that takes the place of a program. It writes down its arguments and its
// environment, and becomes the program.
const recorder = `#!/bin/sh
record=` + recordFile + `
[ -w $record ] || record=` + runRecord + `
{
	printf 'called: %%s\n' "%[1]s $*"
	/usr/bin/tr '\0' '\n' </proc/$$/environ
} >>$record
exec %[2]s "$@"
`

// recordPrograms has every program that Hallmark starts, and sudo, write down what it is given.
// Hallmark calls sshd by its path, and finds the others in PATH.
func recordPrograms(_ context.Context, root string) error {
	const sshd = "/usr/sbin/sshd"
	if err := os.Mkdir(filepath.Join(root, realFolder), 0o755); err != nil {
		return err
	}
	if err := os.Rename(filepath.Join(root, sshd), filepath.Join(root, realFolder, "sshd")); err != nil {
		return err
	}
	scripts := map[string]string{sshd: realFolder + "/sshd"}
	for _, name := range []string{"systemctl", "getent", "sudo"} { // without SELinux there is no restorecon
		scripts["/usr/local/bin/"+name] = "/usr/bin/" + name
	}
	for path, program := range scripts {
		script := fmt.Sprintf(recorder, filepath.Base(path), program)
		if err := os.WriteFile(filepath.Join(root, path), []byte(script), 0o755); err != nil {
			return err
		}
	}
	record := filepath.Join(root, recordFile)
	if err := os.WriteFile(record, nil, 0o600); err != nil {
		return err
	}
	return os.Chmod(record, 0o666) // sudo's caller is not root
}

// A new call of a program has to be recorded by recordPrograms. The signer, its command line
// and the Packer plugin start none.
func TestEveryProgramIsRecorded(t *testing.T) {
	want := []string{
		"internal/machine/doctor/ask.go",      // restorecon
		"internal/machine/doctor/units.go",    // systemctl
		"internal/machine/install/install.go", // none: it only looks for systemctl
		"internal/machine/sshd/accounts.go",   // getent
		"internal/machine/sshd/domain.go",     // what server.go starts
		"internal/machine/sshd/server.go",     // sshd, systemctl
		"internal/machine/systemd/systemd.go", // systemctl
	}
	starts := regexp.MustCompile(`"os/exec"|\b(StartProcess|ForkExec|syscall\.Exec|unix\.Exec)\(`)
	const top = "../.."
	var got []string
	for _, folder := range []string{"cloudinit", "internal", "lambda", "packer-plugin"} {
		err := filepath.WalkDir(filepath.Join(top, folder), func(path string, d fs.DirEntry, err error) error {
			if err != nil || filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go") || strings.HasSuffix(filepath.Dir(path), "test") {
				return err
			}
			source, err := os.ReadFile(path)
			if starts.Match(source) {
				got = append(got, strings.TrimPrefix(path, top+"/"))
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	if slices.Sort(got); !slices.Equal(got, want) {
		t.Errorf("these files start programs:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

const (
	environmentFile = "/etc/hallmark/environment"
	proxyPassword   = "not-for-other-programs"
)

// setProxy gives hallmark a proxy with a password. NO_PROXY has the signer, so nobody connects
// to it.
func setProxy(t *testing.T, i *lab.Instance) {
	t.Helper()
	text := fmt.Sprintf("HTTPS_PROXY=http://hallmark:%s@%s:9\nNO_PROXY=%[2]s\n", proxyPassword, machine.Hub)
	if err := os.WriteFile(i.Path(environmentFile), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// secrets are what must not be on a command line, in an environment or in a log.
func secrets(t *testing.T, i *lab.Instance) (all []string) {
	t.Helper()
	given, err := shared.Secrets()
	if err != nil {
		t.Fatal(err)
	}
	hostKeys := lab.KeyLines(run(t, i, "sh", "-c", "cat /etc/ssh/ssh_host_*_key"))
	public := run(t, i, "sh", "-c", "cat /etc/ssh/ssh_host_*_key.pub") // which private keys contain
	for kind, some := range map[string][]string{"given to machines": given, "sent to the signer": proofs.All(), "host keys": hostKeys} {
		some = slices.DeleteFunc(some, func(secret string) bool { return strings.Contains(public, secret) })
		if len(some) < 4 {
			t.Fatalf("only %d secrets that were %s", len(some), kind)
		}
		all = append(all, some...)
	}
	return append(all, "PRIVATE KEY", proxyPassword)
}

// leaks returns the lines of a text that have a secret.
func leaks(text string, secrets []string) (lines []string) {
	for _, secret := range secrets {
		before, after, found := strings.Cut(text, secret)
		if !found {
			continue
		}
		rest, _, _ := strings.Cut(after, "\n")
		lines = append(lines, before[strings.LastIndex(before, "\n")+1:]+secret+rest)
	}
	return lines
}

func recordOf(t *testing.T, i *lab.Instance) string {
	t.Helper()
	return run(t, i, "sh", "-c", "cat "+recordFile+"; cat "+runRecord+" 2>/dev/null || true")
}

// journalOf returns the whole journal with all fields, that of the bake too.
func journalOf(t *testing.T, i *lab.Instance) string {
	t.Helper()
	return run(t, i, "sh", "-c", "journalctl --sync; journalctl --merge --no-pager --output=export")
}

// checkNoSecrets sees that no program was given a secret as an argument or in its environment,
// and that no log has one. The record must have the given call, too.
func checkNoSecrets(t *testing.T, i *lab.Instance, packer, call string) {
	t.Helper()
	started := time.Now()
	askEverything(t, i)
	known := secrets(t, i)
	for _, looked := range []struct {
		where, text string
		has         []string // what shows that this is the right place to look
	}{
		{"the record of programs", recordOf(t, i), []string{
			"called: sudo -n sh /", "called: sshd -T -C user=root", "called: systemctl show --property=Id,LoadState",
			"called: getent passwd -- absent", "called: " + call,
		}},
		{"the journal", journalOf(t, i), []string{"_CMDLINE=", "MESSAGE=hallmark: "}},
		{"Packer's log", packer, []string{"remote command: mkdir -m 0700 ", "/bake.sh"}},
		{"the signer's log", shared.SignerLog(), []string{i.ID}},
	} {
		for _, has := range looked.has {
			if !strings.Contains(looked.text, has) {
				t.Errorf("%s has no %q:\n%.20000s", looked.where, has, looked.text)
			}
		}
		for _, line := range leaks(looked.text, known) {
			t.Errorf("%s has a secret: %s", looked.where, line)
		}
	}
	t.Logf("looked for %d secrets in %.1f s", len(known), time.Since(started).Seconds())
}

// askEverything runs the commands that the rest of the test does not. The line makes Hallmark
// look for an account.
func askEverything(t *testing.T, i *lab.Instance) {
	t.Helper()
	const line = "/etc/ssh/sshd_config.d/50-absent.conf"
	run(t, i, "sh", "-c", "echo 'AllowUsers root absent "+lab.User+"' >"+line)
	for command, says := range map[string]string{"status": i.ID, "doctor": "metadata"} {
		if said, err := i.Hallmark(t.Context(), command); !strings.Contains(said, says) {
			t.Errorf("hallmark %s: %v", command, err)
		}
	}
	run(t, i, "rm", line)
}

// checkLeaksAreFound leaks secrets in each of the ways that checkNoSecrets looks at.
func checkLeaksAreFound(t *testing.T, i *lab.Instance) {
	t.Helper()
	known := secrets(t, i)
	for _, secret := range []string{known[0], known[len(known)/2]} {
		run(t, i, "env", "LEAK="+secret, "systemctl", "is-active", "--quiet", "ssh.service")
		// It fails if the name is too long for a unit's.
		run(t, i, "sh", "-c", `systemctl show --property=Id "LEAK-$1.service" || true`, "sh", secret)
		run(t, i, "sh", "-c", `printf 'LEAK+%s\n' "$1" | systemd-cat`, "sh", secret)
		for _, looked := range []struct{ text, want string }{
			{recordOf(t, i), "\nLEAK=" + secret}, {recordOf(t, i), "LEAK-" + secret}, {journalOf(t, i), "LEAK+" + secret},
		} {
			if !strings.Contains(looked.text, looked.want) || len(leaks(looked.text, []string{secret})) == 0 {
				t.Errorf("a leak of %s is not found", looked.want)
			}
		}
	}
}
