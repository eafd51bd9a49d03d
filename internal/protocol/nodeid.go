package protocol

import "github.com/google/uuid"

// NodeID returns the name of an instance's node in Teleport: a UUIDv5 (RFC 9562)
// of account, region and instance id, so that enrolling twice gives one node and
// deleting it needs no lookup.
func NodeID(account, region, instanceID string) string {
	// Derived once from the DNS name of the project; never change it, nodes in
	// people's clusters are named by it.
	namespace := uuid.NewSHA1(uuid.NameSpaceDNS, []byte("node.hallmark-ssh.github.com"))
	return uuid.NewSHA1(namespace, []byte(account+"/"+region+"/"+instanceID)).String()
}
