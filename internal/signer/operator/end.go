package operator

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"log/slog"
	"os"

	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"github.com/hallmark-ssh/hallmark/internal/signer/deployment"
	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
	"github.com/hallmark-ssh/hallmark/internal/signer/teleport"
)

const endUsage = `usage: hallmark-signer end --table TABLE --account ACCOUNT --region REGION --instance ID
           [--proxy HOST:PORT --identity FILE [--roots FILE]]

Off-boards an instance for good: ends its record in the ledger, then deletes its node
in Teleport. It never enrolls again, whether or not it runs. Its certificates last
until they end, and its names until then. Prints an audit line; who ended it is in the
ledger, and in the signer's audit line when the instance asks again.

Without --proxy and --identity the node stays until its lease ends, or until
'tctl rm node/ID'.

  --table TABLE        the ledger's table, by name (in the region of AWS_REGION or
                       of the profile) or by ARN
  --account ACCOUNT    the instance's account
  --region REGION      the instance's region
  --instance ID        the instance's id
  --proxy HOST:PORT    Teleport's proxy or auth service
  --identity FILE      an identity file for Teleport that may read and delete nodes,
                       as 'tsh login --out' or 'tctl auth sign' writes it
  --roots FILE         PEM certificates to trust for the proxy beside the system's
`

// ending is what an operator asks for.
type ending struct {
	table                  string
	instance               ledger.Instance
	proxy, identity, roots string
}

func parseEnding(args []string) (ending, error) {
	var e ending
	flags := flag.NewFlagSet("end", flag.ContinueOnError)
	flags.StringVar(&e.table, "table", "", "")
	flags.StringVar(&e.instance.Account, "account", "", "")
	flags.StringVar(&e.instance.Region, "region", "", "")
	flags.StringVar(&e.instance.ID, "instance", "", "")
	flags.StringVar(&e.proxy, "proxy", "", "")
	flags.StringVar(&e.identity, "identity", "", "")
	flags.StringVar(&e.roots, "roots", "", "")
	if err := parseNone(flags, args); err != nil {
		return e, err
	}
	switch {
	case e.table == "":
		return e, usagef("end: --table is missing")
	case (e.proxy == "") != (e.identity == ""):
		return e, usagef("end: --proxy and --identity go together")
	case e.roots != "" && e.proxy == "":
		return e, usagef("end: --roots is of use with --proxy only")
	}
	return e, checkInstanceFlags("end", e.instance)
}

func runEnd(ctx context.Context, args []string, std streams) error {
	e, err := parseEnding(args)
	if err != nil {
		return err
	}
	config, err := e.teleport(std)
	if err != nil {
		return err
	}
	o, err := openLedger(ctx, "end", e.table)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, awsTimeout)
	defer cancel()
	if err := o.end(ctx, e.instance); err != nil {
		return err
	}
	id := protocol.NodeID(e.instance.Account, e.instance.Region, e.instance.ID)
	deleted, err := false, error(nil)
	if e.proxy != "" {
		deleted, err = deleteNode(ctx, config, id)
	}
	// The record has ended, whatever became of the node.
	if printed := o.print(std, "end", e.instance, auditField{"node_id", id}, auditField{"node_deleted", deleted}); printed != nil {
		return printed
	}
	if err != nil {
		return &failure{err: err, code: exitFailed, hint: "the record has ended; run the command again to delete the node, or 'tctl rm node/" + id + "'"}
	}
	if e.proxy == "" {
		fmt.Fprintf(std.err, "hallmark-signer: the node stays until its lease ends; to delete it now: tctl rm node/%s\n", id)
	}
	return nil
}

// end ends the record of an instance that is known. To end any other, say one with a
// mistyped id, would keep a machine out that has not come yet.
func (o operator) end(ctx context.Context, i ledger.Instance) error {
	record, err := o.ledger.Lookup(ctx, i)
	if err != nil {
		return err
	}
	if record.Generation == 0 {
		return &failure{err: fmt.Errorf("end %s: the ledger does not know the instance", i.ID), code: exitFailed,
			hint: "look at --instance, --account, --region and --table"}
	}
	return o.ledger.EndBy(ctx, i, o.arn)
}

// teleport reads the files before anything is changed. Warnings of the client, such as
// that the next Teleport will refuse it, go to standard error.
func (e ending) teleport(std streams) (teleport.Config, error) {
	config := teleport.Config{
		Address: e.proxy, Login: teleport.IdentityFile(e.identity), Now: deployment.Now,
		Log: slog.New(slog.NewTextHandler(std.err, nil)),
	}
	if e.roots == "" {
		return config, nil
	}
	roots, err := os.ReadFile(e.roots)
	if err != nil {
		return config, fmt.Errorf("end: --roots: %w", err)
	}
	config.RootsPEM = roots
	return config, nil
}

// signerLabel is what every node of Hallmark's bears.
const signerLabel = "hallmark/signer"

// deleteNode deletes the node if it is one of Hallmark's, and reports whether it was
// there.
func deleteNode(ctx context.Context, config teleport.Config, id string) (bool, error) {
	client, err := teleport.Dial(ctx, config)
	if err != nil {
		return false, err
	}
	defer func() { _ = client.Close() }()
	node, err := client.Node(ctx, id)
	switch {
	case errors.Is(err, teleport.ErrNotFound):
		return false, nil
	case err != nil:
		return false, err
	case node.Labels[signerLabel] == "":
		return false, fmt.Errorf("node %s has no label %s: another program writes it, and it stays", id, signerLabel)
	}
	err = client.DeleteNode(ctx, id)
	if errors.Is(err, teleport.ErrNotFound) {
		return false, nil
	}
	return err == nil, err
}
