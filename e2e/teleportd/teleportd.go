//go:build linux

// Package teleportd runs real Teleport clusters for tests and the demo: the programs
// that e2e/teleport builds, each as a process of its own.
package teleportd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"go.yaml.in/yaml/v3"
	"golang.org/x/crypto/ssh"
	"golang.org/x/time/rate"

	"github.com/hallmark-ssh/hallmark/e2e/machine"
	"github.com/hallmark-ssh/hallmark/internal/caexport"
)

const (
	proxyPort = "3080"
	authPort  = "3025"

	// startLimit is how long a cluster may take to start. It takes five seconds.
	startLimit = 2 * time.Minute
)

// Options describe a cluster.
type Options struct {
	// Programs is the folder with cluster, tctl and tsh of one version, such as
	// bin/teleport.
	Programs string
	// Dir is a folder for the files of the cluster and its people.
	Dir string
	// Name is the cluster's name.
	Name string
	// Address is the IP address to listen on. No other cluster may have it. With separate
	// addresses, clusters can use the usual ports.
	Address string
	// STSURL replaces AWS STS when a bot joins with its AWS role; empty means AWS's own.
	STSURL string
	// WebCA signs the proxy's web certificate. Clusters that trust one another share one; nil
	// creates one.
	WebCA *WebCA
	// Log receives the cluster's log.
	Log io.Writer
}

// Cluster is a running cluster: auth service and proxy in one process, the proxy
// with TLS routing on one port.
type Cluster struct {
	options  Options
	version  string // that the programs report
	behavior Behavior
	budget   *rate.Limiter // of requests to the proxy that need no login
	config   string        // file of Teleport's configuration
	process  *exec.Cmd
	exited   chan struct{}
}

// Start starts a cluster, and returns when it is ready. The cluster ends with the context.
func Start(ctx context.Context, options Options) (*Cluster, error) {
	for _, path := range []*string{&options.Programs, &options.Dir} {
		absolute, err := filepath.Abs(*path)
		if err != nil {
			return nil, err
		}
		*path = absolute
	}
	c := &Cluster{options: options, config: filepath.Join(options.Dir, "teleport.yaml"), exited: make(chan struct{})}
	for _, name := range []string{"cluster", "tctl", "tsh"} {
		if err := checkProgram(c.program(name)); err != nil {
			return nil, err
		}
	}
	var err error
	if c.version, c.behavior, err = readVersion(ctx, c.program("tctl")); err != nil {
		return nil, err
	}
	c.budget = newBudget(c.behavior)
	if err := c.writeFiles(); err != nil {
		return nil, fmt.Errorf("configure Teleport: %w", err)
	}
	if err := c.start(ctx); err != nil {
		return nil, fmt.Errorf("start Teleport: %w", err)
	}
	return c, nil
}

// checkProgram returns an error unless the file can be run.
func checkProgram(path string) error {
	info, err := os.Stat(path)
	if err == nil && (!info.Mode().IsRegular() || info.Mode()&0o111 == 0) {
		err = fmt.Errorf("%s is not a program", path)
	}
	if err != nil {
		return fmt.Errorf("find Teleport's program %s: %w: build 13.3.8 with 'make bin/teleport', or give another folder with TELEPORT=DIR", filepath.Base(path), err)
	}
	return nil
}

// newBudget limits requests without a login to what a cluster's proxy allows one source
// address, and leaves some for programs that do not count, such as Packer.
func newBudget(b Behavior) *rate.Limiter {
	const reserve = 8
	return rate.NewLimiter(rate.Limit(float64(b.RequestsPerMinute)/time.Minute.Seconds()), b.RequestBurst-reserve)
}

func (c *Cluster) program(name string) string { return filepath.Join(c.options.Programs, name) }

// ready is a file that the program cluster creates once it serves.
func (c *Cluster) ready() string           { return c.path("ready") }
func (c *Cluster) path(name string) string { return filepath.Join(c.options.Dir, name) }

