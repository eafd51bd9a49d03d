package agent

import (
	"context"

	"github.com/hallmark-ssh/hallmark/internal/machine/fault"
	"github.com/hallmark-ssh/hallmark/internal/machine/findings"
	"github.com/hallmark-ssh/hallmark/internal/machine/sshd"
	"github.com/hallmark-ssh/hallmark/internal/machine/state"
	"golang.org/x/crypto/ssh"
)

// reportFindings logs which of sshd's settings keep certificates from working. If no
// certificate can work, it returns an error, although all files are in place: once the setting
// is corrected, people can log in. Settings that wait for a reload, as the state says, lock
// nobody out yet.
func (e *Enroller) reportFindings(ctx context.Context, logins []sshd.Login, cas []ssh.PublicKey, in *state.State) error {
	found, err := findings.Of(ctx, e.server, logins, findings.Want{
		CAFile: e.caFile, CAs: cas, MaxStartups: e.Config.SSHDOptions().MaxStartups,
		ProxySources: e.Config.ProxySources, Node: in.Node.Address,
	})
	if err != nil {
		e.note("check sshd's settings", err)
		return nil
	}
	for _, f := range found {
		switch {
		case in.Waiting != nil:
			e.retry.Log("warning: once sshd is reloaded: %s", f)
		case !f.Blocks:
			e.retry.Log("warning: %s", f)
		}
	}
	if blocking := findings.Blocking(found); len(blocking) > 0 && in.Waiting == nil {
		return fault.Newf(fault.Misconfigured, "correct sshd's configuration as the message says, and reload sshd",
			"the certificates are in place, but nobody can log in with one: %w", findings.Join(blocking))
	}
	return nil
}

// judge makes sshd check its configuration, for everyone who can log in, before the run
// changes a file. The run then writes only certificates and CAs, which that check does not
// read.
func (e *Enroller) judge(ctx context.Context) ([]sshd.Login, error) {
	logins, err := e.server.Logins(ctx)
	if err != nil {
		return nil, fault.Newf(fault.Failed, "nothing was changed; fix what sshd reports, then run hallmark again", "sshd does not accept its configuration: %w", err)
	}
	return logins, nil
}
