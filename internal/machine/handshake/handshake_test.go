package handshake

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/sshkey/sshkeytest"
)

// serve answers connections at a separate address.
func serve(t *testing.T, answer func(net.Conn)) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() { defer conn.Close(); answer(conn) }()
		}
	}()
	return netip.MustParseAddrPort(l.Addr().String())
}

// What a handshake that fails says about the server decides what happens to it.
func TestHostKeyTellsFailuresApart(t *testing.T) {
	speak := func(config ssh.Config) func(net.Conn) {
		return func(conn net.Conn) {
			server := &ssh.ServerConfig{Config: config, NoClientAuth: true}
			server.AddHostKey(sshkeytest.NewSigner(t))
			_, _, _, _ = ssh.NewServerConn(conn, server)
		}
	}
	silence := func(conn net.Conn) { _, _ = io.Copy(io.Discard, conn) }
	closed := serve(t, func(net.Conn) {})
	refused := func() netip.AddrPort {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		return netip.MustParseAddrPort(l.Addr().String())
	}()
	for _, test := range []struct {
		name    string
		address netip.AddrPort
		timeout time.Duration
		want    error
		message string
	}{
		{"nothing listens", refused, 0, ErrRefused, ""},
		{"TCP wrappers", closed, 0, ErrClosed, ""},
		{"no longer admitted", serve(t, func(c net.Conn) { _, _ = io.WriteString(c, "Not allowed at this time\r\n") }), 0, ErrClosed, ""},
		{"silence", serve(t, silence), time.Millisecond, ErrNoAnswer, ""},
		{"other host keys", serve(t, speak(ssh.Config{})), 0, ErrNotPresented, "host key"},
		{"other key exchanges", serve(t, speakRaw("sntrup4591761x25519-sha512@tinyssh.org", "aes128-ctr", "hmac-sha2-256")), 0, ErrNoCommonAlgorithm, "KexAlgorithms"},
		{"other ciphers", serve(t, speakRaw(ssh.KeyExchangeCurve25519, "aes192-cbc", "hmac-sha2-256")), 0, ErrNoCommonAlgorithm, "Ciphers"},
		{"other MACs", serve(t, speakRaw(ssh.KeyExchangeCurve25519, "aes128-ctr", "umac-128@openssh.com")), 0, ErrNoCommonAlgorithm, "MACs"},
	} {
		t.Run(test.name, func(t *testing.T) {
			ctx := t.Context()
			if test.timeout > 0 {
				var cancel context.CancelFunc
				ctx, cancel = context.WithTimeout(ctx, test.timeout)
				defer cancel()
			}
			algorithms := []string{ssh.CertAlgoRSASHA512v01}
			if !errors.Is(test.want, ErrNotPresented) {
				algorithms = nil
			}
			_, err := HostKey(ctx, test.address, algorithms)
			if !errors.Is(err, test.want) || !strings.Contains(err.Error(), test.message) {
				t.Errorf("%v, want %v with %q", err, test.want, test.message)
			}
		})
	}
}

// Each connection comes from another address, so that none counts against 127.0.0.1.
func TestHostKeyComesFromAnAddressOfItsOwn(t *testing.T) {
	seen := make(chan netip.Addr, 2)
	address := serve(t, func(c net.Conn) {
		seen <- netip.MustParseAddrPort(c.RemoteAddr().String()).Addr()
	})
	for range 2 {
		_, err := HostKey(t.Context(), address, nil)
		if !errors.Is(err, ErrClosed) {
			t.Fatal(err)
		}
	}
	first, second := <-seen, <-seen
	services := netip.MustParsePrefix("127.0.0.0/16")
	for _, from := range []netip.Addr{first, second} {
		if !from.IsLoopback() || services.Contains(from) {
			t.Errorf("a connection came from %s", from)
		}
	}
	if first == second {
		t.Errorf("both connections came from %s", first)
	}
}

// speakRaw sends an identification string and the SSH_MSG_KEXINIT of a server that has only
// the given algorithms (RFC 4253, section 7.1), which the library need not know.
func speakRaw(kex, cipher, mac string) func(net.Conn) {
	lists := []string{kex, ssh.KeyAlgoED25519, cipher, cipher, mac, mac, "none", "none", "", ""}
	payload := append([]byte{20}, make([]byte, 16)...)
	for _, list := range lists {
		payload = binary.BigEndian.AppendUint32(payload, uint32(len(list)))
		payload = append(payload, list...)
	}
	payload = append(payload, 0, 0, 0, 0, 0)
	padding := 8 - (5+len(payload))%8 + 8
	packet := binary.BigEndian.AppendUint32(nil, uint32(1+len(payload)+padding))
	packet = append(packet, byte(padding))
	packet = append(append(packet, payload...), make([]byte, padding)...)
	return func(conn net.Conn) {
		_, _ = conn.Write(append([]byte("SSH-2.0-test\r\n"), packet...))
		_, _ = io.Copy(io.Discard, conn)
	}
}
