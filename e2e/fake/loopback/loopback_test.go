package loopback

import (
	"net"
	"testing"
)

func TestFree(t *testing.T) {
	addresses, err := Free(t.Context(), 20)
	if err != nil {
		t.Fatal(err)
	}
	// All at once: so all differ, and nothing listens.
	for _, address := range addresses {
		listener, err := net.Listen("tcp", address.String())
		if err != nil {
			t.Fatal(err)
		}
		defer listener.Close()
		// Linux gives out ports from 32768 (ip(7)).
		if port := address.Port(); port >= 32768 {
			t.Errorf("port %d may be given to somebody else", port)
		}
	}
	if len(addresses) != 20 {
		t.Errorf("%d addresses", len(addresses))
	}
}

func TestFreeGivesUp(t *testing.T) {
	if addresses, err := Free(t.Context(), 101); err == nil {
		t.Errorf("%d addresses in 100 attempts", len(addresses))
	}
}
