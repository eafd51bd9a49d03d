//go:build linux && amd64

package machinetest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// KillAtEveryStep has kill kill a run at its first step, its second, and so on. It ends when
// kill reports that the run ended before that step, which must not be among the least number of
// steps. With -short it leaves out nine of ten.
func KillAtEveryStep(t testing.TB, least int, kill func(step int) (killed bool)) {
	t.Helper()
	stride := 1
	if testing.Short() {
		stride = 10
	}
	for step := 1; !t.Failed(); step += stride {
		if killed := kill(step); !killed {
			if step <= least {
				t.Errorf("the run has no step %d, want at least %d", step, least)
			}
			return
		}
	}
}

// RunTraced runs one of the tests in a separate process, and kills it before the given change
// to a folder's content.
func RunTraced(t testing.TB, test, dir string, step int, environment ...string) (killed bool, what string) {
	t.Helper()
	cmd := exec.Command(os.Args[0], "-test.run=^"+test+"$", "-test.count=1")
	cmd.Env = append(append(os.Environ(), "GOMAXPROCS=1"), environment...)
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	type result struct {
		killed bool
		what   string
		status syscall.WaitStatus
		err    error
	}
	done := make(chan result)
	go func() {
		runtime.LockOSThread() // a tracer is a thread; this one ends with the goroutine
		tracer := &tracer{dir: dir, step: step, inside: map[int]bool{}}
		status, err := tracer.trace(cmd)
		done <- result{tracer.killed, tracer.what, status, err}
	}()
	r := <-done
	if r.err != nil {
		t.Fatalf("trace: %v", r.err)
	}
	if !r.killed && (!r.status.Exited() || r.status.ExitStatus() != 0) {
		data, _ := os.ReadFile(log.Name())
		t.Fatalf("the run fails by itself (%v): %s", r.status, data)
	}
	return r.killed, r.what
}

// tracer counts the changes that a process makes, and kills it before one of them.
type tracer struct {
	dir    string
	step   int
	inside map[int]bool // threads that are in a system call
	count  int
	killed bool
	what   string
}

// trace runs the command to its end (ptrace(2)).
func (tr *tracer) trace(cmd *exec.Cmd) (status syscall.WaitStatus, err error) {
	// The command gets its own process group: another test's child may belong to this same
	// thread, and this must not wait for that child.
	cmd.SysProcAttr = &syscall.SysProcAttr{Ptrace: true, Setpgid: true}
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	pid := cmd.Process.Pid
	if _, err := syscall.Wait4(pid, &status, 0, nil); err != nil {
		return 0, err
	}
	const options = unix.PTRACE_O_TRACECLONE | unix.PTRACE_O_TRACESYSGOOD | unix.PTRACE_O_EXITKILL
	if err := syscall.PtraceSetOptions(pid, options); err != nil {
		return 0, err
	}
	if err := syscall.PtraceSyscall(pid, 0); err != nil {
		return 0, err
	}
	for {
		thread, err := syscall.Wait4(-pid, &status, unix.WALL|unix.WNOTHREAD, nil)
		switch {
		case errors.Is(err, syscall.EINTR):
			continue
		case err != nil:
			return 0, err
		case status.Exited() || status.Signaled():
			if thread == pid {
				return status, nil
			}
			continue
		}
		if err := tr.stopped(pid, thread, status); err != nil && !errors.Is(err, syscall.ESRCH) {
			return 0, err // a thread killed in the meantime is no error
		}
	}
}

// stopped handles one stop of a thread, and lets it continue.
func (tr *tracer) stopped(pid, thread int, status syscall.WaitStatus) error {
	const systemCall = syscall.SIGTRAP | 0x80
	signal := int(status.StopSignal())
	switch syscall.Signal(signal) {
	case systemCall:
		signal = 0
		tr.inside[thread] = !tr.inside[thread]
		if !tr.inside[thread] {
			break
		}
		what, err := tr.change(thread)
		if err != nil {
			return err
		}
		if what == "" {
			break
		}
		if tr.count++; tr.count == tr.step {
			tr.killed, tr.what = true, what
			return syscall.Kill(pid, syscall.SIGKILL)
		}
	case syscall.SIGTRAP, syscall.SIGSTOP: // a thread starts
		signal = 0
	default: // passed on
	}
	return syscall.PtraceSyscall(thread, signal)
}

// change names the system call that a thread is about to make, if the call changes the
// machine.
func (tr *tracer) change(thread int) (string, error) {
	var r syscall.PtraceRegs
	if err := syscall.PtraceGetRegs(thread, &r); err != nil {
		return "", err
	}
	switch r.Orig_rax {
	case unix.SYS_FSYNC, unix.SYS_FCHMOD, unix.SYS_FCHOWN, unix.SYS_FSETXATTR:
		return fmt.Sprintf("system call %d", r.Orig_rax), nil
	case unix.SYS_LINKAT, unix.SYS_RENAMEAT, unix.SYS_RENAMEAT2, unix.SYS_UNLINKAT:
		path := stringAt(thread, r.Rsi)
		if _, err := os.Lstat(path); err == nil { // otherwise nothing happens
			return fmt.Sprintf("system call %d of %s", r.Orig_rax, path), nil
		}
	case unix.SYS_OPENAT:
		if r.Rdx&unix.O_CREAT != 0 {
			return "create " + stringAt(thread, r.Rsi), nil
		}
	case unix.SYS_WRITE:
		path, err := os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", thread, r.Rdi))
		if err == nil && strings.HasPrefix(path, tr.dir) {
			return "write " + path, nil
		}
	case unix.SYS_KILL:
		if syscall.Signal(r.Rsi) == syscall.SIGHUP {
			return "reload sshd", nil
		}
	}
	return "", nil
}

// stringAt reads a path in the memory of a stopped thread.
func stringAt(thread int, address uint64) string {
	memory, err := os.Open(fmt.Sprintf("/proc/%d/mem", thread))
	if err != nil {
		return ""
	}
	defer memory.Close()
	text := make([]byte, 512)
	n, _ := memory.ReadAt(text, int64(address)) // near the end of a page there is less
	path, _, _ := strings.Cut(string(text[:n]), "\x00")
	return path
}
