package deployment

import (
	"context"
	"fmt"
	"log/slog"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/signer/emf"
	"github.com/hallmark-ssh/hallmark/internal/signer/teleport"
	"github.com/hallmark-ssh/hallmark/internal/strictyaml"
)

// The ways to log in to Teleport.
const (
	loginIAM    = "iam"             // as a bot, by the function's own AWS role
	loginFile   = "identity-file"   // with a file that is deployed with the program
	loginSecret = "identity-secret" // with a file in Secrets Manager
)

// login is how a function logs in to Teleport.
type login struct {
	Method string `yaml:"method"`

	// With method iam: the names of the join token and of the bot's role, and the region
	// whose STS confirms the AWS role, by default the function's own.
	Token  string        `yaml:"token,omitempty"`
	Role   string        `yaml:"role,omitempty"`
	Region ec2ref.Region `yaml:"region,omitempty"`
	// FIPS makes Teleport ask STS's FIPS endpoint: an auth service in FIPS mode accepts
	// no other.
	FIPS bool `yaml:"fips,omitempty"`

	File   string `yaml:"file,omitempty"`   // with method identity-file
	Secret string `yaml:"secret,omitempty"` // with method identity-secret: an ARN
}

var regexpSecret = regexp.MustCompile(`^arn:aws[a-z-]*:secretsmanager:[a-z0-9-]+:[0-9]{12}:secret:.+$`)

// check adds what is wrong with the settings.
func (l login) check(at strictyaml.Value) {
	uses := map[string][]string{
		loginIAM: {"token", "role", "region"}, loginFile: {"file"}, loginSecret: {"secret"},
	}[l.Method]
	if uses == nil {
		if method := at.Key("method"); method.Present() {
			method.Failf("%q is none of %s, %s and %s", l.Method, loginIAM, loginFile, loginSecret)
		} else {
			method.Missing(fmt.Sprintf("write %s, %s or %s", loginIAM, loginFile, loginSecret))
		}
		return
	}
	for _, setting := range []struct{ name, value string }{
		{"token", l.Token}, {"role", l.Role}, {"region", string(l.Region)}, {"file", l.File}, {"secret", l.Secret},
	} {
		used, key := slices.Contains(uses, setting.name), at.Key(setting.name)
		switch {
		case !used && setting.value != "":
			key.Failf("not used with method %s; remove it", l.Method)
		case used && setting.value == "" && setting.name != "region":
			key.Failf("missing; method %s needs it", l.Method)
		}
	}
	if l.FIPS && l.Method != loginIAM {
		at.Key("fips").Failf("not used with method %s; remove it", l.Method)
	}
	if l.Secret != "" && l.Method == loginSecret && !regexpSecret.MatchString(l.Secret) {
		at.Key("secret").Failf("%.200q is not the ARN of a secret in Secrets Manager, such as arn:aws:secretsmanager:us-west-2:111122223333:secret:NAME", l.Secret)
	}
	if l.Region != "" && l.Method == loginIAM {
		l.checkRegion(at)
	}
}

func (l login) checkRegion(at strictyaml.Value) {
	if _, err := ec2ref.ParseRegion(string(l.Region)); err != nil {
		at.Key("region").Fail(err)
		return
	}
	if _, err := stsHost(l.Region, l.FIPS); err != nil {
		setting, reason, _ := strings.Cut(err.Error(), ": ")
		at.Key(setting).Failf("%s", reason)
	}
}

// The role and token of templates/teleport for the fleet's upkeep.
const fleetRole = "hallmark-fleet"

// fleetLogin returns how the function "fleet" logs in: as configured, or with the bot of
// the templates. It never falls back to the other function's login, which may sign host
// certificates.
func (d *deployment) fleetLogin() (login, error) {
	switch l := d.Teleport.Login; {
	case d.Teleport.FleetLogin != nil:
		return *d.Teleport.FleetLogin, nil
	case l.Method == loginIAM:
		return login{Method: loginIAM, Token: fleetRole, Role: fleetRole, Region: l.Region, FIPS: l.FIPS}, nil
	default:
		return login{}, fmt.Errorf("teleport.fleet_login: missing; with method %s the function fleet needs a login of its own, which may sign nothing", l.Method)
	}
}

// teleport returns the Teleport client's configuration with one of the deployment's
// logins.
func (d *deployment) teleport(setting string, l login, cfg aws.Config, log *slog.Logger) (teleport.Config, error) {
	with, err := l.with(cfg)
	if err != nil {
		return teleport.Config{}, fmt.Errorf("teleport.%s.%w", setting, err)
	}
	c := teleport.Config{Address: d.Teleport.Address, RootsPEM: d.roots, Login: with, Log: log}
	if l.Method != loginIAM { // a bot renews its login every hour by itself
		c.LoggedIn = (&loginWatch{signer: d.Audience, log: log, now: Now}).loggedIn
	}
	return c, nil
}

// loginWatch logs how long a login that somebody must replace is still valid.
type loginWatch struct {
	signer string
	log    *slog.Logger
	now    func() time.Time

	mu     sync.Mutex
	warned time.Time
}

// loginPause is the least time between two such log lines: a file is read at every call.
const loginPause = 5 * time.Minute

func (w *loginWatch) loggedIn(end time.Time) {
	now := w.now()
	w.mu.Lock()
	again := now.Sub(w.warned) < loginPause
	if !again {
		w.warned = now
	}
	w.mu.Unlock()
	if again {
		return
	}
	left := emf.By("signer")
	left.Seconds("login_left_s", end.Sub(now))
	attributes := append([]slog.Attr{slog.String("signer", w.signer)}, emf.Attrs(now, left)...)
	w.log.LogAttrs(context.Background(), slog.LevelInfo, "login", attributes...)
}

func (l login) with(cfg aws.Config) (teleport.Login, error) {
	switch l.Method {
	case loginFile:
		return teleport.IdentityFile(l.File), nil
	case loginSecret:
		read := func(ctx context.Context) ([]byte, error) { return readSecret(ctx, cfg, l.Secret) }
		return teleport.IdentitySecret{Name: l.Secret, Read: read}, nil
	}
	region := l.Region
	if region == "" {
		region = ec2ref.Region(cfg.Region)
	}
	host, err := stsHost(region, l.FIPS)
	if err != nil {
		return nil, err
	}
	return teleport.Bot{Token: l.Token, Role: l.Role, Credentials: cfg.Credentials, Region: region, STSHost: host}, nil
}

// stsHost returns the region's endpoint of STS, or its FIPS endpoint.
func stsHost(region ec2ref.Region, fips bool) (string, error) {
	host, err := ec2ref.STSHost(region, fips)
	switch {
	case err != nil && fips:
		return "", fmt.Errorf("fips: %w", err)
	case err != nil:
		return "", fmt.Errorf("region: %w", err)
	}
	return host, nil
}
