//go:build e2e

package stack

import (
	"encoding/json"
	"flag"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/hallmark-ssh/hallmark/e2e/fake/moto"
	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
)

var update = flag.Bool("update", false, "write the recording of the functions' calls; run all tests")

// recording has the functions' calls of AWS, to compare with the permissions in template.yaml.
const recording = "testdata/calls.jsonl"

// scheduled is the event of the rule FleetFunctionSweep.
const scheduled = `{"version":"0","id":"1","detail-type":"Scheduled Event","source":"aws.events","account":"` + moto.Account + `",
	"time":"2026-01-02T03:04:05Z","region":"` + region + `","resources":[],"detail":{}}`

// Each set of parameters is deployed, and machines live a whole life on it: they enroll and
// renew, tags change, and they are terminated, with an event or without.
func TestStacks(t *testing.T) {
	w := newWorld(t)
	var first *deployment
	t.Run("public URL", func(t *testing.T) {
		w.t = t
		first = w.deploy("first", map[string]string{}, nil)
		checkCreated(t, first)
		first.live(moto.Account)
		// The rules take only events about instances, and only those that change something.
		for _, event := range []struct {
			source, kind string
			detail       map[string]any
		}{
			{"aws.ec2", "EC2 Instance State-change Notification", map[string]any{"instance-id": "i-0a1b2c3d4e5f60718", "state": "running"}},
			{"aws.ec2", "EBS Volume Notification", map[string]any{"state": "terminated"}},
			{"my.app", "EC2 Instance State-change Notification", map[string]any{"instance-id": "i-0a1b2c3d4e5f60718", "state": "terminated"}},
			{"aws.tag", "Tag Change on Resource", map[string]any{"service": "ec2", "resource-type": "volume"}},
			{"aws.tag", "Tag Change on Resource", map[string]any{"service": "s3", "resource-type": "instance"}},
		} {
			must(t, w.moto.PutEvent(t.Context(), region, "", event.source, event.kind, nil, event.detail))
		}
		if n := first.handleEvents(moto.Account); n != 0 {
			t.Errorf("%d of these events are in the queue", n)
		}
		first.rare()
	})
	t.Run("private API, members and secrets", func(t *testing.T) {
		w.t = t
		enroll, fleet := w.newSecret("TeleportSecretArn"), w.newSecret("FleetSecretArn")
		d := w.deploy("second", map[string]string{
			"Entry": "private-api", "VpcEndpointIds": endpoint, "MemberRoleArns": memberRole, "EventAccountIds": member,
			"TeleportSecretArn": enroll, "FleetSecretArn": fleet, "AlarmEmail": "ops@example.com",
		}, map[string]any{
			"accounts": []any{moto.Account, map[string]string{"id": member, "role": memberRole, "external_id": externalID}},
			"enroll":   map[string]string{"method": "identity-secret", "secret": enroll},
			"fleet":    map[string]string{"method": "identity-secret", "secret": fleet},
		})
		checkCreated(t, d)
		d.live(member)
		d.losesItsImage(member)
	})
	t.Run("invocations, packaged policy, another stack's ledger", func(t *testing.T) {
		w.t = t
		d := w.deploy("third", map[string]string{
			"Entry": "invoke", "UrlOrganizationId": "o-a1b2c3d4e5", "PolicyIn": "package", "LedgerTableArn": first.Outputs["LedgerTableArn"],
			"EventOrganizationId": "o-a1b2c3d4e5",
		}, nil)
		checkCreated(t, d)
		d.live(moto.Account)
	})
	t.Run("organization", func(t *testing.T) {
		w.t = t
		w.membersComeAndGo()
	})
	if !t.Failed() {
		if err := w.recorder.Check(recording, *update); err != nil {
			t.Error(err)
		}
	}
}

// checkCreated sees that moto created everything but what the list names.
func checkCreated(t *testing.T, d *deployment) {
	t.Helper()
	for name, r := range d.expanded.Resources {
		if _, created := d.Resources[name]; created == (moto.Omits(r.Type) != "") {
			t.Errorf("%s, %s: created is %t, but the list says %q", name, r.Type, created, moto.Omits(r.Type))
		}
	}
	for _, output := range []string{"TeleportTokenArn", "FleetTokenArn", "SignerRoleArns", "LedgerTableArn", "FailedQueueUrl", "SignerFunctionArn"} {
		if d.Outputs[output] == "" {
			t.Errorf("no output %s", output)
		}
	}
}

