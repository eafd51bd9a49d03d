// Command cluster runs the embedded cluster of internal/signer/teleport/teleporttest as a
// separate program. It is for tests and the demo only.
//
//	cluster serve -out DIR [-listen ADDRESS] [-host NAME]... [-name CLUSTER]
//	cluster issue -out DIR -login NAME [-ttl 1h] KEY.pub   writes KEY-cert.pub
//	cluster nodes -out DIR                                 prints the nodes as JSON
//
// serve writes into DIR, and then prints the address that it listens on:
//
//	ca.pem        the CA certificate that signed the proxy's web certificate
//	identity.pem  the signer's login
//	known_hosts   the cluster's @cert-authority line
//	control.sock  the socket that the other two commands use
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/signer/teleport/teleporttest"
)

const banner = `
  +------------------------------------------------------------------+
  |  This is NOT Teleport. It is a stand-in for tests and the demo:  |
  |  it stores nothing, and anyone with its files controls it.       |
  +------------------------------------------------------------------+

`

const usage = "usage: cluster serve|issue|nodes -out DIR [flags]"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		fmt.Fprintf(os.Stderr, "cluster: error: %v\n", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	if len(args) == 0 {
		return errors.New(usage)
	}
	commands := map[string]func(context.Context, []string, io.Writer, io.Writer) error{
		"serve": serve, "issue": issue, "nodes": nodes,
	}
	command, ok := commands[args[0]]
	if !ok {
		return fmt.Errorf("unknown command %q\n%s", args[0], usage)
	}
	return command(ctx, args[1:], stdout, stderr)
}

// newFlags returns flags for the command, with -out among them.
func newFlags(name string, stderr io.Writer) (flags *flag.FlagSet, out *string) {
	flags = flag.NewFlagSet("cluster "+name, flag.ContinueOnError)
	flags.SetOutput(stderr)
	return flags, flags.String("out", "", "folder of the cluster's files")
}

func parse(flags *flag.FlagSet, args []string, wantArgs int) error {
	if err := flags.Parse(args); err != nil {
		return err
	}
	if flags.Lookup("out").Value.String() == "" {
		return errors.New("-out is required")
	}
	if flags.NArg() != wantArgs {
		return fmt.Errorf("%d arguments after the flags, want %d", flags.NArg(), wantArgs)
	}
	return nil
}

func serve(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags, out := newFlags("serve", stderr)
	var options teleporttest.Options
	flags.StringVar(&options.Listen, "listen", "127.0.0.1:0", "address to listen on")
	flags.StringVar(&options.ClusterName, "name", "hallmark.test", "name of the cluster")
	flags.DurationVar(&options.ReadLag, "read-lag", 0, "how long reads do not see a write")
	flags.Func("host", "name or address of the proxy; may be repeated", func(host string) error {
		options.Hosts = append(options.Hosts, host)
		return nil
	})
	if err := parse(flags, args, 0); err != nil {
		return err
	}
	fmt.Fprint(stderr, banner)
	cluster, err := teleporttest.Start(options)
	if err != nil {
		return fmt.Errorf("start the cluster: %w", err)
	}
	if err := writeFiles(cluster, *out); err != nil {
		return errors.Join(err, cluster.Close())
	}
	control, err := startControl(cluster, *out)
	if err != nil {
		return errors.Join(err, cluster.Close())
	}
	fmt.Fprintln(stdout, cluster.Address())
	<-ctx.Done()
	return errors.Join(control.Close(), cluster.Close())
}

func writeFiles(cluster *teleporttest.Cluster, dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	for name, data := range map[string][]byte{
		"ca.pem":       cluster.RootsPEM(),
		"identity.pem": cluster.IdentityFile(),
		"known_hosts":  cluster.KnownHosts(),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			return err
		}
	}
	return nil
}

func issue(ctx context.Context, args []string, _, stderr io.Writer) error {
	flags, out := newFlags("issue", stderr)
	ttl := flags.Duration("ttl", time.Hour, "lifetime of the certificate")
	var logins []string
	flags.Func("login", "name to log in by; may be repeated", func(login string) error {
		logins = append(logins, login)
		return nil
	})
	if err := parse(flags, args, 1); err != nil {
		return err
	}
	path := flags.Arg(0)
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if _, _, _, _, err := ssh.ParseAuthorizedKey(data); err != nil {
		return fmt.Errorf("read public key %s: %w", path, err)
	}
	cert, err := requestUserCertificate(ctx, *out, userCertificateRequest{string(data), logins, *ttl})
	if err != nil {
		return err
	}
	return os.WriteFile(strings.TrimSuffix(path, ".pub")+"-cert.pub", cert, 0o600)
}

func nodes(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	flags, out := newFlags("nodes", stderr)
	if err := parse(flags, args, 0); err != nil {
		return err
	}
	data, err := requestNodes(ctx, *out)
	if err != nil {
		return err
	}
	_, err = stdout.Write(data)
	return err
}
