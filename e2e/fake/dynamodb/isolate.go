//go:build linux

package dynamodb

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// isolatedVariable is set for the copy of this program that runs isolated.
const isolatedVariable = "HALLMARK_TEST_ISOLATED"

// Isolated runs tests in a separate network namespace with nothing but loopback, and returns
// their exit status: DynamoDB Local listens on every address.
func Isolated(tests interface{ Run() int }) int {
	if os.Getenv(isolatedVariable) == "" {
		return runIsolated()
	}
	if err := bringUpLoopback(); err != nil {
		fmt.Fprintf(os.Stderr, "bring up loopback: %v\n", err)
		return 1
	}
	return tests.Run()
}

func runIsolated() int {
	// Pdeathsig fires when the thread that started the copy ends.
	runtime.LockOSThread()
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.Env = append(os.Environ(), isolatedVariable+"=1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET, Pdeathsig: unix.SIGKILL}
	if os.Geteuid() != 0 {
		// In a user namespace, everyone may have a network namespace.
		cmd.SysProcAttr.Cloneflags |= unix.CLONE_NEWUSER
		cmd.SysProcAttr.UidMappings = []syscall.SysProcIDMap{{HostID: os.Geteuid(), Size: 1}}
		cmd.SysProcAttr.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getegid(), Size: 1}}
	}
	err := cmd.Run()
	if err == nil {
		return 0
	}
	if exit, ok := errors.AsType[*exec.ExitError](err); ok && exit.Exited() {
		return exit.ExitCode()
	}
	fmt.Fprintf(os.Stderr, "run isolated: %v\n", err)
	return 1
}

func bringUpLoopback() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	request, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	request.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request)
}
