//go:build linux

package lab

import (
	"context"
	"crypto/rand"

	"github.com/hallmark-ssh/hallmark/e2e/fake/moto"
	"github.com/hallmark-ssh/hallmark/e2e/fake/sts"
)

const (
	// function is the signer's name in Lambda.
	function = "hallmark-enroll"
	// functionARN is what STS calls it: its role, and the name.
	functionARN = "arn:aws:sts::" + moto.Account + ":assumed-role/hallmark-EnrollRole/" + function

	// The same for the fleet function.
	fleetFunction    = "hallmark-fleet"
	fleetFunctionARN = "arn:aws:sts::" + moto.Account + ":assumed-role/hallmark-FleetRole/" + fleetFunction

	// loginRegion is the region whose STS confirms the function's role. Teleport accepts only
	// regions that it knows, not a fictional one.
	loginRegion = "us-west-2"
)

// login is how the functions log in to a cluster: with their AWS roles, and an STS that
// confirms them.
type login struct {
	sts           *sts.Server
	url           string // of STS, for a cluster that runs as another process
	enroll, fleet sts.Credential
}

func newLogin(ctx context.Context) (*login, error) {
	l := &login{sts: sts.New(sts.Options{Region: loginRegion}), enroll: newRole(functionARN), fleet: newRole(fleetFunctionARN)}
	l.sts.Register(l.enroll)
	l.sts.Register(l.fleet)
	var err error
	l.url, err = serveLocally(ctx, l.sts)
	return l, err
}

func newRole(arn string) sts.Credential {
	return sts.Credential{
		AccessKeyID: "ASIA" + rand.Text()[:16], SecretAccessKey: rand.Text(), SessionToken: rand.Text() + rand.Text(), ARN: arn,
	}
}
