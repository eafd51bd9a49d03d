//go:build e2e

// Package stack creates template.yaml's stack in moto, with several sets of parameters, and
// runs the functions' real program on what the stack made: table, queues, rules, bus, policy
// parameter and settings.
package stack

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"maps"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/credentials"
	"github.com/aws/aws-sdk-go-v2/service/secretsmanager"
	"github.com/aws/aws-sdk-go-v2/service/sqs"
	awssts "github.com/aws/aws-sdk-go-v2/service/sts"
	"go.yaml.in/yaml/v3"
	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/e2e/calls"
	"github.com/hallmark-ssh/hallmark/e2e/cfn"
	"github.com/hallmark-ssh/hallmark/e2e/fake/lambdahost"
	"github.com/hallmark-ssh/hallmark/e2e/fake/moto"
	"github.com/hallmark-ssh/hallmark/e2e/fake/sts"
	"github.com/hallmark-ssh/hallmark/internal/identity"
	"github.com/hallmark-ssh/hallmark/internal/identity/identitytest"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"github.com/hallmark-ssh/hallmark/internal/signer/entry"
	"github.com/hallmark-ssh/hallmark/internal/signer/entry/entrytest"
	"github.com/hallmark-ssh/hallmark/internal/signer/teleport/teleporttest"
	"github.com/hallmark-ssh/hallmark/internal/sshkey"
	"github.com/hallmark-ssh/hallmark/internal/sshkey/sshkeytest"
)

const (
	region   = "hm-test-1"
	audience = "hallmark.example.com"

	member     = "222233334444"
	memberRole = "arn:aws:iam::" + member + ":role/hallmark-member"
	externalID = "hallmark.example.com"
	endpoint   = "vpce-0a1b2c3d4e5f60718"
)

// world is an AWS with emulated services, and a cluster. Several stacks can be in it.
type world struct {
	t       *testing.T
	moto    *moto.Server
	sts     *sts.Server
	region  *identitytest.Region
	cluster *teleporttest.Cluster
	log     lambdahost.Log

	recorder       *calls.Recorder
	awsURL, stsURL string
	servers        []*httptest.Server
	connections    atomic.Int64 // that servers have taken
	stalled        atomic.Bool  // EC2 does not answer
	names          sync.Map     // of ARNs in the template
}

func newWorld(t *testing.T) *world {
	t.Helper()
	server, err := moto.Start(t.Context(), region, t.Output())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Close)
	w := &world{t: t, moto: server}
	if w.cluster, err = teleporttest.Start(teleporttest.Options{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = w.cluster.Close() })
	if w.region, err = identitytest.NewRegion(region); err != nil {
		t.Fatal(err)
	}
	backend, err := url.Parse(server.URL)
	if err != nil {
		t.Fatal(err)
	}
	w.sts = sts.New(sts.Options{Region: region, Backend: backend})
	w.recorder = &calls.Recorder{
		Roles: map[string]string{"ASIAENROLL": "enroll", "ASIAFLEET": "fleet"}, Region: region, Account: moto.Account, Name: w.nameOf,
	}
	services := w.serve(w.recorder.Handler(w.stalling(httputil.NewSingleHostReverseProxy(backend))))
	w.awsURL, w.stsURL = services.URL, w.serve(w.recorder.Handler(w.identities(httputil.NewSingleHostReverseProxy(backend)))).URL
	w.names.Store(memberRole, "MemberRoleArns")
	return w
}

// serve serves one of AWS's services, and counts its connections.
func (w *world) serve(h http.Handler) *httptest.Server {
	server := httptest.NewUnstartedServer(h)
	server.Config.ConnState = func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			w.connections.Add(1)
		}
	}
	server.Start()
	w.t.Cleanup(server.Close)
	w.servers = append(w.servers, server)
	return server
}

// identities has moto say who the functions are, and an STS that verifies signatures who the
// instances are.
func (w *world) identities(functions http.Handler) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		for _, key := range []string{"ASIAENROLL", "ASIAFLEET"} {
			if strings.Contains(r.Header.Get("Authorization"), "Credential="+key+"/") {
				functions.ServeHTTP(rw, r)
				return
			}
		}
		w.sts.ServeHTTP(rw, r)
	})
}

// stalling passes requests on, except those to EC2 while it is stalled. They wait until their
// callers give up.
func (w *world) stalling(backend http.Handler) http.Handler {
	return http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
		if w.stalled.Load() && r.Header.Get("X-Amz-Target") == "" {
			<-r.Context().Done()
			return
		}
		backend.ServeHTTP(rw, r)
	})
}

func (w *world) nameOf(arn string) string {
	if name, ok := w.names.Load(arn); ok {
		return name.(string)
	}
	return arn
}

