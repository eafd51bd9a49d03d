//go:build e2e

package stack

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/e2e/fake/moto"
	"github.com/hallmark-ssh/hallmark/internal/backoff"
)

// limit is a safety net. The tests wait for conditions.
const limit = 2 * time.Minute

// waitFor waits until a condition holds.
func waitFor(t *testing.T, what string, holds func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), limit)
	defer cancel()
	for !holds() {
		if backoff.Wait(ctx, 10*time.Millisecond) != nil {
			t.Fatalf("gave up waiting for %s", what)
		}
	}
}

// bootstraps are the functions' processes that run now.
func bootstraps(t *testing.T) []int {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	must(t, err)
	var pids []int
	for _, path := range stats {
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path)))
		must(t, err)
		if command, parent := process(pid, "PPid"); command == "bootstrap" && parent == strconv.Itoa(os.Getpid()) {
			pids = append(pids, pid)
		}
	}
	return pids
}

// process returns a process's name, and a field of its status.
func process(pid int, field string) (name, value string) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return "", "" // it has ended
	}
	for line := range strings.Lines(string(data)) {
		switch key, rest, _ := strings.Cut(line, ":"); key {
		case "Name":
			name = strings.TrimSpace(rest)
		case field:
			value = strings.TrimSpace(rest)
		}
	}
	return name, value
}

// established counts a process's connections to ports that the other side has not closed.
func established(t *testing.T, pid int, ports map[int64]bool) (n int) {
	t.Helper()
	own := make(map[string]bool) // inodes
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	must(t, err)
	for _, link := range links {
		if target, err := os.Readlink(link); err == nil {
			own[target] = true
		}
	}
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/net/tcp", pid))
	must(t, err)
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line) // sl local remote state … inode (proc_pid_net(5))
		if len(f) < 10 || f[3] != "01" || !own["socket:["+f[9]+"]"] {
			continue
		}
		_, port, _ := strings.Cut(f[2], ":")
		if number, err := strconv.ParseInt(port, 16, 32); err == nil && ports[number] {
			n++
		}
	}
	return n
}

// portOf returns the port of an address or URL.
func portOf(t *testing.T, address string) int64 {
	t.Helper()
	_, port, err := net.SplitHostPort(address[strings.LastIndex(address, "/")+1:])
	must(t, err)
	number, err := strconv.ParseInt(port, 10, 32)
	must(t, err)
	return number
}

// freeze stops the functions as Lambda does between two invocations, for so long that all
// their connections are closed by the other side.
func (w *world) freeze() (thaw func()) {
	w.t.Helper()
	pids := bootstraps(w.t)
	if len(pids) == 0 {
		w.t.Fatal("no function runs")
	}
	ports := map[int64]bool{portOf(w.t, w.awsURL): true, portOf(w.t, w.stsURL): true, portOf(w.t, w.cluster.Address()): true}
	open := 0
	for _, pid := range pids {
		open += established(w.t, pid, ports)
		must(w.t, syscall.Kill(pid, syscall.SIGSTOP))
		waitFor(w.t, "the process to stop", func() bool {
			_, state := process(pid, "State")
			return strings.HasPrefix(state, "T")
		})
	}
	if open == 0 {
		w.t.Fatal("no function keeps a connection")
	}
	for _, server := range w.servers {
		server.CloseClientConnections()
	}
	w.cluster.CloseConnections()
	for _, pid := range pids {
		waitFor(w.t, "its connections to be closed", func() bool { return established(w.t, pid, ports) == 0 })
	}
	return func() {
		for _, pid := range pids {
			if err := syscall.Kill(pid, syscall.SIGCONT); err != nil && !errors.Is(err, syscall.ESRCH) {
				w.t.Error(err)
			}
		}
	}
}

// The next invocation after a freeze succeeds, in the same process, over new connections, and
// nothing counts as an error.
func TestFreezing(t *testing.T) {
	d := newWorld(t).deploy("frozen", map[string]string{}, nil)
	i := d.launch(moto.Account)
	d.enrolled(i)
	d.sweepOrBatch(scheduled)
	before := bootstraps(t)
	for round := range 2 {
		opened, logged := d.connections.Load(), len(d.log.String())
		thaw := d.freeze()
		thaw()
		d.enrolled(i)
		if answer := d.request("GET", nil); answer.Status != 200 {
			t.Errorf("round %d: the question for CAs: %d %s", round, answer.Status, answer.Body)
		}
		d.tag(i, "round", strconv.Itoa(round))
		if report := d.sweepOrBatch(scheduled); !strings.Contains(report, `"Mended":1`) || !strings.Contains(report, `"Failed":0`) {
			t.Errorf("round %d: the sweep reports %s", round, report)
		}
		if d.connections.Load() == opened {
			t.Errorf("round %d: no new connection", round)
		}
		log := d.log.String()[logged:]
		for _, sign := range []string{`"level":"ERROR"`, `_errors":1`} {
			if strings.Contains(log, sign) {
				t.Errorf("round %d: %s in the log:\n%s", round, sign, log)
			}
		}
	}
	if after := bootstraps(t); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("processes %v, were %v: the freeze ended one", after, before)
	}
}
