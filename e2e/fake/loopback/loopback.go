// Package loopback finds addresses for programs that have to be told where to listen.
package loopback

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
)

// Free returns n addresses of 127.0.0.1 at which nothing listens. Their ports are below the
// ephemeral range (ip_local_port_range in ip(7)), because the system could give an ephemeral port
// to another process before the program listens.
func Free(ctx context.Context, n int) ([]netip.AddrPort, error) {
	const first, count, attempts = 20_000, 12_000, 100
	var free []netip.AddrPort
	for range attempts {
		address := netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(first+rand.N(count)))
		if slices.Contains(free, address) {
			continue
		}
		listener, err := new(net.ListenConfig).Listen(ctx, "tcp4", address.String())
		if err != nil {
			continue // somebody listens there
		}
		if err := listener.Close(); err != nil {
			return nil, err
		}
		if free = append(free, address); len(free) == n {
			return free, nil
		}
	}
	return nil, fmt.Errorf("found %d of %d free ports in %d attempts", len(free), n, attempts)
}
