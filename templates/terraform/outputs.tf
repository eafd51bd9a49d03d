# The outputs of the stack. One that depends on a parameter can be null.

output "teleport_token_arn" {
  description = "The aws_arn for the allow list of the join token hallmark-enroll (templates/teleport/token.yaml)."
  value       = aws_cloudformation_stack.hallmark.outputs["TeleportTokenArn"]
}

output "fleet_token_arn" {
  description = "The aws_arn for the allow list of the join token hallmark-fleet."
  value       = aws_cloudformation_stack.hallmark.outputs["FleetTokenArn"]
}

output "signer_role_arns" {
  description = "The functions' roles, for SignerRoleArns of templates/member-account and for key policies. They need no permission to log in to Teleport."
  value       = aws_cloudformation_stack.hallmark.outputs["SignerRoleArns"]
}

output "event_bus_arn" {
  description = "For EventBusArn of templates/member-account/events.yaml."
  value       = lookup(aws_cloudformation_stack.hallmark.outputs, "EventBusArn", null)
}

output "fleet_function_name" {
  description = "The function to invoke for a sweep by hand, with a payload such as {\"sweep\":{\"limit\":500}}."
  value       = aws_cloudformation_stack.hallmark.outputs["FleetFunctionName"]
}

output "failed_queue_url" {
  description = "The queue of events and sweeps that failed for good."
  value       = aws_cloudformation_stack.hallmark.outputs["FailedQueueUrl"]
}

output "failed_queue_arn" {
  description = "The same queue, for sending events back."
  value       = aws_cloudformation_stack.hallmark.outputs["FailedQueueArn"]
}

output "alarm_topic_arn" {
  description = "The topic that receives the alarms."
  value       = aws_cloudformation_stack.hallmark.outputs["AlarmTopicArn"]
}

output "packer_variables" {
  description = "For the variables file of templates/packer."
  value       = aws_cloudformation_stack.hallmark.outputs["PackerVariables"]
}

output "ledger_table_arn" {
  description = "The ledger, for the other signers of the same Teleport cluster and for hallmark-signer."
  value       = aws_cloudformation_stack.hallmark.outputs["LedgerTableArn"]
}

output "policy_parameter_name" {
  description = "The parameter that holds the policy."
  value       = lookup(aws_cloudformation_stack.hallmark.outputs, "PolicyParameterName", null)
}

output "machine_policy_arn" {
  description = "For the roles of the instances' profiles in this account; copy it into others."
  value       = lookup(aws_cloudformation_stack.hallmark.outputs, "MachinePolicyArn", null)
}

output "signer_url" {
  description = "The signer_url of the machines' configuration."
  value       = lookup(aws_cloudformation_stack.hallmark.outputs, "SignerUrl", null)
}

output "signer_function_arn" {
  description = "With Entry invoke, the signer_function of the machines' configuration."
  value       = aws_cloudformation_stack.hallmark.outputs["SignerFunctionArn"]
}

output "log_group" {
  description = "The log group with the audit lines."
  value       = aws_cloudformation_stack.hallmark.outputs["LogGroup"]
}

output "fleet_log_group" {
  description = "The log group with the lines about events and sweeps."
  value       = aws_cloudformation_stack.hallmark.outputs["FleetLogGroup"]
}
