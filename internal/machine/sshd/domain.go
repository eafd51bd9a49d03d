package sshd

import (
	"bytes"
	"os"
	"os/exec"
	"runtime"
)

// runInDomain runs a command in this process's SELinux domain.
//
// Debian's policy moves sshd to the server's domain, but the unit has NoNewPrivileges, which
// forbids that transition. The kernel then runs sshd in this domain anyway, and logs a denial
// each time.
func runInDomain(cmd *exec.Cmd) error {
	if !movesDenied() {
		return cmd.Run()
	}
	done := make(chan error)
	go func() {
		// The request belongs to the thread. Never unlock the thread, so that it ends with
		// this goroutine and starts nothing else.
		runtime.LockOSThread()
		// If the policy forbids the request, the command still runs, and the kernel logs a
		// denial.
		_ = keepDomain()
		done <- cmd.Run()
	}()
	return <-done
}

// movesDenied reports whether SELinux is on and this process has no_new_privs (proc(5)).
func movesDenied() bool {
	if _, err := os.Stat("/sys/fs/selinux/enforce"); err != nil {
		return false
	}
	status, err := os.ReadFile("/proc/self/status")
	return err == nil && bytes.Contains(status, []byte("\nNoNewPrivs:\t1\n"))
}

// keepDomain makes the programs that this thread starts run in the thread's own domain, as
// setexeccon(3) does.
func keepDomain() error {
	domain, err := os.ReadFile("/proc/thread-self/attr/current")
	if err != nil {
		return err
	}
	exec, err := os.OpenFile("/proc/thread-self/attr/exec", os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer exec.Close()
	_, err = exec.Write(domain)
	return err
}
