package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/hostcert"
	"github.com/hallmark-ssh/hallmark/internal/identity"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"github.com/hallmark-ssh/hallmark/internal/signer/inventory"
	"github.com/hallmark-ssh/hallmark/internal/signer/node"
	"github.com/hallmark-ssh/hallmark/internal/signer/teleport"
)

// services stand in for AWS and Teleport. Each call takes some of the simulated time.
type services struct {
	mu        sync.Mutex
	now       time.Time
	request   string  // the id of the request under way
	load      float64 // how much slower than usual everything is
	down      bool    // Teleport does not answer
	policy    []byte
	instances map[ec2ref.InstanceID]*inventory.Instance
	nodes     map[string]node.Node
	hostCA    ssh.Signer
}

func (s *services) clock() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.now
}

// take lets a call take about its usual time. The exact time depends only on the request and
// the call, so parallel calls add up to the same time in every order.
func (s *services) take(call string, usual time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := fnv.New64a()
	fmt.Fprint(h, s.request, call)
	spread := 0.6 + 0.8*float64(h.Sum64()%1000)/1000
	if h.Sum64()%97 == 0 {
		spread *= 3
	}
	s.now = s.now.Add(time.Duration(float64(usual) * spread * s.load).Truncate(time.Millisecond))
}

// documents uses an instance's id as its identity document.
type documents struct{ *services }

func (s documents) Verify(message []byte) (*identity.Document, error) {
	i, ok := s.instances[ec2ref.InstanceID(message)]
	if !ok {
		return nil, errors.New("not signed")
	}
	return &identity.Document{
		Instance:         ec2ref.Instance{Account: account, Region: region, ID: i.ID},
		AvailabilityZone: i.AvailabilityZone, ImageID: i.ImageID, InstanceType: "t4g.small", Architecture: "arm64",
		PrivateIP: i.PrivateIP, PendingTime: i.LaunchTime, Content: []byte("{}"),
	}, nil
}

type sts struct{ *services }

func (s sts) Verify(context.Context, protocol.CallerProof, protocol.Binding, ec2ref.Instance) error {
	s.take("STS", 35*time.Millisecond)
	return nil
}

type ec2 struct{ *services }

func (s ec2) Instance(_ context.Context, i ec2ref.Instance) (*inventory.Instance, error) {
	s.take("DescribeInstances", 90*time.Millisecond)
	if found, ok := s.instances[i.ID]; ok {
		return found, nil
	}
	return nil, inventory.ErrNotFound
}

func (s ec2) Instances(_ context.Context, _ ec2ref.Place, ids []ec2ref.InstanceID) (map[ec2ref.InstanceID]*inventory.Instance, error) {
	s.take("DescribeInstances", 120*time.Millisecond)
	found := make(map[ec2ref.InstanceID]*inventory.Instance)
	for _, id := range ids {
		if i, ok := s.instances[id]; ok {
			found[id] = i
		}
	}
	return found, nil
}

func (s ec2) All(context.Context, ec2ref.Place) (map[ec2ref.InstanceID]*inventory.Instance, error) {
	s.take("DescribeInstances", 400*time.Millisecond)
	return maps.Clone(s.instances), nil
}

func (ec2) CheckAccount(context.Context, ec2ref.Account) error { return nil }

var errTimeout = errors.New("dial tcp 192.0.2.10:443: i/o timeout")

// connect fails while Teleport is down.
func (s *services) connect() (cluster, error) {
	if s.down {
		s.take("dial", 5*time.Second)
		return cluster{}, errTimeout
	}
	return cluster{s}, nil
}

type cluster struct{ *services }

func (cluster) ClusterName() string { return "teleport.example.com" }
func (cluster) ProxyName() string   { return "teleport.example.com" }

func (s cluster) Node(_ context.Context, id string) (*node.Node, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n, ok := s.nodes[id]; ok {
		return &n, nil
	}
	return nil, teleport.ErrNotFound
}

func (s cluster) NodesNamed(_ context.Context, hostnames ...string) ([]node.Node, error) {
	s.take("lookup", 15*time.Millisecond)
	return s.nodesThat(func(n node.Node) bool { return slices.Contains(hostnames, n.Hostname) }), nil
}

func (s cluster) NodesWith(_ context.Context, labels map[string]string) ([]node.Node, error) {
	return s.nodesThat(func(n node.Node) bool {
		for key, value := range labels {
			if n.Labels[key] != value {
				return false
			}
		}
		return true
	}), nil
}

// nodesThat returns copies of the nodes whose lease has not expired, in a fixed order.
func (s *services) nodesThat(match func(node.Node) bool) []node.Node {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list []node.Node
	for _, n := range s.nodes {
		if n.Expires.After(s.now) && match(n) {
			n.Labels = maps.Clone(n.Labels)
			list = append(list, n)
		}
	}
	slices.SortFunc(list, func(a, b node.Node) int { return strings.Compare(a.ID, b.ID) })
	return list
}

func (s cluster) UpsertNode(_ context.Context, n node.Node) error {
	s.take("upsert", 25*time.Millisecond)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.nodes[n.ID] = n
	return nil
}

func (s cluster) DeleteNode(_ context.Context, id string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.nodes[id]; !ok {
		return teleport.ErrNotFound
	}
	delete(s.nodes, id)
	return nil
}

func (s cluster) SignHostKey(_ context.Context, key ssh.PublicKey, principals []string, ttl time.Duration) (*ssh.Certificate, error) {
	s.take("sign", 60*time.Millisecond)
	now := s.clock()
	certificate := &ssh.Certificate{
		Key: key, CertType: ssh.HostCert, Serial: 1<<63 + 1, ValidPrincipals: principals,
		ValidAfter: uint64(now.Add(-time.Minute).Unix()), ValidBefore: uint64(now.Add(ttl).Unix()),
		Permissions: ssh.Permissions{Extensions: map[string]string{hostcert.RoleExtension: "ProvisionToken"}},
	}
	return certificate, certificate.SignCert(rand.Reader, s.hostCA)
}

func (s cluster) CAs(context.Context) (teleport.CAs, error) {
	return teleport.CAs{OpenSSH: []ssh.PublicKey{s.hostCA.PublicKey()}, Host: []ssh.PublicKey{s.hostCA.PublicKey()}}, nil
}
