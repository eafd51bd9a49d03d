//go:build linux && amd64

package agent

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"

	"github.com/hallmark-ssh/hallmark/internal/machine/sshd"
)

// A run that is killed at any step leaves a working sshd, and the next run repairs
// what it left. The run is a process of its own, which is traced: before each of the
// system calls that change something it can be killed.
func TestKilledAtEveryStep(t *testing.T) {
	for _, test := range []struct {
		name    string
		prepare func(t *testing.T, m *machine)
		least   int // steps, lest the test finds none
	}{
		{"first enrollment, with a reload", func(_ *testing.T, m *machine) {
			m.sshd.stop()
			m.sshd.configure("")
			m.sshd.start()
			m.sshd.configure(m.sshd.hallmarkLines())
		}, 30},
		{"renewal with another CA", func(t *testing.T, m *machine) {
			if _, err := m.Enroll(t.Context()); err != nil {
				t.Fatal(err)
			}
			s := m.state()
			s.RenewAfter = time.Now().Add(-time.Hour)
			if err := m.save(s); err != nil {
				t.Fatal(err)
			}
			authority := newSigner(t)
			m.mu.Lock() // the run that was killed cannot be waited for by channels
			defer m.mu.Unlock()
			m.authority = authority
		}, 30},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			m := newMachine(t)
			for step := 1; ; step++ {
				m.unenroll()
				test.prepare(t, m)
				killed, last := m.runUntil(step)
				m.worksAfterwards(fmt.Sprintf("killed at step %d (%s)", step, last))
				if !killed {
					if step <= test.least {
						t.Errorf("it took %d steps only", step)
					}
					t.Logf("%d steps", step-1)
					return
				}
				if t.Failed() {
					return
				}
			}
		})
	}
}

// unenroll makes the machine what it was when it was new.
func (m *machine) unenroll() {
	m.t.Helper()
	certificates, err := filepath.Glob(filepath.Join(m.dir, "*-cert.pub"))
	if err != nil {
		m.t.Fatal(err)
	}
	for _, path := range append(certificates, m.stateDir) {
		if err := os.RemoveAll(path); err != nil {
			m.t.Fatal(err)
		}
	}
	m.sshd.write("hallmark/openssh_ca.pub", string(renderAuthorities([]ssh.PublicKey{newSigner(m.t).PublicKey()})))
}

// worksAfterwards checks the machine as it was left, then as the next run leaves it.
func (m *machine) worksAfterwards(when string) {
	m.t.Helper()
	m.sshd.acceptsLogins()
	m.sshd.stop()
	m.sshd.start() // a boot, or an upgrade of sshd
	m.sshd.acceptsLogins()
	if pinned := m.sshd.keyPath("ed25519"); len(m.sshd.pins(pinned)) == 0 {
		m.t.Errorf("%s: a client that knows only the Ed25519 key does not get in", when)
	}
	o, err := m.Enroll(m.t.Context())
	if err != nil {
		m.t.Fatalf("%s: the next run: %v", when, err)
	}
	if !o.State.Presented {
		m.t.Errorf("%s: after the next run sshd was not seen to present the certificates", when)
	}
	if err := m.sshd.tryLogin(userCertificate(m.t, m.authority), m.hostCertificateOnly()); err != nil {
		m.t.Errorf("%s: login by certificate: %v", when, err)
	}
	for _, pattern := range []string{".*.hallmark-*", "*/.*.hallmark-*"} {
		left, err := filepath.Glob(filepath.Join(m.dir, pattern))
		if err != nil || len(left) > 0 {
			m.t.Errorf("%s: the next run leaves %q", when, left)
		}
	}
}

// killedRun is the environment variable that makes TestKilledRun a run of hallmark.
const killedRun = "HALLMARK_KILLED_RUN"

// TestKilledRun is the run that is killed.
func TestKilledRun(t *testing.T) {
	dir := os.Getenv(killedRun)
	if dir == "" {
		t.Skip("it is for TestKilledAtEveryStep")
	}
	client, err := newSignerClient(filepath.Join(dir, "signer_ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	r := newRetry(t.Logf)
	e := &Enroller{
		Config:   Config{SignerURL: os.Getenv("HALLMARK_SIGNER"), Audience: "hallmark.example.com"},
		Timeout:  time.Minute,
		stateDir: filepath.Join(dir, "state"), caFile: filepath.Join(dir, "hallmark", "openssh_ca.pub"),
		server:   &sshd.Server{Program: os.Getenv("HALLMARK_SSHD"), Config: filepath.Join(dir, "sshd_config")},
		metadata: newMetadata(r), http: client, retry: r, attempt: signerTimeout, now: time.Now, settle: 10 * time.Second, suspended: suspended,
	}
	if _, err := e.Renew(context.Background()); err != nil {
		t.Fatal(err)
	}
}

// runUntil runs a renewal in a process of its own, and kills it before the given
// step. It returns false if it ended before that, and what the step was.
func (m *machine) runUntil(step int) (killed bool, what string) {
	m.t.Helper()
	return runTraced(m.t, "TestKilledRun", m.dir, step,
		killedRun+"="+m.dir, "AWS_EC2_METADATA_SERVICE_ENDPOINT="+m.metadata.endpoint, "HALLMARK_SIGNER="+m.Config.SignerURL, "HALLMARK_SSHD="+m.sshd.Program)
}

// runTraced runs one of the tests in a process of its own, and kills it before the given
// change of what is below a folder.
func runTraced(t testing.TB, test, dir string, step int, environment ...string) (killed bool, what string) {
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
	cmd.SysProcAttr = &syscall.SysProcAttr{Ptrace: true}
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
		thread, err := syscall.Wait4(-1, &status, unix.WALL|unix.WNOTHREAD, nil)
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
			return 0, err // a thread that was killed meanwhile is no error
		}
	}
}

// stopped handles one stop of a thread, and lets it go on.
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
	case syscall.SIGTRAP, syscall.SIGSTOP: // a thread begins
		signal = 0
	default: // passed on
	}
	return syscall.PtraceSyscall(thread, signal)
}

// change names the system call that a thread is about to make, if it changes the
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
	n, _ := memory.ReadAt(text, int64(address)) // less is there at the end of a page
	path, _, _ := strings.Cut(string(text[:n]), "\x00")
	return path
}
