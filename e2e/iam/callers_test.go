//go:build e2e

package iam

import (
	"fmt"
	"strings"
	"testing"
)

// all is the policy of somebody whose own account lets them do everything.
func all() []document {
	return []document{policy(map[string]any{"Effect": "Allow", "Action": "*", "Resource": "*"})}
}

const (
	ownAdmin      = "arn:aws:sts::" + account + ":assumed-role/admin/x"
	memberMachine = "arn:aws:sts::" + member + ":assumed-role/machine/i-0a1b2c3d4e5f60718"
	ownMachine    = "arn:aws:sts::" + account + ":assumed-role/machine/i-0a1b2c3d4e5f60718"
)

func checkWhoMayPutEventsIntoTheQueue(t *testing.T, s *stack) {
	t.Helper()
	d := documentOf(t, s.property("EventQueuePolicy", "PolicyDocument"))
	queue := s.arn("EventQueue")
	questions := []question{
		ask("another rule", false, "events.amazonaws.com", "sqs:SendMessage", queue, "aws:SourceArn="+s.arn("StateRule")+"2"),
		ask("another account's rule", false, "events.amazonaws.com", "sqs:SendMessage", queue,
			"aws:SourceArn="+strings.Replace(s.arn("StateRule"), account, member, 1)),
		ask("no rule", false, "events.amazonaws.com", "sqs:SendMessage", queue),
		ask("another service", false, "sns.amazonaws.com", "sqs:SendMessage", queue, "aws:SourceArn="+s.arn("StateRule")),
		ask("anybody", false, anybody(), "sqs:SendMessage", queue),
		ask("another account", false, memberMachine, "sqs:SendMessage", queue),
		ask("the rule reads", false, "events.amazonaws.com", "sqs:ReceiveMessage", queue, "aws:SourceArn="+s.arn("StateRule")),
	}
	for _, rule := range []string{"StateRule", "TagRule", "MemberStateRule", "MemberTagRule"} {
		if s.has(rule) {
			questions = append(questions, ask(rule, true, "events.amazonaws.com", "sqs:SendMessage", queue, "aws:SourceArn="+s.arn(rule)))
		}
	}
	for n := range questions {
		if questions[n].ResourcePolicy = &d; questions[n].Request.Principal == memberMachine {
			questions[n].IdentityPolicies = all()
		}
	}
	s.simulator.check(t, questions)
	if sources := anyList(d.Statement[0]["Condition"].(map[string]any)["ArnEquals"].(map[string]any)["aws:SourceArn"]); len(sources) != len(questions)-7 {
		t.Errorf("the queue's policy admits %q", sources)
	}
}

func checkWhoMayPutEventsOnTheBus(t *testing.T, s *stack) {
	t.Helper()
	var d document
	for _, name := range []string{"EventBusAccounts", "EventBusOrganization"} {
		if s.has(name) {
			d.Version = "2012-10-17"
			d.Statement = append(d.Statement, s.property(name, "Statement").(map[string]any))
		}
	}
	if d.Statement == nil {
		if s.has("EventBus") {
			t.Error("a bus without a policy")
		}
		return
	}
	bus := s.arn("EventBus")
	listed := s.has("EventBusAccounts")
	questions := []question{
		ask("a listed account", listed, memberMachine, "events:PutEvents", bus, "events:source=aws.ec2"),
		ask("both sources", listed, memberMachine, "events:PutEvents", bus, "events:source=aws.ec2,aws.tag"),
		ask("an account of the organization", true, memberMachine, "events:PutEvents", bus, "events:source=aws.tag", "aws:PrincipalOrgID="+organization),
		ask("another organization", listed, memberMachine, "events:PutEvents", bus, "events:source=aws.tag", "aws:PrincipalOrgID=o-other12345"),
		ask("another source", false, memberMachine, "events:PutEvents", bus, "events:source=my.app", "aws:PrincipalOrgID="+organization),
		ask("another source beside", false, memberMachine, "events:PutEvents", bus, "events:source=aws.ec2,my.app", "aws:PrincipalOrgID="+organization),
		ask("no source", false, memberMachine, "events:PutEvents", bus, "aws:PrincipalOrgID="+organization),
		ask("another account", false, strings.Replace(memberMachine, member, "999999999999", 1), "events:PutEvents", bus, "events:source=aws.ec2"),
		ask("a rule", false, memberMachine, "events:PutRule", strings.Replace(bus, "event-bus", "rule", 1)+"/x", "aws:PrincipalOrgID="+organization),
		ask("anybody", false, anybody(), "events:PutEvents", bus, "events:source=aws.ec2"),
	}
	for n := range questions {
		if questions[n].ResourcePolicy = &d; fmt.Sprint(questions[n].Request.Principal) != fmt.Sprint(anybody()) {
			questions[n].IdentityPolicies = all()
		}
	}
	s.simulator.check(t, questions)
}

