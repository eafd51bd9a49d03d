// Command bootstrap is Hallmark's signer on AWS Lambda: the function behind the
// URL that instances enroll at.
//
// It takes its settings from the file that HALLMARK_DEPLOYMENT names, by default
// deployment.yaml beside the program, and the usual variables of the AWS SDK.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"github.com/aws/aws-lambda-go/lambda"
	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"

	"github.com/hallmark-ssh/hallmark/internal/buildinfo"
	"github.com/hallmark-ssh/hallmark/internal/identity"
	"github.com/hallmark-ssh/hallmark/internal/inventory"
	"github.com/hallmark-ssh/hallmark/internal/ledger"
	"github.com/hallmark-ssh/hallmark/internal/signer"
)

func main() {
	log := newLog()
	s, err := build(context.Background(), log)
	if err != nil {
		// Lambda reports the exit; this line says why.
		log.Error("the signer cannot start", slog.Any("error", err))
		os.Exit(1)
	}
	lambda.Start(handler{s.Enroll}.handle)
}

// newLog writes JSON in the names by which Lambda filters by level.
func newLog() *slog.Logger {
	return slog.New(slog.NewJSONHandler(os.Stdout, &slog.HandlerOptions{
		ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey && len(groups) == 0 {
				a.Key = "timestamp"
			}
			return a
		},
	}))
}

// build makes the signer that the deployment describes. It calls nobody.
func build(ctx context.Context, log *slog.Logger) (*signer.Signer, error) {
	d, err := readDeployment(deploymentPath())
	if err != nil {
		return nil, fmt.Errorf("read the deployment's configuration (HALLMARK_DEPLOYMENT): %w", err)
	}
	// One client for STS and EC2. Given one of this type, the SDK adds to it the
	// private CA of the environment (AWS_CA_BUNDLE); given none, it makes one only
	// where there is such a CA.
	cfg, err := config.LoadDefaultConfig(ctx, config.WithHTTPClient(awshttp.NewBuildableClient()))
	if err != nil {
		return nil, fmt.Errorf("load the AWS configuration: %w", err)
	}
	config, err := d.teleport(cfg)
	if err != nil {
		return nil, err
	}
	log.Info("the signer starts",
		slog.String("version", buildinfo.Version()),
		slog.String("audience", d.Audience),
		slog.Any("accounts", d.Accounts),
		slog.Any("regions", d.Regions),
		slog.String("login", d.Teleport.Login.Method),
		slog.String("policy_sha256", d.policy.SHA256))
	if function := os.Getenv("AWS_LAMBDA_FUNCTION_NAME"); function != "" {
		log.Warn("the ledger is this process's memory: it forgets with every cold start, and each concurrent "+
			"environment has its own. An instance's host keys and host name are then protected only within one "+
			"environment, so a stolen identity role or a copied host key can be enrolled through another. "+
			"Use it to try Hallmark out, with a reserved concurrency of 1, and not for production",
			slog.String("function", function))
	}
	return &signer.Signer{
		Audience:  d.Audience,
		Accounts:  d.Accounts,
		Regions:   d.Regions,
		Documents: d.keyring,
		Callers:   &identity.CallerVerifier{HTTP: httpClient(cfg), Endpoint: os.Getenv("AWS_ENDPOINT_URL_STS")},
		Inventory: inventory.New(cfg, ec2Endpoint),
		Policy:    d.policy,
		Ledger:    new(ledger.Memory),
		Connect:   (&connector{config: config}).connect,
		Log:       log,
		Now:       time.Now,
	}, nil
}

func deploymentPath() string {
	if path := os.Getenv("HALLMARK_DEPLOYMENT"); path != "" {
		return path
	}
	return filepath.Join(os.Getenv("LAMBDA_TASK_ROOT"), "deployment.yaml")
}

// ec2Endpoint returns the URL of a region's EC2.
func ec2Endpoint(region string) (string, error) {
	if endpoint := os.Getenv("AWS_ENDPOINT_URL_EC2"); endpoint != "" {
		return endpoint, nil
	}
	_, suffix, err := identity.Partition(region)
	return "https://ec2." + region + "." + suffix + "/", err
}

// httpClient returns a client with the transport of the AWS SDK, which knows the
// proxy and the private CA (AWS_CA_BUNDLE) of the environment.
func httpClient(cfg aws.Config) *http.Client {
	if sdk, ok := cfg.HTTPClient.(*awshttp.BuildableClient); ok {
		return &http.Client{Transport: sdk.GetTransport()}
	}
	return nil
}
