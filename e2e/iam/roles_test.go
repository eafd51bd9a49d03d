//go:build e2e

// Package iam judges every permission in template.yaml with a simulator of IAM: what the
// functions call must be allowed, each permission must be needed, and what nobody should do
// must be denied.
package iam

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/hallmark-ssh/hallmark/e2e/calls"
)

// recordings are the files that the tests of the stacks and of the machines write.
func recordings() []string {
	return []string{"../stack/testdata/calls.jsonl", "../testdata/calls.jsonl"}
}

// recorded returns what the functions call, and what the roles call that they assume: the
// recordings, and what Lambda itself calls with a function's role.
func recorded(t *testing.T) []calls.Call {
	t.Helper()
	all := byLambda()
	for _, file := range recordings() {
		read, err := calls.Read(file)
		if err != nil {
			t.Fatal(err)
		}
		all = calls.Merge(all, read)
	}
	return all
}

// byLambda lists the calls that Lambda makes with a function's role, which no test sees.
// (AWS Lambda Developer Guide: "Defining Lambda function permissions with an execution role",
// "Using Lambda with Amazon SQS", "Capturing records of Lambda asynchronous invocations")
func byLambda() []calls.Call {
	return []calls.Call{
		{By: "enroll", Action: "logs:CreateLogStream", Resource: "EnrollLogGroup"},
		{By: "enroll", Action: "logs:PutLogEvents", Resource: "EnrollLogGroup"},
		{By: "fleet", Action: "logs:CreateLogStream", Resource: "FleetLogGroup"},
		{By: "fleet", Action: "logs:PutLogEvents", Resource: "FleetLogGroup"},
		{By: "fleet", Action: "sqs:ReceiveMessage", Resource: "EventQueue"},
		{By: "fleet", Action: "sqs:DeleteMessage", Resource: "EventQueue"},
		{By: "fleet", Action: "sqs:GetQueueAttributes", Resource: "EventQueue"},
		{By: "fleet", Action: "sqs:SendMessage", Resource: "FailedQueue"}, // a sweep that failed for good
	}
}

// toConnect lists the actions with which Lambda connects a function to a VPC (AWS Lambda
// Developer Guide, "Giving Lambda functions access to resources in an Amazon VPC").
func toConnect() []string {
	return []string{
		"ec2:AssignPrivateIpAddresses", "ec2:CreateNetworkInterface", "ec2:DeleteNetworkInterface",
		"ec2:DescribeNetworkInterfaces", "ec2:DescribeSubnets", "ec2:UnassignPrivateIpAddresses",
	}
}

// resource returns the ARN of what a recording names, empty if this variant lacks it.
func (s *stack) resource(name string) string {
	switch {
	case name == "": // the action knows no resource
		return "*"
	case name == "LedgerTable" && !s.has(name):
		return s.parameters["LedgerTableArn"]
	case name == "PolicyParameter":
		if !s.has(name) {
			return ""
		}
		return fmt.Sprintf("arn:aws:ssm:%s:%s:parameter%s", region, account, s.name(name, ""))
	case name == "TeleportSecretArn" || name == "FleetSecretArn" || name == "OrganizationReaderRoleArn":
		return s.parameters[name]
	case name == "OrganizationRoleName":
		if s.parameters[name] == "" {
			return ""
		}
		return "arn:aws:iam::" + member + ":role/" + s.parameters[name]
	case name == "MemberRoleArns":
		return strings.ReplaceAll(s.parameters[name], "*", member)
	case strings.HasSuffix(name, "LogGroup"):
		return strings.TrimSuffix(s.arn(name), "*") + "log-stream:2026/01/01/[$LATEST]0"
	case strings.HasPrefix(name, "arn:"):
		return name
	}
	return s.arn(name)
}