// functionPolicy is the policy that AWS::Lambda::Permission resources make.
func (s *stack) functionPolicy(function string) document {
	var d = policy()
	for name, r := range s.Resources {
		if r.Type != "AWS::Lambda::Permission" || s.property(name, "FunctionName") != s.name(function, "") {
			continue
		}
		conditions := make(map[string]any)
		statement := map[string]any{
			"Effect": "Allow", "Action": s.property(name, "Action"), "Resource": s.arn(function), "Condition": conditions,
		}
		for property, value := range r.Properties {
			switch property {
			case "FunctionName", "Action":
			case "Principal":
				if statement["Principal"] = value; value != "*" {
					statement["Principal"] = map[string]any{"Service": value}
				}
			case "SourceArn":
				conditions["ArnLike"] = map[string]any{"aws:SourceArn": s.property(name, property)}
			case "PrincipalOrgID":
				equal(conditions)["aws:PrincipalOrgID"] = value
			case "FunctionUrlAuthType":
				equal(conditions)["lambda:FunctionUrlAuthType"] = value
			case "InvokedViaFunctionUrl":
				conditions["Bool"] = map[string]any{"lambda:InvokedViaFunctionUrl": fmt.Sprint(value)}
			default:
				panic("property " + property + " of a permission")
			}
		}
		if len(conditions) == 0 {
			delete(statement, "Condition")
		}
		d.Statement = append(d.Statement, statement)
	}
	return d
}

func equal(conditions map[string]any) map[string]any {
	if conditions["StringEquals"] == nil {
		conditions["StringEquals"] = make(map[string]any)
	}
	return conditions["StringEquals"].(map[string]any)
}

// machinePolicies are the policies of a machine's profile as docs/networks.md says: the
// stack's, copied to the member account.
func (s *stack) machinePolicies(t *testing.T) []document {
	t.Helper()
	if !s.has("MachinePolicy") {
		return nil
	}
	return []document{documentOf(t, s.property("MachinePolicy", "PolicyDocument"))}
}

