package main

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"

	"github.com/aws/aws-sdk-go-v2/aws"

	"github.com/hallmark-ssh/hallmark/internal/identity"
	"github.com/hallmark-ssh/hallmark/internal/teleport"
)

// The ways to log in to Teleport.
const (
	loginIAM    = "iam"             // as a bot, by the function's own AWS role
	loginFile   = "identity-file"   // with a file that is deployed with the program
	loginSecret = "identity-secret" // with a file in Secrets Manager
)

// login is how the signer becomes somebody in Teleport.
type login struct {
	Method string `yaml:"method"`

	// With method iam: the names of the join token and of the role to work in, and the
	// region whose STS vouches for the function, by default its own.
	Token  string `yaml:"token"`
	Role   string `yaml:"role"`
	Region string `yaml:"region"`

	File   string `yaml:"file"`   // with method identity-file
	Secret string `yaml:"secret"` // with method identity-secret: an ARN
}

var regexpSecret = regexp.MustCompile(`^arn:aws[a-z-]*:secretsmanager:[a-z0-9-]+:[0-9]{12}:secret:.+$`)

// check says which setting is wrong, by its name.
func (l login) check() error {
	uses := map[string][]string{
		loginIAM: {"token", "role", "region"}, loginFile: {"file"}, loginSecret: {"secret"},
	}[l.Method]
	if uses == nil {
		return fmt.Errorf("method: %q is none of %s, %s and %s", l.Method, loginIAM, loginFile, loginSecret)
	}
	for _, setting := range []struct{ name, value string }{
		{"token", l.Token}, {"role", l.Role}, {"region", l.Region}, {"file", l.File}, {"secret", l.Secret},
	} {
		used := slices.Contains(uses, setting.name)
		switch {
		case !used && setting.value != "":
			return fmt.Errorf("%s: not used with method %s", setting.name, l.Method)
		case used && setting.value == "" && setting.name != "region":
			return fmt.Errorf("%s: missing; method %s needs it", setting.name, l.Method)
		}
	}
	switch {
	case l.Region != "" && !regexpRegion.MatchString(l.Region):
		return fmt.Errorf("region: %q is not an AWS region", l.Region)
	case l.Secret != "" && !regexpSecret.MatchString(l.Secret):
		return errors.New("secret: not the ARN of a secret in Secrets Manager")
	}
	return nil
}

// teleport is how the deployment reaches Teleport.
func (d *deployment) teleport(cfg aws.Config) (teleport.Config, error) {
	login, err := d.Teleport.Login.with(cfg)
	if err != nil {
		return teleport.Config{}, fmt.Errorf("teleport.login.%w", err)
	}
	return teleport.Config{Address: d.Teleport.Address, RootsPEM: d.roots, Login: login}, nil
}

func (l login) with(cfg aws.Config) (teleport.Login, error) {
	switch l.Method {
	case loginFile:
		return teleport.IdentityFile(l.File), nil
	case loginSecret:
		read := func(ctx context.Context) ([]byte, error) { return readSecret(ctx, cfg, l.Secret) }
		return teleport.IdentitySecret{Name: l.Secret, Read: read}, nil
	}
	region := l.Region
	if region == "" {
		region = cfg.Region
	}
	_, suffix, err := identity.Partition(region)
	if err != nil {
		return nil, fmt.Errorf("region: %w", err)
	}
	return teleport.Bot{
		Token: l.Token, Role: l.Role, Credentials: cfg.Credentials,
		Region: region, STSHost: "sts." + region + "." + suffix,
	}, nil
}
