//go:build linux

// Package lab assembles the whole path for the whole-path tests and the demo: moto for EC2,
// DynamoDB and Systems Manager, an STS that verifies signatures, a real or an embedded
// Teleport cluster, the real signer behind a function URL, real Packer, and machines.
package lab

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/http/httputil"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/ssm"
	"github.com/aws/aws-sdk-go-v2/service/ssm/types"
	"go.yaml.in/yaml/v3"

	"github.com/hallmark-ssh/hallmark/e2e/calls"
	"github.com/hallmark-ssh/hallmark/e2e/fake/imds"
	"github.com/hallmark-ssh/hallmark/e2e/fake/lambdahost"
	"github.com/hallmark-ssh/hallmark/e2e/fake/moto"
	"github.com/hallmark-ssh/hallmark/e2e/fake/sts"
	"github.com/hallmark-ssh/hallmark/e2e/machine"
	"github.com/hallmark-ssh/hallmark/e2e/teleportd"
	"github.com/hallmark-ssh/hallmark/internal/identity/identitytest"
)

const (
	// Region is fictional, so that no real signer accepts its documents.
	Region = "hm-test-1"
	// Audience is the signer's audience.
	Audience = "hallmark.lab.test"

	zone = Region + "a"

	// lastReserved is the last of the addresses that AWS keeps for itself in a
	// subnet; the hub is the first.
	lastReserved = "10.83.0.3"
)

// Config says what the lab consists of.
type Config struct {
	// Template is the path of template.yaml. The lab creates its stack in moto.
	Template string
	// Bootstrap, Packer and Plugin are the paths of the programs under test.
	Bootstrap, Packer, Plugin string
	// Operator is the path of hallmark-signer; only Lab.Operator needs it.
	Operator string
	// Emulator is the path of AWS's Lambda emulator, which then runs the functions.
	Emulator string
	// Teleport is the folder with Teleport's programs; empty means the embedded
	// cluster.
	Teleport string
	// Policy is the signer's policy; empty means the built-in one.
	Policy string
}

// Built returns a Config of the programs that make has built in the checkout at root.
func Built(root string) Config {
	bin := filepath.Join(root, "bin")
	return Config{
		Template:  filepath.Join(root, "template.yaml"),
		Bootstrap: filepath.Join(bin, "bootstrap"),
		Packer:    filepath.Join(bin, "packer"),
		Plugin:    filepath.Join(bin, "packer-plugin-hallmark"),
	}
}

// Lab is everything except the machines, which Bake and Launch create.
type Lab struct {
	Cluster   Cluster
	STS       *sts.Server
	EC2       moto.EC2
	Signer    *lambdahost.Host
	SignerURL string
	// Fleet is the fleet function. Send delivers events to it.
	Fleet *lambdahost.Host
	// Region signs the machines' identity documents.
	Region *identitytest.Region
	// Teleport is the real cluster, or nil with the embedded one.
	Teleport *teleportd.Cluster
	// LedgerTable is the ARN of the signer's table in DynamoDB.
	LedgerTable string

	fleet  *machine.Fleet
	config Config
	dir    string
	subnet string // id of the subnet in EC2

	addresses sync.Mutex
	last      netip.Addr // last address given to a machine

	launching sync.Mutex
	metadata  []*imds.Server // of every instance

	packerLock  sync.Mutex
	packerReady bool

	credentials sync.Map // of instances, by access key id

	front    front
	recorder *calls.Recorder
	awsURL   string // of what the functions call, except STS
	stsURL   string
	login    *login
	moto     *moto.Server
	stack    *stack
	keys     *keys
	queue    queue
}

// New starts the lab in a folder. The lab ends with the context or the program.
func New(ctx context.Context, f *machine.Fleet, config Config, dir string) (*Lab, error) {
	l := &Lab{fleet: f, config: config, dir: dir, last: netip.MustParseAddr(lastReserved)}
	for _, program := range []*string{&l.config.Template, &l.config.Bootstrap, &l.config.Packer, &l.config.Plugin, &l.config.Operator, &l.config.Emulator} {
		if err := absolute(program); err != nil {
			return nil, err
		}
	}
	for _, step := range []struct {
		what  string
		start func(context.Context) error
	}{
		{"make a region", l.makeRegion},
		{"start moto", l.startMoto},
		{"create the stack", l.createStack},
		{"start STS", l.startSTS},
		{"start the cluster", l.startCluster},
		{"make keys", l.makeKeys},
		{"start the signer", l.startSigner},
		{"make the queue of events", l.startQueue},
	} {
		if err := step.start(ctx); err != nil {
			return nil, fmt.Errorf("%s: %w", step.what, err)
		}
	}
	return l, nil
}

