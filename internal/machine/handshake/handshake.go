// Package handshake asks an SSH server which host key or certificate it presents.
package handshake

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh"
)

// These errors say what a failed handshake reveals about sshd.
var (
	// ErrNotPresented says that sshd has no host key of the requested algorithms.
	ErrNotPresented = errors.New("sshd presents no such host key")
	// ErrRefused says that nothing listens at the address.
	ErrRefused = errors.New("connection refused")
	// ErrClosed says that the other side closed the connection during the handshake, as TCP
	// wrappers, MaxStartups and PerSourcePenalties do.
	ErrClosed = errors.New("closed during the handshake")
	// ErrNoAnswer says that nothing came back, as behind a firewall.
	ErrNoAnswer = errors.New("no answer")
	// ErrNoCommonAlgorithm says that sshd and this library have no key exchange, cipher
	// or MAC in common.
	ErrNoCommonAlgorithm = errors.New("no common algorithm")
)

// timeout bounds one handshake on the machine itself.
const timeout = 5 * time.Second

// HostKey connects to an sshd, permits only the given host key algorithms, and returns the key
// or certificate that sshd proves to hold. It does not log in. Without algorithms, it permits
// all that the library knows.
//
// Only this shows whether sshd uses a certificate: "sshd -t" accepts certificates that sshd
// then ignores.
//
// OpenSSH 9.8 and later counts a connection without a login against its source address
// (PerSourcePenalties noauth). So the connection comes from an address of its own, if
// possible, and never counts against addresses from which people log in.
func HostKey(ctx context.Context, address netip.AddrPort, algorithms []string) (ssh.PublicKey, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	conn, err := connect(ctx, address)
	if err != nil {
		return nil, fmt.Errorf("connect to sshd: %w", err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()

	var presented ssh.PublicKey
	config := clientConfig(algorithms)
	// The library calls this after it has verified the host's signature, so sshd holds the key
	// that it presents.
	config.HostKeyCallback = func(_ string, _ net.Addr, key ssh.PublicKey) error {
		presented = key
		return errors.New("seen")
	}
	_, _, _, err = ssh.NewClientConn(conn, address.String(), config)
	if presented != nil {
		return presented, nil
	}
	return nil, fmt.Errorf("handshake with sshd at %s: %w", address, explain(ctx, err))
}

// clientConfig offers everything that the library has: sshd may permit only what the library
// does not prefer, and this connection carries no secret.
func clientConfig(hostKeys []string) *ssh.ClientConfig {
	secure, insecure := ssh.SupportedAlgorithms(), ssh.InsecureAlgorithms()
	if len(hostKeys) == 0 {
		hostKeys = append(secure.HostKeys, insecure.HostKeys...)
	}
	return &ssh.ClientConfig{
		Config: ssh.Config{
			KeyExchanges: append(secure.KeyExchanges, insecure.KeyExchanges...),
			Ciphers:      append(secure.Ciphers, insecure.Ciphers...),
			MACs:         append(secure.MACs, insecure.MACs...),
		},
		User:              "hallmark",
		ClientVersion:     "SSH-2.0-hallmark",
		HostKeyAlgorithms: hostKeys,
	}
}

// connect connects from a separate address, or from the one that the system chooses.
func connect(ctx context.Context, address netip.AddrPort) (net.Conn, error) {
	own := source(address.Addr())
	if own.IsValid() {
		dialer := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(own, 0))}
		conn, err := dialer.DialContext(ctx, "tcp", address.String())
		if err == nil || !unusableSource(err) {
			return conn, explainDial(ctx, err)
		}
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address.String())
	return conn, explainDial(ctx, err)
}

// source returns an address for one connection from this machine to itself, or the zero value.
// In IPv4, all of 127.0.0.0/8 is loopback; services use its first 65,536 addresses (127.0.0.1,
// 127.0.0.53, 127.0.1.1). In IPv6 there is only ::1, so it returns another address of this
// machine.
func source(to netip.Addr) netip.Addr {
	if to.Is4() {
		return netip.AddrFrom4([4]byte{127, byte(1 + rand.N(254)), byte(rand.N(256)), byte(1 + rand.N(254))}) //nolint:gosec // spreads load, keeps no secret
	}
	interfaces, err := net.InterfaceAddrs()
	if err != nil {
		return netip.Addr{}
	}
	for _, i := range interfaces {
		prefix, err := netip.ParsePrefix(i.String())
		if err == nil && prefix.Addr().Is6() && prefix.Addr().IsGlobalUnicast() && prefix.Addr() != to {
			return prefix.Addr()
		}
	}
	return netip.Addr{}
}

// unusableSource reports whether a connection failed because of its source address.
func unusableSource(err error) bool {
	return errors.Is(err, syscall.EADDRNOTAVAIL) || errors.Is(err, syscall.EINVAL) || errors.Is(err, syscall.ENETUNREACH)
}

func explainDial(ctx context.Context, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("%w: %w", ErrRefused, err)
	case errors.Is(err, syscall.ECONNRESET):
		return fmt.Errorf("%w: %w", ErrClosed, err)
	case errors.Is(ctx.Err(), context.Canceled):
		return err
	}
	return fmt.Errorf("%w: %w", ErrNoAnswer, err)
}

// explain returns what a failed handshake reveals about sshd.
func explain(ctx context.Context, err error) error {
	if e, ok := errors.AsType[*ssh.AlgorithmNegotiationError](err); ok {
		if strings.Contains(e.What, "host key") {
			return fmt.Errorf("%w: %w", ErrNotPresented, err)
		}
		return fmt.Errorf("%w: sshd's %s offers only %q", ErrNoCommonAlgorithm, keywordOf(e.What), e.RequestedAlgorithms)
	}
	switch {
	case errors.Is(ctx.Err(), context.Canceled):
		return err
	case errors.Is(ctx.Err(), context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("%w: %w", ErrNoAnswer, err)
	}
	return fmt.Errorf("%w: %w", ErrClosed, err)
}

// keywordOf returns the keyword of sshd_config(5) for a list of RFC 4253, section 7.1, as the
// library calls the list.
func keywordOf(list string) string {
	switch {
	case strings.Contains(list, "key exchange"):
		return "KexAlgorithms"
	case strings.Contains(list, "cipher"):
		return "Ciphers"
	case strings.Contains(list, "MAC"):
		return "MACs"
	}
	return list
}
