package sshd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/machine/environ"
	"github.com/hallmark-ssh/hallmark/internal/machine/systemd"
)

var (
	// ErrNoServer says that no sshd is installed.
	ErrNoServer = errors.New("no sshd program")
	// ErrNoHostKeys says that sshd has no host key yet. Without one, it does not even print
	// its configuration.
	ErrNoHostKeys = errors.New("sshd has no host keys")
	// ErrNoSystemd says that systemd runs but did not answer, as in the first second after a
	// boot.
	ErrNoSystemd = errors.New("systemd does not answer")
)

// commandTimeout bounds sshd -T and systemctl. They take 50 ms on an idle processor. An
// instance without CPU credits gets a twentieth of one, and shares it with everything else at
// boot.
const commandTimeout = time.Minute

// outputDelay is how long output may come after a program has ended or was stopped.
const outputDelay = time.Second

// Server is an installed OpenSSH server.
type Server struct {
	// Program is the absolute path of sshd, inside Root.
	Program string
	// Config is the main configuration file; empty means the one built into sshd.
	Config string
	// Root is the root of the server's file system, "" or "/" for this system's.
	Root string

	running []string // options of the running sshd that affect its settings
}

// Find returns the server installed in the file system at root.
func Find(root string) (*Server, error) {
	for _, program := range []string{"/usr/sbin/sshd", "/usr/local/sbin/sshd", "/usr/bin/sshd"} {
		if info, err := os.Stat(filepath.Join(root, program)); err == nil && info.Mode().IsRegular() {
			return &Server{Program: program, Root: root}, nil
		}
	}
	return nil, fmt.Errorf("%w in /usr/sbin, /usr/local/sbin or /usr/bin of %s", ErrNoServer, filepath.Join("/", root))
}

// Check asks sshd whether its configuration is free of errors, for each of the logins of
// Logins, because sshd applies Match blocks only then. With "-T" it refuses everything that it
// refuses with "-t". It accepts certificates that are missing or wrong, so this check alone is
// never enough.
func (s *Server) Check(ctx context.Context) error {
	_, err := s.Logins(ctx)
	return err
}

// Effective runs "sshd -T" for a login of root from this machine. Without a connection,
// versions before 8.6 refuse configurations with Match.
//
// Options on the command line of the running sshd, such as those of SSHD_OPTS in
// /etc/default/ssh, override what any file says. After this call, the server takes them into
// account.
func (s *Server) Effective(ctx context.Context) (*Effective, error) {
	conf, err := s.effective(ctx)
	if err != nil || s.Root != "" && s.Root != "/" {
		return conf, err
	}
	options, err := s.runningOptions(ctx, conf.PIDFile)
	if err != nil || slices.Equal(options, s.running) {
		return conf, err
	}
	s.running = options
	if asStarted, err := s.effective(ctx); err == nil {
		return asStarted, nil
	}
	s.running = nil // a command line that cannot be parsed
	return conf, nil
}

// unitsUnlessNamed asks systemd only if no PID file names the process.
func (s *Server) unitsUnlessNamed(ctx context.Context, pidFile string) ([]unit, error) {
	if s.named(pidFile) != 0 {
		return nil, nil
	}
	return s.units(ctx)
}

func (s *Server) effective(ctx context.Context) (*Effective, error) {
	output, err := s.settings(ctx, rootHere())
	if err != nil {
		return nil, err
	}
	conf, err := parseEffective(output)
	if err != nil {
		return nil, err
	}
	conf.Options = s.running
	conf.NotLoaded = s.notLoaded(ctx, conf.HostKeys)
	return conf, nil
}

// runningOptions returns the options of the running sshd that affect its settings, or none if
// no sshd runs.
func (s *Server) runningOptions(ctx context.Context, pidFile string) ([]string, error) {
	units, err := s.unitsUnlessNamed(ctx, pidFile)
	if err != nil {
		return nil, err
	}
	pid := s.listener(units, pidFile)
	if pid == 0 {
		return nil, nil
	}
	c, _ := commandLine(pid)
	return s.adopted(c), nil
}

// adopted returns the part of a command line that counts. A server with its own configuration
// ignores the command lines of others.
func (s *Server) adopted(c invocation) []string {
	switch {
	case c.config == s.Config:
		return c.options
	case s.Config != "":
		return nil
	}
	return append([]string{"-f", c.config}, c.options...)
}

