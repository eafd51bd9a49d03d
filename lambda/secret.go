package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"

	"github.com/hallmark-ssh/hallmark/internal/identity"
)

// maxSecret bounds an answer: a secret has at most 64 KiB, which JSON may escape.
const maxSecret = 1 << 20

// readSecret reads a secret, as text or binary, from Secrets Manager (AWS Secrets
// Manager API Reference, GetSecretValue). It does so without the SDK's package for
// the same reason as package inventory: all of that would be linked.
func readSecret(ctx context.Context, cfg aws.Config, arn string) ([]byte, error) {
	request, err := newSecretRequest(ctx, cfg, arn)
	if err != nil {
		return nil, err
	}
	response, err := cfg.HTTPClient.Do(request)
	if err != nil {
		return nil, err
	}
	defer func() { _ = response.Body.Close() }()
	data, err := io.ReadAll(io.LimitReader(response.Body, maxSecret))
	if err != nil {
		return nil, err
	}
	var answer struct {
		Type         string `json:"__type"` // of an error, as its message
		Message      string
		SecretString *string
		SecretBinary []byte
	}
	if err := json.Unmarshal(data, &answer); err != nil {
		return nil, fmt.Errorf("decode the answer of Secrets Manager, HTTP status %s: %w", response.Status, err)
	}
	switch {
	case response.StatusCode != http.StatusOK:
		return nil, fmt.Errorf("get secret value: %s: %s; the function's role needs secretsmanager:GetSecretValue on it "+
			"(parameter TeleportSecretArn), and its key", answer.Type, answer.Message)
	case answer.SecretString != nil:
		return []byte(*answer.SecretString), nil
	}
	return answer.SecretBinary, nil
}

func newSecretRequest(ctx context.Context, cfg aws.Config, arn string) (*http.Request, error) {
	region := strings.Split(arn, ":")[3]
	endpoint, err := secretsEndpoint(region)
	if err != nil {
		return nil, err
	}
	body, err := json.Marshal(map[string]string{"SecretId": arn})
	if err != nil {
		return nil, err
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, endpoint, strings.NewReader(string(body)))
	if err != nil {
		return nil, err
	}
	request.Header.Set("Content-Type", "application/x-amz-json-1.1")
	request.Header.Set("X-Amz-Target", "secretsmanager.GetSecretValue")
	credentials, err := cfg.Credentials.Retrieve(ctx)
	if err != nil {
		return nil, fmt.Errorf("get AWS credentials: %w", err)
	}
	sum := sha256.Sum256(body)
	err = v4.NewSigner().SignHTTP(ctx, credentials, request, hex.EncodeToString(sum[:]), "secretsmanager", region, time.Now())
	return request, err
}

// secretsEndpoint returns the URL of a region's Secrets Manager.
func secretsEndpoint(region string) (string, error) {
	if endpoint := os.Getenv("AWS_ENDPOINT_URL_SECRETS_MANAGER"); endpoint != "" {
		return endpoint, nil
	}
	_, suffix, err := identity.Partition(region)
	return "https://secretsmanager." + region + "." + suffix + "/", err
}
