//go:build linux

package lab

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"

	"github.com/hallmark-ssh/hallmark/e2e/fake/moto"
)

// OperatorARN is the identity that moto gives callers without a role.
const OperatorARN = "arn:aws:sts::" + moto.Account + ":user/moto"

// Operator runs hallmark-signer as an operator does on a workstation, with the operator's own
// credentials. It returns the program's output.
func (l *Lab) Operator(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, l.config.Operator, args...)
	cmd.Env = append(os.Environ(), "AWS_REGION="+Region, "AWS_ACCESS_KEY_ID=operator", "AWS_SECRET_ACCESS_KEY=operator",
		"AWS_ENDPOINT_URL_STS="+l.moto.URL, "AWS_ENDPOINT_URL_DYNAMODB="+l.moto.URL)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("hallmark-signer %v: %w\n%s", args, err, &stderr)
	}
	return string(out), nil
}
