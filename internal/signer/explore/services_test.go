package explore

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/signer/enroll"
	"github.com/hallmark-ssh/hallmark/internal/signer/inventory"
	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
	"github.com/hallmark-ssh/hallmark/internal/signer/node"
	"github.com/hallmark-ssh/hallmark/internal/signer/policy"
	"github.com/hallmark-ssh/hallmark/internal/signer/stored"
	"github.com/hallmark-ssh/hallmark/internal/signer/teleport"
	"github.com/hallmark-ssh/hallmark/internal/signer/upkeep"
)

// This file has the services that the real code calls. Each call waits in the process, and
// then reads or changes a world.

// service is what a call goes to.
type service int

const (
	inEC2 service = iota
	inLedger
	inTeleport
)

// signerFor returns the real signer of that name.
func (p *process) signerFor(name string) *enroll.Signer {
	return &enroll.Signer{
		Audience: name, Accounts: []ec2ref.Account{account}, Regions: []ec2ref.Region{region},
		Documents: trusting{}, Callers: callers{}, Inventory: ec2{p}, Ledger: records{p},
		Policy:  func(context.Context) (*policy.Policy, error) { return p.rules, nil },
		Connect: func(ctx context.Context) (enroll.Cluster, error) { return cluster{p}, p.connect(ctx) },
		Log:     slog.New(slog.DiscardHandler), Now: p.clock,
	}
}

// fleetOf returns the real fleet of that signer.
func (p *process) fleetOf(signer string) *upkeep.Fleet {
	return &upkeep.Fleet{
		Audience: signer, Accounts: []ec2ref.Account{account}, Regions: []ec2ref.Region{region}, Inventory: ec2{p}, Ledger: records{p},
		Missing: new(stored.Memory),                   // no instance is ever missing here
		Records: records{p}, Walk: new(stored.Memory), // one step reaches all records
		Policy:  func(context.Context) (*policy.Policy, error) { return p.rules, nil },
		Connect: func(ctx context.Context) (upkeep.Cluster, error) { return cluster{p}, p.connect(ctx) },
		Log:     slog.New(slog.DiscardHandler), Now: p.clock,
	}
}

// to begins a call.
func (p *process) to(ctx context.Context, s service, name string) *call {
	return &call{of: p, ctx: ctx, service: s, name: name}
}

func (c *call) reads(objects ...string) *call { return c.using(false, objects) }

func (c *call) writes(objects ...string) *call { return c.using(true, objects) }

func (c *call) using(write bool, objects []string) *call {
	for _, object := range objects {
		c.uses = append(c.uses, use{object, write})
	}
	return c
}

// wait waits until the call is answered. text describes the value that do returns.
func wait[T any](c *call, text func(T) string, do func(*world) (T, error)) (T, error) {
	a := c.wait(func(w *world) answer {
		value, err := do(w)
		a := answer{value: value, err: err}
		if err != nil {
			a.text = "error: " + err.Error()
		}
		if text != nil {
			a.text += text(value)
		}
		return a
	})
	value, _ := a.value.(T)
	return value, a.err
}

type nothing struct{}

func (c *call) done(do func(*world) error) error {
	_, err := wait(c, nil, func(w *world) (nothing, error) { return nothing{}, do(w) })
	return err
}

func recordOf(n int) string { return string("record/" + ref(n).ID) }

func bothRecords() []string { return []string{recordOf(1), recordOf(2)} }

// change is a change by EC2 itself.
func (p *process) change(n int, what string, change func(*world)) error {
	return p.to(context.Background(), inEC2, "EC2: "+what).writes(string("ec2/" + ref(n).ID)).done(func(w *world) error {
		change(w)
		return nil
	})
}

type ec2 struct{ *process }

func instanceText(i inventory.Instance) string { return fmt.Sprintf("%+v", i) }

