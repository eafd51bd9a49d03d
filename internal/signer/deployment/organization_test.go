package deployment

import (
	"log/slog"
	"slices"
	"strings"
	"testing"

	"github.com/hallmark-ssh/hallmark/internal/signer/deployment/deploymenttest"
	"github.com/hallmark-ssh/hallmark/internal/signer/inventory"
)

const organizationSettings = `
organization:
  id: o-a1b2c3d4e5
  reader_role: arn:aws:iam::999999999999:role/hallmark-organization
  allow_units: [ou-ab12-c3d4e5f6]
  deny_units: [ou-ab12-00000000, ou-ab12-11111111]
  member_role: hallmark/member-{account}
  external_id: hallmark.example.com
`

func TestOrganization(t *testing.T) {
	d, err := parseDeployment([]byte(strings.Replace(deploymenttest.Minimal, `accounts: ["111122223333"]`, "", 1) + organizationSettings))
	if err != nil {
		t.Fatal(err)
	}
	if limits := d.limits(); !limits.Organization || len(limits.Accounts) != 0 {
		t.Errorf("limits %+v", limits)
	}
	want := inventory.Account{ID: "222233334444", Role: "arn:aws:iam::222233334444:role/hallmark/member-222233334444", ExternalID: "hallmark.example.com"}
	if got := d.Organization.account("aws", "222233334444"); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if s := d.Organization.scope(); !slices.Equal(s.Allow, []string{"ou-ab12-c3d4e5f6"}) || len(s.Deny) != 2 {
		t.Errorf("scope %+v", s)
	}
	if _, err := parseDeployment([]byte(deploymenttest.Minimal + organizationSettings)); err != nil {
		t.Errorf("with a list of accounts: %v", err)
	}
}

func TestOrganizationRefuses(t *testing.T) {
	for name, tt := range map[string]struct{ old, replacement, want string }{
		"no id":                  {"o-a1b2c3d4e5", `""`, "organization.id:"},
		"an account's number":    {"o-a1b2c3d4e5", `"111122223333"`, "organization.id:"},
		"another key":            {"member_role:", "role:", "role"},
		"no reader":              {"arn:aws:iam::999999999999:role/hallmark-organization", `""`, "organization.reader_role:"},
		"a reader's name":        {"arn:aws:iam::999999999999:role/hallmark-organization", "hallmark-organization", "organization.reader_role:"},
		"a reader of China":      {"arn:aws:iam::9", "arn:aws-cn:iam::9", "organization.reader_role:"},
		"no member role":         {"hallmark/member-{account}", `""`, "organization.member_role:"},
		"a member role's ARN":    {"hallmark/member-{account}", "arn:aws:iam::999999999999:role/member", "write the name alone"},
		"a member role, any":     {"hallmark/member-{account}", `"*"`, "organization.member_role:"},
		"a member role, a blank": {"hallmark/member-{account}", `"a b"`, `organization.member_role: "a b" is not the name of a role`},
		"only the account":       {"hallmark/member-{account}", `"{account}"`, "begin with"},
		"another placeholder":    {"{account}", "{region}", "organization.member_role:"},
		"no external id":         {"hallmark.example.com", `""`, "organization.external_id:"},
		"no allowed units":       {"[ou-ab12-c3d4e5f6]", "[]", "organization.allow_units: empty"},
		"an allowed root":        {"[ou-ab12-c3d4e5f6]", "[r-ab12]", "organization.allow_units:"},
		"a unit's name":          {"[ou-ab12-c3d4e5f6]", "[Workloads]", "organization.allow_units:"},
		"no denied units":        {"[ou-ab12-00000000, ou-ab12-11111111]", "[]", "organization.deny_units: empty"},
		"a denied unit twice":    {"ou-ab12-11111111", "ou-ab12-00000000", "listed twice"},
	} {
		t.Run(name, func(t *testing.T) {
			if !strings.Contains(organizationSettings, tt.old) {
				t.Fatal("the row changes nothing")
			}
			text := deploymenttest.Minimal + strings.Replace(organizationSettings, tt.old, tt.replacement, 1)
			if name == "no external id" {
				text = deploymenttest.Minimal + strings.Replace(organizationSettings, "external_id: hallmark.example.com", `external_id: ""`, 1)
			}
			if _, err := parseDeployment([]byte(text)); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v, want %q", err, tt.want)
			}
		})
	}
	if _, err := parseDeployment([]byte(strings.Replace(deploymenttest.Minimal, `accounts: ["111122223333"]`, "", 1))); err == nil {
		t.Error("neither accounts nor an organization")
	}
}

