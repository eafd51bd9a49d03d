package teleport

import (
	"context"
	"fmt"
	"strings"

	"github.com/gravitational/teleport/api/types"
	"github.com/gravitational/trace"
)

// hostRoles are the system roles to ask for in a host certificate, best first.
//
// A proxy accepts a certificate of role Node, and of most others, as the login of a
// reverse-tunnel agent for any name in it. It refuses these three there, and accepts
// them where it checks a host. ProvisionToken has no permissions at all. Teleport 19
// dropped Nop; the other two are for servers that one day drop ProvisionToken. Other
// roles that the tunnel refuses (Auth, Proxy, Bot) have power elsewhere.
func hostRoles() []types.SystemRole {
	return []types.SystemRole{"ProvisionToken", "Nop", "Signup"}
}

// HostRoles returns the possible values of the extension x-teleport-role in the signer's
// host certificates. Teleport 13 writes Password if asked for Signup.
func HostRoles() []string {
	roles := []string{"Password"}
	for _, role := range hostRoles() {
		roles = append(roles, string(role))
	}
	return roles
}

// signHostKey requests a host certificate with the first role that the server knows, and
// returns it as one line. It starts with the role that worked last on this connection.
func (c *connection) signHostKey(ctx context.Context, request hostCertRequest) (string, error) {
	roles, first := hostRoles(), int(c.hostRole.Load())
	var line string
	var err error
	for n := range roles {
		at := (first + n) % len(roles)
		request.Roles = roles[at : at+1]
		line, err = c.signOnce(ctx, request)
		if isUnknownRole(err, roles[at]) {
			continue
		}
		if err == nil {
			c.hostRole.Store(int32(at)) //nolint:gosec // an index of three
		}
		return line, err
	}
	return "", fmt.Errorf("%w: this Teleport version has none of the roles %s: update Hallmark: %w", ErrDenied, types.SystemRoles(roles), err)
}

// isUnknownRole reports whether the server has no such system role. Teleport has no
// code for it.
func isUnknownRole(err error, role types.SystemRole) bool {
	return trace.IsBadParameter(err) && strings.Contains(err.Error(), "role "+string(role)+" is not registered")
}
