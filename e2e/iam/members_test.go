//go:build e2e

package iam

import (
	"slices"
	"strings"
	"testing"

	"github.com/hallmark-ssh/hallmark/e2e/calls"
)

const (
	externalID = "hallmark.example.com"
	bus        = "arn:aws:events:" + region + ":" + account + ":event-bus/hallmark-members"
	root       = "arn:aws:organizations::" + management + ":root/" + organization + "/r-ab12"
	unit       = "arn:aws:organizations::" + management + ":ou/" + organization + "/ou-ab12-c3d4e5f6"
)

// roleOfMember is a role that templates/member-account creates in an account for the signer.
type roleOfMember struct {
	*stack
	role    string   // in the template
	account string   // where it is
	names   []string // in recordings
}

// memberRoles expands the templates of the roles that the functions assume.
func memberRoles(t *testing.T) map[string]roleOfMember {
	t.Helper()
	parameters := map[string]string{
		"SignerRoleArns": signer("Enroll") + "," + signer("Fleet"), "ExternalId": externalID,
	}
	return map[string]roleOfMember{
		"role.yaml": {
			expandIn(t, member, "templates/member-account/role.yaml", parameters), "MemberRole", member,
			[]string{"MemberRoleArns", "OrganizationRoleName"},
		},
		"organization.yaml": {
			expandIn(t, management, "templates/member-account/organization.yaml", parameters), "ReaderRole", management,
			[]string{"OrganizationReaderRoleArn"},
		},
	}
}

// signer is the role of one of the signer's functions.
func signer(function string) string {
	return "arn:aws:iam::" + account + ":role/hallmark-" + function + "Role"
}

func (r roleOfMember) arn() string {
	return "arn:aws:iam::" + r.account + ":role/" + r.property(r.role, "RoleName").(string)
}

// session is the role while a function uses it.
func (r roleOfMember) session() string {
	return strings.Replace(strings.Replace(r.arn(), "iam", "sts", 1), ":role/", ":assumed-role/", 1) + "/hallmark-signer"
}

// TestMemberRoles judges the roles that the functions assume in other accounts.
func TestMemberRoles(t *testing.T) {
	sim := startSimulator(t)
	for name, r := range memberRoles(t) {
		t.Run(name, func(t *testing.T) {
			r.simulator = sim
			r.checkTrust(t)
			needs := r.needs(t)
			if len(needs) < 3 {
				t.Errorf("only %d requests are recorded", len(needs))
			}
			sim.check(t, needs)
			sim.checkNeeded(t, name, r.rolePolicies(t, r.role), needs, nil)
			r.checkNothingElse(t)
		})
	}
}

// Only the signer's functions may take on the role, and only with the external id.
func (r roleOfMember) checkTrust(t *testing.T) {
	t.Helper()
	trust := documentOf(t, r.property(r.role, "AssumeRolePolicyDocument"))
	id := "sts:ExternalId=" + externalID
	questions := []question{
		ask("the enroll function", true, session("enroll"), "sts:AssumeRole", r.arn(), id),
		ask("the fleet function", true, session("fleet"), "sts:AssumeRole", r.arn(), id),
		ask("without the external id", false, session("fleet"), "sts:AssumeRole", r.arn()),
		ask("with another external id", false, session("fleet"), "sts:AssumeRole", r.arn(), id+"2"),
		ask("tag the session", false, session("fleet"), "sts:TagSession", r.arn()),
		ask("name the source", false, session("fleet"), "sts:SetSourceIdentity", r.arn()),
		ask("another role of the signer's account", false, ownAdmin, "sts:AssumeRole", r.arn(), id),
		ask("an instance of the signer's account", false, ownMachine, "sts:AssumeRole", r.arn(), id),
		ask("a role of that name in another account", false, strings.Replace(session("fleet"), account, "999999999999", 1), "sts:AssumeRole", r.arn(), id),
		ask("the account's own administrator", false, "arn:aws:sts::"+r.account+":assumed-role/admin/x", "sts:AssumeRole", r.arn(), id),
	}
	for n := range questions {
		questions[n].IdentityPolicies = all() // their own accounts do not stop them
	}
	for _, stranger := range []any{"lambda.amazonaws.com", "ec2.amazonaws.com", anybody()} {
		questions = append(questions, ask("a stranger", false, stranger, "sts:AssumeRole", r.arn(), id))
	}
	for n := range questions {
		questions[n].ResourcePolicy = &trust
	}
	r.simulator.check(t, questions)
}

// needs returns the questions whether the role may do what the functions do with it.
func (r roleOfMember) needs(t *testing.T) []question {
	t.Helper()
	var questions []question
	for _, c := range recorded(t) {
		if !slices.Contains(r.names, c.By) {
			continue
		}
		resource, known := map[string]string{"": "*", calls.Root: root, calls.Unit: unit}[c.Resource]
		if !known {
			t.Errorf("%s calls %s on %s", c.By, c.Action, c.Resource)
		}
		questions = append(questions, r.ask(t, "what "+c.By+" does", true, c.Action, resource))
	}
	return questions
}

func (r roleOfMember) ask(t *testing.T, name string, want bool, action, resource string) question {
	t.Helper()
	q := ask(name, want, r.session(), action, resource)
	q.IdentityPolicies = []document{whole(r.rolePolicies(t, r.role))}
	if q.Request.Resource.AccountID == account {
		q.Request.Resource.AccountID = r.account
	}
	return q
}

