//go:build linux

package lab

import (
	"context"
	"crypto/rand"

	"github.com/hallmark-ssh/hallmark/e2e/fake/sts"
)

// loginRegion is the region whose STS confirms the function's role. Teleport accepts only
// regions that it knows, not a fictional one.
const loginRegion = "us-west-2"

// login is how the functions log in to a cluster: with their AWS roles, and an STS that
// confirms them.
type login struct {
	sts           *sts.Server
	url           string // of STS, for a cluster that runs as another process
	enroll, fleet sts.Credential
}

func (l *Lab) newLogin(ctx context.Context) (*login, error) {
	enroll, err := l.roleARN("TeleportTokenArn")
	if err != nil {
		return nil, err
	}
	fleet, err := l.roleARN("FleetTokenArn")
	if err != nil {
		return nil, err
	}
	roles := &login{sts: sts.New(sts.Options{Region: loginRegion}), enroll: newRole(enroll), fleet: newRole(fleet)}
	roles.sts.Register(roles.enroll)
	roles.sts.Register(roles.fleet)
	roles.url, err = serveLocally(ctx, roles.sts)
	return roles, err
}

func newRole(arn string) sts.Credential {
	return sts.Credential{
		AccessKeyID: "ASIA" + rand.Text()[:16], SecretAccessKey: rand.Text(), SessionToken: rand.Text() + rand.Text(), ARN: arn,
	}
}
