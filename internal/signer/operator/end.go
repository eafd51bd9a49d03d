package operator

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/hallmark-ssh/hallmark/internal/cli"
	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/signer/node"
	"github.com/hallmark-ssh/hallmark/internal/signer/teleport"
)

const endLong = `Off-boards an instance for good: retires its record in the ledger, then deletes its node in
Teleport. The instance can never enroll again, whether or not it is still running. Its
certificates stay valid until they expire, and its names stay reserved until then.

Prints one audit line. The ledger records who off-boarded the instance, and so does the
signer's audit line if the instance asks again.

Without --proxy and --identity, the node stays until its lease expires, or until you run
'tctl rm node/ID'.`

// ending holds the command line's flags.
type ending struct {
	table    string
	instance ec2ref.Instance
	cluster  clusterLogin
}

func endCommand() *cobra.Command {
	var e ending
	cmd := &cobra.Command{
		Use: "end --table TABLE --account ACCOUNT --region REGION --instance ID", Short: "off-board an instance for good",
		Long: endLong, Args: cli.NoArgs, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error { return runEnd(cmd, e) },
	}
	tableFlag(cmd, &e.table)
	instanceFlags(cmd, &e.instance)
	e.cluster.flags(cmd, "read and delete nodes")
	return cmd
}

func (e ending) check(cmd *cobra.Command) error {
	if err := checkTable(cmd, e.table); err != nil {
		return err
	}
	switch {
	case (e.cluster.proxy == "") != (e.cluster.identity == ""):
		return cli.Usagef(cmd, "--proxy and --identity go together")
	case e.cluster.roots != "" && e.cluster.proxy == "":
		return cli.Usagef(cmd, "--roots needs --proxy")
	}
	return checkInstanceFlags(cmd, e.instance)
}

func runEnd(cmd *cobra.Command, e ending) error {
	if err := e.check(cmd); err != nil {
		return err
	}
	config, err := e.cluster.config(cmd)
	if err != nil {
		return err
	}
	o, err := openLedger(cmd, e.table)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), awsTimeout)
	defer cancel()
	if err := o.retire(ctx, e.instance); err != nil {
		return err
	}
	id := e.instance.NodeID()
	deleted, err := false, error(nil)
	if e.cluster.proxy != "" {
		deleted, err = deleteNode(ctx, config, id)
	}
	// The record has ended, whatever became of the node.
	if printed := o.print(cmd, e.instance, auditField{"node_id", id}, auditField{"node_deleted", deleted}); printed != nil {
		return printed
	}
	if err != nil {
		return &cli.Error{Err: err, Code: cli.Failed, Hint: "the record is retired; to delete the node, run the command again, or 'tctl rm node/" + id + "'"}
	}
	if e.cluster.proxy == "" {
		cli.Note(cmd, "the node stays until its lease expires; to delete it now: tctl rm node/%s", id)
	}
	return nil
}

// end retires an instance's record in the ledger. It refuses an instance without a record:
// with a mistyped id, it would lock out a machine that has not enrolled yet.
func (o operator) retire(ctx context.Context, i ec2ref.Instance) error {
	record, err := o.ledger.Lookup(ctx, i)
	if err != nil {
		return err
	}
	if record.Generation == 0 {
		return &cli.Error{Err: fmt.Errorf("end %s: the instance is not in the ledger", i.ID), Code: cli.Failed,
			Hint: "check --instance, --account, --region and --table"}
	}
	return o.ledger.RetireBy(ctx, i, o.arn)
}

// deleteNode deletes the node if it is one of Hallmark's, and reports whether it was
// there.
func deleteNode(ctx context.Context, config teleport.Config, id string) (bool, error) {
	client, err := teleport.Dial(ctx, config)
	if err != nil {
		return false, err
	}
	defer func() { _ = client.Close() }()
	found, err := client.Node(ctx, id)
	switch {
	case errors.Is(err, teleport.ErrNotFound):
		return false, nil
	case err != nil:
		return false, err
	case found.Signer() == "":
		return false, fmt.Errorf("node %s has no label %s: another program writes it, and it stays", id, node.SignerLabel)
	}
	err = client.DeleteNode(ctx, id)
	if errors.Is(err, teleport.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}
