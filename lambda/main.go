// Command bootstrap is Hallmark's signer on AWS Lambda. It is deployed as two
// functions, told apart by their handler setting: "enroll", behind the URL that
// instances enroll at, and "fleet", which keeps Teleport true to EC2 afterwards.
// Neither does the other's work, so that a flood of requests cannot stop
// off-boarding, and nobody who sends requests can have a node deleted. Outside
// Lambda the same program is hallmark-signer, the operator's command.
//
// The functions take their settings from the file that HALLMARK_DEPLOYMENT names, by
// default deployment.yaml beside the program, from HALLMARK_LEDGER_TABLE,
// HALLMARK_POLICY_PARAMETER and HALLMARK_AUDIENCE, and from the usual variables of
// the AWS SDK.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"

	"github.com/aws/aws-lambda-go/lambda"
	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/sts"

	"github.com/hallmark-ssh/hallmark/internal/buildinfo"
	"github.com/hallmark-ssh/hallmark/internal/identity"
	"github.com/hallmark-ssh/hallmark/internal/signer/enroll"
	"github.com/hallmark-ssh/hallmark/internal/signer/inventory"
	"github.com/hallmark-ssh/hallmark/internal/signer/policy"
)

func main() {
	ctx := context.Background()
	if os.Getenv("AWS_LAMBDA_RUNTIME_API") == "" {
		os.Exit(runCommand(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr))
	}
	log := newLog()
	h, err := newFunction(ctx, os.Getenv("_HANDLER"), log)
	if err != nil {
		// Lambda reports the exit; this line says why.
		log.Error("the signer cannot start", slog.Any("error", err))
		os.Exit(1)
	}
	lambda.Start(h)
}

// newFunction makes the function of that name.
func newFunction(ctx context.Context, name string, log *slog.Logger) (lambda.Handler, error) {
	switch name {
	case "enroll":
		s, err := build(ctx, log)
		if err != nil {
			return nil, err
		}
		return handler{s.Answer, log}, nil
	case "fleet":
		return buildFleet(ctx, log)
	}
	return nil, fmt.Errorf("_HANDLER is %q; the function's handler setting must be enroll or fleet (template.yaml has both)", name)
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

// parts are what both functions are made of.
type parts struct {
	deployment *deployment
	env        environment
	aws        aws.Config
	ledger     ledgers
	table      *dynamoDB // nil if the ledger is in memory
	policy     func(context.Context) (*policy.Policy, error)
}

// load makes what both functions need as the deployment describes it. It calls
// nobody.
func load(ctx context.Context, log *slog.Logger) (*parts, error) {
	d, err := readDeployment(deploymentPath())
	if err != nil {
		return nil, fmt.Errorf("read the deployment's configuration (HALLMARK_DEPLOYMENT): %w", err)
	}
	env, err := readEnvironment()
	if err != nil {
		return nil, err
	}
	if err := env.checkAudience(d.Audience); err != nil {
		return nil, err
	}
	// One HTTP client for all of AWS. Given one of this type, the SDK adds to it the
	// private CA of the environment (AWS_CA_BUNDLE); given none, it makes one only
	// where there is such a CA.
	cfg, err := config.LoadDefaultConfig(ctx, config.WithHTTPClient(awshttp.NewBuildableClient()))
	if err != nil {
		return nil, fmt.Errorf("load the AWS configuration: %w", err)
	}
	p := &parts{deployment: d, env: env, aws: cfg}
	p.ledger, p.table = env.ledger(cfg)
	p.policy, err = env.policy(d, cfg, p.table, log)
	return p, err
}

// build makes the signer that the deployment describes. It calls nobody.
func build(ctx context.Context, log *slog.Logger) (*enroll.Signer, error) {
	p, err := load(ctx, log)
	if err != nil {
		return nil, err
	}
	d := p.deployment
	login, err := d.teleport("login", d.Teleport.Login, p.aws, log)
	if err != nil {
		return nil, err
	}
	cluster := &connector{config: login}
	ec2 := newInventory(d, p.aws)
	p.logStart(ctx, log, d.Teleport.Login, slog.String("url_auth", d.URLAuth))
	return &enroll.Signer{
		Audience:     d.Audience,
		Accounts:     d.Accounts.ids(),
		Regions:      d.Regions,
		Sources:      d.sources,
		RequireIAM:   d.URLAuth == urlAuthIAM,
		Documents:    d.keyring,
		Callers:      &identity.CallerVerifier{HTTP: httpClient(p.aws), Endpoint: os.Getenv("AWS_ENDPOINT_URL_STS")},
		Inventory:    ec2,
		LaunchImages: ec2,
		Policy:       p.policy,
		Ledger:       p.ledger,
		Connect:      cluster.signer,
		Log:          log,
		Now:          wallClock,
	}, nil
}

func (p *parts) logStart(ctx context.Context, log *slog.Logger, l login, more ...slog.Attr) {
	d := p.deployment
	attributes := append([]slog.Attr{
		slog.String("version", buildinfo.Version()),
		slog.String("audience", d.Audience),
		slog.Any("accounts", d.Accounts.ids()),
		slog.Any("regions", d.Regions),
		slog.String("login", l.Method),
		slog.String("ledger_table", p.env.table),
	}, more...)
	if p.env.parameter != "" {
		attributes = append(attributes, slog.String("policy_parameter", p.env.parameter))
	} else {
		attributes = append(attributes, slog.String("policy_sha256", d.policy.SHA256))
	}
	log.LogAttrs(ctx, slog.LevelInfo, "the signer starts", attributes...)
}

func newInventory(d *deployment, cfg aws.Config) *inventory.EC2 {
	client := sts.NewFromConfig(cfg)
	return inventory.New(inventory.Config{
		AWS:      cfg,
		Accounts: d.Accounts.inventory(),
		Roles:    client,
		Identity: client,
		Endpoint: ec2Endpoint,
		Now:      wallClock,
	})
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