// absolute resolves a file's path, if it is not empty, and checks that it exists.
func absolute(program *string) error {
	if *program == "" {
		return nil
	}
	path, err := filepath.Abs(*program)
	if err != nil {
		return err
	}
	if _, err := os.Stat(path); err != nil {
		return fmt.Errorf("a file is missing (%w): run 'make build bin/packer bin/aws-lambda-rie'", err)
	}
	*program = path
	return nil
}

func (l *Lab) makeRegion(context.Context) (err error) {
	l.Region, err = identitytest.NewRegion(Region)
	return err
}

func (l *Lab) startMoto(ctx context.Context) error {
	log, err := l.createLog("moto")
	if err != nil {
		return err
	}
	if l.moto, err = moto.Start(ctx, Region, log); err != nil {
		return err
	}
	l.EC2 = moto.EC2{URL: l.moto.URL, Region: Region, Credentials: credentials.NewStaticCredentialsProvider("lab", "lab", "")}
	l.subnet, err = l.EC2.CreateSubnet(ctx, machine.Subnet, zone)
	return err
}

func (l *Lab) startSTS(ctx context.Context) error {
	backend, err := url.Parse(l.moto.URL)
	if err != nil {
		return err
	}
	l.STS = sts.New(sts.Options{Region: Region, Backend: backend})
	if l.login, err = l.newLogin(ctx); err != nil {
		return err
	}
	l.recorder = l.newRecorder()
	if l.awsURL, err = serveLocally(ctx, l.recorder.Handler(httputil.NewSingleHostReverseProxy(backend))); err != nil {
		return err
	}
	l.stsURL, err = serveLocally(ctx, l.recorder.Handler(l.STS))
	return err
}

// newRecorder returns what notes the functions' calls of AWS.
func (l *Lab) newRecorder() *calls.Recorder {
	names := map[string]string{
		l.LedgerTable: "LedgerTable",
		"arn:aws:ssm:" + Region + ":" + moto.Account + ":parameter" + l.stack.Resources["PolicyParameter"]: "PolicyParameter",
	}
	return &calls.Recorder{
		Roles:  map[string]string{l.login.enroll.AccessKeyID: "enroll", l.login.fleet.AccessKeyID: "fleet"},
		Region: Region, Account: moto.Account,
		Name: func(arn string) string { return cmp.Or(names[arn], arn) },
	}
}

// Checked compares what the functions called, once a package's tests are over, with
// recordings, whose permissions e2e/iam judges. With update, it writes the first of them
// before. It takes and returns the exit code of the tests.
func (l *Lab) Checked(code int, update bool, recording string, others ...string) int {
	if code != 0 {
		return code
	}
	if err := l.recorder.Check(recording, update, others...); err != nil {
		fmt.Fprintf(os.Stderr, "the functions' calls: %v\n", err)
		return 1
	}
	return 0
}

// serveLocally serves on this machine until the context ends, and returns the URL.
func serveLocally(ctx context.Context, h http.Handler) (url string, err error) {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp4", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	serve(ctx, listener, h)
	return "http://" + listener.Addr().String(), nil
}

// serve serves until the context ends.
func serve(ctx context.Context, l net.Listener, h http.Handler) *http.Server {
	server := &http.Server{Handler: h, ReadHeaderTimeout: 10 * time.Second}
	go func() { _ = server.Serve(l) }()
	context.AfterFunc(ctx, func() { _ = server.Close() })
	return server
}

