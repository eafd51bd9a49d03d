package inventory

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/arn"
	"github.com/aws/aws-sdk-go-v2/service/sts"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
)

// ErrNotListed says that the account is not in the deployment's list. Nothing was called.
var ErrNotListed = errors.New("the account is not listed")

const (
	// sessionName is the signer's session name in the member account's CloudTrail.
	sessionName = "hallmark-signer"
	// renewBefore is how long before their expiry credentials are replaced, so that none
	// expire between signing and use.
	renewBefore = 5 * time.Minute
	// assumeTimeout bounds the call of STS. Several requests may wait for the call, so it
	// does not end with any one of them.
	assumeTimeout = 5 * time.Second
)

// Account is an AWS account whose instances the signer may ask about.
type Account struct {
	ID ec2ref.Account
	// Role is the ARN of the role to assume in that account. Empty means that the
	// signer's own credentials are for that account.
	Role string
	// ExternalID is the external id in the role's trust policy. It stops others from
	// making the signer use the role for them (IAM User Guide, "The confused deputy
	// problem").
	ExternalID string
}

// RoleAssumer returns credentials for a role. *sts.Client implements it.
type RoleAssumer interface {
	AssumeRole(ctx context.Context, in *sts.AssumeRoleInput, options ...func(*sts.Options)) (*sts.AssumeRoleOutput, error)
}

// CallerIdentifier says which account the signer's own credentials are for. *sts.Client
// implements it.
type CallerIdentifier interface {
	GetCallerIdentity(ctx context.Context, in *sts.GetCallerIdentityInput, options ...func(*sts.Options)) (*sts.GetCallerIdentityOutput, error)
}

// CheckAccount fails unless the credentials for the account belong to it: with those of
// another account, all its instances would look gone. STS named a role's account when the
// signer assumed it; for its own credentials, CheckAccount asks STS once.
func (e *EC2) CheckAccount(ctx context.Context, account ec2ref.Account) error {
	if _, listed := e.credentials.of(account); !listed {
		return ErrNotListed
	}
	if account != e.own {
		return nil
	}
	e.mu.Lock()
	checked := e.ownChecked
	e.mu.Unlock()
	if checked {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, assumeTimeout)
	defer cancel()
	out, err := e.identity.GetCallerIdentity(ctx, new(sts.GetCallerIdentityInput))
	if err != nil {
		return fmt.Errorf("ask STS whose the credentials for account %s are: %w", account, err)
	}
	if got := aws.ToString(out.Account); got != string(account) {
		return fmt.Errorf("the credentials for account %s belong to account %.16q: give it a role in deployment.yaml, or deploy there", account, got)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.ownChecked = true
	return nil
}

// ownAccount returns the account without a role, or "" if each has one.
func ownAccount(accounts []Account) ec2ref.Account {
	for _, a := range accounts {
		if a.Role == "" {
			return a.ID
		}
	}
	return ""
}

// accountCredentials are the credentials for each account, by its id: never by the role's name,
// which many accounts share.
type accountCredentials struct {
	roles  RoleAssumer
	member func(ec2ref.Account) (Account, bool)
	listed map[ec2ref.Account]aws.CredentialsProvider

	mu      sync.Mutex
	members map[ec2ref.Account]aws.CredentialsProvider
}

func newCredentials(c Config) *accountCredentials {
	all := &accountCredentials{
		roles: c.Roles, member: c.Member,
		listed: make(map[ec2ref.Account]aws.CredentialsProvider, len(c.Accounts)), members: make(map[ec2ref.Account]aws.CredentialsProvider),
	}
	for _, account := range c.Accounts {
		all.listed[account.ID] = c.AWS.Credentials
		if account.Role != "" {
			all.listed[account.ID] = Credentials(c.Roles, account)
		}
	}
	return all
}

// of returns the credentials for an account, and whether it may be asked about. An account
// that is no longer a member gets none, even if STS issued some before.
func (c *accountCredentials) of(id ec2ref.Account) (aws.CredentialsProvider, bool) {
	if provider, ok := c.listed[id]; ok {
		return provider, true
	}
	if c.member == nil {
		return nil, false
	}
	account, ok := c.member(id)
	c.mu.Lock()
	defer c.mu.Unlock()
	if !ok {
		delete(c.members, id)
		return nil, false
	}
	if c.members[id] == nil {
		c.members[id] = Credentials(c.roles, account)
	}
	return c.members[id], true
}

// Credentials returns the credentials of an account's role. Each role has its own cache,
// which asks STS once for all waiting requests. They fail if STS's answer is for another
// account.
func Credentials(roles RoleAssumer, account Account) aws.CredentialsProvider {
	return aws.NewCredentialsCache(assumedRole{roles, account}, func(o *aws.CredentialsCacheOptions) {
		o.ExpiryWindow = renewBefore
	})
}

// assumedRole fetches credentials for the role of an account.
type assumedRole struct {
	assumer RoleAssumer
	account Account
}

// Retrieve implements aws.CredentialsProvider.
func (r assumedRole) Retrieve(ctx context.Context) (aws.Credentials, error) {
	ctx, cancel := context.WithTimeout(ctx, assumeTimeout)
	defer cancel()
	out, err := r.assumer.AssumeRole(ctx, &sts.AssumeRoleInput{
		RoleArn:         aws.String(r.account.Role),
		RoleSessionName: aws.String(sessionName),
		ExternalId:      aws.String(r.account.ExternalID),
	})
	if err != nil {
		return aws.Credentials{}, fmt.Errorf("assume role %s: %w", r.account.Role, err)
	}
	c, err := r.credentials(out)
	if err != nil {
		return aws.Credentials{}, fmt.Errorf("assume role %s: %w", r.account.Role, err)
	}
	return c, nil
}

// credentials accepts STS's answer only if it names a session of a role in the account.
// With any other credentials, EC2 would answer for another account, where an instance may
// have the same id.
func (r assumedRole) credentials(out *sts.AssumeRoleOutput) (aws.Credentials, error) {
	if out.AssumedRoleUser == nil || out.Credentials == nil || out.Credentials.Expiration == nil {
		return aws.Credentials{}, errors.New("STS answered without an identity, credentials or their expiry")
	}
	for _, part := range []*string{out.Credentials.AccessKeyId, out.Credentials.SecretAccessKey, out.Credentials.SessionToken} {
		if aws.ToString(part) == "" {
			return aws.Credentials{}, errors.New("STS answered with half of the credentials")
		}
	}
	session, err := arn.Parse(aws.ToString(out.AssumedRoleUser.Arn))
	if err != nil {
		return aws.Credentials{}, fmt.Errorf("STS's answer: %w", err)
	}
	if session.AccountID != string(r.account.ID) || session.Service != "sts" || !strings.HasPrefix(session.Resource, "assumed-role/") {
		return aws.Credentials{}, fmt.Errorf("STS answered for %s, which is not a session of a role in account %s", session, r.account.ID)
	}
	return aws.Credentials{
		AccessKeyID:     aws.ToString(out.Credentials.AccessKeyId),
		SecretAccessKey: aws.ToString(out.Credentials.SecretAccessKey),
		SessionToken:    aws.ToString(out.Credentials.SessionToken),
		Source:          r.account.Role,
		CanExpire:       true,
		Expires:         *out.Credentials.Expiration,
		AccountID:       session.AccountID,
	}, nil
}
