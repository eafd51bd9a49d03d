// Package node says what an instance looks like in Teleport: the facts that are known of it,
// its labels, its names and its node. Enrollment, tag events, the sweep and hallmark-signer
// policy explain all ask here.
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
	// Address is host:port, as the proxy dials it.
	Address string
	Labels  map[string]string
	// Expires is when the cluster forgets the node; zero for never.
	Expires time.Time
}

// Cluster names what no node may be called.
type Cluster struct {
	// Name is the cluster's name.
	Name string
	// Proxy is the public host name of its proxy, without a port.
	Proxy string
	// Signer is the signer's audience, the value of the label hallmark/signer.
	Signer string
}

// Confirmed returns the node of an instance's latest confirmed enrollment. Address and labels
// are what the policy gives it now. The host name stays the one in its certificates: another
// name comes with new certificates.
func Confirmed(i ec2ref.Instance, r ledger.Record, address string, labels map[string]string) Node {
	return Node{ID: i.NodeID(), Hostname: r.ConfirmedHostname, Address: address, Labels: labels, Expires: Lease(r)}
}

// Lease returns when the node of the latest confirmed enrollment expires. Records from
// before the lease was kept have the end of the claim, a little later.
func Lease(r ledger.Record) time.Time {
	if r.Lease.IsZero() {
		return r.ValidUntil
	}
	return r.Lease
}

// Signer returns the audience of the signer whose node it is, or "" if it is nobody's.
func (n Node) Signer() string { return n.Labels[SignerLabel] }

// Instance returns which instance the labels say it is.
func (n Node) Instance() ec2ref.Instance {
	return ec2ref.Instance{
		Account: ec2ref.Account(n.Labels[AccountLabel]),
		Region:  ec2ref.Region(n.Labels[RegionLabel]),
		ID:      ec2ref.InstanceID(n.Labels[InstanceLabel]),
	}
}

// Principals returns the names in an instance's certificates, each once: a cluster that
// drops repeated ones would seem to have signed something else. They are what people and
// the proxy may type. An address is among the further names only if the policy says so:
// private ones repeat across VPCs.
func Principals(hostname, id, cluster string, further []string) []string {
	var list []string
	for _, name := range append([]string{hostname, id, hostname + "." + cluster, id + "." + cluster}, further...) {
		if !slices.Contains(list, name) {
			list = append(list, name)
		}
	}
	return list
}