// The stack's roles and schedule are for one organization. Another one's list would never
// be read.
func TestOrganizationOfTheStack(t *testing.T) {
	for name, tt := range map[string]struct {
		settings, stack string
		function, good  bool
	}{
		"the same":                {organizationSettings, "o-a1b2c3d4e5", true, true},
		"another":                 {organizationSettings, "o-0000000000", true, false},
		"none in the stack":       {organizationSettings, "", true, false},
		"none in deployment.yaml": {"", "o-a1b2c3d4e5", true, false},
		"neither":                 {"", "", true, true},
		"outside Lambda":          {organizationSettings, "", false, true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("HALLMARK_LEDGER_TABLE", "ledger")
			t.Setenv("HALLMARK_ORGANIZATION", tt.stack)
			t.Setenv("AWS_LAMBDA_FUNCTION_NAME", map[bool]string{true: "fleet"}[tt.function])
			t.Setenv("HALLMARK_DEPLOYMENT", deploymenttest.Write(t, map[string]string{
				"deployment.yaml": strings.Replace(deploymenttest.Minimal, "identity.pem}", "identity.pem}, fleet_login: {method: identity-file, file: identity.pem}", 1) + tt.settings,
				"identity.pem":    "",
			}))
			u, err := NewUpkeep(t.Context(), slog.New(slog.DiscardHandler))
			if (err == nil) != tt.good || err != nil && !strings.Contains(err.Error(), "OrganizationId") {
				t.Errorf("error %v", err)
			}
			if err == nil && (u.Organization != nil) != (tt.settings != "") {
				t.Errorf("reads an organization: %v", u.Organization != nil)
			}
			s, _, err := NewSigner(t.Context(), slog.New(slog.DiscardHandler))
			if (err == nil) != tt.good || err == nil && (s.Organization != nil) != (tt.settings != "") {
				t.Errorf("error %v of the signer", err)
			}
		})
	}
	t.Setenv("AWS_LAMBDA_FUNCTION_NAME", "")
	t.Setenv("HALLMARK_LEDGER_TABLE", "")
	t.Setenv("HALLMARK_ORGANIZATION", "")
	t.Setenv("HALLMARK_DEPLOYMENT", deploymenttest.Write(t, map[string]string{"deployment.yaml": deploymenttest.Minimal + organizationSettings, "identity.pem": ""}))
	if _, _, err := NewSigner(t.Context(), slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "HALLMARK_LEDGER_TABLE") {
		t.Errorf("error %v without a table", err)
	}
}

// Neither function needs the other's settings, but both need the organization's.
func TestPackKeepsTheOrganization(t *testing.T) {
	path := deploymenttest.Write(t, map[string]string{
		"deployment.yaml": strings.Replace(deploymenttest.Minimal, "identity.pem}", "identity.pem}, fleet_login: {method: identity-file, file: identity.pem}", 1) + organizationSettings,
		"identity.pem":    "",
	})
	summary, err := Check(path)
	if err != nil || summary.Organization != "o-a1b2c3d4e5" {
		t.Errorf("summary %+v, error %v", summary, err)
	}
	for _, handler := range []string{"enroll", "fleet"} {
		folder := t.TempDir()
		if err := Pack(path, handler, folder); err != nil {
			t.Fatal(err)
		}
		d, err := readDeployment(folder + "/" + settingsFile)
		if err != nil || d.organizationID() != "o-a1b2c3d4e5" {
			t.Errorf("%s: error %v", handler, err)
		}
	}
}
