package deployment

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/sts"

	"github.com/hallmark-ssh/hallmark/internal/buildinfo"
	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/identity"
	"github.com/hallmark-ssh/hallmark/internal/signer/enroll"
	"github.com/hallmark-ssh/hallmark/internal/signer/entry"
	"github.com/hallmark-ssh/hallmark/internal/signer/inventory"
	organizations "github.com/hallmark-ssh/hallmark/internal/signer/organization"
	"github.com/hallmark-ssh/hallmark/internal/signer/policy"
	"github.com/hallmark-ssh/hallmark/internal/signer/stored"
	"github.com/hallmark-ssh/hallmark/internal/signer/upkeep"
)

// parts are the parts that both functions need.
type parts struct {
	deployment *deployment
	env        environment
	aws        aws.Config
	ledger     ledgers
	table      *dynamoDB // nil if the ledger is in memory
	policy     func(context.Context) (*policy.Policy, error)
}

// load builds the parts that both functions need, as the deployment describes them. It
// makes no calls.
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
	// All AWS clients share one HTTP client. The SDK adds the private CA of the
	// environment (AWS_CA_BUNDLE) to a client of this type. Without one, it creates a
	// client only if there is such a CA.
	cfg, err := config.LoadDefaultConfig(ctx, config.WithHTTPClient(awshttp.NewBuildableClient()))
	if err != nil {
		return nil, fmt.Errorf("load the AWS configuration: %w", err)
	}
	p := &parts{deployment: d, env: env, aws: cfg}
	if err := env.checkOrganization(d.organizationID()); err != nil {
		return nil, err
	}
	p.ledger, p.table = env.ledger(cfg)
	p.policy, err = env.policy(d, cfg, p.table, log)
	return p, err
}

// NewSigner builds the signer that the deployment describes, for the function "enroll",
// and returns the entry through which requests reach it. It makes no calls.
func NewSigner(ctx context.Context, log *slog.Logger) (*enroll.Signer, entry.Kind, error) {
	p, err := load(ctx, log)
	if err != nil {
		return nil, "", err
	}
	d := p.deployment
	if err := d.checkEntry(p.env.entry); err != nil {
		return nil, "", err
	}
	login, err := d.teleport("login", d.Teleport.Login, p.aws, log)
	if err != nil {
		return nil, "", err
	}
	members, err := p.members(log)
	if err != nil {
		return nil, "", err
	}
	cluster := &connector{config: login}
	ec2 := newInventory(d, p.aws, members)
	p.logStart(ctx, log, d.Teleport.Login, slog.String("entry", string(p.env.entry)), slog.String("url_auth", d.URLAuth))
	s := &enroll.Signer{
		Audience:     d.Audience,
		Accounts:     d.Accounts.ids(),
		Regions:      d.Regions,
		Sources:      d.sources,
		Endpoints:    d.endpoints,
		RequireIAM:   d.URLAuth == urlAuthIAM,
		Documents:    d.keyring,
		Callers:      &identity.CallerVerifier{HTTP: httpClient(p.aws), Endpoint: os.Getenv("AWS_ENDPOINT_URL_STS")},
		Inventory:    ec2,
		LaunchImages: ec2,
		Policy:       p.policy,
		Ledger:       p.ledger,
		Health:       p.ledger,
		Refusals:     p.ledger,
		Connect:      cluster.signer,
		Log:          log,
		Now:          Now,
	}
	if members != nil { // a typed nil is not a nil interface
		s.Organization = members
	}
	return s, p.env.entry, nil
}

// Upkeep is the content of the function "fleet".
type Upkeep struct {
	Fleet *upkeep.Fleet
	// Cursor is where the next sweep begins; nil if the ledger is in memory.
	Cursor *stored.Text
	// Organization reads which accounts the organization has; nil without one.
	Organization *organizations.Refresher
}

// These begin the names of a signer's items in the ledger's table. The audience follows: signers
// that share a ledger have different policies and nodes.
const (
	policyItem  = "policy/"  // the last good policy
	sweepItem   = "sweep/"   // where the next sweep begins
	missingItem = "missing/" // the instances that EC2 does not show
	expiredItem = "expired/" // the state of the walk through expired records
)

// NewUpkeep builds the upkeep that the deployment describes, for the function "fleet". It
// makes no calls.
func NewUpkeep(ctx context.Context, log *slog.Logger) (Upkeep, error) {
	p, err := load(ctx, log)
	if err != nil {
		return Upkeep{}, err
	}
	d := p.deployment
	l, err := d.fleetLogin()
	if err != nil {
		return Upkeep{}, err
	}
	config, err := d.teleport("fleet_login", l, p.aws, log)
	if err != nil {
		return Upkeep{}, err
	}
	members, err := p.members(log)
	if err != nil {
		return Upkeep{}, err
	}
	cluster := &connector{config: config}
	p.logStart(ctx, log, l)
	u := Upkeep{Fleet: &upkeep.Fleet{
		Audience:  d.Audience,
		Accounts:  d.Accounts.ids(),
		Regions:   d.Regions,
		Inventory: newInventory(d, p.aws, members),
		Ledger:    p.ledger,
		Health:    p.ledger,
		Missing:   p.notes(missingItem),
		Records:   p.ledger,
		Walk:      p.notes(expiredItem),
		Policy:    p.policy,
		Connect:   cluster.fleet,
		Log:       log,
		Now:       Now,
	}}
	if p.env.probes {
		u.Fleet.Probe = upkeep.Probe
	}
	if members != nil {
		u.Fleet.Organization = members
		if u.Organization, err = p.refresher(log); err != nil {
			return Upkeep{}, fmt.Errorf("organization: %w", err)
		}
	}
	if p.table != nil {
		u.Cursor = &stored.Text{Client: p.table, Table: tableName(p.env.table), Name: sweepItem + d.Audience}
	}
	return u, nil
}

// notes returns this signer's notes with that name.
func (p *parts) notes(name string) upkeep.Notes {
	if p.table == nil {
		return new(stored.Memory)
	}
	return stored.Text{Client: p.table, Table: tableName(p.env.table), Name: name + p.deployment.Audience}
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
	if id := d.organizationID(); id != "" {
		attributes = append(attributes, slog.String("organization", id))
	}
	if p.env.parameter != "" {
		attributes = append(attributes, slog.String("policy_parameter", p.env.parameter))
	} else {
		attributes = append(attributes, slog.String("policy_sha256", d.policy.SHA256))
	}
	log.LogAttrs(ctx, slog.LevelInfo, "signer started", attributes...)
}

func newInventory(d *deployment, cfg aws.Config, members *organizations.Members) *inventory.EC2 {
	client := sts.NewFromConfig(cfg)
	return inventory.New(inventory.Config{
		AWS:      cfg,
		Accounts: d.Accounts.inventory(),
		Member:   d.member(members),
		Roles:    client,
		Identity: client,
		Endpoint: func(r ec2ref.Region) (string, error) { return endpoint(ec2ref.EC2, r) },
		Now:      Now,
	})
}

func deploymentPath() string {
	if path := os.Getenv("HALLMARK_DEPLOYMENT"); path != "" {
		return path
	}
	return filepath.Join(os.Getenv("LAMBDA_TASK_ROOT"), "deployment.yaml")
}

// httpClient returns a client with the transport of the AWS SDK, which knows the
// proxy and the private CA (AWS_CA_BUNDLE) of the environment.
func httpClient(cfg aws.Config) *http.Client {
	if sdk, ok := cfg.HTTPClient.(*awshttp.BuildableClient); ok {
		return &http.Client{Transport: sdk.GetTransport()}
	}
	return nil
}