func (s *Server) settings(ctx context.Context, c Connection) ([]byte, error) {
	return s.run(ctx, "-T", "-C", c.spec())
}

func (s *Server) run(ctx context.Context, args ...string) ([]byte, error) {
	args = slices.Concat(s.running, args)
	if s.Config != "" && !slices.Contains(s.running, "-f") {
		args = append([]string{"-f", s.Config}, args...)
	}
	output, err := command(ctx, s.Root, s.Program, args...)
	if err != nil && missingFolder.MatchString(err.Error()) {
		if err := s.makeFolder(); err != nil {
			return nil, err
		}
		output, err = command(ctx, s.Root, s.Program, args...)
	}
	if f, ok := errors.AsType[*failure](err); ok {
		return nil, s.refused(f)
	}
	return output, err
}

// missingFolder matches what Debian's and Ubuntu's sshd prints, even with -t and -T, while
// ssh.service does not run: the unit's RuntimeDirectory disappears with it. On a machine with
// ssh.socket, this is the case before the first login.
var missingFolder = regexp.MustCompile(`Missing privilege separation directory: (/var)?/run/sshd\b`)

// makeFolder creates the privilege separation folder as the unit does. The path is fixed: a
// program's output never chooses it.
func (s *Server) makeFolder() error {
	folder := filepath.Join("/", s.Root, "run/sshd")
	if err := os.Mkdir(folder, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("make sshd's privilege separation folder: %w", err)
	}
	return nil
}

// command runs a program and returns its standard output. The error is a *failure. It quotes the
// end of the program's output, which is where sshd and systemctl put the reason.
func command(ctx context.Context, root, program string, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, program, args...)
	cmd.Env = environ.ForPrograms("LC_ALL=C")
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	// A child of the program may hold its output open. It must not keep this waiting.
	cmd.WaitDelay = outputDelay
	if root != "" && root != "/" {
		cmd.SysProcAttr = &syscall.SysProcAttr{Chroot: root}
		cmd.Dir = "/"
		cmd.Path = program // inside the new root; LookPath checked the old one
		cmd.Err = nil
	}
	if err := runInDomain(cmd); err != nil {
		if reason := lastLines(stderr.String()); reason != "" {
			err = fmt.Errorf("%s (%w)", reason, err)
		}
		if strings.Contains(stderr.String(), "no hostkeys available") {
			err = fmt.Errorf("%w: %w", ErrNoHostKeys, err)
		}
		err = fmt.Errorf("run %s %s: %w", filepath.Base(program), strings.Join(args, " "), err)
		return nil, &failure{error: err, stderr: stderr.String()}
	}
	return stdout.Bytes(), nil
}

// failure is the error of a program, with everything that it printed to standard error.
type failure struct {
	error
	stderr string
}

func (f *failure) Unwrap() error { return f.error }

// lastLines joins the last two lines into one: sshd ends with the number of errors, and names
// the error before that.
func lastLines(s string) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	for i, line := range lines {
		lines[i] = strings.TrimSpace(line)
	}
	return strings.Join(lines[max(0, len(lines)-2):], "; ")
}

// Reload makes the running sshd read its configuration, keys and certificates again.
// Established sessions continue; new ones wait for some 100 ms.
//
// The listener is the process that pidFile names. If it is the main process of a systemd unit,
// systemctl reloads that unit; otherwise the process gets a SIGHUP (sshd(8)).
//
// Behind a systemd socket, a reload does not work: an sshd that was handed its socket closes
// it on SIGHUP, cannot open it again, and exits. So Reload restarts the service while systemd
// holds the socket and queues new connections. If no sshd runs, there is nothing to do,
// because the next connection starts one.
func (s *Server) Reload(ctx context.Context, pidFile string) error {
	units, err := s.units(ctx)
	if err != nil {
		return err
	}
	pid := s.listener(units, pidFile)
	service, activated := chooseUnit(units, pid), activeSocket(units) != nil
	switch {
	case activated && service == "":
		return nil
	case activated:
		_, err := command(ctx, "", "systemctl", "try-restart", service)
		return err
	case service != "":
		_, err := command(ctx, "", "systemctl", "reload", service)
		return err
	case pid == 0:
		return errors.New("find the running sshd: no process of it accepts connections")
	}
	if err := syscall.Kill(pid, syscall.SIGHUP); err != nil {
		return fmt.Errorf("send SIGHUP to sshd (process %d): %w", pid, err)
	}
	return nil
}