func instancesText(all map[ec2ref.InstanceID]inventory.Instance) string {
	return fmt.Sprintf("%+v", all)
}

func (e ec2) Instance(ctx context.Context, i ec2ref.Instance) (*inventory.Instance, error) {
	found, err := wait(e.to(ctx, inEC2, "DescribeInstances "+string(i.ID)).reads("ec2/"+string(i.ID)), instanceText,
		func(w *world) (inventory.Instance, error) { return w.ec2[string(i.ID)], nil })
	return &found, err
}

func (e ec2) several(ctx context.Context, name string, ids []ec2ref.InstanceID) (map[ec2ref.InstanceID]*inventory.Instance, error) {
	c := e.to(ctx, inEC2, name)
	for _, id := range ids {
		c.reads("ec2/" + string(id))
	}
	found, err := wait(c, instancesText, func(w *world) (map[ec2ref.InstanceID]inventory.Instance, error) {
		found := make(map[ec2ref.InstanceID]inventory.Instance)
		for _, id := range ids {
			found[id] = w.ec2[string(id)]
		}
		return found, nil
	})
	all := make(map[ec2ref.InstanceID]*inventory.Instance)
	for id, i := range found {
		all[id] = &i
	}
	return all, err
}

func (e ec2) Instances(ctx context.Context, _ ec2ref.Place, ids []ec2ref.InstanceID) (map[ec2ref.InstanceID]*inventory.Instance, error) {
	return e.several(ctx, fmt.Sprint("DescribeInstances ", ids), ids)
}

func (e ec2) All(ctx context.Context, _ ec2ref.Place) (map[ec2ref.InstanceID]*inventory.Instance, error) {
	return e.several(ctx, "DescribeInstances", []ec2ref.InstanceID{ref(1).ID, ref(2).ID})
}

// CheckAccount passes: the credentials stay the same account's.
func (ec2) CheckAccount(context.Context, ec2ref.Account) error { return nil }

type records struct{ *process }

func recordText(r ledger.Record) string { return fmt.Sprintf("%+v", r) }

func (r records) Lookup(ctx context.Context, i ec2ref.Instance) (ledger.Record, error) {
	return wait(r.to(ctx, inLedger, "Lookup "+string(i.ID)).reads("record/"+string(i.ID)), recordText,
		func(w *world) (ledger.Record, error) { return w.ledger.Lookup(context.Background(), i) })
}

func (r records) LookupAll(ctx context.Context, all []ec2ref.Instance) (map[ec2ref.Instance]ledger.Record, error) {
	found, err := wait(r.to(ctx, inLedger, "LookupAll").reads(bothRecords()...), func(m map[ec2ref.Instance]ledger.Record) string { return fmt.Sprintf("%+v", m) },
		func(w *world) (map[ec2ref.Instance]ledger.Record, error) {
			return w.ledger.LookupAll(context.Background(), all)
		})
	return maps.Clone(found), err
}

// granted is a grant with its record.
type granted struct {
	grant  ledger.Grant
	record string
}

// Claim also reads the holders' records.
func (r records) Claim(ctx context.Context, c ledger.Claim, now time.Time) (ledger.Grant, error) {
	g, err := wait(r.to(ctx, inLedger, "Claim "+string(c.Instance.ID)).writes(bothRecords()...), func(g granted) string { return g.record },
		func(w *world) (granted, error) {
			g, err := w.ledger.Claim(context.Background(), c, now)
			return granted{g, w.ledgerText()}, err
		})
	return g.grant, err
}

func (r records) Complete(ctx context.Context, c ledger.Claim, g ledger.Grant, now time.Time) (ledger.Record, error) {
	return wait(r.to(ctx, inLedger, "Complete "+string(c.Instance.ID)).writes("record/"+string(c.Instance.ID)), recordText,
		func(w *world) (ledger.Record, error) { return w.ledger.Complete(context.Background(), c, g, now) })
}

