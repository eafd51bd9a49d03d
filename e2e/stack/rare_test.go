//go:build e2e

package stack

import (
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"github.com/aws/aws-sdk-go-v2/service/ssm"
	ssmtypes "github.com/aws/aws-sdk-go-v2/service/ssm/types"

	"github.com/hallmark-ssh/hallmark/e2e/fake/moto"
	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/signer/node"
	"github.com/hallmark-ssh/hallmark/internal/signer/teleport"
)

// namesBastions is a policy with a name that instances inherit.
const namesBastions = `version: 1
rules:
  - name: bastions
    match: {image_owners: [self], max_age: 24h}
    teleport_hostname: {pattern: "bastion-[0-9]+"}
`

// rare has the functions make the calls that a whole life does not need.
func (d *deployment) rare() {
	d.t.Helper()
	d.changePolicy()
	d.losesItsImage(moto.Account)
	d.inheritsAName()
	d.runsOutOfTime()
	d.finds(d.forgotten())
}

// The fleet function stores a new policy that it is the first to see. A running function reads
// the policy once a minute, so this is a new process.
func (d *deployment) changePolicy() {
	d.t.Helper()
	client := ssm.New(ssm.Options{Region: region, BaseEndpoint: &d.moto.URL, Credentials: own()})
	_, err := client.PutParameter(d.t.Context(), &ssm.PutParameterInput{
		Name: aws.String(d.Resources["PolicyParameter"]), Value: aws.String(namesBastions), Type: ssmtypes.ParameterTypeString, Overwrite: aws.Bool(true),
	})
	must(d.t, err)
	d.enroll.Close()
	d.fleet.Close()
	d.enroll, d.fleet = d.start("EnrollFunction", "ASIAENROLL", 0), d.start("FleetFunction", "ASIAFLEET", 0)
	d.sweepOrBatch(scheduled)
	if stored := d.item("policy/" + audience); !strings.Contains(text(stored["text"]), "bastion-") {
		d.t.Errorf("the stored policy is %v\n%s", stored, &d.log)
	}
}

// An instance enrolls whose image was deregistered after its launch.
func (d *deployment) losesItsImage(account string) {
	d.t.Helper()
	i := d.launch(account)
	must(d.t, i.ec2.DeregisterImage(d.t.Context(), i.image))
	d.enrolled(i)
}

// An instance takes over a name whose holder was retired so long ago that DynamoDB has deleted
// its record.
func (d *deployment) inheritsAName() {
	d.t.Helper()
	d.store(map[string]types.AttributeValue{"pk": &types.AttributeValueMemberS{Value: "name#bastion-1"}, "holder": &types.AttributeValueMemberS{Value: stranger.String()}})
	i := d.launch(moto.Account)
	d.tag(i, "TeleportHostname", "bastion-1")
	d.enrolled(i)
	if holder := text(d.item("name#bastion-1")["holder"]); !strings.HasSuffix(holder, i.id) {
		d.t.Errorf("%s has the name, not %s\n%s", holder, i.id, &d.log)
	}
}

// A sweep that runs out of time notes where the next one begins. It leaves 20 seconds of its
// time, and has more each time, until it comes as far as EC2, which does not answer.
func (d *deployment) runsOutOfTime() {
	d.t.Helper()
	d.stalled.Store(true)
	defer d.stalled.Store(false)
	for more := 2 * time.Second; d.item("sweep/"+audience) == nil; more *= 2 {
		if more > limit {
			d.t.Fatalf("no sweep noted where the next begins\n%s", &d.log)
		}
		host := d.start("FleetFunction", "ASIAFLEET", 20*time.Second+more)
		_, _ = host.Invoke(d.t.Context(), []byte(scheduled)) // it may have too little time
		host.Close()
	}
}

// stranger is an instance that EC2 does not know.
var stranger = ec2ref.Instance{Account: moto.Account, Region: region, ID: "i-0a1b2c3d4e5f60718"}

// forgotten leaves the record and the node of an instance that EC2 has forgotten.
func (d *deployment) forgotten() ec2ref.Instance {
	d.t.Helper()
	i := d.launch(moto.Account)
	d.enrolled(i)
	record := d.item("instance#" + ec2ref.Instance{Account: moto.Account, Region: region, ID: ec2ref.InstanceID(i.id)}.String())
	past := &types.AttributeValueMemberN{Value: strconv.FormatInt(time.Now().Add(-time.Hour).Unix(), 10)}
	record["pk"], record["lease"] = &types.AttributeValueMemberS{Value: "instance#" + stranger.String()}, past
	record["names"] = &types.AttributeValueMemberM{Value: map[string]types.AttributeValue{"gone": past}}
	d.store(record)

	client, err := teleport.Dial(d.t.Context(), teleport.Config{
		Address: d.cluster.Address(), RootsPEM: d.cluster.RootsPEM(), Login: teleport.IdentityFile(filepath.Join(d.root, "identity.pem")), Now: time.Now,
	})
	must(d.t, err)
	defer func() { _ = client.Close() }()
	must(d.t, client.UpsertNode(d.t.Context(), node.Node{
		ID: stranger.NodeID(), Hostname: "gone", Address: "10.0.0.9:22", Expires: time.Now().Add(time.Hour),
		Labels: map[string]string{
			node.SignerLabel: audience, node.AccountLabel: moto.Account, node.RegionLabel: region, node.InstanceLabel: string(stranger.ID),
		},
	}))
	return stranger
}

// finds sweeps. The sweep and the walk through expired records both remember an instance that
// they miss.
func (d *deployment) finds(missing ec2ref.Instance) {
	d.t.Helper()
	report := d.sweepOrBatch(scheduled)
	for _, name := range []string{"missing/" + audience, "expired/" + audience} {
		if noted := text(d.item(name)["text"]); !strings.Contains(noted, string(missing.ID)) {
			d.t.Errorf("%s is %q after a sweep that reports %s\n%s", name, noted, report, &d.log)
		}
	}
}

// ledger is the deployment's table, for what others leave in it.
func (d *deployment) ledger() *dynamodb.Client {
	return dynamodb.New(dynamodb.Options{Region: region, BaseEndpoint: &d.moto.URL, Credentials: own()})
}

// item returns an item, nil if there is none.
func (d *deployment) item(key string) map[string]types.AttributeValue {
	d.t.Helper()
	out, err := d.ledger().GetItem(d.t.Context(), &dynamodb.GetItemInput{
		TableName: aws.String(d.Outputs["LedgerTableArn"]), Key: map[string]types.AttributeValue{"pk": &types.AttributeValueMemberS{Value: key}},
	})
	must(d.t, err)
	return out.Item
}

func (d *deployment) store(item map[string]types.AttributeValue) {
	d.t.Helper()
	_, err := d.ledger().PutItem(d.t.Context(), &dynamodb.PutItemInput{TableName: aws.String(d.Outputs["LedgerTableArn"]), Item: item})
	must(d.t, err)
}

// text returns a text of an item, "" if there is none.
func text(v types.AttributeValue) string {
	s, _ := v.(*types.AttributeValueMemberS)
	if s == nil {
		return ""
	}
	return s.Value
}
