//go:build e2e

package sts

import (
	"context"
	"errors"
	"net/http/httptest"
	"net/url"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/credentials"
	awssts "github.com/aws/aws-sdk-go-v2/service/sts"

	"github.com/hallmark-ssh/hallmark/e2e/fake/moto"
	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/signer/inventory"
)

// TestMemberAccount sees an instance of another account through a role there, and
// not without it: moto keeps accounts apart by whose credentials sign.
func TestMemberAccount(t *testing.T) {
	const (
		region = "us-east-1"
		own    = "123456789012" // moto's, for credentials of no role
		member = "222233334444"
		role   = "arn:aws:iam::" + member + ":role/hallmark-member"
	)
	moto := startMoto(t)
	backend, err := url.Parse(moto)
	if err != nil {
		t.Fatal(err)
	}
	endpoint := httptest.NewServer(New(Options{Region: region, Backend: backend}))
	t.Cleanup(endpoint.Close)
	cfg := aws.Config{
		Region: region, HTTPClient: awshttp.NewBuildableClient(),
		Credentials: credentials.NewStaticCredentialsProvider("test", "test", ""),
	}
	roles := awssts.NewFromConfig(cfg, func(o *awssts.Options) { o.BaseEndpoint = aws.String(endpoint.URL) })
	out, err := roles.AssumeRole(t.Context(), &awssts.AssumeRoleInput{RoleArn: aws.String(role), RoleSessionName: aws.String("test")})
	if err != nil {
		t.Fatal(err)
	}
	c := out.Credentials
	theirs := runInstance(t, moto, region, credentials.NewStaticCredentialsProvider(
		aws.ToString(c.AccessKeyId), aws.ToString(c.SecretAccessKey), aws.ToString(c.SessionToken)))
	self := runInstance(t, moto, region, cfg.Credentials)

	e := inventory.New(inventory.Config{
		AWS:      cfg,
		Accounts: []inventory.Account{{ID: own}, {ID: member, Role: role, ExternalID: "test"}},
		Roles:    roles,
		Endpoint: func(ec2ref.Region) (string, error) { return moto, nil },
		Now:      time.Now,
	})
	e.Wait = func(context.Context, time.Duration) error { return nil }
	for _, tt := range []struct {
		account, id string
		seen        bool
	}{{member, theirs, true}, {own, self, true}, {own, theirs, false}, {member, self, false}} {
		got, err := e.Instance(t.Context(), ec2ref.Instance{Account: ec2ref.Account(tt.account), Region: region, ID: ec2ref.InstanceID(tt.id)})
		switch {
		case tt.seen && (err != nil || string(got.OwnerID) != tt.account || got.PrivateDNS == ""):
			t.Errorf("%s in account %s: %+v, error %v", tt.id, tt.account, got, err)
		case !tt.seen && !errors.Is(err, inventory.ErrNotFound):
			t.Errorf("%s is seen in account %s: %+v, error %v", tt.id, tt.account, got, err)
		}
	}
}

func runInstance(t *testing.T, endpoint string, region ec2ref.Region, c aws.CredentialsProvider) (id string) {
	t.Helper()
	id, err := moto.EC2{URL: endpoint, Region: region, Credentials: c}.Run(t.Context(), moto.Launch{Image: "ami-12c6146b"})
	if err != nil {
		t.Fatal(err)
	}
	return id
}
