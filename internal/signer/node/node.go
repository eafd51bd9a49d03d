// Package node describes an instance in Teleport: its facts, labels, names and node.
// Enrollment, tag events, the sweep and hallmark-signer policy explain all use it.
package node

import (
	"slices"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
)

// Node is the record of an OpenSSH server.
type Node struct {
	// ID is the name of the record, a UUID.
	ID string
	// Hostname is what people type. It need not be unique in a cluster.
	Hostname string
	// Address is the host:port that the proxy dials.
	Address string
	Labels  map[string]string
	// Expires is when the cluster drops the node; zero means never.
	Expires time.Time
}

// Cluster holds the names that no node may have.
type Cluster struct {
	// Name is the cluster's name.
	Name string
	// Proxy is the public host name of its proxy, without a port.
	Proxy string
	// Signer is the signer's audience, the value of the label hallmark/signer.
	Signer string
}

// Confirmed returns the node of an instance's latest confirmed enrollment. Address and labels
// are what the policy now gives the instance. The host name stays the one in its certificates:
// another name comes only with new certificates.
func Confirmed(i ec2ref.Instance, r ledger.Record, address string, labels map[string]string) Node {
	return Node{ID: i.NodeID(), Hostname: r.ConfirmedHostname, Address: address, Labels: labels, Expires: Lease(r)}
}

// Lease returns when the node of the latest confirmed enrollment expires. Older records did
// not keep the lease, so for them it is the claim's expiry, a little later.
func Lease(r ledger.Record) time.Time {
	if r.Lease.IsZero() {
		return r.ValidUntil
	}
	return r.Lease
}

// Signer returns the audience of the signer that owns the node, or "" if there is none.
func (n Node) Signer() string { return n.Labels[SignerLabel] }

// Instance returns the instance that the labels name, and whether the node is that instance's.
// Anyone who may write nodes chooses labels and id: a name that is not an instance's, such as
// i-*, must reach neither EC2 nor the ledger.
func (n Node) Instance() (ec2ref.Instance, bool) {
	i, err := ec2ref.NewInstance(n.Labels[AccountLabel], n.Labels[RegionLabel], n.Labels[InstanceLabel])
	return i, err == nil && i.NodeID() == n.ID
}

// Principals returns the names in an instance's certificates, each once: if a name were
// repeated and the cluster dropped the repetition, it would seem to have signed something
// else. They are the names that people and the proxy may use. Addresses are among them only if
// the policy says so: private addresses repeat across VPCs.
func Principals(hostname, id, cluster string, further []string) []string {
	var list []string
	for _, name := range append([]string{hostname, id, hostname + "." + cluster, id + "." + cluster}, further...) {
		if !slices.Contains(list, name) {
			list = append(list, name)
		}
	}
	return list
}
