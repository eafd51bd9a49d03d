//go:build linux && teleport

package teleportd_test

import (
	"context"
	"testing"
	"time"

	"github.com/gravitational/teleport/api/client"
	"github.com/gravitational/teleport/api/client/proto"
	userspb "github.com/gravitational/teleport/api/gen/proto/go/teleport/users/v1"
	"github.com/gravitational/teleport/api/types"
	"github.com/gravitational/trace"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/hallmark-ssh/hallmark/e2e/teleportd"
)

// person has the role of templates/teleport/role.yaml directly, as an identity file does.
const person = `kind: user
version: v2
metadata:
  name: hallmark-enroll
spec:
  roles: [hallmark-enroll]
`

// A thief of the signer's login can do what the signer does, and nothing else.
func TestRoleMayDoNothingElse(t *testing.T) {
	cluster := start(t, "permission.test", "127.83.9.1")
	for _, resources := range []string{teleportd.Role(cluster.Name()), person} {
		if err := cluster.Create(t.Context(), resources); err != nil {
			t.Fatal(err)
		}
	}
	identity, err := cluster.SignIdentity(t.Context(), "hallmark-enroll", time.Hour)
	if err != nil {
		t.Fatal(err)
	}
	api, err := client.New(t.Context(), client.Config{
		Addrs: []string{cluster.AuthAddress()}, Credentials: []client.Credentials{client.LoadIdentityFile(identity)},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = api.Close() })

	var users accounts = api
	if !cluster.Behavior().UsersService {
		users = oldAccounts{proto.NewAuthServiceClient(api.GetConnection())}
	}
	host := types.CertAuthID{Type: types.HostCA, DomainName: cluster.Name()}
	if _, err := api.GetCertAuthority(t.Context(), host, false); err != nil {
		t.Errorf("read the public keys of the Host CA, as the signer does: %v", err)
	}
	for name, try := range map[string]func(context.Context) error{
		"read the secrets of the Host CA": func(ctx context.Context) error {
			_, err := api.GetCertAuthority(ctx, host, true)
			return err
		},
		"read the secrets of the User CA": func(ctx context.Context) error {
			_, err := api.GetCertAuthority(ctx, types.CertAuthID{Type: types.UserCA, DomainName: cluster.Name()}, true)
			return err
		},
		"create a role": func(ctx context.Context) error {
			role, err := types.NewRole("mine", types.RoleSpecV6{})
			if err != nil {
				return err
			}
			_, err = api.UpsertRole(ctx, role)
			return err
		},
		"delete a role": func(ctx context.Context) error { return api.DeleteRole(ctx, "access") },
		"create a user": func(ctx context.Context) error {
			user, err := types.NewUser("mine")
			if err != nil {
				return err
			}
			_, err = users.CreateUser(ctx, user)
			return err
		},
		"delete a user": func(ctx context.Context) error { return users.DeleteUser(ctx, "hallmark-enroll") },
		"list users": func(ctx context.Context) error {
			_, err := users.ListUsers(ctx, &userspb.ListUsersRequest{})
			return err
		},
		"create a token": func(ctx context.Context) error {
			token, err := types.NewProvisionToken("mine", types.SystemRoles{types.RoleNode}, time.Now().Add(time.Hour))
			if err != nil {
				return err
			}
			return api.UpsertToken(ctx, token)
		},
		"list tokens": func(ctx context.Context) error {
			_, err := api.GetTokens(ctx)
			return err
		},
		"certificates of another user": func(ctx context.Context) error {
			_, err := api.GenerateUserCerts(ctx, proto.UserCertsRequest{Username: "somebody", Expires: time.Now().Add(time.Hour)})
			return err
		},
		"lock everybody out": func(ctx context.Context) error {
			lock, err := types.NewLock("mine", types.LockSpecV2{Target: types.LockTarget{Role: "access"}})
			if err != nil {
				return err
			}
			return api.UpsertLock(ctx, lock)
		},
		"list trusted clusters": func(ctx context.Context) error {
			_, err := api.GetTrustedClusters(ctx)
			return err
		},
		"list connectors with their secrets": func(ctx context.Context) error {
			_, err := api.GetSAMLConnectors(ctx, true)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			if err := try(ctx); !trace.IsAccessDenied(err) && status.Code(err) != codes.PermissionDenied {
				t.Errorf("got %v, want access denied", err)
			}
		})
	}
}

// accounts is how users are managed.
type accounts interface {
	CreateUser(ctx context.Context, user types.User) (types.User, error)
	DeleteUser(ctx context.Context, name string) error
	ListUsers(ctx context.Context, request *userspb.ListUsersRequest) (*userspb.ListUsersResponse, error)
}

// oldAccounts makes the calls of servers without a users service, which the library no
// longer makes.
type oldAccounts struct{ service proto.AuthServiceClient }

func (o oldAccounts) CreateUser(ctx context.Context, user types.User) (types.User, error) {
	_, err := o.service.CreateUser(ctx, user.(*types.UserV2)) //nolint:staticcheck // older servers know no other
	return user, err
}

func (o oldAccounts) DeleteUser(ctx context.Context, name string) error {
	_, err := o.service.DeleteUser(ctx, &proto.DeleteUserRequest{Name: name}) //nolint:staticcheck // as above
	return err
}

func (o oldAccounts) ListUsers(ctx context.Context, _ *userspb.ListUsersRequest) (*userspb.ListUsersResponse, error) {
	users, err := o.service.GetUsers(ctx, &proto.GetUsersRequest{}) //nolint:staticcheck // as above
	if err == nil {
		_, err = users.Recv()
	}
	return &userspb.ListUsersResponse{}, err
}
