//go:build e2e

// Package policystore holds the policy in force, and the last good one, to an
// emulator of AWS with AWS's own clients.
package policystore

import (
	"bytes"
	"context"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	dynamodbtypes "github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/aws-sdk-go-v2/service/ssm"
	ssmtypes "github.com/aws/aws-sdk-go-v2/service/ssm/types"

	"github.com/hallmark-ssh/hallmark/e2e/fake/moto"
	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/signer/policy"
	"github.com/hallmark-ssh/hallmark/internal/signer/policy/live"
	"github.com/hallmark-ssh/hallmark/internal/signer/stored"
)

const (
	region    = "us-west-2"
	table     = "hallmark-ledger"
	parameter = "/hallmark/policy"

	first  = "version: 1\nrules: [{name: first, match: {image_owners: [any], max_age: any}}]\n"
	second = "version: 1\nrules: [{name: second, match: {image_owners: [any], max_age: any}}]\n"
)

// store is what a deployment has: a table, a parameter, and a clock.
type store struct {
	t        *testing.T
	dynamoDB *dynamodb.Client
	ssm      *ssm.Client
	aws      aws.Config
	now      time.Time
	log      bytes.Buffer
}

func newStore(t *testing.T) *store {
	t.Helper()
	server, err := moto.Start(t.Context(), region, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	cfg := aws.Config{
		Region: region, BaseEndpoint: aws.String(server.URL), HTTPClient: http.DefaultClient,
		Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{AccessKeyID: "test", SecretAccessKey: "test"}, nil
		}),
	}
	s := &store{t: t, dynamoDB: dynamodb.NewFromConfig(cfg), ssm: ssm.NewFromConfig(cfg), aws: cfg, now: time.Now()}
	if _, err := s.dynamoDB.CreateTable(t.Context(), &dynamodb.CreateTableInput{
		TableName:            aws.String(table),
		BillingMode:          dynamodbtypes.BillingModePayPerRequest,
		AttributeDefinitions: []dynamodbtypes.AttributeDefinition{{AttributeName: aws.String("pk"), AttributeType: dynamodbtypes.ScalarAttributeTypeS}},
		KeySchema:            []dynamodbtypes.KeySchemaElement{{AttributeName: aws.String("pk"), KeyType: dynamodbtypes.KeyTypeHash}},
	}); err != nil {
		t.Fatal(err)
	}
	return s
}

// start returns the policy of a process that starts now.
func (s *store) start() *live.Policy {
	return live.New(live.Config{
		Fetch:    live.Parameter{AWS: s.aws, Endpoint: *s.aws.BaseEndpoint, Name: parameter, Now: time.Now}.Fetch,
		LastGood: stored.Text{Client: s.dynamoDB, Table: table, Name: "policy"},
		Limits:   policy.Limits{Accounts: []ec2ref.Account{moto.Account}, Regions: []ec2ref.Region{region}, MaxLifetime: policy.LongestLifetime},
		Now:      func() time.Time { return s.now },
		Log:      slog.New(slog.NewJSONHandler(&s.log, nil)),
	})
}

// put writes the parameter, and a minute passes.
func (s *store) put(text string, kind ssmtypes.ParameterType) {
	s.t.Helper()
	_, err := s.ssm.PutParameter(s.t.Context(), &ssm.PutParameterInput{
		Name: aws.String(parameter), Value: aws.String(text), Type: kind, Overwrite: aws.Bool(true),
	})
	if err != nil {
		s.t.Fatal(err)
	}
	s.now = s.now.Add(time.Minute)
}

// sum returns the SHA-256 of the policy in force.
func (s *store) sum(p *live.Policy) string {
	s.t.Helper()
	current, err := p.Current(s.t.Context())
	if err != nil {
		s.t.Fatal(err)
	}
	return current.SHA256
}

func TestPolicyInForce(t *testing.T) {
	s := newStore(t)
	process := s.start()
	if _, err := process.Current(t.Context()); err == nil || !strings.Contains(err.Error(), "ParameterNotFound") {
		t.Errorf("error %v without a parameter", err)
	}

	s.put(first, ssmtypes.ParameterTypeString)
	one := s.sum(process)
	s.put(second, ssmtypes.ParameterTypeSecureString)
	two := s.sum(process)
	if one == two {
		t.Error("a changed parameter was not picked up")
	}

	s.put("version: 1\nrules: []\n", ssmtypes.ParameterTypeString)
	if got := s.sum(process); got != two {
		t.Errorf("policy %s is in force after a broken text, want %s", got, two)
	}
	if got := s.sum(s.start()); got != two {
		t.Errorf("a new process has policy %s, want the last good %s", got, two)
	}
	if alarms := strings.Count(s.log.String(), `"alarm":true`); alarms != 3 {
		t.Errorf("%d alarms, want one for each failed look: %s", alarms, s.log.String())
	}
}