// What the role must not do in its account.
func (r roleOfMember) checkNothingElse(t *testing.T) {
	t.Helper()
	instance := "arn:aws:ec2:" + region + ":" + r.account + ":instance/i-0a1b2c3d4e5f60718"
	var questions []question
	for _, forbidden := range [][2]string{
		{"ec2:DescribeVolumes", "*"}, {"ec2:DescribeSnapshots", "*"}, {"ec2:DescribeTags", "*"}, {"ec2:DescribeSecurityGroups", "*"},
		{"ec2:DescribeInstanceAttribute", instance}, {"ec2:GetConsoleOutput", instance}, {"ec2:GetPasswordData", instance},
		{"ec2:CreateTags", instance}, {"ec2:TerminateInstances", instance}, {"ec2:StopInstances", instance}, {"ec2:RunInstances", instance},
		{"ssm:StartSession", instance}, {"ec2-instance-connect:SendSSHPublicKey", instance},
		{"sts:AssumeRole", "arn:aws:iam::" + r.account + ":role/admin"}, {"sts:AssumeRole", r.arn()},
		{"iam:PassRole", r.arn()}, {"iam:PutRolePolicy", r.arn()}, {"iam:UpdateAssumeRolePolicy", r.arn()},
		{"s3:GetObject", "arn:aws:s3:::artifacts/bootstrap.zip"},
		{"secretsmanager:GetSecretValue", "arn:aws:secretsmanager:" + region + ":" + r.account + ":secret:x-AbCdEf"},
		{"organizations:ListAccounts", "*"}, {"organizations:ListParents", "arn:aws:organizations::" + management + ":account/" + organization + "/" + member},
		{"organizations:DescribeAccount", "arn:aws:organizations::" + management + ":account/" + organization + "/" + member},
		{"organizations:MoveAccount", root}, {"organizations:CreateAccount", "*"}, {"organizations:CloseAccount", "arn:aws:organizations::" + management + ":account/" + organization + "/" + member},
	} {
		questions = append(questions, r.ask(t, "anything else", false, forbidden[0], forbidden[1]))
	}
	inventory := r.role == "MemberRole"
	questions = append(questions,
		r.ask(t, "see instances", inventory, "ec2:DescribeInstances", "*"),
		r.ask(t, "list accounts", !inventory, "organizations:ListAccountsForParent", root))
	r.simulator.check(t, questions)
}

// EventBridge forwards a member's events with a role of its own, to the signer's bus only.
func TestForwardRole(t *testing.T) {
	sim := startSimulator(t)
	s := expandIn(t, member, "templates/member-account/events.yaml", map[string]string{"EventBusArn": bus})
	trust := documentOf(t, s.property("ForwardRole", "AssumeRolePolicyDocument"))
	role := "arn:aws:iam::" + member + ":role/hallmark-ForwardRole"
	questions := []question{
		ask("EventBridge", true, "events.amazonaws.com", "sts:AssumeRole", role, "aws:SourceAccount="+member),
		ask("EventBridge for another account", false, "events.amazonaws.com", "sts:AssumeRole", role, "aws:SourceAccount="+account),
		ask("EventBridge for nobody", false, "events.amazonaws.com", "sts:AssumeRole", role),
		ask("another service", false, "scheduler.amazonaws.com", "sts:AssumeRole", role, "aws:SourceAccount="+member),
		ask("anybody", false, anybody(), "sts:AssumeRole", role, "aws:SourceAccount="+member),
		ask("the signer", false, session("fleet"), "sts:AssumeRole", role, "aws:SourceAccount="+member),
		ask("an instance", false, memberMachine, "sts:AssumeRole", role, "aws:SourceAccount="+member),
	}
	for n := range questions {
		if questions[n].ResourcePolicy = &trust; strings.HasPrefix(questions[n].Name, "the signer") || strings.HasPrefix(questions[n].Name, "an instance") {
			questions[n].IdentityPolicies = all()
		}
	}
	sim.check(t, questions)

	policies := s.rolePolicies(t, "ForwardRole")
	forward := func(name string, want bool, action, resource string) question {
		q := ask(name, want, "arn:aws:sts::"+member+":assumed-role/hallmark-ForwardRole/x", action, resource)
		q.Request.Resource.AccountID = member // the bus has a policy of its own, which TestTemplate judges
		q.IdentityPolicies = []document{whole(policies)}
		return q
	}
	forwards := forward("forward an event", true, "events:PutEvents", bus)
	sim.check(t, []question{
		forwards,
		forward("to another bus", false, "events:PutEvents", strings.Replace(bus, "hallmark-members", "default", 1)),
		forward("to a bus of that name in another account", false, "events:PutEvents", strings.Replace(bus, account, "999999999999", 1)),
		forward("change a rule", false, "events:PutRule", strings.Replace(bus, "event-bus/hallmark-members", "rule/x", 1)),
		forward("send to the queue itself", false, "sqs:SendMessage", "arn:aws:sqs:"+region+":"+account+":hallmark-EventQueue"),
	})
	sim.checkNeeded(t, "events.yaml", policies, []question{forwards}, nil)
}
