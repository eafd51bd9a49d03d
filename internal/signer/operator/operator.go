// Package operator is hallmark-signer, the operator's command: it checks and explains
// policies, reports on the fleet, and changes what the ledger says about an instance.
package operator

import (
	"github.com/spf13/cobra"

	"github.com/hallmark-ssh/hallmark/internal/cli"
	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
)

// Command returns hallmark-signer.
func Command() *cobra.Command {
	return withPlainErrors(cli.New("hallmark-signer", "check policies, report on the fleet, and change what the ledger says about an instance",
		cli.Group("policy", "check and explain policies", policyCheckCommand(), policyExplainCommand(), policySchemaCommand()),
		reportCommand(),
		cli.Group("deployment", "check a deployment, and pack it", deploymentCheckCommand(), deploymentPackCommand()),
		cli.Group("organization", "confirm a change of an organization's accounts", organizationShowCommand(), organizationConfirmCommand()),
		permitRekeyCommand(), endCommand(), releaseCommand()))
}

// tableFlag adds the flag that names the ledger.
func tableFlag(cmd *cobra.Command, table *string) {
	cmd.Flags().StringVar(table, "table", "", "the ledger's DynamoDB `table`, by ARN, or by name in the region of AWS_REGION or the profile")
}

// instanceFlags adds the flags that name an instance.
func instanceFlags(cmd *cobra.Command, i *ec2ref.Instance) {
	cmd.Flags().StringVar((*string)(&i.Account), "account", "", "the instance's `account`")
	cmd.Flags().StringVar((*string)(&i.Region), "region", "", "the instance's `region`")
	cmd.Flags().StringVar((*string)(&i.ID), "instance", "", "the instance's `id`")
}
