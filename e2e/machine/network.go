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

// listenIn listens in another network namespace. A socket stays in the namespace that it was
// created in.
func listenIn(namespace string, addr *net.TCPAddr) (net.Listener, error) {
	type result struct {
		listener net.Listener
		err      error
	}
	c := make(chan result)
	go func() {
		// Never unlock the thread. It ends with this goroutine, so no other goroutine runs
		// in the wrong namespace.
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
