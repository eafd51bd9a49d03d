//go:build linux

package teleportd

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/hallmark-ssh/hallmark/e2e/machine"
	templates "github.com/hallmark-ssh/hallmark/templates/teleport"
)

// The bots of templates/teleport: the login of the function that enrolls, and that of
// the fleet's upkeep. Role and token have the same names.
const (
	EnrollBot = "hallmark-enroll"
	FleetBot  = "hallmark-fleet"
)

// Role returns the roles in templates/teleport for the cluster with that name, after the
// changes that docs/teleport.md tells an operator to make.
func Role(cluster string) string {
	return strings.ReplaceAll(templates.Role, "teleport.example.com", cluster)
}

// AddBots creates the roles, the tokens and these bots from templates/teleport, as
// docs/teleport.md tells an operator to. arns are the AWS roles by bot, as GetCallerIdentity
// names them, all in one account.
func (c *Cluster) AddBots(ctx context.Context, arns map[string]string) error {
	tokens := templates.Token
	for bot, arn := range arns {
		part := map[string]string{EnrollBot: "Enroll", FleetBot: "Fleet"}[bot]
		fields := strings.Split(arn, ":")
		if part == "" || len(fields) != 6 {
			return fmt.Errorf("bot %s with AWS role %s: want a bot of the templates and an ARN", bot, arn)
		}
		example := fmt.Sprintf("arn:aws:sts::111122223333:assumed-role/hallmark-%[1]sRole-EXAMPLE/hallmark-%[1]sFunction-EXAMPLE", part)
		tokens = strings.ReplaceAll(tokens, example, arn)
		tokens = strings.ReplaceAll(tokens, `aws_account: "111122223333"`, fmt.Sprintf("aws_account: %q", fields[4]))
	}
	if err := c.Create(ctx, Role(c.Name())+"---\n"+tokens); err != nil {
		return err
	}
	if c.behavior.BotResource {
		return c.Create(ctx, templates.Bot)
	}
	return c.addBotsByCommand(ctx, slices.Sorted(maps.Keys(arns)))
}

// addBotsByCommand is for versions that cannot create a bot from a file.
func (c *Cluster) addBotsByCommand(ctx context.Context, bots []string) error {
	// tctl prints the proxy's address with a new bot, and fails while it has none.
	if err := machine.Await(ctx, func() error {
		proxies, err := c.Tctl(ctx, "get", "proxies")
		if err == nil && !strings.Contains(proxies, "kind: proxy") {
			err = errors.New("not the address of a proxy")
		}
		return err
	}); err != nil {
		return err
	}
	for _, bot := range bots {
		if _, err := c.Tctl(ctx, "bots", "add", bot, "--roles="+bot, "--token="+bot); err != nil {
			return err
		}
	}
	return nil
}
