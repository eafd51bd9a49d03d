package agent

import (
	"strings"
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/identity"
	"github.com/hallmark-ssh/hallmark/internal/machine/config"
	"github.com/hallmark-ssh/hallmark/internal/machine/fault"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
)

// With fips, the caller proof is for the FIPS endpoint. A region without one is a mistake in
// the configuration, not a reason to use the ordinary endpoint.
func TestFIPSRequest(t *testing.T) {
	e := &Enroller{
		Config: config.Config{Audience: "hallmark.example.com", FIPS: true},
		now:    func() time.Time { return time.Date(2026, 1, 2, 3, 5, 0, 0, time.UTC) },
	}
	creds := identity.Credentials{AccessKeyID: "ASIAHALLMARKTESTKEY0", SecretAccessKey: "secret", SessionToken: "token"}
	ask := func(region ec2ref.Region) ([]byte, error) {
		return e.newRequest(t.Context(), protocol.Version, region, "document", creds, nil, nil)
	}

	body, err := ask("us-east-1")
	if err != nil {
		t.Fatal(err)
	}
	request, err := protocol.ParseRequest(body)
	if err != nil || !request.Caller.FIPS {
		t.Errorf("caller %+v, error %v", request, err)
	}
	if body, err := ask("eu-west-1"); fault.KindOf(err) != fault.Misconfigured || !strings.Contains(err.Error(), "no FIPS endpoint in eu-west-1") {
		t.Errorf("eu-west-1: %s, error %v", body, err)
	}
}
