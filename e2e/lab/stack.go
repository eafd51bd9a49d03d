//go:build linux

package lab

import (
	"context"
	"fmt"

	"github.com/hallmark-ssh/hallmark/e2e/cfn"
	"github.com/hallmark-ssh/hallmark/e2e/fake/moto"
)

// stack is what moto has created from template.yaml.
type stack struct {
	*moto.Stack
	enroll, fleet moto.FunctionSettings
}

// createStack creates the stack as "make deploy" does.
func (l *Lab) createStack(ctx context.Context) error {
	parameters := map[string]string{"Audience": Audience}
	if l.config.Policy == "" {
		parameters["PolicyIn"] = "package"
	} else {
		parameters["PolicyText"] = l.config.Policy
	}
	expanded, err := cfn.Expand(ctx, l.config.Template, cfn.Place{StackName: "hallmark", Region: Region, Account: moto.Account}, parameters)
	if err != nil {
		return err
	}
	created, err := l.moto.CreateStack(ctx, Region, "hallmark", expanded)
	if err != nil {
		return err
	}
	l.stack = &stack{Stack: created}
	for name, settings := range map[string]*moto.FunctionSettings{"EnrollFunction": &l.stack.enroll, "FleetFunction": &l.stack.fleet} {
		if *settings, err = l.moto.Function(ctx, Region, created.Resources[name]); err != nil {
			return err
		}
	}
	l.LedgerTable = created.Outputs["LedgerTableArn"]
	return nil
}

// roleARN returns a role's ARN in STS while a function uses it. The template's outputs name
// it for Teleport's join tokens.
func (l *Lab) roleARN(output string) (string, error) {
	arn := l.stack.Outputs[output]
	if arn == "" {
		return "", fmt.Errorf("the stack has no output %s: %v", output, l.stack.Outputs)
	}
	return arn, nil
}
