package operator

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/hallmark-ssh/hallmark/internal/cli"
	"github.com/hallmark-ssh/hallmark/internal/signer/deployment"
)

const (
	deploymentCheckLong = `Checks deployment.yaml and every file it names, as the functions do when they start, and
says which setting is wrong.`

	deploymentPackLong = `Writes the content of a function's package, except the program: deployment.yaml with this
function's login only, and the files it names. The build calls it.`
)

func deploymentCheckCommand() *cobra.Command {
	var print string
	cmd := &cobra.Command{
		Use: "check FILE", Short: "check deployment.yaml and the files that it names", Long: deploymentCheckLong, Args: cli.OneFile,
		RunE: func(cmd *cobra.Command, args []string) error { return runDeploymentCheck(cmd, args[0], print) },
	}
	cmd.Flags().StringVar(&print, "print", "", "print this `setting` only: audience")
	return cmd
}

func runDeploymentCheck(cmd *cobra.Command, file, print string) error {
	if print != "" && print != "audience" {
		return cli.Usagef(cmd, "--print takes audience, not %.100q", print)
	}
	summary, err := deployment.Check(file)
	if err != nil {
		return err
	}
	if print != "" {
		_, err = fmt.Fprintln(cmd.OutOrStdout(), summary.Audience)
		return err
	}
	organization := ""
	if summary.Organization != "" {
		organization = "organization: " + summary.Organization + "\n"
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: good\naudience: %s\naccounts: %s\n%sregions: %s\npolicy_sha256: %s\n", file,
		summary.Audience, join(summary.Accounts), organization, join(summary.Regions), summary.PolicySHA256)
	return err
}

func join[T ~string](values []T) string {
	var all []string
	for _, v := range values {
		all = append(all, string(v))
	}
	return strings.Join(all, ", ")
}

func deploymentPackCommand() *cobra.Command {
	var function, into string
	cmd := &cobra.Command{
		Use: "pack FILE", Short: "write the content of a function's package, except the program", Long: deploymentPackLong, Args: cli.OneFile,
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case function == "":
				return cli.Usagef(cmd, "--function is missing")
			case function != "enroll" && function != "fleet":
				return cli.Usagef(cmd, "--function takes enroll or fleet, not %.100q", function)
			case into == "":
				return cli.Usagef(cmd, "--into is missing")
			}
			return deployment.Pack(args[0], function, into)
		},
	}
	cmd.Flags().StringVar(&function, "function", "", "the `function`: enroll or fleet")
	cmd.Flags().StringVar(&into, "into", "", "write into this `output-folder`")
	return cmd
}