// The entry that the deployment has is open, and no other form of one.
func checkWhoMayCallTheFunctions(t *testing.T, s *stack) {
	t.Helper()
	var (
		entry      = s.parameters["Entry"]
		isURL      = entry == ""
		isInvoke   = entry == "invoke"
		signed     = s.parameters["UrlAuthType"] == "AWS_IAM"
		isPublic   = isURL && !signed
		ofAll      = s.parameters["UrlOrganizationId"] != ""
		enroll     = s.arn("EnrollFunction")
		fleet      = s.arn("FleetFunction")
		inOrg      = "aws:PrincipalOrgID=" + organization
		byURL      = "lambda:InvokedViaFunctionUrl=true"
		auth       = "lambda:FunctionUrlAuthType=NONE"
		machines   = s.machinePolicies(t)
		invocation = "lambda:InvokeFunction"
		call       = "lambda:InvokeFunctionUrl"
	)
	if signed {
		auth = "lambda:FunctionUrlAuthType=AWS_IAM"
	}
	onBehalf := func(q question, identity []document) question {
		q.IdentityPolicies = identity
		return q
	}
	questions := []question{
		ask("anybody calls the URL", isPublic, anybody(), call, enroll, auth),
		ask("anybody invokes by the URL", isPublic, anybody(), invocation, enroll, byURL),
		ask("anybody invokes", false, anybody(), invocation, enroll),
		ask("anybody says that it was no URL", false, anybody(), invocation, enroll, "lambda:InvokedViaFunctionUrl=false"),
		ask("anybody calls the fleet function", false, anybody(), call, fleet, auth),
		ask("anybody invokes the fleet function", false, anybody(), invocation, fleet, byURL),

		onBehalf(ask("a machine calls the URL", isURL, ownMachine, call, enroll, auth), machines),
		// Where no URL is, none of the two permissions that one needs is harmful alone.
		onBehalf(ask("a machine invokes by the URL", isURL || isInvoke, ownMachine, invocation, enroll, byURL), machines),
		onBehalf(ask("a machine invokes", isInvoke, ownMachine, invocation, enroll), machines),
		onBehalf(ask("a machine updates the function", false, ownMachine, "lambda:UpdateFunctionCode", enroll), machines),
		onBehalf(ask("a machine calls the fleet function", false, ownMachine, call, fleet, auth), machines),
		onBehalf(ask("a machine invokes the fleet function", false, ownMachine, invocation, fleet), machines),

		onBehalf(ask("a member's machine calls the URL", isPublic || isURL && signed && ofAll, memberMachine, call, enroll, auth, inOrg), all()),
		onBehalf(ask("a member's machine invokes by the URL", isPublic || isURL && signed && ofAll || isInvoke && ofAll, memberMachine, invocation, enroll, byURL, inOrg), all()),
		onBehalf(ask("a member's machine invokes", isInvoke && ofAll, memberMachine, invocation, enroll, inOrg), all()),
		onBehalf(ask("a member's machine invokes the fleet function", false, memberMachine, invocation, fleet, inOrg), all()),
		onBehalf(ask("another organization's calls the URL", isPublic, memberMachine, call, enroll, auth, "aws:PrincipalOrgID=o-other12345"), all()),
		onBehalf(ask("another organization's invokes", false, memberMachine, invocation, enroll, "aws:PrincipalOrgID=o-other12345"), all()),

		ask("the schedule sweeps", true, "events.amazonaws.com", invocation, fleet, "aws:SourceArn="+s.arn("FleetFunctionSweep")),
		ask("another rule sweeps", false, "events.amazonaws.com", invocation, fleet, "aws:SourceArn="+s.arn("StateRule")),
		ask("the schedule enrolls", false, "events.amazonaws.com", invocation, enroll, "aws:SourceArn="+s.arn("FleetFunctionSweep")),
		ask("another API", false, "apigateway.amazonaws.com", invocation, enroll, "aws:SourceArn=arn:aws:execute-api:"+region+":"+account+":zzzzzzzzzz/hallmark/POST/"),
		ask("an API sweeps", false, "apigateway.amazonaws.com", invocation, fleet, "aws:SourceArn=arn:aws:execute-api:"+region+":"+account+":a1b2c3d4e5/hallmark/POST/"),
		ask("the API enrolls", s.has("Api"), "apigateway.amazonaws.com", invocation, enroll, "aws:SourceArn=arn:aws:execute-api:"+region+":"+account+":a1b2c3d4e5/hallmark/POST/"),
		ask("another stage of the API", false, "apigateway.amazonaws.com", invocation, enroll, "aws:SourceArn=arn:aws:execute-api:"+region+":"+account+":a1b2c3d4e5/test/POST/"),
	}
	if s.has("OrganizationRule") {
		questions = append(questions,
			ask("the schedule reads the organization", true, "events.amazonaws.com", invocation, fleet, "aws:SourceArn="+s.arn("OrganizationRule")),
			ask("the schedule of readings enrolls", false, "events.amazonaws.com", invocation, enroll, "aws:SourceArn="+s.arn("OrganizationRule")))
	}
	if s.has("HealthSchedule") {
		questions = append(questions,
			ask("the schedule probes", true, "events.amazonaws.com", invocation, fleet, "aws:SourceArn="+s.arn("HealthSchedule")),
			ask("the schedule of probes enrolls", false, "events.amazonaws.com", invocation, enroll, "aws:SourceArn="+s.arn("HealthSchedule")))
	}
	policies := map[string]document{enroll: s.functionPolicy("EnrollFunction"), fleet: s.functionPolicy("FleetFunction")}
	for n, q := range questions {
		if d := policies[q.Request.Resource.Resource]; len(d.Statement) > 0 {
			questions[n].ResourcePolicy = &d
		}
	}
	s.simulator.check(t, questions)
}

