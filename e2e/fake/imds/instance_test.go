package imds_test

import (
	"os"
	"testing"

	sdk "github.com/aws/aws-sdk-go-v2/feature/ec2/imds"
)

// TestContractOnEC2 holds the real metadata service to what we assume about it. Run
// it on an EC2 instance, any type and any image, after a change to this package:
//
//	CGO_ENABLED=0 go test -c ./e2e/fake/imds
//	HALLMARK_TEST_ON_EC2=1 ./imds.test -test.run TestContractOnEC2 -test.v
func TestContractOnEC2(t *testing.T) {
	if os.Getenv("HALLMARK_TEST_ON_EC2") == "" {
		t.Skip("runs on an EC2 instance only, with HALLMARK_TEST_ON_EC2=1")
	}
	checkContract(t, sdk.New(sdk.Options{}))
}