// needs returns the questions whether a function may do what it does. Each value of a leading
// key is a question of its own.
func (s *stack) needs(t *testing.T, function string) []question {
	t.Helper()
	own := whole(s.rolePolicies(t, s.role(function)))
	var questions []question
	called := recorded(t)
	if s.parameters["VpcSubnetIds"] != "" {
		for _, action := range toConnect() {
			called = append(called, calls.Call{By: function, Action: action})
		}
	}
	for _, c := range called {
		if c.By != function {
			continue
		}
		resource := s.resource(c.Resource)
		if resource == "" {
			continue
		}
		keys := c.Context["dynamodb:LeadingKeys"]
		if len(keys) == 0 {
			keys = []string{""}
		}
		for _, key := range keys {
			if key == "policy/x" && !s.has("PolicyParameter") || key == "organization/x" && s.parameters["OrganizationId"] == "" {
				continue // a packaged policy has no last good one, and an organization is optional
			}
			q := ask("what "+function+" does", true, session(function), c.Action, resource)
			q.IdentityPolicies = []document{own}
			for name, all := range c.Context {
				if name == "dynamodb:LeadingKeys" {
					all = []string{key}
				}
				q.Request.ContextVariables[name] = values(name, all)
			}
			if c.Action == "sts:AssumeRole" {
				trust := s.trust[c.Resource]
				q.ResourcePolicy = &trust
				if strings.HasPrefix(c.Resource, "Organization") {
					q.Request.ContextVariables["aws:ResourceOrgID"] = organization
				}
			}
			questions = append(questions, q)
		}
	}
	return questions
}

func (s *stack) role(function string) string {
	return strings.TrimSuffix(functions()[function], "Function") + "Role"
}

func checkFunctionsMayDoWhatTheyDo(t *testing.T, s *stack) {
	t.Helper()
	for function := range functions() {
		questions := s.needs(t, function)
		if len(questions) < 10 {
			t.Errorf("only %d requests of %s are recorded", len(questions), function)
		}
		s.simulator.check(t, questions)
	}
}

// reduction is a policy without one thing that it permits.
type reduction struct {
	what     string
	policies document
	actions  []any // of the statement; no other call can be affected
}

// reductions returns a role's permissions, each time without one action, or one value of a
// condition.
func reductions(policies map[string]document) []reduction {
	var all []reduction
	for name, d := range policies {
		for n, statement := range d.Statement {
			without := func(what string, replaced map[string]any) {
				rest := make(map[string]document)
				for other, d := range policies {
					rest[other] = d
				}
				statements := slices.Clone(d.Statement)
				statements[n] = replaced
				if replaced == nil {
					statements = slices.Delete(statements, n, n+1)
				}
				rest[name] = policy(statements...)
				actions := anyList(statement["Action"])
				all = append(all, reduction{fmt.Sprint(name, " ", actions[0], ": ", what), whole(rest), actions})
			}
			for _, action := range anyList(statement["Action"]) {
				without(fmt.Sprint(action), withoutValue(statement, action, "Action"))
			}
			for _, resource := range anyList(statement["Resource"]) {
				without(fmt.Sprint(resource), withoutValue(statement, resource, "Resource"))
			}
			conditions, _ := statement["Condition"].(map[string]any)
			for operator, keys := range conditions {
				for key, wanted := range keys.(map[string]any) {
					for _, value := range anyList(wanted) {
						without(fmt.Sprint(key, " ", value), withoutValue(statement, value, "Condition", operator, key))
					}
				}
			}
		}
	}
	return all
}

// withoutValue returns a copy of a statement that lacks a value of a list; nil if it was the
// only one.
func withoutValue(statement map[string]any, value any, path ...string) map[string]any {
	replaced := make(map[string]any)
	for key, v := range statement {
		replaced[key] = v
	}
	if len(path) > 1 {
		below := withoutValue(statement[path[0]].(map[string]any), value, path[1:]...)
		if below == nil {
			return nil
		}
		replaced[path[0]] = below
		return replaced
	}
	left := slices.DeleteFunc(slices.Clone(anyList(statement[path[0]])), func(v any) bool { return v == value })
	if len(left) == 0 {
		return nil
	}
	replaced[path[0]] = left
	return replaced
}

