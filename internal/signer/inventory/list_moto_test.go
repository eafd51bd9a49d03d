//go:build e2e

package inventory_test

import (
	"context"
	"errors"
	"net/http"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/credentials"

	"github.com/hallmark-ssh/hallmark/e2e/fake/moto"
	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"github.com/hallmark-ssh/hallmark/internal/signer/inventory"
)

// TestListsOfMoto lists more instances than a page has, from an emulator that somebody else
// wrote.
func TestListsOfMoto(t *testing.T) {
	const (
		region  = "us-west-2"
		image   = "ami-12c6146b"
		many    = 1010 // more than a page
		unknown = "i-0123456789abcdef0"
	)
	server, err := moto.Start(t.Context(), region, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	counter := &countingClient{HTTPClient: awshttp.NewBuildableClient()}
	cfg := aws.Config{
		Region: region, HTTPClient: counter,
		Credentials: credentials.NewStaticCredentialsProvider("test", "test", ""),
	}
	client := moto.EC2{URL: server.URL, Region: region, Credentials: cfg.Credentials}
	var ids []ec2ref.InstanceID
	for range many { // one by one: moto's pages are of so many reservations
		id, err := client.Run(t.Context(), moto.Launch{Image: image, HopLimit: 2, Tags: map[string]string{"Name": "web"}})
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, ec2ref.InstanceID(id))
	}
	stopped, terminated := ids[0], ids[1]
	if err := errors.Join(client.Stop(t.Context(), string(stopped)), client.Terminate(t.Context(), string(terminated))); err != nil {
		t.Fatal(err)
	}

	e := inventory.New(inventory.Config{
		AWS: cfg, Accounts: []inventory.Account{{ID: moto.Account}},
		Endpoint: func(ec2ref.Region) (string, error) { return server.URL, nil }, Now: time.Now,
	})
	e.Wait = func(context.Context, time.Duration) error { return nil }
	all, err := e.All(t.Context(), ec2ref.Place{Account: moto.Account, Region: region})
	if err != nil {
		t.Fatal(err)
	}
	if counter.requests != 3 { // two pages, one image
		t.Errorf("%d requests for two pages and an image", counter.requests)
	}
	named, err := e.Instances(t.Context(), ec2ref.Place{Account: moto.Account, Region: region}, append([]ec2ref.InstanceID{unknown}, ids...))
	if err != nil {
		t.Fatal(err)
	}
	for what, found := range map[string]map[ec2ref.InstanceID]*inventory.Instance{"all": all, "by ids": named} {
		if len(found) != many || found[unknown] != nil {
			t.Errorf("%s: %d instances, want %d", what, len(found), many)
		}
		options := protocol.MetadataOptions{HTTPTokens: protocol.TokensRequired, HopLimit: 2}
		for _, id := range ids {
			want := inventory.StateRunning
			switch id {
			case stopped:
				want = inventory.StateStopped
			case terminated:
				want = inventory.StateTerminated
			}
			if i := found[id]; i == nil || i.State != want || i.Tags["Name"] != "web" || i.ImageOwner == "" || i.OwnerID != moto.Account || i.MetadataOptions != options {
				t.Fatalf("%s: %s: %+v, want it %s, with %+v", what, id, i, want, options)
			}
		}
	}
}

// countingClient counts the product's requests, not the test's own.
type countingClient struct {
	aws.HTTPClient
	requests int
}

func (c *countingClient) Do(r *http.Request) (*http.Response, error) {
	c.requests++
	return c.HTTPClient.Do(r)
}
