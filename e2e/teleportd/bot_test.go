//go:build linux && teleport

package teleportd_test

import (
	"context"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/credentials"

	"github.com/hallmark-ssh/hallmark/e2e/fake/sts"
	"github.com/hallmark-ssh/hallmark/e2e/teleportd"
	"github.com/hallmark-ssh/hallmark/internal/signer/node"
	"github.com/hallmark-ssh/hallmark/internal/signer/teleport"
	"github.com/hallmark-ssh/hallmark/internal/sshkey/sshkeytest"
)

const (
	functionARN = "arn:aws:sts::111122223333:assumed-role/hallmark-EnrollRole/enroll"
	fleetARN    = "arn:aws:sts::111122223333:assumed-role/hallmark-FleetRole/fleet"
	strangerARN = "arn:aws:sts::111122223333:assumed-role/hallmark-EnrollRole/another"
)

// access are the access keys of the AWS roles in the test.
var access = map[string]string{
	functionARN: "ASIAENROLLENROLLENRO", fleetARN: "ASIAFLEETFLEETFLEETF", strangerARN: "ASIASTRANGERSTRANGER",
}

// bots is a real cluster with the bots of templates/teleport. A test's own STS answers its
// calls to STS.
type bots struct {
	*teleportd.Cluster
	sts *sts.Server
}

func startBots(t *testing.T, name, address string) bots {
	t.Helper()
	identities := sts.New(sts.Options{Region: "us-west-2"})
	for arn, key := range access {
		identities.Register(sts.Credential{AccessKeyID: key, SecretAccessKey: "secret", SessionToken: "token", ARN: arn})
	}
	server := httptest.NewServer(identities)
	t.Cleanup(server.Close)
	cluster := startWith(t, teleportd.Options{Name: name, Address: address, STSURL: server.URL})
	arns := map[string]string{teleportd.EnrollBot: functionARN, teleportd.FleetBot: fleetARN}
	if err := cluster.AddBots(t.Context(), arns); err != nil {
		t.Fatal(err)
	}
	return bots{cluster, identities}
}

func (b bots) config(arn, token, role string) teleport.Config {
	return teleport.Config{Address: b.Address(), RootsPEM: b.RootsPEM(), Login: teleport.Bot{
		Token: token, Role: role, Region: "us-west-2", STSHost: "sts.us-west-2.amazonaws.com",
		Credentials: credentials.NewStaticCredentialsProvider(access[arn], "secret", "token"),
	}}
}

func (b bots) dial(t *testing.T, config teleport.Config) (*teleport.Client, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	client, err := teleport.Dial(ctx, config)
	if err == nil {
		t.Cleanup(func() { client.Close() })
	}
	return client, err
}

func TestBot(t *testing.T) {
	b := startBots(t, "bot.test", "127.83.7.1")
	t.Run("enrolls through the proxy", func(t *testing.T) {
		client, err := b.dial(t, b.config(functionARN, "hallmark-enroll", "hallmark-enroll"))
		if err != nil {
			t.Fatal(err)
		}
		b.enroll(t, client)
	})
	t.Run("enrolls at the auth service", func(t *testing.T) {
		config := b.config(functionARN, "hallmark-enroll", "hallmark-enroll")
		config.Address, config.RootsPEM = b.AuthAddress(), b.hostCAs(t)
		client, err := b.dial(t, config)
		if err != nil {
			t.Fatal(err)
		}
		b.enroll(t, client)
	})
	t.Run("refused", b.refused)
	t.Run("limits", b.limits)
}

