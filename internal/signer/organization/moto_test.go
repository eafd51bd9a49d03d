//go:build e2e

package organization

import (
	"encoding/json"
	"fmt"
	"net/http"
	"testing"

	"github.com/hallmark-ssh/hallmark/e2e/fake/moto"
	"github.com/hallmark-ssh/hallmark/internal/signer/awscall"
)

// motoOrganizations is moto's AWS Organizations.
type motoOrganizations struct {
	Reader
	rootID   string
	accounts int
}

// call calls an action and decodes its answer into out.
func (m *motoOrganizations) call(t *testing.T, action string, in map[string]any, out any) {
	t.Helper()
	body, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	status, data, err := m.Client.Send(t.Context(), m.Credentials, awscall.Request{
		Service: "organizations", Region: m.Region, Endpoint: m.Endpoint, ContentType: "application/x-amz-json-1.1",
		Target: "AWSOrganizationsV20161128." + action, Body: body, MaxBytes: 1 << 20,
	})
	if err != nil || status != http.StatusOK {
		t.Fatalf("%s: status %d, error %v: %s", action, status, err, data)
	}
	if out != nil {
		if err := json.Unmarshal(data, out); err != nil {
			t.Fatal(err)
		}
	}
}

func (m *motoOrganizations) root(*testing.T) string { return m.rootID }

func (m *motoOrganizations) unit(t *testing.T, parent, name string) string {
	var out struct{ OrganizationalUnit struct{ ID string } }
	m.call(t, "CreateOrganizationalUnit", map[string]any{"ParentId": parent, "Name": name}, &out)
	return out.OrganizationalUnit.ID
}

func (m *motoOrganizations) account(t *testing.T, parent, name string) string {
	m.accounts++
	var out struct {
		CreateAccountStatus struct {
			AccountID string `json:"AccountId"`
		}
	}
	m.call(t, "CreateAccount", map[string]any{"AccountName": name, "Email": fmt.Sprintf("a%d@example.com", m.accounts)}, &out)
	id := out.CreateAccountStatus.AccountID
	m.call(t, "MoveAccount", map[string]any{"AccountId": id, "SourceParentId": m.rootID, "DestinationParentId": parent}, nil)
	return id
}

func (m *motoOrganizations) suspend(t *testing.T, account string) {
	m.call(t, "CloseAccount", map[string]any{"AccountId": account}, nil)
}

// moto is an emulator that somebody else wrote.
func TestContractOfMoto(t *testing.T) {
	server, err := moto.Start(t.Context(), "us-east-1", t.Output())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	m := &motoOrganizations{Reader: readerOf(server.URL, "")}
	var organization struct{ Organization struct{ ID string } }
	m.call(t, "CreateOrganization", map[string]any{"FeatureSet": "ALL"}, &organization)
	var roots struct{ Roots []struct{ ID string } }
	m.call(t, "ListRoots", map[string]any{}, &roots)
	m.rootID, m.ID = roots.Roots[0].ID, organization.Organization.ID
	checkContract(t, m, m.Reader)
}
