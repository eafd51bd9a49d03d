package docs

import (
	"maps"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// handlers returns the actions with which CloudFormation creates, reads, updates and deletes a
// resource with the properties that the templates use. They are in the schemas of the resource
// types ("aws cloudformation describe-type --type RESOURCE --type-name AWS::SQS::Queue").
func handlers() map[string]string {
	const api = "apigateway: POST GET PUT PATCH DELETE"
	return map[string]string{
		"AWS::ApiGateway::RestApi":    api + " UpdateRestApiPolicy",
		"AWS::ApiGateway::Method":     api,
		"AWS::ApiGateway::Deployment": api,
		"AWS::ApiGateway::Stage":      api,
		"AWS::CloudWatch::Alarm":      "cloudwatch: PutMetricAlarm DescribeAlarms ListTagsForResource DeleteAlarms",
		"AWS::CloudWatch::Dashboard":  "cloudwatch: PutDashboard GetDashboard DeleteDashboards",
		"AWS::DynamoDB::Table": "dynamodb: CreateTable DescribeTable UpdateTable DeleteTable UpdateTimeToLive DescribeTimeToLive UpdateContinuousBackups " +
			"DescribeContinuousBackups DescribeContributorInsights DescribeKinesisStreamingDestination ListTagsOfResource",
		"AWS::Events::EventBus":       "events: CreateEventBus DescribeEventBus DeleteEventBus ListTagsForResource",
		"AWS::Events::EventBusPolicy": "events: PutPermission DescribeEventBus RemovePermission",
		"AWS::Events::Rule":           "events: PutRule DescribeRule DeleteRule PutTargets ListTargetsByRule RemoveTargets",
		"AWS::IAM::ManagedPolicy": "iam: CreatePolicy GetPolicy DeletePolicy CreatePolicyVersion GetPolicyVersion DeletePolicyVersion ListPolicyVersions " +
			"ListEntitiesForPolicy",
		"AWS::IAM::Role": "iam: CreateRole GetRole UpdateRole UpdateAssumeRolePolicy DeleteRole PutRolePolicy GetRolePolicy DeleteRolePolicy " +
			"ListRolePolicies ListAttachedRolePolicies",
		"AWS::Lambda::Permission": "lambda: AddPermission GetPolicy RemovePermission",
		"AWS::Lambda::Url":        "lambda: CreateFunctionUrlConfig GetFunctionUrlConfig UpdateFunctionUrlConfig DeleteFunctionUrlConfig",
		"AWS::Logs::LogGroup":     "logs: CreateLogGroup DescribeLogGroups DeleteLogGroup PutRetentionPolicy ListTagsForResource GetDataProtectionPolicy",
		"AWS::Logs::MetricFilter": "logs: PutMetricFilter DescribeMetricFilters DeleteMetricFilter",
		"AWS::SNS::Subscription":  "sns: Subscribe GetSubscriptionAttributes Unsubscribe",
		"AWS::SNS::Topic": "sns: CreateTopic GetTopicAttributes SetTopicAttributes DeleteTopic ListSubscriptionsByTopic ListTagsForResource " +
			"GetDataProtectionPolicy",
		"AWS::SQS::Queue":       "sqs: CreateQueue GetQueueUrl GetQueueAttributes SetQueueAttributes ListQueueTags DeleteQueue",
		"AWS::SQS::QueuePolicy": "sqs: SetQueueAttributes",
		"AWS::SSM::Parameter":   "ssm: PutParameter GetParameters DeleteParameter AddTagsToResource",
		// SAM makes a function, its trigger and its destination of it, and tags the function.
		"AWS::Serverless::Function": "lambda: CreateFunction GetFunction UpdateFunctionCode UpdateFunctionConfiguration DeleteFunction TagResource " +
			"PutFunctionConcurrency DeleteFunctionConcurrency GetFunctionCodeSigningConfig GetFunctionRecursionConfig GetRuntimeManagementConfig " +
			"CreateEventSourceMapping GetEventSourceMapping UpdateEventSourceMapping DeleteEventSourceMapping " +
			"PutFunctionEventInvokeConfig GetFunctionEventInvokeConfig UpdateFunctionEventInvokeConfig DeleteFunctionEventInvokeConfig",
		"AWS::AutoScaling::AutoScalingGroup": "autoscaling: CreateAutoScalingGroup UpdateAutoScalingGroup DeleteAutoScalingGroup DescribeAutoScalingGroups " +
			"DescribeScalingActivities",
		// To create a group with a launch template, you need permission to launch from it (Amazon
		// EC2 Auto Scaling User Guide, "Control Amazon EC2 launch template usage").
		"AWS::EC2::LaunchTemplate": "ec2: CreateLaunchTemplate DescribeLaunchTemplates DescribeLaunchTemplateVersions DeleteLaunchTemplate RunInstances CreateTags",
	}
}

// parameters returns the actions with which CloudFormation checks parameters of a type.
func parameters() map[string]string {
	return map[string]string{
		"AWS::EC2::Image::Id":               "ec2: DescribeImages",
		"List<AWS::EC2::Subnet::Id>":        "ec2: DescribeSubnets",
		"List<AWS::EC2::SecurityGroup::Id>": "ec2: DescribeSecurityGroups",
	}
}

// commands returns the actions of the commands of the AWS CLI that are not called like their
// only action.
func commands() map[string]string {
	return map[string]string{
		"cloudformation deploy":         "cloudformation: GetTemplateSummary DescribeStacks CreateChangeSet DescribeChangeSet ExecuteChangeSet",
		"cloudformation wait":           "cloudformation: DescribeStacks",
		"logs tail":                     "logs: FilterLogEvents",
		"s3 mb":                         "s3: CreateBucket",
		"s3 cp":                         "s3: PutObject",
		"s3api head-bucket":             "s3: ListBucket",
		"s3api put-public-access-block": "s3: PutBucketPublicAccessBlock",
		// They need no permission, or none of the deployer's.
		"configure get":           "",
		"s3 presign":              "",
		"sso login":               "",
		"sts get-caller-identity": "",
		"cloudformation continue-update-rollback": "cloudformation: ContinueUpdateRollback",
	}
}

// The deployer needs permissions for every resource of the stacks, and for every command of
// the quickstart and of the script.
func TestDeployersPermissions(t *testing.T) {
	permitted := permissionsOfTheDeployer(t)
	check := func(what, actions string) {
		service, names, _ := strings.Cut(actions, ": ")
		for name := range strings.FieldsSeq(names) {
			if !permitted[service+":"+name] {
				t.Errorf("%s: deploy.md does not list %s:%s", what, service, name)
			}
		}
	}
	known := handlers()
	maps.Copy(known, parameters())
	for _, template := range []string{"template.yaml", "templates/autoscaling/fleet.yaml"} {
		types := regexp.MustCompile(`(?m)^    Type: (\S+)$`).FindAllStringSubmatch(readFile(t, filepath.Join("..", filepath.FromSlash(template))), -1)
		if len(types) < 10 {
			t.Fatalf("%s has %d parameters and resources", template, len(types))
		}
		for _, m := range types {
			actions, ok := known[m[1]]
			if !ok && !slices.Contains([]string{"String", "Number", "CommaDelimitedList"}, m[1]) {
				t.Errorf("%s: what does %s need?", template, m[1])
			}
			check(m[1], actions)
		}
	}
	special, found := commands(), 0
	for _, file := range []string{"quickstart.md", "../lambda/deploy/deploy.sh"} {
		for _, m := range regexp.MustCompile(`\baws ([a-z0-9]+) ([a-z]+(?:-[a-z]+)*)\b`).FindAllStringSubmatch(readFile(t, filepath.FromSlash(file)), -1) {
			found++
			actions, ok := special[m[1]+" "+m[2]]
			if !ok {
				actions = m[1] + ": " + camel(m[2])
			}
			check(file+": aws "+m[1]+" "+m[2], actions)
		}
	}
	if found < 20 {
		t.Errorf("%d commands were found", found)
	}
}

// camel returns the action of a command: delete-stack is DeleteStack.
func camel(command string) string {
	var action strings.Builder
	for word := range strings.SplitSeq(command, "-") {
		action.WriteString(strings.ToUpper(word[:1]) + word[1:])
	}
	return action.String()
}

// permissionsOfTheDeployer returns the actions in deploy.md, as IAM spells them.
func permissionsOfTheDeployer(t *testing.T) map[string]bool {
	t.Helper()
	prefixes := map[string]string{
		"API Gateway": "apigateway", "CloudFormation": "cloudformation", "CloudWatch": "cloudwatch", "CloudWatch Logs": "logs", "DynamoDB": "dynamodb", "EC2": "ec2",
		"EC2 Auto Scaling": "autoscaling", "EventBridge": "events", "IAM": "iam", "Lambda": "lambda", "S3": "s3", "SNS": "sns", "SQS": "sqs",
		"Systems Manager": "ssm",
	}
	_, section, _ := strings.Cut(readFile(t, "deploy.md"), "\n## Permissions of the deployer\n")
	section, _, _ = strings.Cut(section, "\n## ")
	permitted := make(map[string]bool)
	for _, row := range regexp.MustCompile(`(?m)^\| ([A-Z][A-Za-z0-9 ]+?)(?: \(.*?\))? \| (.+?) \| .+ \|$`).FindAllStringSubmatch(section, -1) {
		prefix := prefixes[row[1]]
		if prefix == "" {
			t.Errorf("unknown service %s", row[1])
		}
		for _, action := range regexp.MustCompile("`([A-Za-z]+)`").FindAllStringSubmatch(row[2], -1) {
			permitted[prefix+":"+action[1]] = true
		}
	}
	return permitted
}
