package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/machine/config"
	"github.com/hallmark-ssh/hallmark/internal/machine/fault"
	"github.com/hallmark-ssh/hallmark/internal/machine/hostkey"
	"github.com/hallmark-ssh/hallmark/internal/machine/imds"
	"github.com/hallmark-ssh/hallmark/internal/machine/replace"
	"github.com/hallmark-ssh/hallmark/internal/machine/sshd"
	"github.com/hallmark-ssh/hallmark/internal/machine/state"
	"golang.org/x/crypto/ssh"
)

// observed is what a run finds on the machine.
type observed struct {
	conf     *sshd.Effective
	state    *state.State // nil if it never enrolled
	failure  *failure     // of the last run, or nil
	config   string       // Config.Digest
	instance imds.Instance
	keys     []hostkey.Key
	// skipped has a line for each host key that stays without a certificate.
	skipped []string
	caFile  []byte          // content, nil if there is none
	extra   []ssh.PublicKey // CAs that the configuration trusts beside the cluster's
	moved   bool            // the node's address belonged to this machine, and no longer does
}

// certified reports whether every key has a certificate that has not expired.
func (o *observed) certified(now time.Time) bool {
	for _, key := range o.keys {
		if key.Certificate == nil || !now.Before(hostkey.FirstEnd([]*ssh.Certificate{key.Certificate})) {
			return false
		}
	}
	return len(o.keys) > 0
}

// look collects what a run needs to decide. It removes what a killed run left behind, and
// changes nothing else.
func (r *run) look(ctx context.Context) (*observed, error) {
	extra, err := r.Config.ExtraCAs()
	if err != nil {
		return nil, err // has been checked
	}
	seen := &observed{config: r.Config.Digest(), extra: extra}
	if seen.conf, err = r.effective(ctx); err != nil {
		return nil, err
	}
	if seen.state, err = state.Load(r.stateDir); err != nil {
		return nil, err
	}
	wanted := hostkey.Selection{Conf: seen.conf, State: seen.state, Replace: r.Config.HostCertificate == config.ReplaceCertificate}
	if seen.keys, seen.skipped, err = wanted.Find(); err != nil {
		return nil, err
	}
	r.note("clean up after a killed run", r.removeLeftovers(seen.keys))
	seen.failure = loadFailure(r.stateDir)
	if seen.caFile, err = os.ReadFile(r.caFile); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fault.Newf(fault.Failed, fault.FileHint(err), "read the trusted CAs: %w", err)
	}
	ctx, cancel := r.asking(ctx)
	defer cancel()
	if seen.instance, err = r.instance(ctx); err != nil {
		return nil, err
	}
	if s := seen.state; s != nil && s.OwnAddress && s.Instance == seen.instance {
		seen.moved = r.owns(ctx, s.Node.Address) == no
	}
	return seen, nil
}

func (e *Enroller) removeLeftovers(keys []hostkey.Key) error {
	paths := []string{e.caFile, state.Path(e.stateDir), failurePath(e.stateDir)}
	for _, key := range keys {
		paths = append(paths, key.CertificatePath())
	}
	return replace.RemoveLeftovers(paths...)
}

// effective returns sshd's configuration if certificates can work with it.
func (e *Enroller) effective(ctx context.Context) (*sshd.Effective, error) {
	conf, err := e.server.Effective(ctx)
	if errors.Is(err, sshd.ErrNoHostKeys) {
		return nil, fault.Newf(fault.Temporary, "cloud-init generates host keys at first boot; to generate them by hand, run 'ssh-keygen -A'", "read sshd's configuration: %w", err)
	}
	if errors.Is(err, sshd.ErrNoSystemd) {
		return nil, fault.Newf(fault.Temporary, "wait for the boot to finish; if it has, see 'systemctl status'", "find the running sshd: %w", err)
	}
	if err != nil {
		return nil, fault.Newf(fault.Failed, "sshd does not accept its own configuration: run 'sshd -t' and correct it", "read sshd's configuration: %w", err)
	}
	switch conf.TrustedUserCAKeys {
	case e.caFile:
		return conf, nil
	case "":
		return nil, fault.Newf(fault.Misconfigured, hintInstall, "sshd's configuration%s has no line TrustedUserCAKeys %s", invokedWith(conf), e.caFile)
	}
	return nil, fault.Newf(fault.Misconfigured, "remove that line from sshd's configuration, then "+hintInstall,
		"sshd's configuration has TrustedUserCAKeys %s, which comes before hallmark's %s", conf.TrustedUserCAKeys, e.caFile)
}

const hintInstall = "run 'hallmark install' on this machine, or bake it into the image"

// invokedWith names the options that the running sshd was started with, if they affect its
// settings.
func invokedWith(conf *sshd.Effective) string {
	if len(conf.Options) == 0 {
		return ""
	}
	return fmt.Sprintf(" (it runs with %s)", strings.Join(conf.Options, " "))
}

// answer is yes, no, or neither.
type answer int

const (
	unknown answer = iota
	yes
	no
)

// owns reports whether a node's address, host and port, belongs to this machine: either an
// interface has it, or it is the public address.
func (e *Enroller) owns(ctx context.Context, address string) answer {
	node, err := netip.ParseAddrPort(address)
	if err != nil {
		return unknown // the signer may use a DNS name some day
	}
	interfaces, err := net.InterfaceAddrs()
	if err != nil {
		return unknown
	}
	for _, i := range interfaces {
		if prefix, err := netip.ParsePrefix(i.String()); err == nil && prefix.Addr().Unmap() == node.Addr().Unmap() {
			return yes
		}
	}
	public, err := e.metadata.PublicAddress(ctx)
	switch {
	case err != nil:
		return unknown
	case public == node.Addr().String():
		return yes
	}
	return no
}
