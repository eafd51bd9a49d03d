//go:build linux

package machine

import (
	"net"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

func net4(address string, port int) *net.TCPAddr {
	return &net.TCPAddr{IP: net.ParseIP(address), Port: port}
}

// listenIn listens in another network namespace: a socket belongs for ever to
// the namespace in which it was made.
func listenIn(namespace string, addr *net.TCPAddr) (net.Listener, error) {
	type result struct {
		listener net.Listener
		err      error
	}
	c := make(chan result)
	go func() {
		// Never unlocked: the thread ends with this goroutine, so that no other
		// ever runs in the wrong namespace.
		runtime.LockOSThread()
		var r result
		if r.err = setNamespace(namespace); r.err == nil {
			r.listener, r.err = net.ListenTCP("tcp4", addr)
		}
		c <- r
	}()
	r := <-c
	return r.listener, r.err
}

func setNamespace(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return os.NewSyscallError("setns", unix.Setns(int(f.Fd()), unix.CLONE_NEWNET))
}
