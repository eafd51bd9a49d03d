package sshd

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"

	"golang.org/x/crypto/ssh"
)

// ErrNotPresented says that sshd answers, but with no host key of the algorithms
// that were asked for.
var ErrNotPresented = errors.New("sshd presents no such host key")

// handshakeTimeout bounds one handshake on the machine itself.
const handshakeTimeout = 5 * time.Second

// Presented connects to an sshd, permits it the given host key algorithms only,
// and returns the key or certificate that it proves to hold. It does not log in.
// No algorithms means any that the library knows.
//
// Only this tells whether sshd uses a certificate: "sshd -t" approves of
// certificates that sshd then passes over.
func Presented(ctx context.Context, address netip.AddrPort, algorithms []string) (ssh.PublicKey, error) {
	ctx, cancel := context.WithTimeout(ctx, handshakeTimeout)
	defer cancel()
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", address.String())
	if err != nil {
		return nil, fmt.Errorf("connect to sshd: %w", err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()

	var presented ssh.PublicKey
	errSeen := errors.New("seen")
	_, _, _, err = ssh.NewClientConn(conn, address.String(), &ssh.ClientConfig{
		User:              "hallmark",
		ClientVersion:     "SSH-2.0-hallmark",
		HostKeyAlgorithms: algorithms,
		// The library calls this after it has verified the host's signature, so what
		// is presented is also held.
		HostKeyCallback: func(_ string, _ net.Addr, key ssh.PublicKey) error {
			presented = key
			return errSeen
		},
	})
	if presented != nil {
		return presented, nil
	}
	if _, ok := errors.AsType[*ssh.AlgorithmNegotiationError](err); ok {
		return nil, fmt.Errorf("%w: %w", ErrNotPresented, err)
	}
	return nil, fmt.Errorf("handshake with sshd at %s: %w", address, err)
}

// Answering returns those of the addresses at which an sshd answers with a host key
// of any kind. An address of the configuration need not be one of the machine's.
func Answering(ctx context.Context, addresses []netip.AddrPort) (answering []netip.AddrPort) {
	for _, address := range addresses {
		_, err := Presented(ctx, address, nil)
		if err == nil || errors.Is(err, ErrNotPresented) {
			answering = append(answering, address)
		}
	}
	return answering
}