// startSigner deploys the signer as SAM would: a package folder with the program's
// configuration, a function, and its URL.
func (l *Lab) startSigner(ctx context.Context) error {
	root := filepath.Join(l.dir, "signer")
	if err := l.writeDeployment(root, nil); err != nil {
		return err
	}
	log, err := l.createLog("signer")
	if err != nil {
		return err
	}
	l.Signer = lambdahost.New(lambdahost.Function{
		Name: l.stack.enroll.FunctionName, Program: l.config.Bootstrap, Emulator: l.config.Emulator, Handler: l.stack.enroll.Handler, TaskRoot: root, Region: Region,
		Environment: l.environment(l.stack.enroll, l.login.enroll),
		Concurrency: 4, Timeout: 20 * time.Second, Log: log,
	})
	context.AfterFunc(ctx, l.Signer.Close)
	l.Fleet = lambdahost.New(lambdahost.Function{
		Name: l.stack.fleet.FunctionName, Program: l.config.Bootstrap, Emulator: l.config.Emulator, Handler: l.stack.fleet.Handler, TaskRoot: root, Region: Region,
		Environment: l.environment(l.stack.fleet, l.login.fleet),
		Concurrency: 2, Timeout: time.Minute, Log: log,
	})
	context.AfterFunc(ctx, l.Fleet.Close)
	l.SignerURL = "https://" + machine.Hub + "/"
	return l.StartURL(ctx)
}

// environment returns a function's environment: what the stack sets, and its role's
// credentials as Lambda sets them.
func (l *Lab) environment(f moto.FunctionSettings, role sts.Credential) []string {
	environment := []string{
		"AWS_ACCESS_KEY_ID=" + role.AccessKeyID, "AWS_SECRET_ACCESS_KEY=" + role.SecretAccessKey,
		"AWS_SESSION_TOKEN=" + role.SessionToken, "AWS_ENDPOINT_URL_STS=" + l.stsURL,
		"AWS_ENDPOINT_URL_EC2=" + l.awsURL, "AWS_ENDPOINT_URL_DYNAMODB=" + l.awsURL, "AWS_ENDPOINT_URL_SSM=" + l.awsURL,
	}
	for name, value := range f.Environment.Variables {
		environment = append(environment, name+"="+value)
	}
	return environment
}

// writeDeployment writes a package's settings, with more of them.
func (l *Lab) writeDeployment(root string, more map[string]any) error {
	deployment := map[string]any{
		"audience":            Audience,
		"accounts":            []string{moto.Account},
		"regions":             []string{Region},
		"region_certificates": map[string]string{Region: string(l.Region.CertificatePEM())},
		"teleport": map[string]any{
			"address": l.Cluster.Address(), "roots_file": "ca.pem",
			"login": map[string]string{
				"method": "iam", "token": teleportd.EnrollBot, "role": teleportd.EnrollBot, "region": loginRegion,
			},
		},
	}
	maps.Copy(deployment, more)
	files := map[string][]byte{"ca.pem": l.Cluster.RootsPEM()}
	encoded, err := yaml.Marshal(deployment)
	if err != nil {
		return err
	}
	files["deployment.yaml"] = encoded
	if err := os.MkdirAll(root, 0o700); err != nil {
		return err
	}
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(root, name), content, 0o600); err != nil {
			return err
		}
	}
	return nil
}

// PutPolicy writes the text to the policy's parameter.
func (l *Lab) PutPolicy(ctx context.Context, policy string) error {
	client := ssm.New(ssm.Options{
		Region:       Region,
		BaseEndpoint: aws.String(l.moto.URL),
		Credentials:  credentials.NewStaticCredentialsProvider("lab", "lab", ""),
	})
	_, err := client.PutParameter(ctx, &ssm.PutParameterInput{
		Name: aws.String(l.stack.Resources["PolicyParameter"]), Value: &policy, Type: types.ParameterTypeString, Overwrite: aws.Bool(true),
	})
	return err
}

func (l *Lab) createLog(name string) (*os.File, error) {
	return os.OpenFile(filepath.Join(l.dir, name+".log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
}

// KeyPair returns the file with the private key of the instances' EC2 key pair.
func (l *Lab) KeyPair() string { return l.keys.keyPair }

// SignerRoots returns the CA certificates that verify the signer's URL.
func (l *Lab) SignerRoots() ([]byte, error) { return os.ReadFile(l.keys.webCA) }

// SignerLog returns what the signer and its URL have logged so far.
func (l *Lab) SignerLog() string {
	data, err := os.ReadFile(filepath.Join(l.dir, "signer.log"))
	if err != nil {
		return err.Error()
	}
	return string(data)
}
