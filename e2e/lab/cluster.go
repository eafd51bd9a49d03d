//go:build linux

package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"strings"

	"github.com/gravitational/teleport/api/types"
	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/e2e/machine"
	"github.com/hallmark-ssh/hallmark/e2e/teleportd"
	"github.com/hallmark-ssh/hallmark/internal/caexport"
	"github.com/hallmark-ssh/hallmark/internal/signer/teleport/teleporttest"
)

// Cluster is the lab's Teleport cluster: the embedded one, or a real one.
type Cluster interface {
	Name() string
	// Address is host:port of the proxy.
	Address() string
	// RootsPEM are the CA certificates that verify the proxy's web certificate.
	RootsPEM() []byte
	// OpenSSHCA signs the certificates that people show to machines. KnownHosts are the
	// lines for the CA that signs the machines' certificates.
	OpenSSHCA() ssh.PublicKey
	KnownHosts() []byte
	// Nodes returns the nodes, sorted by name.
	Nodes(ctx context.Context) ([]types.Server, error)
	// SSH runs a command as User, as people of the cluster do, on the machine whose name they
	// type.
	SSH(ctx context.Context, address netip.Addr, hostname, command string) (string, error)
}

func (l *Lab) startCluster(ctx context.Context) (err error) {
	if l.config.Teleport == "" {
		l.Cluster, err = l.startEmbedded(ctx)
		return err
	}
	l.Cluster, err = l.startTeleport(ctx)
	return err
}

// embedded is a cluster inside this program. Its people need no proxy: they have the
// certificates that Teleport's proxy would present to machines.
type embedded struct {
	*teleporttest.Cluster
	login      string // a person's private key, with a user certificate of the cluster next to it
	knownHosts string // the cluster's @cert-authority line, and nothing else
}

// RotateOpenSSH moves the embedded cluster's OpenSSH CA to a phase of its rotation.
func (l *Lab) RotateOpenSSH(phase teleporttest.Phase) error {
	e, ok := l.Cluster.(*embedded)
	if !ok {
		return errors.New("the lab's cluster is not the embedded one")
	}
	return e.RotateOpenSSH(phase)
}

func (l *Lab) startEmbedded(ctx context.Context) (*embedded, error) {
	cluster, err := teleporttest.Start(teleporttest.Options{STS: l.login.sts})
	if err != nil {
		return nil, err
	}
	for bot, arn := range l.login.bots() {
		cluster.AddBot(teleporttest.Bot{Name: bot, Token: bot, AWSARN: arn, Roles: []string{bot}})
	}
	context.AfterFunc(ctx, func() { _ = cluster.Close() })
	e := &embedded{Cluster: cluster, login: filepath.Join(l.dir, "login"), knownHosts: l.knownHosts()}
	return e, writeLogin(e.login, cluster)
}

func (e *embedded) Nodes(context.Context) ([]types.Server, error) {
	var nodes []types.Server
	for _, node := range e.Cluster.Nodes() {
		nodes = append(nodes, node)
	}
	return nodes, nil
}

func (e *embedded) SSH(ctx context.Context, address netip.Addr, hostname, command string) (string, error) {
	return runSSH(ctx, address, e.login, e.knownHosts, hostname, command)
}

// everyone is the role of the person that SSH logs in as.
const everyone = `kind: role
version: v6
metadata:
  name: everyone
spec:
  allow:
    logins: [` + User + `]
    node_labels: {'*': '*'}
`

// real is a Teleport cluster.
type real struct {
	*teleportd.Cluster
	person    *teleportd.Person
	hosts     []byte
	openSSHCA ssh.PublicKey
}

func (l *Lab) startTeleport(ctx context.Context) (*real, error) {
	log, err := l.createLog("teleport")
	if err != nil {
		return nil, err
	}
	cluster, err := teleportd.Start(ctx, teleportd.Options{
		Programs: l.config.Teleport, Dir: filepath.Join(l.dir, "teleport"), Name: "hallmark.test", Address: machine.Hub,
		STSURL: l.login.url, Log: log,
	})
	if err != nil {
		return nil, err
	}
	l.Teleport = cluster
	r := &real{Cluster: cluster}
	for _, step := range []func(context.Context) error{l.addSigner, r.addPerson, r.readCAs} {
		if err := step(ctx); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// addSigner lets the signer log in with its AWS role, as docs/teleport.md says.
func (l *Lab) addSigner(ctx context.Context) error {
	return l.Teleport.AddBots(ctx, l.login.bots())
}

// bots are the functions' AWS roles, by the bot that each logs in as.
func (l *login) bots() map[string]string {
	return map[string]string{teleportd.EnrollBot: l.enroll.ARN, teleportd.FleetBot: l.fleet.ARN}
}

func (r *real) addPerson(ctx context.Context) (err error) {
	if err := r.Create(ctx, everyone); err != nil {
		return err
	}
	r.person, err = r.NewPerson(ctx, "everyone", "everyone")
	return err
}

func (r *real) readCAs(ctx context.Context) error {
	openssh, err := r.CAs(ctx, caexport.OpenSSH)
	if err != nil {
		return err
	}
	r.openSSHCA = openssh[0]
	host, err := r.CAs(ctx, caexport.Host)
	if err != nil {
		return err
	}
	r.hosts = fmt.Appendf(nil, "@cert-authority %[1]s,*.%[1]s %s", r.Name(), ssh.MarshalAuthorizedKey(host[0]))
	return nil
}

func (r *real) OpenSSHCA() ssh.PublicKey { return r.openSSHCA }
func (r *real) KnownHosts() []byte       { return r.hosts }

func (r *real) Nodes(ctx context.Context) ([]types.Server, error) {
	out, err := r.Tctl(ctx, "get", "nodes", "--format=json")
	if err != nil {
		return nil, err
	}
	var servers []*types.ServerV2
	if err := json.Unmarshal([]byte(out), &servers); err != nil {
		return nil, fmt.Errorf("read what tctl get nodes prints: %w", err)
	}
	var nodes []types.Server
	for _, server := range servers {
		nodes = append(nodes, server)
	}
	return nodes, nil
}

func (r *real) SSH(ctx context.Context, _ netip.Addr, hostname, command string) (string, error) {
	// With the configuration that tsh writes, OpenSSH's client needs the cluster's name after
	// the host's. tsh itself looks up nodes by host name alone.
	name := strings.TrimSuffix(hostname, "."+r.Name())
	var out string
	// The proxy's view lags behind writes, so it may not know a machine yet that has just
	// enrolled. The message differs between versions.
	err := machine.Await(ctx, func() (err error) {
		out, err = r.person.Tsh(ctx, "ssh", User+"@"+name, command)
		return err
	})
	return out, err
}
