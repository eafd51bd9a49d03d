package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/e2e/fake/sts"
	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/identity"
	"github.com/hallmark-ssh/hallmark/internal/identity/identitytest"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"github.com/hallmark-ssh/hallmark/internal/signer/deployment"
	"github.com/hallmark-ssh/hallmark/internal/signer/deployment/deploymenttest"
	"github.com/hallmark-ssh/hallmark/internal/signer/entry"
	"github.com/hallmark-ssh/hallmark/internal/signer/entry/entrytest"
	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
	"github.com/hallmark-ssh/hallmark/internal/signer/teleport/teleporttest"
	"github.com/hallmark-ssh/hallmark/internal/sshkey"
	"github.com/hallmark-ssh/hallmark/internal/sshkey/sshkeytest"
)

const (
	testAudience = "hallmark.example.com"
	testRegion   = "hm-test-1"
	testAccount  = "111122223333"
	testInstance = "i-0a1b2c3d4e5f60718"
	testImage    = "ami-0a1b2c3d4e5f60718"
)

func TestMain(m *testing.M) {
	if os.Getenv("AWS_LAMBDA_RUNTIME_API") != "" { // e2e/fake/lambdahost runs this test as the function
		main()
		return
	}
	os.Exit(m.Run())
}

// world is the signer as deployed, with AWS and Teleport around it: STS verifies complete
// signatures, Teleport speaks its own protocol, and EC2 has one instance.
type world struct {
	t       *testing.T
	region  *identitytest.Region
	sts     *sts.Server
	cluster *teleporttest.Cluster
	handler handler
	log     *bytes.Buffer
	creds   identity.Credentials
	key     ssh.Signer
}

func newWorld(t *testing.T) *world { return newWorldOn(t, teleporttest.Options{}) }

func newWorldOn(t *testing.T, options teleporttest.Options) *world {
	t.Helper()
	region, err := identitytest.NewRegion(testRegion)
	if err != nil {
		t.Fatal(err)
	}
	cluster, err := teleporttest.Start(options)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cluster.Close() })
	w := &world{
		t: t, region: region, cluster: cluster, key: sshkeytest.NewSigner(t), log: new(bytes.Buffer),
		sts:   sts.New(sts.Options{Region: testRegion}),
		creds: identity.Credentials{AccessKeyID: "ASIATESTTESTTESTTEST", SecretAccessKey: "secret", SessionToken: "session-token"},
	}
	w.sts.Register(sts.Credential{
		AccessKeyID: w.creds.AccessKeyID, SecretAccessKey: w.creds.SecretAccessKey, SessionToken: w.creds.SessionToken,
		ARN: "arn:aws:sts::" + testAccount + ":assumed-role/aws:ec2-instance/" + testInstance,
	})
	w.setEnvironment()
	s, _, err := deployment.NewSigner(t.Context(), slog.New(slog.NewJSONHandler(w.log, nil)))
	if err != nil {
		t.Fatal(err)
	}
	w.handler = handler{entry.URL, s.Enroll, s.Log}
	return w
}

func (w *world) setEnvironment() {
	w.t.Helper()
	stsServer, ec2Server := httptest.NewServer(w.sts), httptest.NewServer(http.HandlerFunc(answerEC2))
	w.t.Cleanup(stsServer.Close)
	w.t.Cleanup(ec2Server.Close)
	w.t.Setenv("HALLMARK_DEPLOYMENT", w.writeDeployment("method: identity-file, file: identity.pem"))
	for name, value := range map[string]string{
		"AWS_ENDPOINT_URL_STS": stsServer.URL, "AWS_ENDPOINT_URL_EC2": ec2Server.URL, "AWS_REGION": testRegion,
		"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_CONFIG_FILE": "/nonexistent",
		"AWS_CA_BUNDLE": "", "AWS_LAMBDA_FUNCTION_NAME": "", "HALLMARK_LEDGER_TABLE": "", "HALLMARK_POLICY_PARAMETER": "",
	} {
		w.t.Setenv(name, value)
	}
}

// writeDeployment writes the deployment's files and returns the path of the first.
func (w *world) writeDeployment(login string) string {
	w.t.Helper()
	certificate := strings.ReplaceAll(string(w.region.CertificatePEM()), "\n", "\n    ")
	return deploymenttest.Write(w.t, map[string]string{
		"deployment.yaml": fmt.Sprintf("audience: %s\naccounts: [%q]\nregions: [%s]\nregion_certificates:\n  %s: |\n    %s\n"+
			"teleport: {address: %q, roots_file: ca.pem, login: {%s}}\n",
			testAudience, testAccount, testRegion, testRegion, certificate, w.cluster.Address(), login),
		"identity.pem": string(w.cluster.IdentityFile()),
		"ca.pem":       string(w.cluster.RootsPEM()),
	})
}

