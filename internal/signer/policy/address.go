package policy

import (
	"fmt"
	"net"
	"strconv"

	"github.com/hallmark-ssh/hallmark/internal/signer/node"
)

// addressKind names which of an instance's addresses the proxy dials.
type addressKind string

const (
	addressPrivate addressKind = "private"
	addressPublic  addressKind = "public"
	addressIPv6    addressKind = "ipv6"
)

func parseAddress(text *string) (addressKind, error) {
	switch kind := addressKind(or(text, string(addressPrivate))); kind {
	case addressPrivate, addressPublic, addressIPv6:
		return kind, nil
	default:
		return "", fmt.Errorf("%s is not private, public or ipv6", quote(string(kind)))
	}
}

// of returns the instance's address of this kind, as host:port. It refuses an instance
// without one: nobody could dial the node, and another address could lead outside the
// network that the rule intends.
func (k addressKind) of(f node.Facts, port int) (string, error) {
	address := map[addressKind]string{
		addressPrivate: f.PrivateIP,
		addressPublic:  f.PublicIP,
		addressIPv6:    f.IPv6,
	}[k]
	if address == "" {
		return "", fmt.Errorf("the instance has no %s address", k)
	}
	return net.JoinHostPort(address, strconv.Itoa(port)), nil
}