func (r records) Announce(ctx context.Context, i ec2ref.Instance) (ledger.Record, error) {
	return wait(r.to(ctx, inLedger, "Announce "+string(i.ID)).writes("record/"+string(i.ID)), recordText,
		func(w *world) (ledger.Record, error) { return w.ledger.Announce(context.Background(), i) })
}

func (r records) Leave(ctx context.Context, l ledger.Leave, now time.Time) (ledger.Record, error) {
	return wait(r.to(ctx, inLedger, "Leave "+string(l.Instance.ID)).writes("record/"+string(l.Instance.ID)), recordText,
		func(w *world) (ledger.Record, error) { return w.ledger.Leave(context.Background(), l, now) })
}

func (r records) Retire(ctx context.Context, i ec2ref.Instance) error {
	return r.to(ctx, inLedger, "Retire "+string(i.ID)).writes("record/" + string(i.ID)).done(func(w *world) error { return w.ledger.Retire(context.Background(), i) })
}

func (r records) Permit(ctx context.Context, i ec2ref.Instance, p ledger.Permit) error {
	return r.to(ctx, inLedger, "Permit "+string(i.ID)).writes("record/" + string(i.ID)).done(func(w *world) error { return w.ledger.Permit(context.Background(), i, p) })
}

func (r records) Release(ctx context.Context, name, by string, now time.Time) (ec2ref.Instance, error) {
	return wait(r.to(ctx, inLedger, "Release "+name).writes(bothRecords()...), func(i ec2ref.Instance) string { return string(i.ID) },
		func(w *world) (ec2ref.Instance, error) { return w.ledger.Release(context.Background(), name, by, now) })
}

func (r records) Expired(ctx context.Context, from string, now time.Time) (ledger.Expired, error) {
	return wait(r.to(ctx, inLedger, "Expired").reads(bothRecords()...), func(e ledger.Expired) string { return fmt.Sprintf("%+v", e) },
		func(w *world) (ledger.Expired, error) { return w.ledger.Expired(context.Background(), from, now) })
}

func (r records) RetireExpired(ctx context.Context, i ec2ref.Instance, now time.Time) (bool, error) {
	return wait(r.to(ctx, inLedger, "RetireExpired "+string(i.ID)).writes("record/"+string(i.ID)), func(retired bool) string { return fmt.Sprint(retired) },
		func(w *world) (bool, error) { return w.ledger.RetireExpired(context.Background(), i, now) })
}

type cluster struct{ *process }

func (p *process) connect(ctx context.Context) error {
	return p.to(ctx, inTeleport, "Connect").done(func(*world) error { return nil })
}

func (cluster) ClusterName() string { return "teleport.example.com" }
func (cluster) ProxyName() string   { return "proxy.example.com" }

func (c cluster) Node(ctx context.Context, id string) (*node.Node, error) {
	found, err := wait(c.to(ctx, inTeleport, "Node "+id).reads("node/"+id), nodeText, func(w *world) (node.Node, error) {
		n, there := w.nodes[id]
		if !there {
			return node.Node{}, teleport.ErrNotFound
		}
		return n, nil
	})
	return &found, err
}

func (c cluster) list(ctx context.Context, name string, want func(node.Node) bool) ([]node.Node, error) {
	text := func(found []node.Node) string {
		var b strings.Builder
		for _, n := range found {
			fmt.Fprintln(&b, nodeText(n))
		}
		return b.String()
	}
	found, err := wait(c.to(ctx, inTeleport, name).reads("node/"+nodeOf(1), "node/"+nodeOf(2)), text, func(w *world) ([]node.Node, error) {
		var found []node.Node
		for _, id := range []string{nodeOf(1), nodeOf(2), foreign, stranger} {
			if server, there := w.nodes[id]; there && want(server) {
				found = append(found, server)
			}
		}
		return found, nil
	})
	return slices.Clone(found), err
}

