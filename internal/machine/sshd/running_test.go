package sshd

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestParseCommandLine(t *testing.T) {
	argv := func(words ...string) string { return strings.Join(words, "\x00") + "\x00" }
	for _, test := range []struct {
		name, text string
		config     string
		options    string
		ok         bool
	}{
		{"a listener's title", "sshd: /usr/sbin/sshd -D [listener] 0 of 10-100 startups\x00\x00\x00", "", "", true},
		{"SSHD_OPTS", "sshd: /usr/sbin/sshd -D -p 2222 -4 [listener] 0 of 10-100 startups", "", "-p 2222 -4", true},
		{"letters in one word", "sshd: /usr/sbin/sshd -D4p2222 [listener] 0 of 10-100 startups", "", "-4 -p 2222", true},
		{"another configuration", "sshd: /usr/sbin/sshd -D -f /etc/ssh/prod [listener] 1 of 10-100 startups", "/etc/ssh/prod", "", true},
		{"an option with a blank", "sshd: /usr/sbin/sshd -o ListenAddress 10.0.0.1 -D [listener] 0 of 10-100 startups", "", "-o|ListenAddress 10.0.0.1", true},
		{"just started", argv("/usr/sbin/sshd", "-D", "-o", "Port 22", "-E", "/var/log/sshd"), "", "-o|Port 22", true},
		{"a session", "sshd: root@pts/0", "", "", false},
		{"a session of 9.8", "sshd-session: root [priv]", "", "", false},
		{"a configuration with a blank in its name", "sshd: /usr/sbin/sshd -4 -f /etc/ssh/my own -D [listener] 1 of 10-100 startups", "/etc/ssh/my own", "-4", true},
		{"a log with a blank in its name", "sshd: /usr/sbin/sshd -p 2222 -E /var/log/my sshd [listener] 1 of 10-100 startups", "", "-p 2222", true},
		{"a value in the option's word, with a blank", "sshd: /usr/sbin/sshd -D -oListenAddress 10.0.0.1 -4 [listener] 0 of 10-100 startups", "", "-o|ListenAddress 10.0.0.1|-4", true},
		{"a value of no interest, with a blank", "sshd: /usr/sbin/sshd -p 2222 -C user=a b -6 [listener] 0 of 10-100 startups", "", "-p 2222 -6", true},
		{"letters in one word, then a word of nobody's", argv("/usr/sbin/sshd", "-D46", "x", "-p", "22"), "", "-4 -6 -p 22", true},
		{"an option whose value is missing", argv("/usr/sbin/sshd", "-4", "-p"), "", "-4|-p|", true},
		{"a word after an option without a value", argv("/usr/sbin/sshd", "-4", "#"), "", "-4", true},
		{"inetd", argv("sshd", "-i"), "", "", false},
		{"another program", argv("/bin/sh", "-c", "sshd"), "", "", false},
		{"nothing", "", "", "", false},
		{"a title without words", "sshd:  [listener]", "", "", false},
	} {
		got, ok := parseCommandLine(test.text)
		var want []string
		if strings.Contains(test.options, "|") {
			want = strings.Split(test.options, "|")
		} else {
			want = strings.Fields(test.options)
		}
		if ok != test.ok || ok && (got.config != test.config || !slices.Equal(got.options, want)) {
			t.Errorf("%s: %+v %v, want -f %q and %q, %v", test.name, got, ok, test.config, want, test.ok)
		}
	}
}

func TestAdopted(t *testing.T) {
	for _, test := range []struct {
		own, running, want string
	}{
		{"", "", "-p 22"},
		{"", "/etc/ssh/prod", "-f /etc/ssh/prod -p 22"},
		{"/tmp/one", "/tmp/one", "-p 22"},
		{"/tmp/one", "/tmp/other", ""},
		{"/tmp/one", "", ""},
	} {
		s := &Server{Config: test.own}
		got := s.adopted(invocation{config: test.running, options: []string{"-p", "22"}})
		if strings.Join(got, " ") != test.want {
			t.Errorf("%q beside a running sshd of %q: %q, want %q", test.own, test.running, got, test.want)
		}
	}
}

