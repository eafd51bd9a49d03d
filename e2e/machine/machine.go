//go:build linux

package machine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// Hub is the address of the hub, as the machines see it: the program that
	// runs them, and the servers that it starts.
	Hub = "10.83.0.1"
	// Subnet is the network of hub and machines.
	Subnet = "10.83.0.0/24"

	hubPrefix       = Hub + "/24"
	metadataAddress = "169.254.169.254"
)

// Fleet starts machines. Only Main makes one.
type Fleet struct {
	rootFS map[Release]string
	group  string
}

// Image is a file system that machines boot from: a stack of layers, the topmost first, or
// a virtual machine's disk.
type Image struct {
	layers []string
	disk   string // made from the one layer
}

// BaseImage returns the image of a freshly installed Debian. Main must have been called with
// the release.
func (f *Fleet) BaseImage(release Release) (Image, error) {
	dir, ok := f.rootFS[release]
	if !ok {
		return Image{}, fmt.Errorf("the fleet has no base image of Debian %s", release)
	}
	return Image{layers: []string{dir}}, nil
}

// Top returns the folder of the topmost layer, which has the latest changes.
func (i Image) Top() string { return i.layers[0] }

// Spec says what machine to boot.
type Spec struct {
	// Name is unique in the fleet, and short, because a network interface has that name.
	Name  string
	Image Image
	// Address is the machine's address in Subnet.
	Address netip.Addr
	// Metadata answers on 169.254.169.254, for this machine only.
	Metadata http.Handler
	// Prepare changes the machine's disk, at the given folder, before it boots for the
	// first time. It may be nil.
	Prepare func(ctx context.Context, root string) error
}

// Machine is one machine. Its disk outlives power-off.
type Machine struct {
	Spec
	fleet    *Fleet
	dir      string
	metadata *http.Server

	nspawn *exec.Cmd
	exited chan struct{} // closed when nspawn has ended
	leader int           // process id of the machine's systemd
}

// Boot makes a machine and starts it. It returns as soon as the machine's
// systemd runs.
func (f *Fleet) Boot(ctx context.Context, spec Spec) (*Machine, error) {
	m := &Machine{Spec: spec, fleet: f, dir: filepath.Join(scratch, "machines", spec.Name)}
	for _, step := range []func(context.Context) error{m.makeDisk, m.prepare, m.makeNetwork, m.serveMetadata, m.Start} {
		if err := step(ctx); err != nil {
			return nil, fmt.Errorf("machine %s: %w", spec.Name, err)
		}
	}
	return m, nil
}

func (m *Machine) root() string  { return filepath.Join(m.dir, "root") }
func (m *Machine) upper() string { return filepath.Join(m.dir, "upper") }

// makeDisk puts a writable layer over the image, which stays unchanged.
func (m *Machine) makeDisk(context.Context) error {
	work := filepath.Join(m.dir, "work")
	for _, dir := range []string{m.root(), m.upper(), work} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", strings.Join(m.Image.layers, ":"), m.upper(), work)
	if err := unix.Mount("overlay", m.root(), "overlay", 0, options); err != nil {
		return fmt.Errorf("mount its disk: %w", err)
	}
	return nil
}

func (m *Machine) prepare(ctx context.Context) error {
	if m.Prepare == nil {
		return nil
	}
	return m.Prepare(ctx, m.root())
}

// makeNetwork gives the machine a namespace, and a cable to the hub's bridge.
func (m *Machine) makeNetwork(ctx context.Context) error {
	if err := ip(ctx,
		"netns add "+m.Name,
		fmt.Sprintf("link add name %s type veth peer name eth0 netns %s", m.Name, m.Name),
		fmt.Sprintf("link set dev %s master hub up", m.Name),
	); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "ip", "-netns", m.Name, "-batch", "-")
	cmd.Stdin = strings.NewReader(fmt.Sprintf(`link set lo up
addr add %s/32 dev lo
addr add %s/24 dev eth0
link set eth0 up
`, metadataAddress, m.Address))
	return run(cmd)
}

func (m *Machine) namespace() string { return filepath.Join("/run/netns", m.Name) }

func (m *Machine) serveMetadata(context.Context) error {
	l, err := listenIn(m.namespace(), net4(metadataAddress, 80))
	if err != nil {
		return fmt.Errorf("listen for metadata: %w", err)
	}
	m.metadata = &http.Server{Handler: m.Metadata, ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = m.metadata.Serve(l) }() // ends with the program
	return nil
}