func (c *Cluster) writeFiles() error {
	if c.options.WebCA == nil {
		ca, err := NewWebCA()
		if err != nil {
			return err
		}
		c.options.WebCA = ca
	}
	certificate, key, err := c.options.WebCA.issue(c.options.Address)
	if err != nil {
		return err
	}
	config, err := c.teleportConfig()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(c.options.Dir, 0o700); err != nil {
		return err
	}
	for name, data := range map[string][]byte{
		"web_ca.crt": c.WebCA().PEM(), "web.crt": certificate, "web.key": key, "teleport.yaml": config,
	} {
		if err := os.WriteFile(c.path(name), data, 0o600); err != nil {
			return err
		}
	}
	return nil
}

func (c *Cluster) teleportConfig() ([]byte, error) {
	return yaml.Marshal(map[string]any{
		"version": "v3",
		"teleport": map[string]any{
			"nodename": c.options.Name, "data_dir": c.path("data"), "log": map[string]string{"severity": "INFO"},
		},
		"auth_service": map[string]any{
			"enabled": "yes", "cluster_name": c.options.Name, "listen_addr": c.AuthAddress(),
			"proxy_listener_mode": "multiplex",
			"authentication":      map[string]string{"type": "local", "second_factor": "off"},
		},
		"proxy_service": map[string]any{
			"enabled": "yes", "web_listen_addr": c.Address(), "public_addr": c.Address(),
			"https_keypairs": []map[string]string{{"key_file": c.path("web.key"), "cert_file": c.path("web.crt")}},
		},
		"ssh_service": map[string]string{"enabled": "no"},
	})
}

func (c *Cluster) start(ctx context.Context) error {
	c.process = exec.CommandContext(ctx, c.program("cluster"), "-config="+c.config, "-ready="+c.ready(), "-sts-url="+c.options.STSURL, "-until-eof")
	c.process.Env = c.environment()
	c.process.Stdout, c.process.Stderr = c.options.Log, c.options.Log
	c.process.Cancel = func() error { return c.process.Process.Signal(syscall.SIGTERM) }
	c.process.WaitDelay = 10 * time.Second
	// However this program ends, the kernel closes it.
	if _, err := c.process.StdinPipe(); err != nil {
		return err
	}
	if err := c.process.Start(); err != nil {
		return err
	}
	go func() {
		_ = c.process.Wait() // it is told to end
		close(c.exited)
	}()
	return machine.Poll(ctx, startLimit, func() error {
		select {
		case <-c.exited:
			return machine.Fatal(errors.New("it exited while starting: see its log"))
		default:
		}
		_, err := os.Stat(c.ready())
		return err
	})
}

// environment makes Teleport's programs trust the proxies' web certificates, and keeps them
// from looking for the metadata service of the cloud that they may run in.
func (c *Cluster) environment() []string {
	environment := append(os.Environ(), "SSL_CERT_FILE="+c.RootsFile(),
		"AWS_EC2_METADATA_DISABLED=true", "AWS_EC2_METADATA_SERVICE_ENDPOINT=http://127.0.0.1:1")
	return append(environment, c.behavior.Environment...)
}

// Restart starts a cluster that was closed, with its data.
func (c *Cluster) Restart(ctx context.Context) error {
	if err := os.Remove(c.ready()); err != nil {
		return err
	}
	c.exited = make(chan struct{})
	if err := c.start(ctx); err != nil {
		return fmt.Errorf("start Teleport again: %w", err)
	}
	return nil
}

// Close kills the cluster at once, like a crash.
func (c *Cluster) Close() error {
	select {
	case <-c.exited: // with its context
		return nil
	default:
	}
	// A clean shutdown would wait for people's connections.
	err := c.process.Process.Kill()
	<-c.exited
	return err
}

// Version returns the version of Teleport that the programs report, such as "13.3.8".
func (c *Cluster) Version() string { return c.version }

// Behavior returns how that version behaves.
func (c *Cluster) Behavior() Behavior { return c.behavior }

// Name returns the cluster's name.
func (c *Cluster) Name() string { return c.options.Name }

// Address returns the proxy's host:port.
func (c *Cluster) Address() string { return net.JoinHostPort(c.options.Address, proxyPort) }

// AuthAddress returns the auth service's host:port.
func (c *Cluster) AuthAddress() string { return net.JoinHostPort(c.options.Address, authPort) }

// WebCA returns the CA of the proxy's web certificate.
func (c *Cluster) WebCA() *WebCA { return c.options.WebCA }

