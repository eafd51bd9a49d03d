//go:build e2e

package operator

import (
	"bytes"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/hallmark-ssh/hallmark/e2e/fake/moto"
	"github.com/hallmark-ssh/hallmark/internal/cli"
	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/signer/deployment"
	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
)

// TestPermitRekeyOnMoto gives a permit with the command, on an emulator of STS and DynamoDB,
// and enrolls with it.
func TestPermitRekeyOnMoto(t *testing.T) {
	held := newLedgerOnMoto(t)
	now := time.Now()
	claim := ledger.Claim{
		Instance:     ec2ref.Instance{Account: "111122223333", Region: "us-west-2", ID: "i-0a1b2c3d4e5f60718"},
		Fingerprints: []string{"SHA256:old"}, Hostname: "web-i-0a1b2c3d4e5f60718", ValidUntil: now.Add(time.Hour),
	}
	grant, err := held.Claim(t.Context(), claim, now)
	if err != nil {
		t.Fatal(err)
	}
	if err := held.Confirm(t.Context(), claim, grant, now); err != nil {
		t.Fatal(err)
	}
	claim.Fingerprints = []string{newKey}
	if _, err := held.Claim(t.Context(), claim, now); !errors.Is(err, ledger.ErrKeyConflict) {
		t.Fatalf("error %v before the permit", err)
	}

	var out, errs bytes.Buffer
	code := cli.Run(t.Context(), Command(), []string{
		"permit-rekey", "--table", "hallmark", "--account", string(claim.Instance.Account), "--region", string(claim.Instance.Region),
		"--instance", string(claim.Instance.ID), "--fingerprint", newKey,
	}, strings.NewReader(""), &out, &errs)
	if code != cli.OK {
		t.Fatalf("exit code %d: %s", code, &errs)
	}
	var line struct {
		By    string
		Until time.Time
	}
	if err := json.Unmarshal(out.Bytes(), &line); err != nil || line.By == "" || line.Until.Sub(now) > maxPermit+time.Minute {
		t.Fatalf("line %s, error %v", &out, err)
	}
	if grant, err = held.Claim(t.Context(), claim, now); err != nil || grant.PermittedBy != line.By {
		t.Errorf("grant %+v, error %v; want it permitted by %s", grant, err, line.By)
	}
}

// newLedgerOnMoto starts moto, which the environment then names, and makes the table.
func newLedgerOnMoto(t *testing.T) *ledger.DynamoDB {
	t.Helper()
	server, err := moto.Start(t.Context(), "us-west-2", t.Output())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	for name, value := range map[string]string{
		"AWS_ENDPOINT_URL": server.URL, "AWS_REGION": "us-west-2", "AWS_CONFIG_FILE": "/nonexistent",
		"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_CA_BUNDLE": "",
	} {
		t.Setenv(name, value)
	}
	cfg, err := config.LoadDefaultConfig(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_, err = dynamodb.NewFromConfig(cfg).CreateTable(t.Context(), &dynamodb.CreateTableInput{
		TableName: aws.String("hallmark"), BillingMode: types.BillingModePayPerRequest,
		AttributeDefinitions: []types.AttributeDefinition{{AttributeName: aws.String("pk"), AttributeType: types.ScalarAttributeTypeS}},
		KeySchema:            []types.KeySchemaElement{{AttributeName: aws.String("pk"), KeyType: types.KeyTypeHash}},
	})
	if err != nil {
		t.Fatal(err)
	}
	return deployment.OpenLedger(cfg, "hallmark")
}
