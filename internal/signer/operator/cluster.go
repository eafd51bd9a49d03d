package operator

import (
	"context"
	"crypto/x509"
	"fmt"
	"log/slog"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hallmark-ssh/hallmark/internal/cli"
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

// check checks the flags and their files, without a call.
func (l clusterLogin) check(cmd *cobra.Command) error {
	if l.proxy != "" && !teleport.IsAddress(l.proxy) {
		return cli.Usagef(cmd, "--proxy: %.200q is not HOST:PORT, such as teleport.example.com:443", l.proxy)
	}
	if _, err := l.rootsPEM(cmd); err != nil {
		return err
	}
	if l.identity == "" {
		return nil
	}
	if err := teleport.IdentityFile(l.identity).Check(deployment.Now()); err != nil {
		return &cli.Error{Err: fmt.Errorf("%s: --identity: %w", cmd.Name(), err), Code: cli.Failed,
			Hint: "create one with 'tsh login --out FILE' or 'tctl auth sign'"}
	}
	return nil
}

// rootsPEM returns the certificates to trust in addition to the system's.
func (l clusterLogin) rootsPEM(cmd *cobra.Command) ([]byte, error) {
	if l.roots == "" {
		return nil, nil
	}
	roots, err := readFile(l.roots, nil)
	if err != nil {
		return nil, fmt.Errorf("%s: --roots: %w", cmd.Name(), err)
	}
	if !x509.NewCertPool().AppendCertsFromPEM(roots) {
		return nil, &cli.Error{Err: fmt.Errorf("%s: --roots: no certificate in %s", cmd.Name(), l.roots), Code: cli.Failed,
			Hint: "it holds lines that begin with -----BEGIN CERTIFICATE-----; leave it out if the system trusts the proxy"}
	}
	return roots, nil
}

// config reads the files before anything is changed. Warnings of the client, such as
// that the next Teleport will refuse it, go to standard error.
func (l clusterLogin) config(cmd *cobra.Command) (teleport.Config, error) {
	if err := l.check(cmd); err != nil {
		return teleport.Config{}, err
	}
	roots, err := l.rootsPEM(cmd)
	return teleport.Config{
		Address: l.proxy, RootsPEM: roots, Login: teleport.IdentityFile(l.identity), Now: deployment.Now, Log: slog.New(notes{cmd}),
	}, err
}

// notes prints the client's warnings like the program's own.
type notes struct{ cmd *cobra.Command }

// Enabled is part of slog.Handler.
func (notes) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelWarn }

// Handle is part of slog.Handler.
func (h notes) Handle(_ context.Context, r slog.Record) error {
	var text strings.Builder
	r.Attrs(func(a slog.Attr) bool {
		fmt.Fprintf(&text, "; %s %s", strings.ReplaceAll(a.Key, "_", " "), a.Value)
		return true
	})
	cli.Note(h.cmd, "warning: %s", strings.Join(strings.Fields(r.Message+text.String()), " "))
	return nil
}

// WithAttrs is part of slog.Handler. The client's lines have no attributes in common.
func (h notes) WithAttrs([]slog.Attr) slog.Handler { return h }

// WithGroup is part of slog.Handler.
func (h notes) WithGroup(string) slog.Handler { return h }
