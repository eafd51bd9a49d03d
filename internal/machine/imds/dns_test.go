package imds

import (
	"testing"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
)

func TestIsPrivateDNS(t *testing.T) {
	for _, test := range []struct {
		name   string
		region ec2ref.Region
		want   bool
	}{
		{"ip-10-0-0-1.us-west-2.compute.internal", "us-west-2", true},
		{"ip-10-0-0-1.ec2.internal", "us-east-1", true},
		{"ip-10-0-0-1.ec2.internal", "us-west-2", false},
		{"i-0123456789abcdef0.us-west-2.compute.internal", "us-west-2", true},
		{"i-0123456789abcdef0.ec2.internal", "us-east-1", true},
		{"ip-10-0-0-1.eu-west-1.compute.internal", "us-west-2", false},
		{"ip-10-0-0-2.us-west-2.compute.internal", "us-west-2", false},
		{"i-0123456789abcdef1.us-west-2.compute.internal", "us-west-2", false},
		{"ip-10-0-0-1.us-west-2.compute.internal.example.com", "us-west-2", false},
		{"ip-10-0-0-1.compute.internal", "us-west-2", false},
		{"ip-10-0-0-1.corp.example.com", "us-west-2", false},
		{"ip-10-0-0-1", "us-west-2", false},
		{"IP-10-0-0-1.us-west-2.compute.internal", "us-west-2", false},
		{"", "us-west-2", false},
	} {
		if got := isPrivateDNS(test.name, Instance{Region: test.region, InstanceID: "i-0123456789abcdef0"}, "10.0.0.1"); got != test.want {
			t.Errorf("%q in %s: %v, want %v", test.name, test.region, got, test.want)
		}
	}
	if isPrivateDNS(".us-west-2.compute.internal", Instance{Region: "us-west-2"}, "") {
		t.Error("a name without a host was accepted")
	}
}