// What moto learns to create is taken off the list.
func TestOmitted(t *testing.T) {
	const program = `import json, moto.cloudformation.parsing
from moto.core.common_models import CloudFormationModel as Model
print(json.dumps([m.cloudformation_type() for m in Model.__subclasses__()]))`
	out, err := exec.CommandContext(t.Context(), "python3", "-c", program).Output()
	must(t, err)
	var known []string
	must(t, json.Unmarshal(out, &known))
	for _, kind := range known {
		if why := moto.Omits(kind); strings.Contains(why, "cannot create") {
			t.Errorf("moto creates %s now", kind)
		}
	}
	if !slices.Contains(known, "AWS::DynamoDB::Table") {
		t.Errorf("moto creates only %q", known)
	}
}

// live is the life of two machines of an account.
func (d *deployment) live(account string) {
	t := d.t
	t.Helper()
	if answer := d.request("GET", nil); answer.Status != 200 {
		t.Errorf("the question for CAs: %d %s\n%s", answer.Status, answer.Body, &d.log)
	}
	seen, missed := d.launch(account), d.launch(account)
	d.enrolled(seen)
	d.enrolled(seen) // a renewal
	d.enrolled(missed)

	d.tag(seen, "env", "prod")
	d.put(account, "aws.tag", "Tag Change on Resource", seen, map[string]any{
		"changed-tag-keys": []string{"env"}, "service": "ec2", "resource-type": "instance", "version": 1, "tags": map[string]string{},
	})
	if labels := d.labels(seen); labels["aws/env"] != "prod" {
		t.Errorf("labels %v after an event\n%s", labels, &d.log)
	}

	d.terminate(seen)
	d.put(account, "aws.ec2", "EC2 Instance State-change Notification", seen, map[string]any{"instance-id": seen.id, "state": "terminated"})
	if d.labels(seen) != nil {
		t.Errorf("the node of a terminated instance is left\n%s", &d.log)
	}
	if answer := d.post(seen); answer.Status != 403 {
		t.Errorf("a terminated instance gets %d %s", answer.Status, answer.Body)
	}

	d.terminate(missed)
	if report := d.sweepOrBatch(scheduled); !strings.Contains(report, `"Deleted":1`) {
		t.Errorf("the sweep reports %s\n%s", report, &d.log)
	}
	if d.labels(missed) != nil {
		t.Errorf("the sweep leaves the node of an instance whose event was missed\n%s", &d.log)
	}
}

// put has the rules see an event, and the function handle it. The events of other accounts
// come over the stack's own bus.
func (d *deployment) put(account, source, kind string, i *instance, detail map[string]any) {
	d.t.Helper()
	resources := []string{"arn:aws:ec2:" + region + ":" + account + ":instance/" + i.id}
	bus := ""
	if account != moto.Account {
		bus = "second-members"
	}
	must(d.t, d.moto.PutEvent(d.t.Context(), region, bus, source, kind, resources, detail))
	if n := d.handleEvents(account); n != 1 {
		d.t.Errorf("%d messages in the queue, want 1", n)
	}
}

func (d *deployment) enrolled(i *instance) {
	d.t.Helper()
	answer := d.post(i)
	if answer.Status != 200 {
		d.t.Fatalf("instance %s gets %d %s\n%s", i.id, answer.Status, answer.Body, &d.log)
	}
	if d.labels(i) == nil {
		d.t.Errorf("instance %s has no node", i.id)
	}
}

// labels are those of an instance's node, nil if there is none.
func (d *deployment) labels(i *instance) map[string]string {
	id := ec2ref.Instance{Account: ec2ref.Account(i.account), Region: region, ID: ec2ref.InstanceID(i.id)}.NodeID()
	for _, node := range d.cluster.Nodes() {
		if node.GetName() == id {
			return node.GetAllLabels()
		}
	}
	return nil
}

func (w *world) tag(i *instance, key, value string) {
	w.t.Helper()
	must(w.t, i.ec2.Tag(w.t.Context(), i.id, key, value))
}

func (w *world) terminate(i *instance) {
	w.t.Helper()
	must(w.t, i.ec2.Terminate(w.t.Context(), i.id))
}