// enroll does what the signer does for one machine.
func (b bots) enroll(t *testing.T, client *teleport.Client) {
	t.Helper()
	const id = "6f1c9e0a-0000-5000-8000-000000000001"
	if err := client.UpsertNode(t.Context(), node.Node{
		ID: id, Hostname: "web-1", Address: "192.0.2.1:22", Expires: time.Now().Add(time.Hour),
	}); err != nil {
		t.Error(err)
	}
	names := []string{"web-1", id, "web-1." + b.Name(), id + "." + b.Name()}
	if _, err := client.SignHostKey(t.Context(), sshkeytest.NewSigner(t).PublicKey(), names, time.Hour); err != nil {
		t.Error(err)
	}
	if _, err := client.CAs(t.Context()); err != nil {
		t.Error(err)
	}
	if _, err := client.NodesNamed(t.Context(), "web-1"); err != nil {
		t.Error(err)
	}
	if err := client.DeleteNode(t.Context(), id); err != nil {
		t.Error(err)
	}
}

// Each error says what to change.
func (b bots) refused(t *testing.T) {
	for name, tt := range map[string]struct {
		config func() teleport.Config
		want   string
	}{
		"unknown token": {func() teleport.Config { return b.config(functionARN, "nobody's", "hallmark-enroll") }, "teleport.login.token"},
		"another function with the role": {func() teleport.Config {
			return b.config(strangerARN, "hallmark-enroll", "hallmark-enroll")
		}, "TeleportTokenArn"},
		"another bot's role": {func() teleport.Config { return b.config(fleetARN, "hallmark-fleet", "hallmark-enroll") }, "teleport.login.role"},
		"unknown role":       {func() teleport.Config { return b.config(functionARN, "hallmark-enroll", "nobody's") }, "teleport.login.role"},
		"wrong secret key": {func() teleport.Config {
			c := b.config(functionARN, "hallmark-enroll", "hallmark-enroll")
			login := c.Login.(teleport.Bot)
			login.Credentials = credentials.NewStaticCredentialsProvider(access[functionARN], "guessed", "token")
			c.Login = login
			return c
		}, "AWS did not confirm"},
		"clock behind": {func() teleport.Config {
			c := b.config(functionARN, "hallmark-enroll", "hallmark-enroll")
			c.Now = func() time.Time { return time.Now().Add(-20 * time.Minute) }
			return c
		}, "the clock here is wrong"},
		"region that Teleport does not know": {func() teleport.Config {
			c := b.config(functionARN, "hallmark-enroll", "hallmark-enroll")
			login := c.Login.(teleport.Bot)
			login.STSHost = "sts.hm-test-1.amazonaws.com"
			c.Login = login
			return c
		}, "teleport.login.region"},
		"untrusted proxy": {func() teleport.Config {
			c := b.config(functionARN, "hallmark-enroll", "hallmark-enroll")
			c.RootsPEM = nil
			return c
		}, "teleport.roots_file"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := b.dial(t, tt.config())
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q in it", err, tt.want)
			}
		})
	}
}

// This shows how the role's where clause limits the right to sign, and that the fleet's bot
// has no such right.
func (b bots) limits(t *testing.T) {
	enroll, err := b.dial(t, b.config(functionARN, "hallmark-enroll", "hallmark-enroll"))
	if err != nil {
		t.Fatal(err)
	}
	upkeep, err := b.dial(t, b.config(fleetARN, "hallmark-fleet", "hallmark-fleet"))
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		client    *teleport.Client
		principal string
		refused   bool
	}{
		{enroll, "web-1", false},
		{enroll, b.Name(), true}, {enroll, "localhost", true}, {enroll, "127.0.0.1", true}, {enroll, "::1", true}, {enroll, "*", true},
		{upkeep, "web-1", true},
	} {
		_, err := tt.client.SignHostKey(t.Context(), sshkeytest.NewSigner(t).PublicKey(), []string{"web-2", tt.principal}, time.Hour)
		if refused := err != nil; refused != tt.refused {
			t.Errorf("principal %q: %v", tt.principal, err)
		} else if refused && !strings.Contains(err.Error(), "host_cert: [create]") {
			t.Errorf("principal %q: no advice in %v", tt.principal, err)
		}
	}
}
