# The parameters of template.yaml. A variable that is null leaves the template's default in
# force. docs/deploy.md explains each.

variable "audience" {
  description = "Audience, as in deployment.yaml"
  type        = string
}

variable "alarm_email" {
  description = "E-mail address for the alarms"
  type        = string
  default     = null
}

variable "entry" {
  description = "How instances reach the signer"
  type        = string
  default     = null
}

variable "vpc_endpoint_ids" {
  description = "VPC endpoints of the private API"
  type        = list(string)
  default     = null
}

variable "url_auth_type" {
  description = "Require a signature with IAM credentials?"
  type        = string
  default     = null
}

variable "url_organization_id" {
  description = "Organization whose principals may call"
  type        = string
  default     = null
}

variable "vpc_subnet_ids" {
  description = "Subnets"
  type        = list(string)
  default     = null
}

variable "vpc_security_group_ids" {
  description = "Security groups"
  type        = list(string)
  default     = null
}

variable "probe_machines" {
  description = "Probe the machines' SSH port?"
  type        = string
  default     = null
}

variable "teleport_secret_arn" {
  description = "Secret with the enroll function's identity file"
  type        = string
  default     = null
}

variable "fleet_secret_arn" {
  description = "Secret with the fleet function's identity file"
  type        = string
  default     = null
}

variable "member_role_arns" {
  description = "Roles to assume in member accounts"
  type        = list(string)
  default     = null
}

variable "organization_id" {
  description = "Organization whose accounts may enroll instances"
  type        = string
  default     = null
}

variable "organization_role_name" {
  description = "Name of the role in its accounts"
  type        = string
  default     = null
}

variable "organization_reader_role_arn" {
  description = "Role that lists its accounts"
  type        = string
  default     = null
}

variable "event_account_ids" {
  description = "Accounts that send events"
  type        = list(string)
  default     = null
}

variable "event_organization_id" {
  description = "Organization whose accounts send events"
  type        = string
  default     = null
}

variable "policy_in" {
  description = "Where the policy is"
  type        = string
  default     = null
}

variable "policy_text" {
  description = "Initial policy"
  type        = string
  default     = null
}

variable "ledger_table_arn" {
  description = "Another stack's ledger"
  type        = string
  default     = null
}

variable "protect_ledger" {
  description = "Protect the ledger's table from deletion?"
  type        = string
  default     = null
}

variable "reserved_concurrency" {
  description = "Concurrent enrollments"
  type        = number
  default     = null
}

variable "fleet_reserved_concurrency" {
  description = "Concurrent event batches and sweeps"
  type        = number
  default     = null
}

variable "sweep_rate" {
  description = "How often to compare all nodes with EC2"
  type        = string
  default     = null
}

variable "log_retention_days" {
  description = "Days to keep logs"
  type        = number
  default     = null
}

variable "alarm_refusals" {
  description = "Refusals in five minutes"
  type        = number
  default     = null
}

variable "alarm_quiet_days" {
  description = "Days without an enrollment"
  type        = number
  default     = null
}

variable "alarm_login_seconds" {
  description = "Seconds until an identity file expires"
  type        = number
  default     = null
}

variable "alarm_concurrency" {
  description = "Concurrent executions in the account"
  type        = number
  default     = null
}