func answerEC2(w http.ResponseWriter, r *http.Request) {
	data, _ := io.ReadAll(r.Body)
	form, _ := url.ParseQuery(string(data))
	switch action := form.Get("Action"); {
	case action == "DescribeImages":
		_, _ = fmt.Fprintf(w, `<DescribeImagesResponse><imagesSet><item><imageId>%s</imageId><imageOwnerId>%s</imageOwnerId></item></imagesSet></DescribeImagesResponse>`, testImage, testAccount)
	case form.Get("InstanceId.1") == testInstance:
		_, _ = fmt.Fprintf(w, `<DescribeInstancesResponse><reservationSet><item><ownerId>%s</ownerId><instancesSet><item>
			<instanceId>%s</instanceId><imageId>%s</imageId><instanceState><name>pending</name></instanceState>
			<privateIpAddress>10.0.0.7</privateIpAddress><placement><availabilityZone>%sa</availabilityZone></placement>
			<vpcId>vpc-1</vpcId><launchTime>%s</launchTime><tagSet><item><key>Name</key><value>Web</value></item></tagSet>
			</item></instancesSet></item></reservationSet></DescribeInstancesResponse>`, testAccount, testInstance, testImage, testRegion,
			time.Now().UTC().Format(time.RFC3339))
	default:
		w.WriteHeader(http.StatusBadRequest)
		_, _ = io.WriteString(w, `<Response><Errors><Error><Code>InvalidInstanceID.NotFound</Code></Error></Errors></Response>`)
	}
}

// post enrolls as the instance does and returns the answer.
func (w *world) post(audience string) (status int, body string) {
	w.t.Helper()
	document, err := w.region.Sign([]byte(fmt.Sprintf(`{"accountId":%q,"architecture":"arm64","availabilityZone":"%sa",
		"imageId":%q,"instanceId":%q,"instanceType":"t4g.small","pendingTime":"2026-01-02T03:04:05Z","privateIp":"10.0.0.7",
		"region":%q,"version":"2017-09-30"}`, testAccount, testRegion, testImage, testInstance, testRegion)))
	if err != nil {
		w.t.Fatal(err)
	}
	now := time.Now().Truncate(time.Second)
	payload, err := json.Marshal(protocol.Payload{
		Version: protocol.Version, Audience: audience, IssuedAt: now.UTC(), IdentityDocument: string(document),
		HostKeys: []string{sshkey.Line(w.key.PublicKey())},
	})
	if err != nil {
		w.t.Fatal(err)
	}
	binding := protocol.Bind(payload)
	proof, err := identity.SignCaller(w.t.Context(), w.creds, testRegion, false, binding, now)
	if err != nil {
		w.t.Fatal(err)
	}
	signature, err := identity.SignBinding(w.key, binding)
	if err != nil {
		w.t.Fatal(err)
	}
	request, err := json.Marshal(protocol.Request{Payload: payload, Caller: proof, Signatures: []string{signature}})
	if err != nil {
		w.t.Fatal(err)
	}
	answer := invoke(w.t.Context(), w.t, w.handler, encode(w.t, entrytest.URLEvent(newRequest(string(request)))))
	return answer.Status, string(answer.Body)
}

