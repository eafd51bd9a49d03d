//go:build linux

package teleportd

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

func TestParseVersion(t *testing.T) {
	for _, tt := range []struct {
		printed, version string
		major            int
	}{
		{"Teleport v13.3.8 git: go1.26.1\n", "13.3.8", 13},
		{"Teleport v18.3.0 git:v18.3.0-0-g1a2b3c4 go1.24.9\n", "18.3.0", 18},
		{"Teleport Enterprise v19.0.0-prealpha.2 git: go1.26\n", "19.0.0-prealpha.2", 19},
		{"Teleport v20.1.0", "20.1.0", 20},
		{"tsh v13.3.8", "", 0},
		{"Teleport v13", "", 0},
		{"Teleport v99999999999.0.0 git:", "", 0},
		{"", "", 0},
	} {
		version, major, err := parseVersion(tt.printed)
		if version != tt.version || major != tt.major || (err != nil) != (tt.version == "") {
			t.Errorf("%q: got %q, %d, %v, want %q, %d", tt.printed, version, major, err, tt.version, tt.major)
		}
	}
}

// A version between two that are known behaves like the older one.
func TestBehaviorOfVersionsBetween(t *testing.T) {
	for major, like := range map[int]int{14: 13, 15: 13, 20: 19, 25: 19} {
		if got, want := behaviorOf(major), behaviorOf(like); !reflect.DeepEqual(got, want) {
			t.Errorf("%d: got %+v, want that of %d, %+v", major, got, like, want)
		}
	}
	for _, changed := range []int{16, 17, 18, 19} {
		if reflect.DeepEqual(behaviorOf(changed), behaviorOf(changed-1)) {
			t.Errorf("%d is like %d: then it needs no row", changed, changed-1)
		}
	}
}

func TestStartRefuses(t *testing.T) {
	program := func(t *testing.T, dir, name, script string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"+script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, tt := range map[string]struct {
		lacks, version, want string
	}{
		"no tsh":        {"tsh", "echo Teleport v13.3.8 git: go1.26", "find Teleport's program tsh: "},
		"no tctl":       {"tctl", "", "find Teleport's program tctl: "},
		"too old":       {"", "echo Teleport v12.4.1 git: go1.20", "is Teleport 12.4.1: the tests need 13 or later"},
		"no version":    {"", "echo hello", `no version of Teleport in "hello\n"`},
		"broken binary": {"", "echo cannot run >&2; exit 1", "cannot run"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			for _, p := range []string{"cluster", "tctl", "tsh"} {
				if p != tt.lacks {
					program(t, dir, p, tt.version)
				}
			}
			_, err := Start(t.Context(), Options{Programs: dir, Dir: t.TempDir(), Name: "refused.test", Address: "127.83.99.1"})
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q in it", err, tt.want)
			}
		})
	}
}

// What the tests ask of a proxy without a login stays within its limit by source address
// by waiting, however fast the machine is.
func TestBudgetIsWithinTheLimit(t *testing.T) {
	for _, major := range []int{13, 16, 17, 18, 19} {
		limit := behaviorOf(major)
		b := newBudget(limit)
		if perMinute := float64(b.Limit()) * 60; perMinute > float64(limit.RequestsPerMinute) || b.Burst() >= limit.RequestBurst || b.Burst() < 2 {
			t.Errorf("%d: %v a minute with a burst of %d, the limit is %d with %d", major, perMinute, b.Burst(), limit.RequestsPerMinute, limit.RequestBurst)
		}
	}
}

func TestConcatenate(t *testing.T) {
	dir := t.TempDir()
	if _, err := concatenate(dir); err == nil {
		t.Error("an export without files is accepted")
	}
	for name, content := range map[string]string{"tls-host1.cer": "two", "tls-host0.cer": "one\n\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if all, err := concatenate(dir); err != nil || string(all) != "one\ntwo\n" {
		t.Errorf("got %q, %v", all, err)
	}
}
