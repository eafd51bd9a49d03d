package moto_test

import (
	"os"
	"slices"
	"testing"

	"github.com/aws/aws-sdk-go-v2/credentials"

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

	client := moto.EC2{URL: server.URL, Region: region, Credentials: credentials.NewStaticCredentialsProvider("test", "test", "")}
	zones, err := client.Zones(t.Context())
	if want := []string{region + "a", region + "b"}; err != nil || !slices.Equal(zones, want) {
		t.Errorf("zones %v, error %v, want %v", zones, err, want)
	}
}
