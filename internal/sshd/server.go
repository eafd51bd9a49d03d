package sshd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

var (
	// ErrNoServer says that no sshd is installed.
	ErrNoServer = errors.New("no sshd program")
	// ErrNoHostKeys says that sshd has no host key yet, without which it does not
	// even print its configuration.
	ErrNoHostKeys = errors.New("sshd has no host keys")
)

// commandTimeout bounds sshd -T, sshd -t and systemctl. They take milliseconds.
const commandTimeout = 20 * time.Second

// Server is an installed OpenSSH server.
type Server struct {
	// Program is the absolute path of sshd, inside Root.
	Program string
	// Config is the main configuration file; empty means the built-in one.
	Config string
	// Root is where the server's file system begins, "" or "/" for this one.
	Root string
}

// Find returns the server that is installed in the file system at root.
func Find(root string) (*Server, error) {
	for _, program := range []string{"/usr/sbin/sshd", "/usr/local/sbin/sshd", "/usr/bin/sshd"} {
		if info, err := os.Stat(filepath.Join(root, program)); err == nil && info.Mode().IsRegular() {
			return &Server{Program: program, Root: root}, nil
		}
	}
	return nil, fmt.Errorf("%w in /usr/sbin, /usr/local/sbin or /usr/bin of %s", ErrNoServer, filepath.Join("/", root))
}

// Check runs "sshd -t": is the configuration free of errors? It says yes to
// certificates that are missing or wrong, so it never suffices alone.
func (s *Server) Check(ctx context.Context) error {
	_, err := s.run(ctx, "-t")
	return err
}

// Effective runs "sshd -T" for a login of root from this machine. Without a
// connection to judge by, versions before 8.6 refuse configurations with Match.
func (s *Server) Effective(ctx context.Context) (*Effective, error) {
	output, err := s.run(ctx, "-T", "-C", "user=root,host=localhost,addr=127.0.0.1,laddr=127.0.0.1,lport=22")
	if err != nil {
		return nil, err
	}
	return ParseEffective(output)
}

func (s *Server) run(ctx context.Context, args ...string) ([]byte, error) {
	if s.Config != "" {
		args = append([]string{"-f", s.Config}, args...)
	}
	return command(ctx, s.Root, s.Program, args...)
}

// command runs a program and returns its standard output. The error quotes what
// the program said last, which is where sshd and systemctl put the reason.
func command(ctx context.Context, root, program string, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C")
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if root != "" && root != "/" {
		cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root}
		cmd.Dir = "/"
		cmd.Path = program // inside the new root; LookPath judged the old one
		cmd.Err = nil
	}
	if err := cmd.Run(); err != nil {
		if reason := lastLines(stderr.String()); reason != "" {
			err = fmt.Errorf("%s (%w)", reason, err)
		}
		if strings.Contains(stderr.String(), "no hostkeys available") {
			err = fmt.Errorf("%w: %w", ErrNoHostKeys, err)
		}
		return nil, fmt.Errorf("run %s %s: %w", filepath.Base(program), strings.Join(args, " "), err)
	}
	return stdout.Bytes(), nil
}

// lastLines returns the last two lines as one: sshd ends with how many errors there
// were, and names the error before.
func lastLines(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	for i, line := range lines {
		lines[i] = strings.TrimSpace(line)
	}
	return strings.Join(lines[max(0, len(lines)-2):], "; ")
}

// Reload makes the running sshd read its configuration, keys and certificates
// again. Established sessions go on; new ones wait for some 100 ms.
//
// The listener is the process that pidFile names. If it is the main process of a
// systemd unit, systemd is told to reload that unit, otherwise the process gets a
// SIGHUP (sshd(8)).
func (s *Server) Reload(ctx context.Context, pidFile string) error {
	pid, pidErr := listenerPID(pidFile)
	unit, err := runningUnit(ctx, pid)
	if err != nil {
		return err
	}
	if unit != "" {
		_, err := command(ctx, "", "systemctl", "reload", unit)
		return err
	}
	if pidErr != nil {
		return fmt.Errorf("find the running sshd: %w", pidErr)
	}
	if err := syscall.Kill(pid, syscall.SIGHUP); err != nil {
		return fmt.Errorf("send SIGHUP to sshd (process %d): %w", pid, err)
	}
	return nil
}

// Start starts sshd again where systemd runs it. It is the last resort of a
// caller whose reload ended a server that ran before.
func (s *Server) Start(ctx context.Context) error {
	if !systemdRuns() {
		return errors.New("start sshd: systemd does not run here")
	}
	units, err := showUnits(ctx)
	if err != nil {
		return err
	}
	for _, u := range units {
		if u.loaded {
			_, err := command(ctx, "", "systemctl", "restart", u.name)
			return err
		}
	}
	return errors.New("start sshd: there is neither ssh.service nor sshd.service")
}

// listenerPID reads a pid file and makes sure that the process is an sshd: after
// a crash the number may belong to someone whom a SIGHUP would end.
func listenerPID(pidFile string) (int, error) {
	if pidFile == "" {
		return 0, errors.New("its configuration says PidFile none")
	}
	data, err := os.ReadFile(pidFile)
	if err != nil {
		return 0, err
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil || pid <= 1 {
		return 0, fmt.Errorf("%s does not hold a process id", pidFile)
	}
	if name := processName(pid); name != "sshd" {
		return 0, fmt.Errorf("process %d of %s is %q, not sshd", pid, pidFile, name)
	}
	return pid, nil
}

// processName returns the name of a process's program. The kernel says
// "sshd (deleted)" after an upgrade replaced the program.
func processName(pid int) string {
	if exe, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid)); err == nil {
		return strings.TrimSuffix(filepath.Base(exe), " (deleted)")
	}
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(comm))
}

// systemdRuns is sd_booted(3).
func systemdRuns() bool {
	info, err := os.Lstat("/run/systemd/system")
	return err == nil && info.IsDir()
}

// runningUnit returns the unit whose main process is pid, or, without a pid, the
// one that is active; "" if there is none.
func runningUnit(ctx context.Context, pid int) (string, error) {
	if !systemdRuns() {
		return "", nil
	}
	units, err := showUnits(ctx)
	if err != nil {
		return "", err
	}
	return chooseUnit(units, pid), nil
}

// unit is what systemd says of one of sshd's services.
type unit struct {
	name           string
	loaded, active bool
	mainPID        int
}

// showUnits asks for both names that distributions use. On some, one is an alias
// of the other.
func showUnits(ctx context.Context) ([]unit, error) {
	output, err := command(ctx, "", "systemctl", "show", "--property=Id,LoadState,ActiveState,MainPID", "ssh.service", "sshd.service")
	if err != nil {
		return nil, err
	}
	return parseUnits(string(output)), nil
}

// parseUnits reads "systemctl show": one paragraph of KEY=VALUE lines per unit.
func parseUnits(output string) (units []unit) {
	for paragraph := range strings.SplitSeq(strings.TrimSpace(output), "\n\n") {
		var u unit
		for line := range strings.Lines(paragraph) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
			switch key {
			case "Id":
				u.name = value
			case "LoadState":
				u.loaded = value == "loaded"
			case "ActiveState":
				u.active = value == "active" || value == "reloading"
			case "MainPID":
				u.mainPID, _ = strconv.Atoi(value)
			}
		}
		if u.name != "" {
			units = append(units, u)
		}
	}
	return units
}

func chooseUnit(units []unit, pid int) string {
	for _, u := range units {
		if u.active && (pid == 0 || u.mainPID == pid) {
			return u.name
		}
	}
	return ""
}