// Each permission is there because of a recorded call: without it, one would be denied.
func checkFunctionsNeedEachPermission(t *testing.T, s *stack) {
	t.Helper()
	var exceptions map[string]string
	if !s.has("PolicyParameter") {
		const why = "the statement is the same for a packaged policy"
		exceptions = map[string]string{
			"fleet ledger dynamodb:GetItem: dynamodb:LeadingKeys policy/*":      why,
			"fleet ledger dynamodb:BatchGetItem: dynamodb:LeadingKeys policy/*": why,
		}
	}
	for function := range functions() {
		s.simulator.checkNeeded(t, function, s.rolePolicies(t, s.role(function)), s.needs(t, function), exceptions)
	}
}

// checkNeeded sees that each permission is needed for a question, unless it is an exception.
func (s *simulator) checkNeeded(t *testing.T, who string, policies map[string]document, needs []question, exceptions map[string]string) {
	t.Helper()
	for _, r := range reductions(policies) {
		var questions []question
		for _, q := range needs {
			if slices.Contains(r.actions, any(q.Request.Action)) {
				if q.IdentityPolicies = nil; len(r.policies.Statement) > 0 {
					q.IdentityPolicies = []document{r.policies}
				}
				questions = append(questions, q)
			}
		}
		needed := slices.Contains(s.judge(t, questions), false)
		why, excepted := exceptions[who+" "+r.what]
		switch {
		case !needed && !excepted:
			t.Errorf("%s does not need %s", who, r.what)
		case needed && excepted:
			t.Errorf("%s needs %s, which is an exception: %s", who, r.what, why)
		}
	}
}

