//go:build linux

// Package machine runs Debian machines for the whole-path tests and the demo:
// systemd-nspawn containers with their own systemd, sshd, cloud-init, network
// and metadata service.
//
// Everything happens in new mount, process, network and IPC namespaces, on a file system
// in memory. However the program ends, the kernel removes everything: mounts, processes,
// interfaces, files. So nothing needs cleaning up, and two runs never interfere.
package machine

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

const (
	// insideVariable holds the paths of the root file systems, by release, and is set
	// only for the copy of the program that runs isolated.
	insideVariable = "HALLMARK_FLEET_ROOTFS"

	// scratch is where the isolated program keeps its files. Its /run is a separate file
	// system in memory.
	scratch = "/run/hallmark"
)

// Main runs the function inside in isolation, and returns the program's exit code. It starts
// the program again in new namespaces, and only that copy calls inside. Progress goes to w.
// An interrupt or termination signal cancels the context of inside; a second one ends
// everything at once. The fleet has base images of the given releases, by default Debian 12.
func Main(w io.Writer, inside func(ctx context.Context, f *Fleet) int, releases ...Release) int {
	logger := log.New(w, "fleet: ", 0)
	if rootFS := os.Getenv(insideVariable); rootFS != "" {
		return enter(logger, rootFS, inside)
	}
	if len(releases) == 0 {
		releases = []Release{Debian12}
	}
	code, err := isolate(logger, releases)
	if err != nil {
		logger.Printf("error: %v", err)
		return 1
	}
	return code
}

// Tests is Main for a package's tests. Inside, it sets up what they share and runs them. The
// name prefixes the error of a failed setup.
func Tests(name string, setUp func(ctx context.Context, f *Fleet) error, run func() int, releases ...Release) int {
	return Main(os.Stderr, func(ctx context.Context, f *Fleet) int {
		if err := setUp(ctx, f); err != nil {
			fmt.Fprintf(os.Stderr, "%s: error: %v\n", name, err)
			return 1
		}
		return run()
	}, releases...)
}

// isolate prepares what needs the outside world, then runs the program again.
func isolate(logger *log.Logger, releases []Release) (int, error) {
	if os.Geteuid() != 0 {
		return 0, errors.New("machines need root: run this with sudo")
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	rootFS := make(map[Release]string)
	for _, release := range releases {
		dir, err := RootFS(ctx, logger, release)
		if err != nil {
			return 0, fmt.Errorf("make a root file system of Debian %s: %w", release, err)
		}
		rootFS[release] = dir
	}
	encoded, err := json.Marshal(rootFS)
	if err != nil {
		return 0, err
	}
	stop() // the copy gets the signals from here on
	defer removeGroups()
	return runAgain(string(encoded))
}

func runAgain(rootFS string) (int, error) {
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	cmd := exec.Command(self, os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), insideVariable+"="+rootFS)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC,
		// Terminal signals reach only this process, which passes them on once.
		Setsid: true,
		// The copy is process 1 of its namespace. If it is killed, so is everything that it
		// started.
		Pdeathsig: unix.SIGKILL,
	}

	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	defer signal.Stop(signals)

	// Pdeathsig fires when the thread that started the copy ends.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := cmd.Start(); err != nil {
		return 0, fmt.Errorf("start isolated: %w", err)
	}
	done := make(chan struct{})
	defer close(done)
	go pass(signals, cmd.Process, done)

	err = cmd.Wait()
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.Exited() {
		return exit.ExitCode(), nil
	}
	return 0, err
}

// pass forwards the first signal, and kills the process at the second.
func pass(signals <-chan os.Signal, p *os.Process, done <-chan struct{}) {
	for n := 0; ; n++ {
		select {
		case <-done:
			return
		case s := <-signals:
			if n > 0 {
				s = os.Kill
			}
			_ = p.Signal(s) // it may just have ended
		}
	}
}

// enter finishes the isolation from inside, and calls the real main function.
func enter(logger *log.Logger, rootFS string, inside func(context.Context, *Fleet) int) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	f := &Fleet{group: newGroup()}
	if err := errors.Join(json.Unmarshal([]byte(rootFS), &f.rootFS), furnish(ctx)); err != nil {
		logger.Printf("error: prepare the isolated system: %v", err)
		return 1
	}
	return inside(ctx, f)
}

// furnish mounts what the namespaces need, and brings the hub's network up.
func furnish(ctx context.Context) error {
	mounts := []struct {
		target, kind string
		flags        uintptr
	}{
		// Without this, our mounts would appear outside too.
		{"/", "", unix.MS_REC | unix.MS_PRIVATE},
		{"/proc", "proc", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
		{"/run", "tmpfs", unix.MS_NOSUID},
	}
	for _, m := range mounts {
		if err := unix.Mount(m.kind, m.target, m.kind, m.flags, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.target, err)
		}
	}
	temporary := filepath.Join(scratch, "tmp")
	if err := os.MkdirAll(temporary, 0o755); err != nil {
		return err
	}
	if err := os.Setenv("TMPDIR", temporary); err != nil {
		return err
	}
	return ip(ctx,
		"link set lo up",
		// With an address of its own, the bridge keeps it when a machine leaves. The others would
		// otherwise send to the old one for a while.
		"link add hub address 02:00:00:00:00:01 type bridge",
		"addr add "+hubPrefix+" dev hub",
		"link set hub up",
	)
}

// ip runs commands of ip(8) in one go.
func ip(ctx context.Context, commands ...string) error {
	cmd := exec.CommandContext(ctx, "ip", "-batch", "-")
	cmd.Stdin = strings.NewReader(strings.Join(commands, "\n"))
	return run(cmd)
}

// run runs a command. Its error contains the command's output.
func run(cmd *exec.Cmd) error {
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", filepath.Base(cmd.Path), err, strings.TrimSpace(string(out)))
	}
	return nil
}
