package sshd

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"
)

// Load is the moment at which the running sshd last read its configuration and host keys: its
// start or its last reload.
type Load struct {
	// Stamp differs from load to load, and does not depend on the clock. It is empty if
	// nothing is waiting to be loaded: no sshd runs, or systemd starts one for each
	// connection.
	Stamp string
	// Process identifies the process. A reload keeps the process; a restart starts another. It
	// is empty if Stamp is.
	Process string
	// At is the time of the load by this machine's clock, or an earlier time if only that is
	// known. It is zero if nothing is known.
	At time.Time
}

// LastLoad determines when the running sshd last read its files.
//
// sshd writes its PID file after it has read its configuration, and again after each SIGHUP,
// on which it restarts itself (sshd.c, sighup_restart). Without a PID file, systemd knows when
// the unit last changed its state, which a reload does too. The start of the process is the
// earliest that the load can be.
func (s *Server) LastLoad(ctx context.Context, pidFile string) (Load, error) {
	units, err := s.unitsUnlessNamed(ctx, pidFile)
	if err != nil {
		return Load{}, err
	}
	pid := s.listener(units, pidFile)
	if pid == 0 || activeSocket(units) != nil && chooseUnit(units, pid) == "" {
		return Load{}, nil
	}
	m := moments{now: time.Now(), sinceBoot: sinceBoot()}
	ticks, _ := startTicks(pid) // unreadable where /proc hides other users' processes
	if ticks > 0 {
		// The end of the clock tick: a change from before the process started is older than
		// that.
		m.start = time.Duration(ticks+1) * (time.Second / ticksPerSecond)
	}
	if s.named(pidFile) == pid {
		if info, err := os.Stat(pidFile); err == nil {
			m.pidFile = info.ModTime()
		}
	}
	for _, u := range units {
		if u.active && !u.isSocket() && u.mainPID == pid {
			m.unit = u.changed
		}
	}
	return Load{Stamp: m.stamp(pid), Process: m.process(pid), At: m.load()}, nil
}

// moments are what is known about a process's last load. Each may be zero.
type moments struct {
	now       time.Time
	sinceBoot time.Duration // at that time
	start     time.Duration // of the process, after boot
	unit      time.Duration // of the unit's last change of state, after boot
	pidFile   time.Time     // when the PID file was written, by the clock of that time
}

// load returns the latest time at which the process is known to have loaded its files, or an
// earlier time. Times since boot hold even if the clock was changed. A PID file from the
// future was written when the clock was wrong, so its time is ignored.
func (m moments) load() (at time.Time) {
	for _, afterBoot := range []time.Duration{m.start, m.unit} {
		if t := m.now.Add(afterBoot - m.sinceBoot); afterBoot > 0 && m.sinceBoot > 0 && t.After(at) {
			at = t
		}
	}
	if m.pidFile.After(at) && !m.pidFile.After(m.now) {
		at = m.pidFile
	}
	return at
}

func (m moments) process(pid int) string { return fmt.Sprintf("%d %d", pid, m.start) }

func (m moments) stamp(pid int) string {
	stamp := fmt.Sprintf("%s %d", m.process(pid), m.unit)
	if !m.pidFile.IsZero() {
		stamp += fmt.Sprintf(" %d", m.pidFile.UnixNano())
	}
	return stamp
}

// ticksPerSecond is the unit of times in /proc (USER_HZ, proc(5)). It is the same on every
// machine in EC2.
const ticksPerSecond = 100

// startTicks returns when a process started, after boot (field 22 of /proc/PID/stat).
func startTicks(pid int) (int64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	return parseStartTicks(string(data))
}

// parseStartTicks reads /proc/PID/stat. The program's name, which may contain anything, is in
// parentheses; the fields after it are not.
func parseStartTicks(stat string) (int64, error) {
	const start = 22 - 3 // counted from the field after the name, the third
	fields := strings.Fields(stat[strings.LastIndex(stat, ")")+1:])
	if len(fields) <= start {
		return 0, fmt.Errorf("read a process's start: %d fields", len(fields))
	}
	return strconv.ParseInt(fields[start], 10, 64)
}
