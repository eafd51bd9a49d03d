package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/machine/imds"
	"github.com/hallmark-ssh/hallmark/internal/machine/state"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
)

// BenchmarkStep times the steps of an enrollment on this machine, each separately, with a real
// sshd and its three host keys. docs/reliability.md has the figures.
func BenchmarkStep(b *testing.B) {
	m := newMachine(b)
	m.noPenalties() // it looks at sshd hundreds of times
	if _, err := m.Enroll(b.Context()); err != nil {
		b.Fatal(err)
	}
	seen, err := m.newRun().look(b.Context())
	if err != nil {
		b.Fatal(err)
	}
	i := &installation{Enroller: m.Enroller, conf: seen.conf, keys: seen.keys}
	if err := i.findListeners(b.Context()); err != nil {
		b.Fatal(err)
	}
	run := uint64(1000) // no certificate has such a serial number
	for _, step := range []struct {
		name string
		do   func(context.Context) error
	}{
		{"configuration", func(ctx context.Context) error { _, err := m.effective(ctx); return err }},
		{"metadata", m.askMetadata},
		{"proofs", func(ctx context.Context) error { return m.makeProofs(ctx, seen) }},
		{"judgment", func(ctx context.Context) error { _, err := m.judge(ctx); return err }},
		{"listeners", i.findListeners},
		{"handshakes", i.presented},
		// This comes last, because sshd would load these certificates for its next connection.
		{"files", func(context.Context) error { run++; return m.replaceFiles(seen, run) }},
	} {
		b.Run(step.name, func(b *testing.B) {
			before := cpuTime(b)
			for b.Loop() {
				if err := step.do(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(cpuTime(b)-before)/float64(b.N), "cpu-ns/op")
		})
	}
}

// cpuTime returns the CPU time of this process and of the programs that it has run. On a busy
// machine it says more than wall time. It does not include sshd's part of a handshake.
func cpuTime(b *testing.B) time.Duration {
	b.Helper()
	var sum int64
	for _, who := range []int{syscall.RUSAGE_SELF, syscall.RUSAGE_CHILDREN} {
		var used syscall.Rusage
		if err := syscall.Getrusage(who, &used); err != nil {
			b.Fatal(err)
		}
		sum += used.Utime.Nano() + used.Stime.Nano()
	}
	return time.Duration(sum)
}

// askMetadata asks for what a request needs, with a new session.
func (m *machine) askMetadata(ctx context.Context) error {
	metadata := imds.New(m.retry)
	metadata.Endpoint = m.imds.server.URL
	_, err := metadata.IdentityDocument(ctx)
	if err == nil {
		_, err = metadata.RoleCredentials(ctx)
	}
	return err
}

// makeProofs signs a request with every host key.
func (m *machine) makeProofs(ctx context.Context, seen *observed) error {
	creds, err := m.metadata.RoleCredentials(ctx)
	if err == nil {
		_, err = m.newRequest(ctx, protocol.Version, testRegion, "document", creds, seen.keys, nil)
	}
	return err
}

// replaceFiles replaces everything that an enrollment writes. The content differs for each n.
func (m *machine) replaceFiles(seen *observed, n uint64) (err error) {
	i := &installation{Enroller: m.Enroller, keys: slices.Clone(seen.keys)}
	for k := range i.keys {
		certificate := *i.keys[k].Certificate
		certificate.Serial = n
		i.keys[k].Certificate = &certificate
	}
	next := *seen.state
	next.EnrolledAt = time.Unix(int64(n), 0)
	change, err := i.stage(fmt.Appendf(nil, "%s# %d\n", seen.caFile, n))
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, change.Close()) }()
	final, err := state.Stage(i.stateDir, &next)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, final.Close()) }()
	if err := errors.Join(change.Commit(), final.Commit()); err != nil {
		return err
	}
	change.Keep()
	final.Keep()
	return nil
}
