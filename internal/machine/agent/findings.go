package agent

import (
	"context"

	"github.com/hallmark-ssh/hallmark/internal/machine/fault"
	"github.com/hallmark-ssh/hallmark/internal/machine/findings"
	"github.com/hallmark-ssh/hallmark/internal/machine/sshd"
	"github.com/hallmark-ssh/hallmark/internal/machine/state"
	"golang.org/x/crypto/ssh"
)

// reportFindings logs what in sshd's settings keeps certificates from working. If none can
// work it is an error, although all is in place: once the setting is corrected, people can
// log in. Settings that wait for a reload, as the state says, keep nobody out yet.
func (e *Enroller) reportFindings(ctx context.Context, logins []sshd.Login, cas []ssh.PublicKey, in *state.State) error {
	found, err := findings.Of(ctx, e.server, logins, findings.Want{
		CAFile: e.caFile, CAs: cas, MaxStartups: e.Config.SSHDOptions().MaxStartups,
		ProxySources: e.Config.ProxySources,
	})
	if err != nil {
		e.note("judge sshd's settings", err)
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

// judge has sshd judge its configuration, for everyone who can log in, before a file is
// changed. What is written then are certificates and CAs, of which it says nothing.
func (e *Enroller) judge(ctx context.Context) ([]sshd.Login, error) {
	logins, err := e.server.Logins(ctx)
	if err != nil {
		return nil, fault.Newf(fault.Failed, "nothing was changed; correct what sshd says, then run it again", "sshd does not accept its configuration: %w", err)
	}
	return logins, nil
}
