package install

import (
	"context"
	"fmt"

	"github.com/hallmark-ssh/hallmark/internal/machine/sshd"
	"github.com/hallmark-ssh/hallmark/internal/machine/sshdconf"
)

const exemptKeyword = "persourcepenaltyexemptlist"

// exemptProxies sets the options' PenaltyExempt to what others exempt and Teleport's proxies,
// because sshd uses only the first list. If sshd has no penalties (OpenSSH before 9.8), it
// sets nothing. logins are those of the current configuration.
func (in *Installer) exemptProxies(ctx context.Context, options *sshdconf.Options, logins []sshd.Login) error {
	if _, known := exemptSources(logins); !known || len(options.ProxySources) == 0 {
		return nil // findings.Of warns about the latter
	}
	value, err := in.exemptByOthers(ctx, *options)
	if err != nil {
		return fmt.Errorf("find the sources that sshd exempts from penalties: %w", err)
	}
	options.PenaltyExempt = sshdconf.JoinSources(value, options.ProxySources)
	return nil
}

// exemptByOthers asks sshd for the list without Hallmark's, which hides any other list.
func (in *Installer) exemptByOthers(ctx context.Context, options sshdconf.Options) (string, error) {
	options.PenaltyExempt = ""
	without, err := in.plan(options)
	if err != nil {
		return "", err
	}
	logins, err := in.try(ctx, without)
	if err != nil {
		return "", err
	}
	value, _ := exemptSources(logins)
	return value, nil
}

// exemptSources returns the value of a PerSourcePenaltyExemptList that holds in all of the
// logins' settings, and whether this sshd has that keyword: OpenSSH 9.8 and later do. The
// keyword is one of those that Match blocks cannot set, so every login has the same.
func exemptSources(logins []sshd.Login) (value string, known bool) {
	for _, login := range logins {
		if settings := sshd.ParseSettings(login.Settings); len(settings[exemptKeyword]) > 0 {
			return settings.Optional(exemptKeyword), true
		}
	}
	return "", false
}
