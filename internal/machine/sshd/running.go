package sshd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
)

// Running is the sshd that accepts new connections.
type Running struct {
	// Listen are the addresses at which it listens, in a form to connect to.
	Listen []netip.AddrPort
}

// Running returns the sshd that accepts new connections, or nil if there is none. If systemd
// listens for sshd, systemd's socket counts, because the next connection starts an sshd.
// Otherwise the running process's own sockets count: they differ from the configuration if
// sshd has options such as -p, or if somebody has edited the configuration since.
func (s *Server) Running(ctx context.Context, conf *Effective) (*Running, error) {
	units, err := s.units(ctx)
	if err != nil {
		return nil, err
	}
	if socket := activeSocket(units); socket != nil && len(socket.listen) > 0 {
		var listen []netip.AddrPort
		for _, address := range socket.listen {
			listen = append(listen, reachable(address))
		}
		slices.SortStableFunc(listen, nearest)
		return &Running{Listen: listen}, nil
	}
	pid := s.listener(units, conf.PIDFile)
	if pid == 0 {
		return nil, nil
	}
	listen, err := listenAddresses(pid, conf.Listen)
	if err != nil {
		return nil, err
	}
	if len(listen) == 0 {
		return nil, nil // it is exiting, or reading its configuration again
	}
	return &Running{Listen: listen}, nil
}

// listener returns the process that accepts connections, or 0: the process in the PID file,
// otherwise the main process of sshd's unit, otherwise one with a matching command line.
func (s *Server) listener(units []unit, pidFile string) int {
	if pid := s.named(pidFile); pid != 0 {
		return pid
	}
	if s.Config == "" {
		for _, u := range units {
			if u.active && !u.isSocket() && u.mainPID > 1 {
				return u.mainPID
			}
		}
	}
	return s.search()
}

// named returns the process in a PID file, or 0. The default PID file belongs to the machine's
// own sshd, not to a server with another configuration.
func (s *Server) named(pidFile string) int {
	pid, err := listenerPID(pidFile)
	if err != nil {
		return 0
	}
	if s.Config != "" && (pidFile == "/run/sshd.pid" || pidFile == "/var/run/sshd.pid") {
		if c, _ := commandLine(pid); c.config != s.Config {
			return 0
		}
	}
	return pid
}

// search looks for a listener among this user's processes, but not in containers. A program
// that another user calls sshd is not the machine's.
func (s *Server) search() int {
	folders, err := os.ReadDir("/proc")
	if err != nil {
		return 0
	}
	for _, folder := range folders {
		pid, err := strconv.Atoi(folder.Name())
		if err != nil || pid <= 1 || !ownProcess(folder) || processName(pid) != "sshd" || inContainer(pid) {
			continue
		}
		if c, ok := commandLine(pid); ok && c.config == s.Config {
			return pid
		}
	}
	return 0
}

// ownProcess reports whether a process runs as the same user as this one.
func ownProcess(folder fs.DirEntry) bool {
	info, err := folder.Info()
	if err != nil {
		return false
	}
	of, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(of.Uid) == os.Geteuid()
}

// inContainer reports whether a process is known to see other files or another network.
func inContainer(pid int) bool {
	for _, kind := range []string{"mnt", "net"} {
		its, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, kind))
		mine, err2 := os.Readlink("/proc/self/ns/" + kind)
		if err == nil && err2 == nil && its != mine {
			// A unit with ProtectSystem= sees the same files through its own mount namespace.
			if kind == "net" || !sameFile(fmt.Sprintf("/proc/%d/root/etc/ssh", pid), "/etc/ssh") {
				return true
			}
		}
	}
	return false
}

func sameFile(a, b string) bool {
	one, err := os.Stat(a)
	if err != nil {
		return errors.Is(err, fs.ErrPermission)
	}
	other, err := os.Stat(b)
	return err == nil && os.SameFile(one, other)
}

// invocation is what a listener's command line says about its configuration.
type invocation struct {
	config  string   // of -f
	options []string // the other options that affect its settings: -4 -6 -c -h -o -p
}

// commandLine reads the command line of a listener. ok is false for another process, such as a
// session.
func commandLine(pid int) (c invocation, ok bool) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return c, false
	}
	return parseCommandLine(string(data))
}

// parseCommandLine reads a command line from /proc (proc(5)). A listener shows its arguments
// as a title: "sshd: /usr/sbin/sshd -D -p 2222 [listener] 0 of 10-100 startups". Before it
// sets the title, the command line has the original arguments.
func parseCommandLine(text string) (c invocation, ok bool) {
	text = strings.TrimRight(text, "\x00 ")
	var words []string
	if title, isTitle := strings.CutPrefix(text, "sshd: "); isTitle {
		arguments, _, isListener := strings.Cut(title, " [listener]")
		if !isListener {
			return c, false
		}
		words = strings.Fields(arguments)
	} else {
		words = strings.Split(text, "\x00")
	}
	if len(words) == 0 || filepath.Base(words[0]) != "sshd" {
		return c, false
	}
	return parseOptions(words[1:])
}

// parseOptions reads sshd's options (sshd(8)) as getopt(3) does. A title splits a value at its
// blanks, so a word that belongs to no option continues the last value.
func parseOptions(words []string) (c invocation, ok bool) {
	const withValue, settings = "CEbcfghkoup", "46chop"
	var value *string // of the last option, if it takes one
	for len(words) > 0 {
		word := words[0]
		words = words[1:]
		if !strings.HasPrefix(word, "-") {
			if value != nil {
				*value += " " + word
			}
			continue
		}
		for letters := word[1:]; letters != ""; {
			letter := letters[:1]
			letters = letters[1:]
			value = nil
			if letter == "i" {
				return c, false // one connection of inetd
			}
			if strings.Contains(settings, letter) {
				c.options = append(c.options, "-"+letter)
			}
			if !strings.Contains(withValue, letter) {
				continue
			}
			if letters == "" && len(words) > 0 {
				letters, words = words[0], words[1:]
			}
			switch {
			case letter == "f":
				c.config = letters
				value = &c.config
			case strings.Contains(settings, letter):
				c.options = append(c.options, letters)
				value = &c.options[len(c.options)-1]
			default:
				value = new(string) // not needed, and neither are words that continue it
			}
			letters = ""
		}
	}
	return c, true
}
