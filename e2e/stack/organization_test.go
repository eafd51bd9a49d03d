//go:build e2e

package stack

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"

	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"github.com/hallmark-ssh/hallmark/internal/signer/awscall"
)

const (
	// management is the account that the organization belongs to.
	management       = "333344445555"
	readerRole       = "arn:aws:iam::" + management + ":role/hallmark-organization"
	organizationRole = "hallmark-org-member"
)

// showsAccounts is a policy with labels from what the organization says about an account.
const showsAccounts = `version: 1
rules:
  - name: members
    match: {image_owners: [listed], max_age: 24h}
    labels: {add: [account-name, account-path]}
`

// organization is moto's AWS Organizations, as its management account uses it.
type organization struct {
	*world
	credentials aws.CredentialsProvider
	id, root    string
	accounts    int
}

func (w *world) newOrganization() *organization {
	w.t.Helper()
	o := &organization{world: w, credentials: w.credentials(management)}
	var created struct{ Organization struct{ ID string } }
	o.call("CreateOrganization", map[string]any{"FeatureSet": "ALL"}, &created)
	var roots struct{ Roots []struct{ ID string } }
	o.call("ListRoots", map[string]any{}, &roots)
	o.id, o.root = created.Organization.ID, roots.Roots[0].ID
	w.names.Store(readerRole, "OrganizationReaderRoleArn")
	w.names.Store("arn:aws:iam::"+management+":role/"+organizationRole, "OrganizationRoleName")
	return o
}

// call calls an action, and decodes its answer into out.
func (o *organization) call(action string, in map[string]any, out any) {
	o.t.Helper()
	body, err := json.Marshal(in)
	must(o.t, err)
	client := awscall.Client{HTTP: http.DefaultClient, Now: time.Now, Timeout: 5 * time.Minute} // moto loads the service first
	status, data, err := client.Send(o.t.Context(), o.credentials, awscall.Request{
		Service: "organizations", Region: "us-east-1", Endpoint: o.moto.URL + "/", ContentType: "application/x-amz-json-1.1",
		Target: "AWSOrganizationsV20161128." + action, Body: body, MaxBytes: 1 << 20,
	})
	if err != nil || status != http.StatusOK {
		o.t.Fatalf("%s: status %d, error %v: %s", action, status, err, data)
	}
	if out != nil {
		must(o.t, json.Unmarshal(data, out))
	}
}

func (o *organization) unit(parent, name string) string {
	o.t.Helper()
	var out struct{ OrganizationalUnit struct{ ID string } }
	o.call("CreateOrganizationalUnit", map[string]any{"ParentId": parent, "Name": name}, &out)
	return out.OrganizationalUnit.ID
}

// join creates an account in a unit, with the role for the signer.
func (o *organization) join(unit, name string) (account string) {
	o.t.Helper()
	o.accounts++
	var out struct {
		CreateAccountStatus struct {
			AccountID string `json:"AccountId"`
		}
	}
	o.call("CreateAccount", map[string]any{"AccountName": name, "Email": fmt.Sprintf("a%d@example.com", o.accounts)}, &out)
	account = out.CreateAccountStatus.AccountID
	o.move(account, o.root, unit)
	o.names.Store("arn:aws:iam::"+account+":role/"+organizationRole, "OrganizationRoleName")
	return account
}

func (o *organization) move(account, from, to string) {
	o.t.Helper()
	o.call("MoveAccount", map[string]any{"AccountId": account, "SourceParentId": from, "DestinationParentId": to}, nil)
}

// leave removes an account from the organization.
func (o *organization) leave(account string) {
	o.t.Helper()
	o.call("RemoveAccountFromOrganization", map[string]any{"AccountId": account}, nil)
}

// deploy deploys a signer for the accounts of an organization, except those of a
// unit.
func (o *organization) deploy(name, denied string) *deployment {
	o.t.Helper()
	return o.world.deploy(name, map[string]string{
		"OrganizationId": o.id, "OrganizationRoleName": organizationRole, "OrganizationReaderRoleArn": readerRole, "PolicyText": showsAccounts,
	}, map[string]any{"organization": map[string]any{
		"id": o.id, "reader_role": readerRole, "member_role": organizationRole, "external_id": externalID, "deny_units": []string{denied},
	}})
}

// readOrganization has the fleet function read the organization, as the schedule does. The
// enroll function then runs in a new process: a running one uses its list for another half
// minute.
func (d *deployment) readOrganization(accounts int) {
	d.t.Helper()
	target := d.expanded.Resources["OrganizationRule"].Properties["Targets"].([]any)[0].(map[string]any)
	if report, want := d.sweepOrBatch(fmt.Sprint(target["Input"])), fmt.Sprintf(`{"Accounts":%d}`, accounts); report != want {
		d.t.Errorf("the reading reports %s, want %s\n%s", report, want, &d.log)
	}
	d.enroll.Close()
	d.enroll = d.start("EnrollFunction", "ASIAENROLL", 0)
}

// refused tries to enroll an instance.
func (d *deployment) refused(i *instance, why string) {
	d.t.Helper()
	if answer := d.post(i); answer.Status != http.StatusForbidden || !strings.Contains(string(answer.Body), string(protocol.CodeNotAllowed)) {
		d.t.Errorf("%s: %d %s", why, answer.Status, answer.Body)
	}
}

// Accounts of an organization join, move and leave. What a reading finds decides which of them
// may enroll instances.
func (w *world) membersComeAndGo() {
	w.t.Helper()
	o := w.newOrganization()
	workloads := o.unit(o.root, "Workloads")
	production, sandbox := o.unit(workloads, "Production"), o.unit(o.root, "Sandbox")
	web, toy := o.join(production, "web"), o.join(sandbox, "toy")
	d := o.deploy("fourth", sandbox)
	checkCreated(w.t, d)
	i, inToy := d.launch(web), d.launch(toy)
	d.refused(i, "an account before the first reading")
	d.readOrganization(2) // with the management account
	if report := d.sweepOrBatch(scheduled); !strings.Contains(report, `"Failed":0`) || !strings.Contains(report, `"Unenrolled":1,`) {
		w.t.Errorf("the sweep reports %s\n%s", report, &d.log)
	}
	d.enrolled(i)
	d.refused(inToy, "an account of a denied unit")
	if labels := d.labels(i); labels["hallmark/account-name"] != "web" || labels["hallmark/account-path"] != "/Workloads/Production" {
		w.t.Errorf("labels %v", labels)
	}

	late := o.join(workloads, "late")
	inLate := d.launch(late)
	d.refused(inLate, "an account that joined after the reading")
	d.readOrganization(3)
	d.enrolled(inLate)

	o.move(late, workloads, sandbox)
	d.readOrganization(2)
	d.refused(inLate, "an account that moved to a denied unit")
	o.leave(web)
	d.enrolled(i) // nothing has read this yet
	d.readOrganization(1)
	d.refused(i, "an account that left")
	if d.labels(i) == nil {
		w.t.Error("a reading deleted a node")
	}
}
