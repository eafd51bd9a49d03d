package sshd

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// socket is a listening TCP socket.
type socket struct {
	address netip.AddrPort
	inode   string
}

// listening returns the listening TCP sockets in the network namespace of a process.
func listening(pid int) ([]socket, error) {
	var all []socket
	for _, name := range []string{"tcp", "tcp6"} {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/%s", pid, name))
		if errors.Is(err, fs.ErrNotExist) && name == "tcp6" {
			continue // a kernel without IPv6
		}
		if err != nil {
			return nil, fmt.Errorf("read the listening sockets: %w", err)
		}
		all = append(all, parseSockets(string(data))...)
	}
	return all, nil
}

// parseSockets reads /proc/net/tcp or tcp6 (proc(5)) and returns the listening
// sockets. It skips lines that it can't read.
func parseSockets(table string) (sockets []socket) {
	const (
		local, state, inode = 1, 3, 9 // columns
		listen              = "0A"    // TCP_LISTEN
	)
	for line := range strings.Lines(table) {
		fields := strings.Fields(line)
		if len(fields) <= inode || fields[state] != listen {
			continue
		}
		if address, ok := parseKernelAddress(fields[local]); ok {
			sockets = append(sockets, socket{address, fields[inode]})
		}
	}
	return sockets
}

// parseKernelAddress reads "0100007F:0016": the address as 32-bit words, each with
// its bytes reversed on the little-endian machines that EC2 has, and the port.
func parseKernelAddress(text string) (netip.AddrPort, bool) {
	digits, port, _ := strings.Cut(text, ":")
	bytes, err := hex.DecodeString(digits)
	if err != nil || len(bytes)%4 != 0 {
		return netip.AddrPort{}, false
	}
	for word := range slices.Chunk(bytes, 4) {
		slices.Reverse(word)
	}
	number, err := strconv.ParseUint(port, 16, 16)
	address, ok := netip.AddrFromSlice(bytes)
	return netip.AddrPortFrom(address, uint16(number)), ok && err == nil
}

// Listens returns the addresses at which the server accepts connections by its settings, as sshd
// and systemd name them: an unspecified one stands for all of its family. bySystemd says that
// systemd listens for sshd, and then sshd's own settings have no effect. There are no addresses if
// nothing is known, as in an image with such a socket.
func (s *Server) Listens(ctx context.Context, settings Settings) (listen []netip.AddrPort, bySystemd bool) {
	if root := filepath.Join("/", s.Root); root != "/" {
		// The folder is sockets.target.wants, or ssh.service.requires.
		enabled, _ := filepath.Glob(filepath.Join(root, "etc/systemd/system/*/ssh*.socket")) // the pattern is correct
		if len(enabled) > 0 {
			return nil, true
		}
	} else {
		// This is worth little time: nothing else of what the caller does may need systemd.
		ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
		defer cancel()
		units, err := s.units(ctx)
		if err != nil {
			return nil, false
		}
		if socket := activeSocket(units); socket != nil {
			return socket.listen, true
		}
	}
	for _, value := range settings["listenaddress"] {
		address, _, _ := strings.Cut(value, " ") // "… rdomain NAME" may follow
		if parsed, err := netip.ParseAddrPort(address); err == nil {
			listen = append(listen, parsed)
		}
	}
	return listen, false
}

// socketInodes returns the inodes of the sockets that a process holds. Linux refuses this to a
// process with fewer capabilities than the other one, as in hallmark.service: there, root may
// list the files, but not read where they point.
func socketInodes(pid int) (map[string]bool, error) {
	folder := fmt.Sprintf("/proc/%d/fd", pid)
	files, err := os.ReadDir(folder)
	if err != nil {
		return nil, err
	}
	inodes := map[string]bool{}
	for _, file := range files {
		target, err := os.Readlink(filepath.Join(folder, file.Name()))
		switch {
		case errors.Is(err, fs.ErrPermission):
			return nil, err
		case err != nil:
			continue // closed in the meantime
		}
		if inode, ok := strings.CutPrefix(target, "socket:["); ok {
			inodes[strings.TrimSuffix(inode, "]")] = true
		}
	}
	return inodes, nil
}

// listenAddresses returns where a process listens, in a form to connect to. If the process's
// files are hidden, it returns the configured addresses at which something listens.
func listenAddresses(pid int, configured []netip.AddrPort) ([]netip.AddrPort, error) {
	sockets, err := listening(pid)
	if err != nil {
		return nil, err
	}
	inodes, err := socketInodes(pid)
	hidden := errors.Is(err, fs.ErrPermission)
	if err != nil && !hidden {
		return nil, fmt.Errorf("read the sockets of process %d: %w", pid, err)
	}
	var addresses []netip.AddrPort
	for _, s := range sockets {
		address := reachable(s.address)
		own := inodes[s.inode] || hidden && slices.Contains(configured, address)
		if own && !slices.Contains(addresses, address) {
			addresses = append(addresses, address)
		}
	}
	slices.SortStableFunc(addresses, nearest)
	return addresses, nil
}

// nearest orders the addresses so that a check disturbs others least: in IPv4, it can come
// from a separate address (see source).
func nearest(a, b netip.AddrPort) int {
	rank := func(p netip.AddrPort) int {
		switch {
		case p.Addr().Is4() && p.Addr().IsLoopback():
			return 0
		case p.Addr().Is4():
			return 1
		}
		return 2
	}
	return rank(a) - rank(b)
}
