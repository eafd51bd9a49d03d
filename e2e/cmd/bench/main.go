//go:build linux

// Command bench prints Hallmark's measurements: the sizes of its programs,
// what one enrollment costs a machine, how fast it verifies identity documents,
// how long the signer takes to start, and what a sweep of a large fleet costs. It
// does not fail on a bad figure: it prints each one with its ratio to the goal.
package main

import (
	"archive/zip"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/e2e/lab"
	"github.com/hallmark-ssh/hallmark/e2e/machine"
	"github.com/hallmark-ssh/hallmark/internal/identity"
)

const (
	megabyte = 1e6
	runs     = 15
)

func main() {
	var c lab.Config
	hallmark := flag.String("hallmark", "bin/hallmark", "path of the machine's program")
	document := flag.String("document", "internal/identity/testdata/real/us-west-2/rsa2048.txt", "path of a signed identity document")
	empty := flag.String("empty", "bin/bench-empty", "path of a function that does nothing, to compare cold starts with")
	flag.StringVar(&c.Template, "template", "template.yaml", "path of the stack's template")
	flag.StringVar(&c.Bootstrap, "bootstrap", "bin/bootstrap", "path of the signer")
	flag.StringVar(&c.Packer, "packer", "bin/packer", "path of Packer 1.15")
	flag.StringVar(&c.Plugin, "plugin", "bin/packer-plugin-hallmark", "path of the Packer plugin")
	flag.StringVar(&c.Teleport, "teleport", "", "folder with Teleport's programs to compare with; empty skips the comparison")
	joinOnly := flag.Bool("join", false, "only compare an enrollment with teleport join openssh")
	commandsOnly := flag.Bool("commands", false, "only measure what each command costs a machine")
	flag.Parse()
	os.Exit(machine.Main(os.Stderr, func(ctx context.Context, f *machine.Fleet) int {
		var err error
		switch {
		case *joinOnly:
			err = printJoinAlone(ctx, f, c)
		case *commandsOnly:
			err = printCommandsAlone(ctx, f, c)
		default:
			err = errors.Join(printSizes(*hallmark, c.Bootstrap), printVerification(*document), printSweeps(ctx),
				printColdStarts(ctx, c.Bootstrap, *empty), printCosts(ctx, f, c))
		}
		if err != nil {
			fmt.Fprintf(os.Stderr, "bench: error: %v\n", err)
			return 1
		}
		return 0
	}))
}

// show prints a figure next to its goal, which is an upper bound.
func show(what string, value, goal float64, unit string) {
	fmt.Printf("%-46s %9.3f %-4s %5.2f of the goal of %g %s\n", what, value, unit, value/goal, goal, unit)
}

func printSizes(hallmark, bootstrap string) error {
	for _, program := range []struct {
		path string
		goal float64
	}{{hallmark, 12}, {bootstrap, 50}} {
		info, err := os.Stat(program.path)
		if err != nil {
			return err
		}
		show(filepath.Base(program.path)+", size", float64(info.Size())/megabyte, program.goal, "MB")
	}
	zipped, err := zippedSize(bootstrap)
	if err != nil {
		return err
	}
	show("bootstrap, zipped", float64(zipped)/megabyte, 18, "MB")
	return nil
}

// counter counts the bytes written to it.
type counter int64

func (c *counter) Write(p []byte) (int, error) {
	*c += counter(len(p))
	return len(p), nil
}

func zippedSize(path string) (int64, error) {
	program, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer program.Close()
	var size counter
	archive := zip.NewWriter(&size)
	entry, err := archive.Create(filepath.Base(path))
	if err != nil {
		return 0, err
	}
	if _, err := io.Copy(entry, program); err != nil {
		return 0, err
	}
	err = archive.Close()
	return int64(size), err
}

func printVerification(path string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	keyring, err := identity.Regions()
	if err != nil {
		return err
	}
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	var failed error
	result := testing.Benchmark(func(b *testing.B) {
		for b.Loop() {
			message, err := identity.Decode(text)
			if err == nil {
				_, err = keyring.Verify(message)
			}
			failed = errors.Join(failed, err)
		}
	})
	if failed != nil {
		return fmt.Errorf("verify %s: %w", path, failed)
	}
	fmt.Printf("%-46s %9.0f per second on one core\n", "identity documents verified", float64(time.Second)/float64(result.NsPerOp()))
	return nil
}

// cost is what one run of a program cost.
type cost struct {
	wall, cpu float64 // seconds
	memory    float64 // megabytes, at its peak
	// Bytes on the network, all headers included. Those to and from the metadata service and the
	// machine's own sshd are not among them.
	sent, received float64
}

// python runs a command in a machine and reports its cost. If this program started
// the process itself, the process would be charged for this program's memory, because the
// kernel keeps the peak from before exec.
const python = `
import json, resource, subprocess, sys, time
def network():
    lines = [line.split() for line in open("/proc/net/dev").read().replace(":", " ").splitlines()[2:]]
    return [sum(int(l[n]) for l in lines if l[0] != "lo") for n in (9, 1)]
before, start = network(), time.monotonic()
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
wall, usage = time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
sent, received = [b - a for a, b in zip(before, network())]
print(json.dumps({"wall": wall, "cpu": usage.ru_utime + usage.ru_stime, "memory": usage.ru_maxrss, "sent": sent, "received": received}))
`

