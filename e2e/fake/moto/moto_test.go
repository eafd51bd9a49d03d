package moto_test

import (
	"context"
	"os"
	"slices"
	"testing"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"

	"github.com/hallmark-ssh/hallmark/e2e/fake/moto"
)

func TestMadeUpRegionHasZonesAndInstances(t *testing.T) {
	if err := moto.Installed(t.Context()); err != nil && os.Getenv("HALLMARK_TEST_STRICT") == "" {
		t.Skip(err)
	}
	const region = "hm-test-1"
	server, err := moto.Start(t.Context(), region, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)

	client := ec2.New(ec2.Options{
		Region:       region,
		BaseEndpoint: aws.String(server.URL),
		Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{AccessKeyID: "test", SecretAccessKey: "test"}, nil
		}),
	})
	zones, err := client.DescribeAvailabilityZones(t.Context(), &ec2.DescribeAvailabilityZonesInput{})
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, zone := range zones.AvailabilityZones {
		names = append(names, aws.ToString(zone.ZoneName))
	}
	if want := []string{region + "a", region + "b"}; !slices.Equal(names, want) {
		t.Errorf("zones %v, want %v", names, want)
	}
}
