package agent

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/backoff"
	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/machine/handshake"
	"github.com/hallmark-ssh/hallmark/internal/machine/hostkey"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"github.com/hallmark-ssh/hallmark/internal/sshkey"
)

// health returns the report that goes to the signer with the request for the CAs, in the
// form of protocol.HealthHeader. It is "" if there is nothing to say: no certificate proves
// who reports, or sshd does not let this machine look. A failure costs only the report.
func (r *run) health(ctx context.Context) string {
	key, found := r.reportingKey()
	if !found {
		return ""
	}
	state, err := r.healthState(ctx, key)
	if err != nil {
		r.note("look at sshd for the health report", err)
		return ""
	}
	value, err := r.signHealth(key, state)
	r.note("sign the health report", err)
	return value
}

// reportingKey returns the key whose certificate is shortest: the report has to fit into a
// header.
func (r *run) reportingKey() (hostkey.Key, bool) {
	valid := slices.DeleteFunc(slices.Clone(r.seen.keys), func(k hostkey.Key) bool {
		return k.Certificate == nil || !r.now().Before(hostkey.FirstEnd([]*ssh.Certificate{k.Certificate}))
	})
	if len(valid) == 0 {
		return hostkey.Key{}, false
	}
	return slices.MinFunc(valid, func(a, b hostkey.Key) int {
		return cmp.Compare(len(a.Certificate.Marshal()), len(b.Certificate.Marshal()))
	}), true
}

// healthPause is between the two looks at an sshd that drops the first connection, as a busy
// one does (MaxStartups).
const healthPause = time.Second

// healthState looks at sshd where people reach it. One handshake is enough: one process has
// the same keys everywhere. Its error says that sshd does not let this machine look, which
// says nothing about others.
func (r *run) healthState(ctx context.Context, key hostkey.Key) (protocol.HealthState, error) {
	i := r.installation()
	if err := i.findListeners(ctx); err != nil {
		return "", err
	}
	if s := r.seen.state; s.OwnAddress { // else the port may be another's, which forwards it
		i.listeners = withPort(i.listeners, s.Node.Address)
	}
	if len(i.listeners) == 0 {
		return protocol.HealthUnreachable, nil
	}
	err := i.presents(ctx, key)
	if errors.Is(err, handshake.ErrClosed) && backoff.Wait(ctx, healthPause) == nil {
		err = i.presents(ctx, key)
	}
	switch {
	case err == nil:
		return protocol.HealthOK, nil
	case errors.Is(err, handshake.ErrNotPresented), errors.Is(err, errAnother):
		return protocol.HealthCertificate, nil
	case errors.Is(err, handshake.ErrRefused):
		return protocol.HealthUnreachable, nil
	}
	return "", err
}

// withPort returns the listeners at the port of an address, host:port. An address that does
// not have a port says nothing.
func withPort(listeners []netip.AddrPort, address string) []netip.AddrPort {
	_, text, err := net.SplitHostPort(address)
	if err != nil {
		return listeners
	}
	port, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return listeners
	}
	return slices.DeleteFunc(slices.Clone(listeners), func(l netip.AddrPort) bool { return uint64(l.Port()) != port })
}

// signHealth proves that the report is this machine's, and of this moment.
func (r *run) signHealth(key hostkey.Key, state protocol.HealthState) (string, error) {
	seen := r.seen.instance
	i, err := ec2ref.ParseInstance(seen.Ref().String())
	if err != nil {
		return "", err
	}
	report, err := json.Marshal(protocol.Health{
		Audience: r.Config.Audience, Instance: i.String(), At: r.now().UTC().Truncate(time.Second), State: state,
	})
	if err != nil {
		return "", fmt.Errorf("encode the health report: %w", err)
	}
	signature, err := hostkey.SignHealth(key, protocol.BindHealth(report))
	if err != nil {
		return "", err
	}
	return protocol.SignedHealth{Report: report, Certificate: sshkey.Line(key.Certificate), Signature: signature}.Encode()
}
