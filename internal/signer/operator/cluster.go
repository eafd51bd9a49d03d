package operator

import (
	"fmt"
	"log/slog"
	"os"

	"github.com/spf13/cobra"

	"github.com/hallmark-ssh/hallmark/internal/signer/deployment"
	"github.com/hallmark-ssh/hallmark/internal/signer/teleport"
)

// clusterLogin is how an operator logs in to Teleport.
type clusterLogin struct {
	proxy, identity, roots string
}

// flags adds the flags of a command that logs in to do that.
func (l *clusterLogin) flags(cmd *cobra.Command, may string) {
	cmd.Flags().StringVar(&l.proxy, "proxy", "", "Teleport's proxy or auth service, as `HOST:PORT`")
	cmd.Flags().StringVar(&l.identity, "identity", "", "identity `file` that may "+may+", from 'tsh login --out' or 'tctl auth sign'")
	cmd.Flags().StringVar(&l.roots, "roots", "", "PEM `file` of certificates to trust for the proxy, in addition to the system's")
}

// config reads the files before anything is changed. Warnings of the client, such as
// that the next Teleport will refuse it, go to standard error.
func (l clusterLogin) config(cmd *cobra.Command) (teleport.Config, error) {
	config := teleport.Config{
		Address: l.proxy, Login: teleport.IdentityFile(l.identity), Now: deployment.Now,
		Log: slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil)),
	}
	if l.roots == "" {
		return config, nil
	}
	roots, err := os.ReadFile(l.roots)
	if err != nil {
		return config, fmt.Errorf("%s: --roots: %w", cmd.Name(), err)
	}
	config.RootsPEM = roots
	return config, nil
}