// Start starts sshd again if systemd runs it. It is the last resort of a caller whose reload
// ended a running server.
func (s *Server) Start(ctx context.Context) error {
	if !systemd.Runs() {
		return errors.New("start sshd: systemd does not run here")
	}
	units, err := showUnits(ctx)
	if err != nil {
		return err
	}
	for _, u := range units {
		if u.loaded && !u.isSocket() {
			_, err := command(ctx, "", "systemctl", "restart", u.name)
			return err
		}
	}
	return errors.New("start sshd: there is neither ssh.service nor sshd.service")
}

// listenerPID reads a PID file and makes sure that the process is an sshd: after a crash the
// number may belong to a process that a SIGHUP would end.
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

// processName returns the name of a process's program. The kernel says "sshd (deleted)" after
// an upgrade replaced the program.
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

// units returns sshd's units, or none if systemd does not run. With a separate configuration
// (Config), only a service whose main process is the listener counts: the machine's socket
// belongs to another server.
func (s *Server) units(ctx context.Context) ([]unit, error) {
	if !systemd.Runs() {
		return nil, nil
	}
	units, err := showUnits(ctx)
	if s.Config != "" {
		units = slices.DeleteFunc(units, unit.isSocket)
	}
	return units, err
}

// unit is what systemd reports about one of sshd's services and sockets.
type unit struct {
	name           string
	loaded, active bool
	mainPID        int
	changed        time.Duration    // of its last change of state, since boot, without sleep
	listen         []netip.AddrPort // of a socket, as systemd names them
}

func (u unit) isSocket() bool { return strings.HasSuffix(u.name, ".socket") }

// showUnits asks for both names that distributions use. On some, one is an alias for the
// other.
func showUnits(ctx context.Context) ([]unit, error) {
	output, err := command(ctx, "", "systemctl", "show",
		"--property=Id,LoadState,ActiveState,MainPID,StateChangeTimestampMonotonic,Listen", "ssh.service", "sshd.service", "ssh.socket", "sshd.socket")
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoSystemd, err)
	}
	return parseUnits(string(output)), nil
}

// parseUnits reads the output of "systemctl show".
func parseUnits(output string) (units []unit) {
	for _, shown := range systemd.ParseShow(output) {
		active := shown.Get("ActiveState")
		u := unit{name: shown.Get("Id"), loaded: shown.Get("LoadState") == "loaded", active: active == "active" || active == "reloading"}
		u.mainPID, _ = strconv.Atoi(shown.Get("MainPID"))
		microseconds, _ := strconv.ParseInt(shown.Get("StateChangeTimestampMonotonic"), 10, 64)
		u.changed = time.Duration(microseconds) * time.Microsecond
		for _, value := range slices.Concat(shown["Listen"], shown["ListenStream"]) { // the second before systemd 230
			u.listen = append(u.listen, socketAddresses(value)...)
		}
		units = append(units, u)
	}
	return units
}

// socketAddresses reads "[::]:22 (Stream)". A socket on all IPv6 addresses accepts IPv4 too,
// unless a sysctl says otherwise. It skips other sockets, such as paths.
func socketAddresses(value string) []netip.AddrPort {
	address, _, _ := strings.Cut(value, " ")
	listen, err := netip.ParseAddrPort(address)
	if err != nil {
		return nil
	}
	addresses := []netip.AddrPort{listen}
	if listen.Addr() == netip.IPv6Unspecified() {
		addresses = append(addresses, netip.AddrPortFrom(netip.IPv4Unspecified(), listen.Port()))
	}
	return addresses
}

func chooseUnit(units []unit, pid int) string {
	for _, u := range units {
		if u.active && !u.isSocket() && (pid == 0 || u.mainPID == pid) {
			return u.name
		}
	}
	return ""
}

// activeSocket returns the socket through which systemd listens for sshd, or nil.
func activeSocket(units []unit) *unit {
	for i := range units {
		if units[i].active && units[i].isSocket() {
			return &units[i]
		}
	}
	return nil
}