// newSecret stores an identity file, and returns the secret's ARN.
func (w *world) newSecret(parameter string) string {
	w.t.Helper()
	client := secretsmanager.New(secretsmanager.Options{Region: region, BaseEndpoint: &w.moto.URL, Credentials: own()})
	out, err := client.CreateSecret(w.t.Context(), &secretsmanager.CreateSecretInput{
		Name: aws.String("hallmark-" + parameter), SecretString: aws.String(string(w.cluster.IdentityFile())),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	w.names.Store(aws.ToString(out.ARN), parameter)
	return aws.ToString(out.ARN)
}

func own() aws.CredentialsProvider {
	return credentials.NewStaticCredentialsProvider("test", "test", "")
}

// deployment is a stack in moto, and its functions.
type deployment struct {
	*world
	*moto.Stack
	expanded      *cfn.Stack
	root          string // of the package
	entry         entry.Kind
	enroll, fleet *lambdahost.Host
}

// deploy creates a stack, and starts its functions with settings of deployment.yaml.
func (w *world) deploy(name string, parameters map[string]string, settings map[string]any) *deployment {
	w.t.Helper()
	parameters["Audience"] = audience
	expanded, err := cfn.Expand(w.t.Context(), filepath.Join("..", "..", "template.yaml"),
		cfn.Place{StackName: name, Region: region, Account: moto.Account}, parameters)
	if err != nil {
		w.t.Fatal(err)
	}
	created, err := w.moto.CreateStack(w.t.Context(), region, name, expanded)
	if err != nil {
		w.t.Fatal(err)
	}
	w.names.Store(created.Outputs["LedgerTableArn"], "LedgerTable")
	w.names.Store("arn:aws:ssm:"+region+":"+moto.Account+":parameter"+created.Resources["PolicyParameter"], "PolicyParameter")
	d := &deployment{world: w, Stack: created, expanded: expanded, entry: entry.Kind(parameters["Entry"])}
	if d.entry == "" {
		d.entry = entry.URL
	}
	d.root = w.writePackage(settings)
	d.enroll, d.fleet = d.start("EnrollFunction", "ASIAENROLL", 0), d.start("FleetFunction", "ASIAFLEET", 0)
	return d
}

// start runs a function with the settings that the stack gives it. A limit replaces the
// stack's timeout.
func (d *deployment) start(resource, key string, limit time.Duration) *lambdahost.Host {
	w := d.world
	w.t.Helper()
	f, err := w.moto.Function(w.t.Context(), region, d.Resources[resource])
	if err != nil {
		w.t.Fatal(err)
	}
	program, err := filepath.Abs(filepath.Join("..", "..", "bin", "bootstrap"))
	if err == nil {
		_, err = os.Stat(program)
	}
	if err != nil {
		w.t.Fatalf("%v: run 'make build'", err)
	}
	environment := []string{
		"AWS_ACCESS_KEY_ID=" + key, "AWS_SECRET_ACCESS_KEY=test", "AWS_ENDPOINT_URL=" + w.awsURL,
		"AWS_ENDPOINT_URL_EC2=" + w.awsURL, "AWS_ENDPOINT_URL_STS=" + w.stsURL,
		"AWS_ENDPOINT_URL_SSM=" + w.awsURL, "AWS_ENDPOINT_URL_ORGANIZATIONS=" + w.awsURL,
	}
	for name, value := range f.Environment.Variables {
		environment = append(environment, name+"="+value)
	}
	host := lambdahost.New(lambdahost.Function{
		Name: f.FunctionName, Program: program, Handler: f.Handler, TaskRoot: d.root, Region: region,
		Timeout: cmp.Or(limit, time.Duration(f.Timeout)*time.Second), Environment: environment, Log: &w.log,
	})
	w.t.Cleanup(host.Close)
	return host
}

func (w *world) writePackage(more map[string]any) string {
	w.t.Helper()
	settings := map[string]any{
		"audience": audience, "accounts": []any{moto.Account}, "regions": []string{region},
		"region_certificates": map[string]string{region: string(w.region.CertificatePEM())},
	}
	maps.Copy(settings, more)
	teleport := map[string]any{"address": w.cluster.Address(), "roots_file": "ca.pem"}
	for key, login := range map[string]string{"login": "enroll", "fleet_login": "fleet"} {
		if teleport[key] = settings[login]; settings[login] == nil {
			teleport[key] = map[string]string{"method": "identity-file", "file": "identity.pem"}
		}
		delete(settings, login)
	}
	settings["teleport"] = teleport
	text, err := yaml.Marshal(settings)
	if err != nil {
		w.t.Fatal(err)
	}
	root := w.t.TempDir()
	for name, content := range map[string][]byte{
		"deployment.yaml": text, "ca.pem": w.cluster.RootsPEM(), "identity.pem": w.cluster.IdentityFile(),
	} {
		if err := os.WriteFile(filepath.Join(root, name), content, 0o600); err != nil {
			w.t.Fatal(err)
		}
	}
	return root
}

// instance is a machine of an account.
type instance struct {
	account, id, image string
	ec2                moto.EC2
	key                ssh.Signer
	role               identity.Credentials
}

// launch runs an instance in an account.
func (w *world) launch(account string) *instance {
	w.t.Helper()
	ctx := w.t.Context()
	i := &instance{account: account, ec2: moto.EC2{URL: w.moto.URL, Region: region, Credentials: w.credentials(account)}}
	subnet, err := i.ec2.CreateSubnet(ctx, "10.0.0.0/24", region+"a")
	must(w.t, err)
	i.image, err = i.ec2.RegisterImage(ctx, "golden")
	must(w.t, err)
	i.id, err = i.ec2.Run(ctx, moto.Launch{Image: i.image, Subnet: subnet})
	must(w.t, err)
	i.key = sshkeytest.NewSigner(w.t)
	i.role = identity.Credentials{AccessKeyID: "ASIA" + rand.Text()[:16], SecretAccessKey: rand.Text(), SessionToken: rand.Text()}
	w.sts.Register(sts.Credential{
		AccessKeyID: i.role.AccessKeyID, SecretAccessKey: i.role.SecretAccessKey, SessionToken: i.role.SessionToken,
		ARN: "arn:aws:sts::" + account + ":assumed-role/aws:ec2-instance/" + i.id,
	})
	return i
}

// credentials are somebody's in an account. moto keeps accounts apart by roles.
func (w *world) credentials(account string) aws.CredentialsProvider {
	w.t.Helper()
	if account == moto.Account {
		return own()
	}
	client := awssts.New(awssts.Options{Region: region, BaseEndpoint: &w.moto.URL, Credentials: own()})
	out, err := client.AssumeRole(w.t.Context(), &awssts.AssumeRoleInput{
		RoleArn: aws.String("arn:aws:iam::" + account + ":role/admin"), RoleSessionName: aws.String("test"),
	})
	must(w.t, err)
	c := out.Credentials
	return credentials.NewStaticCredentialsProvider(aws.ToString(c.AccessKeyId), aws.ToString(c.SecretAccessKey), aws.ToString(c.SessionToken))
}

// request sends a request to the enroll function, in the form of the deployment's entry.
func (d *deployment) request(method string, body []byte) entry.Answer {
	d.t.Helper()
	event, err := entrytest.Event(d.entry, entry.Request{
		ID: rand.Text(), Method: method, ContentType: "application/json", Body: body, Source: "192.0.2.1", Endpoint: endpoint,
	})
	must(d.t, err)
	response, err := d.enroll.Invoke(d.t.Context(), event)
	if err != nil {
		d.t.Fatalf("%v\n%s", err, &d.log)
	}
	answer, err := entrytest.Answer(d.entry, response)
	if err != nil {
		d.t.Fatalf("%v: %s", err, response)
	}
	return answer
}

// post enrolls an instance.
func (d *deployment) post(i *instance) entry.Answer {
	d.t.Helper()
	document, err := d.region.Sign(fmt.Appendf(nil, `{"accountId":%q,"architecture":"arm64","availabilityZone":"%sa","imageId":%q,"instanceId":%q,
		"instanceType":"t4g.small","pendingTime":"2026-01-02T03:04:05Z","privateIp":"10.0.0.4","region":%q,"version":"2017-09-30"}`,
		i.account, region, i.image, i.id, region))
	must(d.t, err)
	now := time.Now().UTC().Truncate(time.Second)
	payload, err := json.Marshal(protocol.Payload{
		Version: protocol.Version, Audience: audience, IssuedAt: now, IdentityDocument: string(document), HostKeys: []string{sshkey.Line(i.key.PublicKey())},
	})
	must(d.t, err)
	binding := protocol.Bind(payload)
	proof, err := identity.SignCaller(d.t.Context(), i.role, region, false, binding, now)
	must(d.t, err)
	signature, err := identity.SignBinding(i.key, binding)
	must(d.t, err)
	body, err := json.Marshal(protocol.Request{Payload: payload, Caller: proof, Signatures: []string{signature}})
	must(d.t, err)
	return d.request("POST", body)
}

// handleEvents hands what the rules have put into the queue to the fleet function, as the
// event source mapping does, and returns how many messages there were. The events are the
// account's, whatever moto wrote into them.
func (d *deployment) handleEvents(account string) int {
	d.t.Helper()
	client := sqs.New(sqs.Options{Region: region, BaseEndpoint: &d.moto.URL, Credentials: own()})
	out, err := client.ReceiveMessage(d.t.Context(), &sqs.ReceiveMessageInput{QueueUrl: aws.String(d.Resources["EventQueue"]), MaxNumberOfMessages: 10})
	must(d.t, err)
	if len(out.Messages) == 0 {
		return 0
	}
	var records []map[string]string
	for _, m := range out.Messages {
		records = append(records, map[string]string{"messageId": aws.ToString(m.MessageId), "eventSource": "aws:sqs", "body": strings.Replace(aws.ToString(m.Body), moto.Account, account, 1)})
	}
	event, err := json.Marshal(map[string]any{"Records": records})
	must(d.t, err)
	answer := d.sweepOrBatch(string(event))
	if strings.Contains(answer, "itemIdentifier") {
		d.t.Errorf("failed events: %s\n%s", answer, &d.log)
	}
	return len(records)
}

func (d *deployment) sweepOrBatch(event string) string {
	d.t.Helper()
	answer, err := d.fleet.Invoke(context.WithoutCancel(d.t.Context()), []byte(event))
	if err != nil {
		d.t.Fatalf("%v\n%s", err, &d.log)
	}
	return string(answer)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