// What a function must not do, whatever its policy says elsewhere.
func checkFunctionsMayDoNothingElse(t *testing.T, s *stack) {
	t.Helper()
	ledger, own := s.resource("LedgerTable"), func(name string) string {
		return fmt.Sprintf("arn:aws:dynamodb:%s:%s:table/%s", region, account, name)
	}
	parameter := fmt.Sprintf("arn:aws:ssm:%s:%s:parameter", region, account)
	secret := fmt.Sprintf("arn:aws:secretsmanager:%s:%s:secret:other-AbCdEf", region, account)
	both := func(name, action, resource string, context ...string) []question {
		return []question{s.forbid(t, "enroll", name, action, resource, context...), s.forbid(t, "fleet", name, action, resource, context...)}
	}
	var questions []question
	for _, action := range []string{"BatchGetItem", "ConditionCheckItem", "GetItem", "PutItem", "DeleteItem", "UpdateItem"} {
		questions = append(questions, both("another table", "dynamodb:"+action, own("other"), "dynamodb:LeadingKeys=policy/x")...)
		questions = append(questions, both("a table whose name begins like the ledger's", "dynamodb:"+action, ledger+"2", "dynamodb:LeadingKeys=policy/x")...)
	}
	for _, action := range []string{"DeleteItem", "UpdateItem"} {
		questions = append(questions, both("change items in place", "dynamodb:"+action, ledger, "dynamodb:LeadingKeys=policy/x")...)
	}
	for _, action := range []string{"DeleteTable", "UpdateTable", "UpdateTimeToLive", "CreateBackup", "DescribeTable", "PutResourcePolicy"} {
		questions = append(questions, both("manage the table", "dynamodb:"+action, ledger)...)
	}
	questions = append(questions, both("query", "dynamodb:Query", ledger, "dynamodb:LeadingKeys=instance#x")...)
	questions = append(questions, both("PartiQL", "dynamodb:PartiQLSelect", ledger, "dynamodb:LeadingKeys=policy/x")...)
	for _, key := range []string{"instance#x", "name#x", "key#x"} {
		questions = append(questions, both("read an item outside a batch", "dynamodb:GetItem", ledger, "dynamodb:LeadingKeys="+key)...)
	}
	for _, action := range []string{"BatchGetItem", "PutItem", "GetItem", "ConditionCheckItem"} {
		for _, key := range []string{"sweep", "missing/x", "expired/x"} {
			questions = append(questions, s.forbid(t, "enroll", "what the sweep notes", "dynamodb:"+action, ledger, "dynamodb:LeadingKeys="+key))
		}
	}
	for _, action := range []string{"BatchGetItem", "PutItem"} {
		questions = append(questions, s.forbid(t, "enroll", "the organization's accounts", "dynamodb:"+action, ledger, "dynamodb:LeadingKeys=organization/x"))
	}
	for _, action := range []string{"BatchGetItem", "PutItem", "GetItem", "ConditionCheckItem"} {
		for _, keys := range []string{"key#x", "instance#x,key#x", "other"} {
			questions = append(questions, s.forbid(t, "fleet", "who owns a host key", "dynamodb:"+action, ledger, "dynamodb:LeadingKeys="+keys))
		}
	}
	questions = append(questions,
		s.forbid(t, "enroll", "scan", "dynamodb:Scan", ledger, "dynamodb:Select=SPECIFIC_ATTRIBUTES", "dynamodb:Attributes=pk"),
		s.forbid(t, "fleet", "scan other attributes", "dynamodb:Scan", ledger, "dynamodb:Select=SPECIFIC_ATTRIBUTES", "dynamodb:Attributes=pk,hostname"),
		s.forbid(t, "fleet", "scan all attributes", "dynamodb:Scan", ledger, "dynamodb:Select=ALL_ATTRIBUTES"),
		s.forbid(t, "fleet", "scan without saying what", "dynamodb:Scan", ledger),
		s.forbid(t, "fleet", "scan another table", "dynamodb:Scan", own("other"), "dynamodb:Select=SPECIFIC_ATTRIBUTES", "dynamodb:Attributes=pk"),
	)
	for _, action := range []string{"GetParameter", "GetParameters", "GetParameterHistory", "PutParameter", "DeleteParameter"} {
		questions = append(questions, both("another parameter", "ssm:"+action, parameter+"/hallmark/other/policy")...)
		questions = append(questions, both("a parameter below the policy", "ssm:"+action, parameter+"/hallmark/hallmark/policy/x")...)
		if action != "GetParameter" {
			questions = append(questions, both("more than reading the policy", "ssm:"+action, parameter+"/hallmark/hallmark/policy")...)
		}
	}
	for _, action := range []string{"GetSecretValue", "PutSecretValue", "UpdateSecret", "DescribeSecret"} {
		questions = append(questions, both("another secret", "secretsmanager:"+action, secret)...)
		questions = append(questions, s.forbid(t, "enroll", "the other function's login", "secretsmanager:"+action, fleetSecret),
			s.forbid(t, "fleet", "the other function's login", "secretsmanager:"+action, enrollSecret))
	}
	questions = append(questions, both("change its login", "secretsmanager:PutSecretValue", enrollSecret)...)
	for _, role := range []string{
		"arn:aws:iam::" + member + ":role/admin", "arn:aws:iam::" + member + ":role/hallmark-member-2", "arn:aws:iam::" + member + ":role/path/hallmark",
		"arn:aws:iam::" + account + ":role/admin", s.arn("EnrollRole"), s.arn("FleetRole"),
	} {
		questions = append(questions, both("another role", "sts:AssumeRole", role)...)
	}
	inOrganization := "aws:ResourceOrgID=" + organization
	questions = append(questions,
		s.forbid(t, "enroll", "read the organization", "sts:AssumeRole", readerRole, inOrganization),
		s.forbid(t, "fleet", "read another organization", "sts:AssumeRole", readerRole, "aws:ResourceOrgID=o-other12345"))
	questions = append(questions, both("a member of another organization", "sts:AssumeRole", organizationRole, "aws:ResourceOrgID=o-other12345")...)
	questions = append(questions, both("a role outside every organization", "sts:AssumeRole", organizationRole)...)
	questions = append(questions, both("another role of the organization", "sts:AssumeRole", "arn:aws:iam::"+member+":role/admin", inOrganization)...)
	questions = append(questions, both("a role whose name begins alike", "sts:AssumeRole", organizationRole+"-2", inOrganization)...)
	questions = append(questions, both("ask AWS Organizations itself", "organizations:ListRoots", "*")...)
	if s.parameters["MemberRoleArns"] == "" {
		questions = append(questions, both("a member's role without members", "sts:AssumeRole", memberRole)...)
	}
	if s.parameters["TeleportSecretArn"] == "" {
		questions = append(questions, both("a secret without one", "secretsmanager:GetSecretValue", enrollSecret)...)
	}
	for _, function := range functions() {
		for _, action := range []string{"InvokeFunction", "UpdateFunctionCode", "UpdateFunctionConfiguration", "AddPermission", "GetFunction"} {
			questions = append(questions, both("a function", "lambda:"+action, s.arn(function))...)
		}
	}
	for _, action := range []string{"SendMessage", "ReceiveMessage", "DeleteMessage", "PurgeQueue"} {
		questions = append(questions, s.forbid(t, "enroll", "a queue", "sqs:"+action, s.arn("EventQueue")), s.forbid(t, "enroll", "a queue", "sqs:"+action, s.arn("FailedQueue")))
	}
	questions = append(questions,
		s.forbid(t, "fleet", "forge events", "sqs:SendMessage", s.arn("EventQueue")),
		s.forbid(t, "fleet", "read failed events", "sqs:ReceiveMessage", s.arn("FailedQueue")),
		s.forbid(t, "fleet", "delete failed events", "sqs:DeleteMessage", s.arn("FailedQueue")),
		s.forbid(t, "enroll", "write the other's log", "logs:PutLogEvents", s.resource("FleetLogGroup")),
		s.forbid(t, "fleet", "write the other's log", "logs:PutLogEvents", s.resource("EnrollLogGroup")),
		s.forbid(t, "fleet", "what only enrollments ask", "ec2:DescribeInstanceImageMetadata", "*"),
	)
	for function, resource := range functions() {
		for _, action := range toConnect() {
			questions = append(questions, s.forbid(t, function, "change its network", action, "*", "lambda:SourceFunctionArn="+s.arn(resource)))
		}
	}
	for _, action := range []string{"ec2:DescribeSnapshots", "ec2:DescribeVolumes"} {
		questions = append(questions, both("more of EC2", action, "*")...)
	}
	for action, resource := range map[string]string{
		"ec2:TerminateInstances": "arn:aws:ec2:" + region + ":" + account + ":instance/i-0a1b2c3d4e5f60718",
		"ec2:CreateTags":         "arn:aws:ec2:" + region + ":" + account + ":instance/i-0a1b2c3d4e5f60718",
		"iam:PassRole":           s.arn("EnrollRole"),
		"iam:PutRolePolicy":      s.arn("FleetRole"),
		"kms:Decrypt":            "arn:aws:kms:" + region + ":" + account + ":key/1234abcd-12ab-34cd-56ef-1234567890ab",
		"logs:DeleteLogGroup":    strings.TrimSuffix(s.arn("EnrollLogGroup"), ":*"),
		"s3:GetObject":           "arn:aws:s3:::artifacts/bootstrap.zip",
	} {
		questions = append(questions, both("anything else", action, resource)...)
	}
	s.simulator.check(t, questions)
}

