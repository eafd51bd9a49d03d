package agent

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/hallmark-ssh/hallmark/internal/sshd"
)

const exemptKeyword = "persourcepenaltyexemptlist"

// exemptProxies sets the options' PenaltyExempt: what is exempt already and Teleport's
// proxies, because sshd takes the first list only. Where sshd knows no penalties (OpenSSH
// before 9.8) it sets nothing. logins are those of the configuration as it is.
func (in *Installer) exemptProxies(ctx context.Context, options *sshd.Options, logins []sshd.Login) error {
	value, known := sshd.ExemptSources(logins)
	if !known || len(options.ProxySources) == 0 {
		return nil // sshd.Assess warns about the latter
	}
	ours, err := in.exemptsAlready()
	if err == nil && ours {
		value, err = in.exemptByOthers(ctx, *options)
	}
	if err != nil {
		return fmt.Errorf("find which sources sshd exempts from penalties: %w", err)
	}
	options.PenaltyExempt = sshd.JoinSources(value, options.ProxySources)
	return nil
}

// exemptsAlready reports whether an earlier installation wrote a list.
func (in *Installer) exemptsAlready() (bool, error) {
	dropIn, err := os.ReadFile(in.path(sshd.DropIn))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	config, err := os.ReadFile(in.path(sshd.MainConfig))
	if err != nil {
		return false, err
	}
	rest, err := sshd.WithoutBlock(config)
	if err != nil {
		return false, err
	}
	ours := func(data []byte) int { return bytes.Count(data, []byte("\nPerSourcePenaltyExemptList ")) } // as rendered
	return ours(dropIn) > 0 || ours(config) > ours(rest), nil
}

// exemptByOthers asks sshd for the list that it takes without ours, which hides any other:
// it judges a configuration without our line, and everything is put back.
func (in *Installer) exemptByOthers(ctx context.Context, options sshd.Options) (value string, err error) {
	options.PenaltyExempt = ""
	change := &sshd.Change{}
	defer func() { err = errors.Join(err, change.Close()) }()
	if err := in.stageOptions(change, options); err != nil {
		return "", err
	}
	if err := change.Commit(); err != nil {
		return "", err
	}
	logins, err := in.server.Logins(ctx)
	if err != nil {
		return "", err
	}
	value, _ = sshd.ExemptSources(logins)
	return value, nil
}