// printCosts takes its measurements on one booted machine, one after the other.
func printCosts(ctx context.Context, f *machine.Fleet, c lab.Config) error {
	l, i, err := boot(ctx, f, c)
	if err != nil {
		return err
	}
	err = printEnrollment(ctx, l, i)
	if err == nil {
		err = printSigner(l)
	}
	if err == nil {
		err = printEvents(ctx, l, i)
	}
	if err == nil {
		err = printCommands(ctx, l, i)
	}
	if err == nil && c.Teleport != "" {
		err = printJoin(ctx, c, l, i)
	}
	return err
}

// printJoinAlone prints only the comparison with Teleport's own program.
func printJoinAlone(ctx context.Context, f *machine.Fleet, c lab.Config) error {
	if c.Teleport == "" {
		return errors.New("-join needs -teleport, the folder with Teleport's programs")
	}
	l, i, err := boot(ctx, f, c)
	if err != nil {
		return err
	}
	return printJoin(ctx, c, l, i)
}

// measureEnrollment enrolls the machine repeatedly, each time as if for the first time.
func measureEnrollment(ctx context.Context, i *lab.Instance) ([]cost, error) {
	return measure(ctx, i, func() error {
		_, err := i.Run(ctx, "sh", "-c", "rm /var/lib/hallmark/state.json /etc/ssh/*-cert.pub")
		return err
	}, "hallmark", "enroll")
}

// printEnrollment measures enrollments, and runs with nothing to do.
func printEnrollment(ctx context.Context, l *lab.Lab, i *lab.Instance) error {
	before := teleportCalls(l)
	first, err := measureEnrollment(ctx, i)
	if err != nil {
		return err
	}
	calls := teleportCalls(l) - before
	// An hour after the enrollment, so that the run asks the signer for the CAs.
	idle, err := measure(ctx, i, func() error {
		_, err := i.Run(ctx, "sh", "-c", `sed -i "s/\"enrolledAt\": \".*\"/\"enrolledAt\": \"$(date -u -d '-1 hour' +%FT%TZ)\"/" /var/lib/hallmark/state.json`)
		return err
	}, "hallmark", "renew")
	if err != nil {
		return err
	}
	show("hallmark enroll, wall (median)", median(first, wall), 0.15, "s")
	show("hallmark enroll, peak memory", median(first, memory), 25, "MB")
	fmt.Printf("%-46s %9.3f s\n", "hallmark enroll, CPU", median(first, cpu))
	show("hallmark renew, nothing due, CPU with sshd -T", median(idle, cpu), 0.03, "s")
	fmt.Printf("%-46s %9.2f\n", "nothing to do, wall over that of an enrollment", median(idle, wall)/median(first, wall))
	if calls > 0 {
		fmt.Printf("%-46s %9.1f of Teleport, with three host keys\n", "signer, calls per enrollment of a known machine", float64(calls)/runs)
	}
	return nil
}

// boot returns a machine that has enrolled by itself. It stops the timer, which
// would take the lock during a measurement.
func boot(ctx context.Context, f *machine.Fleet, c lab.Config) (*lab.Lab, *lab.Instance, error) {
	dir, err := os.MkdirTemp("", "bench-")
	if err != nil {
		return nil, nil, err
	}
	l, err := lab.New(ctx, f, c, dir)
	if err != nil {
		return nil, nil, err
	}
	image, err := l.BakeFrom(ctx, lab.Debian12(), io.Discard)
	if err != nil {
		return nil, nil, err
	}
	i, err := l.Launch(ctx, lab.Template{Name: "bench", Image: image, Tags: map[string]string{"Name": "bench"}})
	if err != nil {
		return nil, nil, err
	}
	if _, err = i.WaitEnrolled(ctx); err != nil {
		return nil, nil, err
	}
	if err := printBoot(ctx, i); err != nil {
		return nil, nil, err
	}
	_, err = i.Run(ctx, "systemctl", "stop", "hallmark.timer", "hallmark-renew.timer", "hallmark.service")
	return l, i, err
}

// teleportCalls counts the calls of the embedded cluster so far.
func teleportCalls(l *lab.Lab) int {
	sum := 0
	if counted, ok := l.Cluster.(interface{ Calls() map[string]int }); ok {
		for _, n := range counted.Calls() {
			sum += n
		}
	}
	return sum
}

func measure(ctx context.Context, i *lab.Instance, prepare func() error, command ...string) ([]cost, error) {
	var costs []cost
	for range runs {
		if err := prepare(); err != nil {
			return nil, err
		}
		out, err := i.Run(ctx, "python3", append([]string{"-c", python}, command...)...)
		if err != nil {
			return nil, err
		}
		var used struct {
			Wall, CPU      float64 // seconds
			Memory         int64   // KiB, getrusage(2)
			Sent, Received float64
		}
		if err := json.Unmarshal([]byte(out), &used); err != nil {
			return nil, fmt.Errorf("read what the run cost: %w", err)
		}
		costs = append(costs, cost{wall: used.Wall, cpu: used.CPU, memory: float64(used.Memory<<10) / megabyte, sent: used.Sent, received: used.Received})
	}
	return costs, nil
}

func wall(c cost) float64     { return c.wall }
func cpu(c cost) float64      { return c.cpu }
func memory(c cost) float64   { return c.memory }
func sent(c cost) float64     { return c.sent }
func received(c cost) float64 { return c.received }

func median(costs []cost, of func(cost) float64) float64 {
	values := make([]float64, len(costs))
	for i, c := range costs {
		values[i] = of(c)
	}
	slices.Sort(values)
	return values[len(values)/2]
}