// A private API admits its VPC endpoints, and with IAM machines that may call it.
func checkWhoMayCallTheAPI(t *testing.T, s *stack) {
	t.Helper()
	api := "arn:aws:execute-api:" + region + ":" + account + ":a1b2c3d4e5"
	machines := s.machinePolicies(t)
	through, elsewhere := "aws:SourceVpce="+endpoint, "aws:SourceVpce=vpce-0ffffffffffffffff"
	signed := s.parameters["UrlAuthType"] == "AWS_IAM"
	of := func(name string, want bool, identity []document, principal any, action, resource string, context ...string) question {
		q := ask(name, want, principal, action, resource, context...)
		q.IdentityPolicies = identity
		return q
	}
	if !s.has("Api") {
		s.simulator.check(t, []question{of("a machine calls another stack's API", false, machines, ownMachine, "execute-api:Invoke", api+"/hallmark/POST/-", through)})
		return
	}
	d := documentOf(t, s.property("Api", "Policy"))
	for _, statement := range d.Statement {
		// API Gateway puts the API's ARN before it (API Gateway Developer Guide, "Access
		// policy language overview").
		if statement["Resource"] != "execute-api:/*" {
			t.Errorf("resource %v", statement["Resource"])
		}
		statement["Resource"] = api + "/*"
	}
	inOrg := "aws:PrincipalOrgID=" + organization
	questions := []question{
		of("anybody through the endpoint", !signed, nil, anybody(), "execute-api:Invoke", api+"/hallmark/POST/-", through),
		of("anybody through another endpoint", false, nil, anybody(), "execute-api:Invoke", api+"/hallmark/POST/-", elsewhere),
		of("anybody through no endpoint", false, nil, anybody(), "execute-api:Invoke", api+"/hallmark/POST/-"),
		of("a machine through the endpoint", true, machines, ownMachine, "execute-api:Invoke", api+"/hallmark/POST/-", through, "aws:PrincipalAccount="+account),
		of("a machine through another endpoint", false, machines, ownMachine, "execute-api:Invoke", api+"/hallmark/POST/-", elsewhere, "aws:PrincipalAccount="+account),
		of("a machine without the policy", !signed, nil, ownMachine, "execute-api:Invoke", api+"/hallmark/POST/-", through, "aws:PrincipalAccount="+account, inOrg),
		of("a member's machine", true, all(), memberMachine, "execute-api:Invoke", api+"/hallmark/POST/-", through, "aws:PrincipalAccount="+member, inOrg),
		of("another organization's machine", !signed, all(), memberMachine, "execute-api:Invoke", api+"/hallmark/POST/-", through, "aws:PrincipalAccount="+member, "aws:PrincipalOrgID=o-other12345"),
		of("a machine manages the API", false, machines, ownMachine, "execute-api:ManageConnections", api+"/hallmark/POST/@connections/x", through, "aws:PrincipalAccount="+account),
	}
	for n := range questions {
		questions[n].ResourcePolicy = &d
	}
	s.simulator.check(t, questions)
}