func (c cluster) NodesNamed(ctx context.Context, hostnames ...string) ([]node.Node, error) {
	return c.list(ctx, fmt.Sprint("NodesNamed ", hostnames), func(n node.Node) bool { return slices.Contains(hostnames, n.Hostname) })
}

func (c cluster) NodesWith(ctx context.Context, labels map[string]string) ([]node.Node, error) {
	return c.list(ctx, "NodesWith", func(n node.Node) bool { return n.Labels["hallmark/signer"] == labels["hallmark/signer"] })
}

func (c cluster) UpsertNode(ctx context.Context, n node.Node) error {
	return c.to(ctx, inTeleport, "UpsertNode "+n.ID).writes("node/" + n.ID).refusable().done(func(w *world) error {
		w.put(n)
		return nil
	})
}

func (c cluster) DeleteNode(ctx context.Context, id string) error {
	return c.to(ctx, inTeleport, "DeleteNode "+id).writes("node/" + id).done(func(w *world) error {
		if _, there := w.nodes[id]; !there {
			return teleport.ErrNotFound
		}
		w.remember(id)
		delete(w.nodes, id)
		return nil
	})
}

func (c cluster) SignHostKey(ctx context.Context, key ssh.PublicKey, principals []string, ttl time.Duration) (*ssh.Certificate, error) {
	text := func(c *ssh.Certificate) string { return string(c.Marshal()) }
	cert, err := wait(c.to(ctx, inTeleport, "SignHostKey").refusable(), text, func(w *world) (*ssh.Certificate, error) {
		return w.sign(key, principals, w.now, ttl)
	})
	if err == nil {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.signed = append(c.signed, cert)
	}
	return cert, err
}

func (c cluster) CAs(ctx context.Context) (teleport.CAs, error) {
	return wait(c.to(ctx, inTeleport, "CAs"), nil, func(w *world) (teleport.CAs, error) {
		ca := []ssh.PublicKey{w.ca.PublicKey()}
		return teleport.CAs{OpenSSH: ca, Host: ca}, nil
	})
}

// ownerOf returns the owner of a host key.
func (f *fixed) ownerOf(key ssh.PublicKey) (int, error) {
	for name, k := range f.keys {
		if string(k.PublicKey().Marshal()) == string(key.Marshal()) {
			return int(name[0] - '0'), nil
		}
	}
	return 0, errors.New("a key of nobody")
}

// handOut records how long names are certified, once a machine has its certificates.
func (w *world) handOut(certificates []*ssh.Certificate) error {
	for _, c := range certificates {
		owner, err := w.ownerOf(c.Key)
		if err != nil {
			return err
		}
		for _, name := range c.ValidPrincipals {
			end := time.Unix(int64(c.ValidBefore), 0).UTC() //nolint:gosec // made below
			if end.After(w.certified[certificate{owner, name}]) {
				w.certified[certificate{owner, name}] = end
			}
		}
	}
	return nil
}

func (f *fixed) sign(key ssh.PublicKey, principals []string, now time.Time, ttl time.Duration) (*ssh.Certificate, error) {
	f.making.Lock()
	defer f.making.Unlock()
	name := fmt.Sprint(ssh.FingerprintSHA256(key), principals, now, ttl)
	if c, made := f.certificates[name]; made {
		return c, nil
	}
	c := &ssh.Certificate{
		Key: key, CertType: ssh.HostCert, ValidPrincipals: principals,
		ValidAfter:  uint64(now.Add(-time.Minute).Unix()), //nolint:gosec // after 1970
		ValidBefore: uint64(now.Add(ttl).Unix()),          //nolint:gosec // after 1970
		Permissions: ssh.Permissions{Extensions: map[string]string{"x-teleport-role": "ProvisionToken"}},
	}
	if err := c.SignCert(rand.Reader, f.ca); err != nil {
		return nil, err
	}
	f.certificates[name] = c
	return c, nil
}