func FuzzParseCommandLine(f *testing.F) {
	f.Add("sshd: /usr/sbin/sshd -D -o Port 22 [listener] 0 of 10-100 startups")
	f.Add("/usr/sbin/sshd\x00-fx\x00-p\x00")
	f.Fuzz(func(t *testing.T, text string) {
		c, ok := parseCommandLine(text)
		for n, option := range c.options {
			// The result is executed: it may contain only options that affect settings.
			if ok && strings.HasPrefix(option, "-") && len(option) != 2 && (n == 0 || !strings.HasPrefix(c.options[n-1], "-")) {
				t.Errorf("%q became %q", text, c.options)
			}
		}
	})
}

func TestParseSockets(t *testing.T) {
	const table = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4711 1 0 100 0 0 10 0
   1: 00000000:08AE 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4712 1 0 100 0 0 10 0
   2: 0100007F:0016 0100007F:9C40 01 00000000:00000000 00:00000000 00000000     0        0 4713 1 0 100 0 0 10 0
   3: 000000000000000000000000010000000:0016 x 0A
   4: 00000000000000000000000001000000:0016 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4714 1 0 100 0 0 10 0
   5: B80D0120000000000000000001000000:0016 00000000000000000000000000000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4715 1 0 100 0 0 10 0
`
	want := []socket{
		{netip.MustParseAddrPort("127.0.0.1:22"), "4711"}, {netip.MustParseAddrPort("0.0.0.0:2222"), "4712"},
		{netip.MustParseAddrPort("[::1]:22"), "4714"}, {netip.MustParseAddrPort("[2001:db8::1]:22"), "4715"},
	}
	if got := parseSockets(table); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func FuzzParseSockets(f *testing.F) {
	f.Add("0: 0100007F:0016 00000000:0000 0A 0 0 0 0 0 4711\n")
	f.Fuzz(func(t *testing.T, table string) {
		for _, s := range parseSockets(table) {
			if !s.address.Addr().IsValid() {
				t.Errorf("%q has %v", table, s)
			}
		}
	})
}

// This process listens: the kernel's tables say where.
func TestListenAddresses(t *testing.T) {
	if _, err := os.Stat("/proc/self/net/tcp"); err != nil {
		t.Skip("this is not Linux")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	want := netip.MustParseAddrPort(l.Addr().String())
	got, err := listenAddresses(os.Getpid(), nil)
	if err != nil || !slices.Contains(got, want) {
		t.Errorf("%v %v, want %v among them", got, err, want)
	}
	other := exec.Command("sleep", "60")
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Process.Kill(); _ = other.Wait() }()
	if got, err := listenAddresses(other.Process.Pid, []netip.AddrPort{want}); err != nil || len(got) > 0 {
		t.Errorf("a process that holds no socket listens at %v: %v", got, err)
	}
}

// In an image, the host's systemd has no say.
func TestListensOfImage(t *testing.T) {
	root := t.TempDir()
	s := &Server{Root: root}
	settings := ParseSettings([]byte("listenaddress [::1]:22\nlistenaddress 127.0.0.1:22 rdomain blue\nlistenaddress ?\n"))
	if listen, bySystemd := s.Listens(t.Context(), settings); bySystemd || fmt.Sprint(listen) != "[[::1]:22 127.0.0.1:22]" {
		t.Errorf("%v, by systemd %v", listen, bySystemd)
	}
	socket := filepath.Join(root, "etc/systemd/system/sockets.target.wants/ssh.socket")
	if err := errors.Join(os.MkdirAll(filepath.Dir(socket), 0o755), os.Symlink("/lib/systemd/system/ssh.socket", socket)); err != nil {
		t.Fatal(err)
	}
	if listen, bySystemd := s.Listens(t.Context(), settings); !bySystemd || listen != nil {
		t.Errorf("behind a socket: %v, by systemd %v", listen, bySystemd)
	}
}
