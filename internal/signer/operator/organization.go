package operator

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/spf13/cobra"

	"github.com/hallmark-ssh/hallmark/internal/cli"
	"github.com/hallmark-ssh/hallmark/internal/signer/deployment"
	"github.com/hallmark-ssh/hallmark/internal/signer/organization"
)

const (
	organizationShowLong = `Shows the change of the organization's accounts that waits for confirmation: how many
accounts would leave, and which. Until then the signer keeps the last good list.`

	organizationConfirmLong = `Confirms the change of the organization's accounts with this id, which 'organization show'
prints and the alarm's log line has. The signer's next reading applies it, within two minutes,
if exactly these accounts are still missing. A confirmation works once and lasts an hour.

Prints one audit line. The signer's log line about the new list says who confirmed it.`
)

// membership is what an operator asks for.
type membership struct {
	table, deployment, change string
}

func (m *membership) flags(cmd *cobra.Command) {
	tableFlag(cmd, &m.table)
	cmd.Flags().StringVar(&m.deployment, "deployment", "", "the signer's configuration `file`, deployment.yaml")
}

func organizationShowCommand() *cobra.Command {
	var m membership
	cmd := &cobra.Command{
		Use: "show --table TABLE --deployment FILE", Short: "show which accounts of the organization would leave", Long: organizationShowLong,
		Args: cli.NoArgs, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error { return runOrganizationShow(cmd, m) },
	}
	m.flags(cmd)
	return cmd
}

func organizationConfirmCommand() *cobra.Command {
	var m membership
	cmd := &cobra.Command{
		Use: "confirm --table TABLE --deployment FILE --change ID", Short: "confirm a change of the organization's accounts",
		Long: organizationConfirmLong, Args: cli.NoArgs, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error { return runOrganizationConfirm(cmd, m) },
	}
	m.flags(cmd)
	cmd.Flags().StringVar(&m.change, "change", "", "the change's `id`, 16 hexadecimal digits")
	return cmd
}

// open returns where the deployment's organization is stored, and which accounts may enroll.
func (m membership) open(cmd *cobra.Command) (operator, organization.Store, organization.Scope, error) {
	var none organization.Store
	if err := checkTable(cmd, m.table); err != nil {
		return operator{}, none, organization.Scope{}, err
	}
	if m.deployment == "" {
		return operator{}, none, organization.Scope{}, cli.Usagef(cmd, "--deployment is missing")
	}
	data, err := readFile(m.deployment, nil)
	if err != nil {
		return operator{}, none, organization.Scope{}, fmt.Errorf("read the deployment's configuration: %w", err)
	}
	// Before any call: the file may be wrong.
	if _, _, err := deployment.Organization(data, aws.Config{}, m.table); err != nil {
		return operator{}, none, organization.Scope{}, fmt.Errorf("%s: %w", m.deployment, err)
	}
	o, err := openLedger(cmd, m.table)
	if err != nil {
		return operator{}, none, organization.Scope{}, err
	}
	store, scope, err := deployment.Organization(data, o.config, m.table)
	return o, store, scope, err
}

func runOrganizationShow(cmd *cobra.Command, m membership) error {
	_, store, scope, err := m.open(cmd)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), awsTimeout)
	defer cancel()
	w, err := store.Waiting(ctx, scope)
	if err != nil {
		return organizationFailure(err)
	}
	var text strings.Builder
	fmt.Fprintf(&text, "change: %s\nsince: %s\naccounts: %d now, %d after\nleaving: %d\n", w.Change, w.Since.UTC().Format(time.RFC3339), w.Before, w.After, len(w.Leaving))
	for _, l := range w.Leaving {
		fmt.Fprintf(&text, "%s %s %s\n", l.Account, l.Path, l.Name)
	}
	_, err = fmt.Fprint(cmd.OutOrStdout(), text.String())
	return err
}

func runOrganizationConfirm(cmd *cobra.Command, m membership) error {
	if m.change == "" {
		return cli.Usagef(cmd, "--change is missing; 'organization show' prints it")
	}
	if !regexp.MustCompile(`^[0-9a-f]{16}$`).MatchString(m.change) {
		return cli.Usagef(cmd, "--change: want the 16 hexadecimal digits that 'organization show' prints")
	}
	o, store, _, err := m.open(cmd)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), awsTimeout)
	defer cancel()
	until := deployment.Now().Add(organization.MaxPermit).UTC().Truncate(time.Second)
	if err := store.Confirm(ctx, m.change, o.arn, until); err != nil {
		return organizationFailure(err)
	}
	return o.printLine(cmd, auditField{"msg", "organization confirm"}, auditField{"by", o.arn}, auditField{"change", m.change}, auditField{"until", until})
}

func organizationFailure(err error) error {
	switch {
	case errors.Is(err, organization.ErrNoChange):
		return &cli.Error{Err: err, Code: cli.Failed, Hint: "the last reading is in force, or failed; check --table, and audience in the deployment"}
	case errors.Is(err, organization.ErrOtherChange):
		return &cli.Error{Err: err, Code: cli.Failed, Hint: "other accounts left meanwhile; run 'organization show' again"}
	}
	return err
}