// Start boots a machine that is powered off.
func (m *Machine) Start(ctx context.Context) error {
	groups, err := makeGroups(m.fleet.group, m.Name)
	if err != nil {
		return fmt.Errorf("make control groups: %w", err)
	}
	console, err := os.OpenFile(m.consolePath(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer console.Close()

	// The shell joins the control groups, then becomes nspawn.
	const join = `spawn=$1; shift; for group in "$@"; do echo $$ >"$group"; done; eval "exec $spawn"`
	spawn := "systemd-nspawn --quiet --boot --register=no --keep-unit --console=pipe --resolv-conf=off --timezone=off" +
		" --machine=" + m.Name + " --directory=" + m.root() + " --network-namespace-path=" + m.namespace()
	cmd := exec.Command("sh", append([]string{"-euc", join, "sh", spawn}, groups...)...)
	// systemd 257 refuses control groups version 1, even if the host has both.
	cmd.Env = append(os.Environ(), "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1")
	cmd.Stdout, cmd.Stderr = console, console
	if err := cmd.Start(); err != nil {
		return err
	}
	m.nspawn, m.exited = cmd, make(chan struct{})
	go func(exited chan<- struct{}) {
		_ = cmd.Wait() // a machine that is powered off exits as it likes
		close(exited)
	}(m.exited)
	return m.findLeader(ctx)
}

// findLeader waits until the machine's systemd runs.
func (m *Machine) findLeader(ctx context.Context) error {
	return Await(ctx, func() error {
		select {
		case <-m.exited:
			return Fatal(fmt.Errorf("it exited while starting:\n%s", m.console()))
		default:
		}
		var err error
		m.leader, err = childNamed(m.nspawn.Process.Pid, "systemd")
		return err
	})
}

// childNamed returns the child of a process that runs the named program.
func childNamed(parent int, name string) (int, error) {
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		return 0, err
	}
	for _, path := range stats {
		stat, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended since
		}
		var pid, ppid int
		var comm, state string
		if _, err := fmt.Sscanf(string(stat), "%d %s %s %d", &pid, &comm, &state, &ppid); err != nil {
			continue // a name with a space in it: not the one we look for
		}
		if ppid == parent && comm == "("+name+")" {
			return pid, nil
		}
	}
	return 0, fmt.Errorf("process %d has no child %s", parent, name)
}

// Run runs a command in the machine as root, and returns its standard output. The error
// contains its standard error.
func (m *Machine) Run(ctx context.Context, name string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{
		"--target", strconv.Itoa(m.leader), "--mount", "--uts", "--ipc", "--net", "--pid", "--", name}, args...)...)
	cmd.Env = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C.UTF-8"}
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%s: %s %s: %w: %s", m.Name, name, strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// PowerOff shuts the machine down cleanly, as an operator would.
func (m *Machine) PowerOff(ctx context.Context) error {
	// SIGRTMIN+4 starts systemd's poweroff.target. glibc's SIGRTMIN is 34.
	const poweroff = syscall.Signal(34 + 4)
	if err := syscall.Kill(m.leader, poweroff); err != nil {
		return fmt.Errorf("power off %s: %w", m.Name, err)
	}
	select {
	case <-m.exited:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("power off %s: %w", m.Name, ctx.Err())
	case <-time.After(powerOffLimit):
		return errors.Join(fmt.Errorf("power off %s: it still runs after %v", m.Name, powerOffLimit), m.nspawn.Process.Kill())
	}
}

// powerOffLimit is far longer than any machine takes to shut down, emulated ones included.
const powerOffLimit = 5 * time.Minute

// Snapshot makes an image of a machine that is powered off. The machine must not
// be started again.
func (m *Machine) Snapshot() (Image, error) {
	select {
	case <-m.exited:
	default:
		return Image{}, fmt.Errorf("snapshot of %s: it is running", m.Name)
	}
	if err := unix.Unmount(m.root(), 0); err != nil {
		return Image{}, fmt.Errorf("snapshot of %s: %w", m.Name, err)
	}
	return Image{layers: append([]string{m.upper()}, m.Image.layers...)}, nil
}

// Path returns the path of a machine's file in this program's file system.
func (m *Machine) Path(name string) string { return filepath.Join(m.root(), name) }

// Dump writes logs that help to find out why a machine failed.
func (m *Machine) Dump(ctx context.Context, w io.Writer) {
	fmt.Fprintf(w, "--- console of %s\n%s\n", m.Name, m.console())
	journal, err := m.Run(ctx, "journalctl", "--no-pager", "--boot", "--lines=200")
	if err != nil {
		fmt.Fprintf(w, "--- no journal of %s: %v\n", m.Name, err)
		return
	}
	fmt.Fprintf(w, "--- journal of %s\n%s\n", m.Name, journal)
}

func (m *Machine) consolePath() string { return filepath.Join(m.dir, "console.log") }

func (m *Machine) console() string {
	data, err := os.ReadFile(m.consolePath())
	if err != nil {
		return err.Error()
	}
	return string(data)
}

// Fatal marks an error after which Poll stops retrying.
func Fatal(err error) error { return &fatalError{err} }

type fatalError struct{ error }

func (e *fatalError) Unwrap() error { return e.error }

// Await retries until try succeeds, for up to five minutes. That is far longer than any caller
// needs, even on a busy machine: with a shorter limit, a slow machine would fail a test.
func Await(ctx context.Context, try func() error) error { return Poll(ctx, 5*time.Minute, try) }

// Poll retries until try succeeds. If the limit passes or the context ends first, it returns the
// last error from before that, because a try that was cut short says nothing else.
func Poll(ctx context.Context, limit time.Duration, try func() error) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	var err error
	for {
		now := try()
		if _, fatal := errors.AsType[*fatalError](now); now == nil || fatal {
			return now
		}
		if err == nil || ctx.Err() == nil {
			err = now
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("gave up after %v: %w", limit, err)
		case <-tick.C:
		}
	}
}
