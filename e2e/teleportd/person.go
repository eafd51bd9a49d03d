//go:build linux

package teleportd

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/crypto/bcrypt"
	"golang.org/x/sys/unix"
)

const password = "correct horse battery staple"

// Person has an account in the cluster and is logged in with tsh.
type Person struct {
	cluster *Cluster
	home    string
	name    string
}

// NewPerson creates an account with the roles, and logs in to it as people do: with `tsh
// login` and a password.
func (c *Cluster) NewPerson(ctx context.Context, name string, roles ...string) (*Person, error) {
	hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
	if err != nil {
		return nil, err
	}
	err = c.Create(ctx, fmt.Sprintf(`kind: user
version: v2
metadata:
  name: %s
spec:
  roles: [%s]
  local_auth:
    password_hash: %s
`, name, strings.Join(roles, ", "), base64.StdEncoding.EncodeToString(hash)))
	if err != nil {
		return nil, err
	}
	p := &Person{cluster: c, home: c.path("home-" + name), name: name}
	if err := os.MkdirAll(filepath.Join(p.home, ".ssh"), 0o700); err != nil {
		return nil, err
	}
	return p, p.LogIn(ctx)
}

// LogIn logs in with `tsh login`. If the proxy's rate limit is used up, it waits.
func (p *Person) LogIn(ctx context.Context) error {
	const requests = 2 // one for a challenge in newer versions, one for the certificates
	if err := p.cluster.budget.WaitN(ctx, requests); err != nil {
		return fmt.Errorf("wait for the proxy's rate limit: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, programLimit)
	defer cancel()
	cmd := p.command(ctx, p.cluster.program("tsh"), "login", "--proxy="+p.cluster.Address(), "--user="+p.name)
	_, err := onTerminal(cmd, password+"\n")
	return err
}

// Tsh runs tsh, and returns its output.
func (p *Person) Tsh(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, programLimit)
	defer cancel()
	return run(p.command(ctx, p.cluster.program("tsh"), args...))
}

// TshOnTerminal is Tsh with a terminal as its standard input.
func (p *Person) TshOnTerminal(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, programLimit)
	defer cancel()
	return onTerminal(p.command(ctx, p.cluster.program("tsh"), args...), "")
}

// SSH runs OpenSSH's client with the configuration that `tsh config` prints, and
// returns what it prints.
func (p *Person) SSH(ctx context.Context, args ...string) (string, error) {
	config, err := p.Tsh(ctx, "config")
	if err != nil {
		return "", err
	}
	file := filepath.Join(p.home, "ssh_config")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(ctx, programLimit)
	defer cancel()
	return run(p.command(ctx, "ssh", append([]string{"-F", file, "-o", "BatchMode=yes"}, args...)...))
}

func (p *Person) command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + p.home, "TELEPORT_HOME=" + filepath.Join(p.home, ".tsh"),
		"SSL_CERT_FILE=" + p.cluster.RootsFile(), "TELEPORT_ADD_KEYS_TO_AGENT=no",
	}
	cmd.WaitDelay = time.Second
	return cmd
}

// onTerminal runs a command on a separate terminal where somebody has typed ahead, and returns
// its standard output.
func onTerminal(cmd *exec.Cmd, typed string) (string, error) {
	terminal, err := os.OpenFile("/dev/ptmx", os.O_RDWR|syscall.O_NOCTTY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return "", err
	}
	defer terminal.Close()
	if err := unix.IoctlSetPointerInt(int(terminal.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		return "", err
	}
	number, err := unix.IoctlGetInt(int(terminal.Fd()), unix.TIOCGPTN)
	if err != nil {
		return "", err
	}
	stdin, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		return "", err
	}
	defer stdin.Close()
	cmd.Stdin = stdin
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if _, err := terminal.WriteString(typed); err != nil {
		return "", err
	}
	out, err := run(cmd)
	if err != nil {
		return out, errors.Join(err, errors.New(out))
	}
	return out, nil
}