// forbid is a question that must be denied.
func (s *stack) forbid(t *testing.T, function, name, action, resource string, context ...string) question {
	t.Helper()
	q := ask(function+": "+name, false, session(function), action, resource, context...)
	q.IdentityPolicies = []document{whole(s.rolePolicies(t, s.role(function)))}
	return q
}

// Lambda alone may take on the functions' roles.
func checkWhoMayTakeOnTheRoles(t *testing.T, s *stack) {
	t.Helper()
	var questions []question
	for function := range functions() {
		role := s.role(function)
		trust := documentOf(t, s.property(role, "AssumeRolePolicyDocument"))
		anything := policy(map[string]any{"Effect": "Allow", "Action": "*", "Resource": "*"})
		for principal, want := range map[string]bool{
			"lambda.amazonaws.com": true, "ec2.amazonaws.com": false, "events.amazonaws.com": false,
			session("enroll"): false, session("fleet"): false,
			"arn:aws:sts::" + account + ":assumed-role/admin/x": false, "arn:aws:sts::" + member + ":assumed-role/admin/x": false,
		} {
			q := ask("take on "+role, want, principal, "sts:AssumeRole", s.arn(role))
			if q.ResourcePolicy = &trust; strings.HasPrefix(principal, "arn:") {
				q.IdentityPolicies = []document{anything}
			}
			questions = append(questions, q)
		}
	}
	s.simulator.check(t, questions)
}
