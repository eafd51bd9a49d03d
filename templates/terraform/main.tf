# Deploys the signer's stack with Terraform: the packaged template.yaml, unchanged, with the
# same parameters and outputs (docs/deploy.md, "With Terraform").

terraform {
  required_version = ">= 1.5"

  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = ">= 5.0"
    }
  }
}

variable "name" {
  description = "Name of the stack"
  type        = string
  default     = "hallmark"
}

variable "template_url" {
  description = "Address of the packaged template in S3. Upload each version under its own name: Terraform compares addresses, not content."
  type        = string
}

resource "aws_cloudformation_stack" "hallmark" {
  name         = var.name
  template_url = var.template_url
  # For the functions' roles, and for the transform of serverless templates.
  capabilities = ["CAPABILITY_IAM", "CAPABILITY_AUTO_EXPAND"]

  parameters = {
    for name, value in {
      Audience                  = var.audience
      AlarmEmail                = var.alarm_email
      Entry                     = var.entry
      VpcEndpointIds            = try(join(",", var.vpc_endpoint_ids), null)
      UrlAuthType               = var.url_auth_type
      UrlOrganizationId         = var.url_organization_id
      VpcSubnetIds              = try(join(",", var.vpc_subnet_ids), null)
      VpcSecurityGroupIds       = try(join(",", var.vpc_security_group_ids), null)
      ProbeMachines             = var.probe_machines
      TeleportSecretArn         = var.teleport_secret_arn
      FleetSecretArn            = var.fleet_secret_arn
      MemberRoleArns            = try(join(",", var.member_role_arns), null)
      OrganizationId            = var.organization_id
      OrganizationRoleName      = var.organization_role_name
      OrganizationReaderRoleArn = var.organization_reader_role_arn
      EventAccountIds           = try(join(",", var.event_account_ids), null)
      EventOrganizationId       = var.event_organization_id
      PolicyIn                  = var.policy_in
      PolicyText                = var.policy_text
      LedgerTableArn            = var.ledger_table_arn
      ProtectLedger             = var.protect_ledger
      ReservedConcurrency       = var.reserved_concurrency
      FleetReservedConcurrency  = var.fleet_reserved_concurrency
      SweepRate                 = var.sweep_rate
      LogRetentionDays          = var.log_retention_days
      AlarmRefusals             = var.alarm_refusals
      AlarmQuietDays            = var.alarm_quiet_days
      AlarmLoginSeconds         = var.alarm_login_seconds
      AlarmConcurrency          = var.alarm_concurrency
    } : name => value if value != null
  }
}
