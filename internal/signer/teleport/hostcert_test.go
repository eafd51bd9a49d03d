package teleport_test

import (
	"context"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gravitational/teleport/api/types"
	"github.com/gravitational/trace"
	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/hostcert"
	"github.com/hallmark-ssh/hallmark/internal/signer/teleport"
	"github.com/hallmark-ssh/hallmark/internal/signer/teleport/teleporttest"
	"github.com/hallmark-ssh/hallmark/internal/sshkey/sshkeytest"
)

const legacyPath = "/v2/ca/host/certs"

func legacy(t *testing.T) *teleporttest.Cluster {
	t.Helper()
	return start(t, teleporttest.Options{KeyType: teleporttest.KeyEd25519, Generation: teleporttest.Generation13})
}

func signOne(t *testing.T, client *teleport.Client) error {
	t.Helper()
	_, err := client.SignHostKey(timeout(t, time.Minute), sshkeytest.NewSigner(t).PublicKey(), []string{"web-1"}, time.Hour)
	return err
}

// The server's answer decides how host keys are signed, once for each connection.
func TestHostCertificateWay(t *testing.T) {
	for name, tt := range map[string]struct {
		cluster  *teleporttest.Cluster
		overGRPC int
		overHTTP int
	}{
		"13 and 14":    {legacy(t), 1, 3},
		"15 and later": {quick(t), 3, 0},
	} {
		t.Run(name, func(t *testing.T) {
			client := dial(t, config(t, tt.cluster))
			for range 3 {
				if err := signOne(t, client); err != nil {
					t.Fatal(err)
				}
			}
			calls := tt.cluster.Calls()
			if calls["GenerateHostCert"] != tt.overGRPC || calls[legacyPath] != tt.overHTTP {
				t.Errorf("calls %v, want %d over gRPC and %d over HTTP", calls, tt.overGRPC, tt.overHTTP)
			}
		})
	}
}

// Errors are of the same kinds in both ways.
func TestHostCertificateErrors(t *testing.T) {
	for way, cluster := range map[string]*teleporttest.Cluster{"gRPC": quick(t), "HTTP": legacy(t)} {
		client := dial(t, config(t, cluster))
		if err := signOne(t, client); err != nil { // the way is chosen
			t.Fatal(err)
		}
		for _, tt := range []struct {
			name string
			hook error
			kind error
			text string
		}{
			{"denied", trace.AccessDenied(`access denied to perform action "create" on "host_cert"`), teleport.ErrDenied, "host_cert: [create]"},
			{"busy", trace.LimitExceeded("slow down"), teleport.ErrUnavailable, "slow down"},
			{"down", trace.ConnectionProblem(nil, "restarting"), teleport.ErrUnavailable, "restarting"},
		} {
			t.Run(way+", "+tt.name, func(t *testing.T) {
				cluster.Intercept(func(context.Context, string) error { return tt.hook })
				defer cluster.Intercept(nil)
				expect(t, signOne(t, client), tt.kind, tt.text)
			})
		}
		t.Run(way+", down for a moment", func(t *testing.T) {
			var calls atomic.Int32
			cluster.Intercept(func(context.Context, string) error {
				if calls.Add(1) == 1 {
					return trace.ConnectionProblem(nil, "restarting")
				}
				return nil
			})
			defer cluster.Intercept(nil)
			if err := signOne(t, client); err != nil {
				t.Error(err)
			}
		})
	}
}

// If neither way leads to a certificate, the cluster's version is the reason.
func TestHostCertificateNoWay(t *testing.T) {
	cluster := legacy(t)
	client := dial(t, config(t, cluster))
	cluster.Intercept(func(_ context.Context, method string) error {
		if method == legacyPath {
			return trace.NotFound("path is not found")
		}
		return nil
	})
	expect(t, signOne(t, client), teleport.ErrDenied, "versions 13 to 19")
}

// If the server does not know a role, the client tries the next one, once for each connection.
func TestHostCertificateRole(t *testing.T) {
	const first, second, third = "ProvisionToken", "Nop", "Signup"
	for name, tt := range map[string]struct {
		generation teleporttest.Generation
		unknown    []types.SystemRole
		asked      []string // for two certificates
		role       string   // of the second; empty if it is refused
	}{
		"13":                        {teleporttest.Generation13, nil, []string{first, first}, first},
		"19":                        {teleporttest.Generation19, nil, []string{first, first}, first},
		"13, the second":            {teleporttest.Generation13, []types.SystemRole{first}, []string{first, second, second}, second},
		"13, the last":              {teleporttest.Generation13, []types.SystemRole{first, second}, []string{first, second, third, third}, "Password"},
		"19, the last":              {teleporttest.Generation19, []types.SystemRole{first}, []string{first, second, third, third}, third},
		"19, others are not missed": {teleporttest.Generation19, []types.SystemRole{third, "Node"}, []string{first, first}, first},
		"13, none":                  {teleporttest.Generation13, []types.SystemRole{first, second, third}, []string{first, second, third, first, second, third}, ""},
		"19, none":                  {teleporttest.Generation19, []types.SystemRole{first, third}, []string{first, second, third, first, second, third}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			cluster := start(t, teleporttest.Options{KeyType: teleporttest.KeyEd25519, Generation: tt.generation, UnknownRoles: tt.unknown})
			client := dial(t, config(t, cluster))
			var cert *ssh.Certificate
			var err error
			for range 2 {
				cert, err = client.SignHostKey(timeout(t, time.Minute), sshkeytest.NewSigner(t).PublicKey(), []string{"web-1"}, time.Hour)
			}
			if got := rolesAsked(cluster); !slices.Equal(got, tt.asked) {
				t.Errorf("asked for roles %q, want %q", got, tt.asked)
			}
			if tt.role == "" {
				expect(t, err, teleport.ErrDenied, "none of the roles ProvisionToken,Nop,Signup: update Hallmark")
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := cert.Extensions[hostcert.RoleExtension]; got != tt.role || !slices.Contains(teleport.HostRoles(), got) {
				t.Errorf("role %q, want %q, one of %q", got, tt.role, teleport.HostRoles())
			}
		})
	}
}

func rolesAsked(cluster *teleporttest.Cluster) []string {
	var roles []string
	for _, request := range cluster.HostCertRequests() {
		roles = append(roles, request.Role)
	}
	return roles
}

// Only an unknown role leads to another one, even if another error quotes the words.
func TestHostCertificateRoleIsKept(t *testing.T) {
	for way, cluster := range map[string]*teleporttest.Cluster{"gRPC": quick(t), "HTTP": legacy(t)} {
		for _, answer := range []error{
			trace.BadParameter("ClusterName is required"),
			trace.BadParameter("role Node is not registered"),
			trace.AccessDenied("role ProvisionToken is not registered"),
			trace.LimitExceeded("role ProvisionToken is not registered"),
		} {
			t.Run(way+", "+answer.Error(), func(t *testing.T) {
				client := dial(t, config(t, cluster))
				if err := signOne(t, client); err != nil { // the way is chosen
					t.Fatal(err)
				}
				before := cluster.Calls()
				cluster.Intercept(func(context.Context, string) error { return answer })
				defer cluster.Intercept(nil)
				if err := signOne(t, client); err == nil || !strings.Contains(err.Error(), answer.Error()) {
					t.Errorf("got %v", err)
				}
				after := cluster.Calls()
				if n := after["GenerateHostCert"] - before["GenerateHostCert"] + after[legacyPath] - before[legacyPath]; n != 1 {
					t.Errorf("%d requests, want 1", n)
				}
			})
		}
	}
}