// RootsPEM returns the CA certificates that verify the proxy's web certificate.
func (c *Cluster) RootsPEM() []byte { return c.WebCA().PEM() }

// RootsFile returns the path of a file with the same certificates.
func (c *Cluster) RootsFile() string { return c.path("web_ca.crt") }

// Export returns a CA's public keys, as the proxy exports them to everybody. If the proxy's
// rate limit is used up, it waits.
func (c *Cluster) Export(ctx context.Context, kind caexport.Kind) ([]ssh.PublicKey, error) {
	client, err := caexport.NewHTTPClient(c.RootsPEM())
	if err != nil {
		return nil, err
	}
	defer client.CloseIdleConnections()
	if err := c.budget.Wait(ctx); err != nil {
		return nil, fmt.Errorf("wait for the proxy's rate limit: %w", err)
	}
	return caexport.Fetch(ctx, client, c.Address(), kind)
}

// CAs returns the same keys from the auth service, which has no such limit. Use this one for
// polling.
func (c *Cluster) CAs(ctx context.Context, kind caexport.Kind) ([]ssh.PublicKey, error) {
	parse := caexport.ParseOpenSSH
	if kind == caexport.Host {
		parse = caexport.ParseHost
	}
	out, err := c.Tctl(ctx, "auth", "export", "--type="+string(kind))
	if err != nil {
		return nil, err
	}
	keys, _, err := parse([]byte(out))
	return keys, err
}

// TLSCAs returns, in PEM form, the certificates that verify the auth service's own
// certificate: two while its CA is being rotated.
func (c *Cluster) TLSCAs(ctx context.Context) ([]byte, error) {
	export := []string{"auth", "export", "--type=tls-host"}
	if !c.behavior.ExportToFiles {
		out, err := c.Tctl(ctx, export...)
		return []byte(out), err
	}
	dir, err := os.MkdirTemp(c.options.Dir, "export-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	// tctl adds a number and an extension to the name.
	if _, err := c.Tctl(ctx, append(export, "--out="+filepath.Join(dir, "tls-host"))...); err != nil {
		return nil, err
	}
	return concatenate(dir)
}

// concatenate returns the content of a folder's files, each ending with a newline.
func concatenate(dir string) (all []byte, err error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	for _, entry := range entries {
		data, err := os.ReadFile(filepath.Join(dir, entry.Name()))
		if err != nil {
			return nil, err
		}
		all = append(append(all, bytes.TrimSpace(data)...), '\n')
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("tctl auth export wrote nothing into %s", dir)
	}
	return all, nil
}

// programLimit bounds a run of tctl, tsh or ssh, which takes about a second. If one hangs, the
// caller can try again.
const programLimit = 2 * time.Minute

// Tctl runs tctl as the cluster's administrator, and returns its output.
func (c *Cluster) Tctl(ctx context.Context, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, programLimit)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.program("tctl"), append([]string{"-c", c.config}, args...)...)
	cmd.Env = c.environment()
	return run(cmd)
}

// Create creates resources, or replaces them, as `tctl create -f` does.
func (c *Cluster) Create(ctx context.Context, resources string) error {
	file, err := os.CreateTemp(c.options.Dir, "resources-*.yaml")
	if err != nil {
		return err
	}
	defer os.Remove(file.Name())
	if _, err := file.WriteString(resources); err != nil {
		return errors.Join(err, file.Close())
	}
	if err := file.Close(); err != nil {
		return err
	}
	// A resource from the configuration file needs this confirmation.
	_, err = c.Tctl(ctx, "create", "-f", "--confirm", file.Name())
	return err
}

// SignIdentity creates an identity file for the user, and returns its path.
func (c *Cluster) SignIdentity(ctx context.Context, user string, ttl time.Duration) (string, error) {
	out := c.path(user + ".identity")
	_, err := c.Tctl(ctx, "auth", "sign", "--overwrite", "--format=file", "--user="+user, "--ttl="+ttl.String(), "--out="+out)
	return out, err
}

// run runs a command and returns its standard output. The error has what it wrote
// to standard error.
func run(cmd *exec.Cmd) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%s %s: %w: %s", filepath.Base(cmd.Path), strings.Join(cmd.Args[1:], " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}