func TestEnrollOnRealParts(t *testing.T) {
	w := newWorld(t)
	status, body := w.post(testAudience)
	if status != http.StatusOK {
		t.Fatalf("status %d, %s; log: %s", status, body, w.log)
	}
	var got protocol.Response
	if err := json.Unmarshal([]byte(body), &got); err != nil {
		t.Fatal(err)
	}
	hostname := "web-" + testInstance
	id := ec2ref.Instance{Account: testAccount, Region: testRegion, ID: testInstance}.NodeID()
	checkNode(t, w, id, hostname)
	checker := ssh.CertChecker{IsHostAuthority: func(key ssh.PublicKey, _ string) bool {
		return bytes.Equal(key.Marshal(), w.cluster.HostCA().Marshal())
	}}
	certificate, _, _, _, err := ssh.ParseAuthorizedKey([]byte(got.Certificates[0]))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{hostname, id, hostname + "." + w.cluster.Name(), id + "." + w.cluster.Name()} {
		if err := checker.CheckHostKey(name+":22", nil, certificate); err != nil {
			t.Errorf("as %s: %v", name, err)
		}
	}
	if principals := certificate.(*ssh.Certificate).ValidPrincipals; len(principals) != 4 {
		t.Errorf("principals %q", principals)
	}
	if !slices.Contains(got.OpenSSHCAs, sshkey.Line(w.cluster.OpenSSHCA())) {
		t.Errorf("OpenSSH CAs %q", got.OpenSSHCAs)
	}
	for _, secret := range []string{w.creds.SecretAccessKey, w.creds.SessionToken, "AWS4-HMAC-SHA256"} {
		if strings.Contains(w.log.String(), secret) {
			t.Errorf("%q is in the log: %s", secret, w.log)
		}
	}
}

func checkNode(t *testing.T, w *world, id, hostname string) {
	t.Helper()
	nodes := w.cluster.Nodes()
	if len(nodes) != 1 {
		t.Fatalf("%d nodes", len(nodes))
	}
	node := nodes[0]
	if node.GetName() != id || node.GetHostname() != hostname || node.GetAddr() != "10.0.0.7:22" || node.GetSubKind() != "openssh" {
		t.Errorf("node %+v", node)
	}
	if left := time.Until(node.Expiry()); left < 167*time.Hour || left > 168*time.Hour {
		t.Errorf("the lease ends in %s", left)
	}
	for key, value := range map[string]string{
		"hallmark/signer": testAudience, "hallmark/vpc": "vpc-1", "hallmark/image-owner": testAccount,
		"teleport.dev/instance-id": testInstance, "aws/Name": "Web",
	} {
		if got := node.GetStaticLabels()[key]; got != value {
			t.Errorf("label %s is %q, want %q", key, got, value)
		}
	}
}

func TestEnrollTwiceOnRealParts(t *testing.T) {
	w := newWorld(t)
	for range 2 {
		if status, body := w.post(testAudience); status != http.StatusOK {
			t.Fatalf("status %d, %s; log: %s", status, body, w.log)
		}
	}
	if n := len(w.cluster.Nodes()); n != 1 {
		t.Errorf("%d nodes of one instance", n)
	}
}

// Nothing that arrives before proof causes a call to Teleport.
func TestNobodyIsCalledForAStranger(t *testing.T) {
	w := newWorld(t)
	if status, body := w.post("another.example.com"); status != http.StatusUnauthorized {
		t.Errorf("status %d, %s", status, body)
	}
	if calls := w.sts.Calls(); calls != 0 {
		t.Errorf("%d calls of STS", calls)
	}
	w.creds.SecretAccessKey = "guessed"
	if status, body := w.post(testAudience); status != http.StatusUnauthorized || !strings.Contains(body, string(protocol.CodeCallerProofInvalid)) {
		t.Errorf("status %d, %s", status, body)
	}
	if calls := w.sts.Calls(); calls != 1 {
		t.Errorf("%d calls of STS, want 1", calls)
	}
	if calls := w.cluster.Calls(); len(calls) != 0 {
		t.Errorf("calls of Teleport: %v", calls)
	}
}

func TestOtherKeysAreRefusedOnRealParts(t *testing.T) {
	w := newWorld(t)
	if status, body := w.post(testAudience); status != http.StatusOK {
		t.Fatalf("status %d, %s", status, body)
	}
	w.key = sshkeytest.NewSigner(t)
	if status, body := w.post(testAudience); status != http.StatusConflict || !strings.Contains(body, string(protocol.CodeKeyConflict)) {
		t.Errorf("status %d, %s", status, body)
	}
}

func TestBuildInsideLambda(t *testing.T) {
	w := newWorld(t)
	t.Setenv("AWS_LAMBDA_FUNCTION_NAME", "enroll")
	t.Setenv("HALLMARK_LEDGER_TABLE", "arn:aws:dynamodb:eu-west-1:111122223333:table/ledger")
	s, _, err := deployment.NewSigner(t.Context(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	if _, durable := s.Ledger.(*ledger.DynamoDB); !durable {
		t.Errorf("the ledger is a %T", s.Ledger)
	}
	if calls := w.sts.Calls(); calls != 0 {
		t.Errorf("%d calls of STS while starting", calls)
	}
}
