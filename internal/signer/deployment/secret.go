package deployment

import (
	"context"
	"fmt"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"
)

// readSecret reads a secret, as text or binary, from Secrets Manager in the region
// of its ARN.
func readSecret(ctx context.Context, cfg aws.Config, arn string) ([]byte, error) {
	client := secretsmanager.NewFromConfig(cfg, func(o *secretsmanager.Options) { o.Region = RegionOf(arn, o.Region) })
	out, err := client.GetSecretValue(ctx, &secretsmanager.GetSecretValueInput{SecretId: &arn})
	if err != nil {
		return nil, fmt.Errorf("%w; the function's role needs secretsmanager:GetSecretValue on it "+
			"(parameter TeleportSecretArn), and its key", err)
	}
	if out.SecretString != nil {
		return []byte(*out.SecretString), nil
	}
	return out.SecretBinary, nil
}
