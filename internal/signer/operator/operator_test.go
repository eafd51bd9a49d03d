package operator

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/hallmark-ssh/hallmark/internal/cli"
	"github.com/hallmark-ssh/hallmark/internal/cli/clitest"
	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/signer/deployment"
	"github.com/hallmark-ssh/hallmark/internal/signer/node"
	"github.com/hallmark-ssh/hallmark/internal/signer/organization"
	"github.com/hallmark-ssh/hallmark/internal/signer/teleport"
	"github.com/hallmark-ssh/hallmark/internal/signer/teleport/teleporttest"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"hallmark-signer": func() { os.Exit(cli.Run(context.Background(), Command(), os.Args[1:], os.Stdin, os.Stdout, os.Stderr)) },
	})
}

// TestScript runs the command lines in testdata/script against the real command. The scripts
// cannot reach AWS, except an STS and a DynamoDB at $AWS.
func TestScript(t *testing.T) {
	aws := httptest.NewServer(fakeAWS{t})
	t.Cleanup(aws.Close)
	testscript.Run(t, testscript.Params{
		Dir: filepath.Join("testdata", "script"),
		Setup: func(env *testscript.Env) error {
			if err := withTeleport(env); err != nil {
				return err
			}
			for name, value := range map[string]string{
				"AWS": aws.URL, "AWS_ENDPOINT_URL": "http://127.0.0.1:1", "AWS_REGION": "us-west-2", "AWS_MAX_ATTEMPTS": "1",
				"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true",
			} {
				env.Setenv(name, value)
			}
			return nil
		},
	})
}

// withTeleport gives the scripts that need it a cluster at $PROXY, with the node of the known
// instance.
func withTeleport(env *testscript.Env) error {
	if !strings.HasSuffix(env.WorkDir, "script-end") && !strings.HasSuffix(env.WorkDir, "script-report") {
		return nil
	}
	cluster, err := teleporttest.Start(teleporttest.Options{})
	if err != nil {
		return err
	}
	env.Defer(func() { _ = cluster.Close() })
	env.Setenv("PROXY", cluster.Address())
	identity, roots := filepath.Join(env.WorkDir, "identity"), filepath.Join(env.WorkDir, "roots.pem")
	if err := errors.Join(os.WriteFile(identity, cluster.IdentityFile(), 0o600), os.WriteFile(roots, cluster.RootsPEM(), 0o600)); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	client, err := teleport.Dial(ctx, teleport.Config{
		Address: cluster.Address(), RootsPEM: cluster.RootsPEM(), Login: teleport.IdentityFile(identity), Now: deployment.Now,
	})
	if err != nil {
		return err
	}
	defer func() { _ = client.Close() }()
	parts := strings.Split(knownHolder, "/")
	return client.UpsertNode(ctx, node.Node{
		ID: ec2ref.Instance{Account: ec2ref.Account(parts[0]), Region: ec2ref.Region(parts[1]), ID: ec2ref.InstanceID(parts[2])}.NodeID(), Hostname: "web", Address: "10.0.0.7:22",
		Labels: map[string]string{
			node.SignerLabel: "signer.example.com", node.AccountLabel: parts[0], node.RegionLabel: parts[1], node.InstanceLabel: parts[2],
		}, Expires: deployment.Now().Add(time.Hour),
	})
}

const (
	// operatorARN is the person who runs the scripts' commands.
	operatorARN = "arn:aws:sts::111122223333:assumed-role/Operator/ann"
	// newKey is the host key that they permit.
	newKey       = "SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
	knownHolder  = "111122223333/us-west-2/i-0a1b2c3d4e5f60718"
	fakeIdentity = `<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><GetCallerIdentityResult>` +
		`<Arn>` + operatorARN + `</Arn><Account>111122223333</Account></GetCallerIdentityResult></GetCallerIdentityResponse>`
)

// fakeAWS answers as STS, and as DynamoDB with a ledger that knows two instances, one of which
// is retired. It does not keep what is written, and requires the operator in it.
type fakeAWS struct{ t *testing.T }

// fakeItems is the content of the fake ledger. A certificate may still name "web", and none
// names "old-web" anymore.
func fakeItems() map[string]map[string]any {
	soon := strconv.FormatInt(time.Now().Add(24*time.Hour).Unix(), 10)
	long := strconv.FormatInt(time.Now().Add(-24*time.Hour).Unix(), 10)
	return map[string]map[string]any{
		"instance#" + knownHolder: {
			"version": n("3"), "generation": n("1"), "keys": map[string]any{"SS": []string{"SHA256:old"}},
			"confirmed": s("web"), "rule": s("web"), "program": s("v1.2.3"), "names": map[string]any{"M": map[string]any{"web": n(soon), "old-web": n(long)}},
		},
		"instance#111122223333/us-west-2/i-0bbbbbbbbbbbbbbbb": {
			"version": n("2"), "generation": n("1"), "names": map[string]any{"M": map[string]any{}}, "ended": map[string]any{"BOOL": true},
		},
		"refused#111122223333/us-west-2/i-0cccccccccccccccc": {
			"refused_at": n(long), "code": s("policy_refused"), "reason": s("policy_refused: no rule matches"),
		},
		"refused#111122223333/us-west-2/i-0dddddddddddddddd": {
			"refused_at": n(long), "code": s("policy_refused"), "reason": s("policy_refused: no rule matches"),
		},
		"name#web":     {"holder": s(knownHolder)},
		"name#old-web": {"holder": s(knownHolder)},
	}
}

func (f fakeAWS) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var in struct {
		RequestItems map[string]struct {
			Keys []struct{ PK struct{ S string } }
		}
		TableName     string
		Segment       int
		Key           struct{ PK struct{ S string } }
		Item          map[string]any
		TransactItems []struct {
			Put struct {
				TableName string
				Item      map[string]any
			}
		}
	}
	target := r.Header.Get("X-Amz-Target")
	if strings.HasPrefix(target, "DynamoDB_") {
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
			f.t.Error(err)
		}
	}
	switch target {
	case "":
		f.query(w, r)
	case "DynamoDB_20120810.Scan":
		items := []any{}
		for pk, item := range fakeItems() {
			if item["pk"] = s(pk); in.Segment == 0 && !strings.HasPrefix(pk, "name#") {
				items = append(items, item)
			}
		}
		f.answer(w, map[string]any{"Items": items, "Count": len(items)})
	case "DynamoDB_20120810.BatchGetItem":
		items := []any{}
		for _, key := range in.RequestItems["hallmark"].Keys {
			if item, there := fakeItems()[key.PK.S]; there {
				item["pk"] = s(key.PK.S)
				items = append(items, item)
			}
		}
		f.answer(w, map[string]any{"Responses": map[string]any{"hallmark": items}})
	case "DynamoDB_20120810.GetItem":
		item, there := organizationItems(r.Context(), f.t)[in.Key.PK.S]
		if !there {
			f.answer(w, struct{}{})
			return
		}
		f.answer(w, map[string]any{"Item": map[string]any{"pk": s(in.Key.PK.S), "text": s(item)}})
	case "DynamoDB_20120810.PutItem":
		if text := fmt.Sprint(in.Item["text"]); strings.Contains(fmt.Sprint(in.Item["pk"]), organization.Item) {
			if in.TableName != "hallmark" || !strings.Contains(text, operatorARN) {
				f.t.Errorf("put %s", text)
			}
			f.answer(w, struct{}{})
			return
		}
		permit := fmt.Sprint(in.Item["permit"])
		if in.TableName != "hallmark" || !strings.Contains(permit, operatorARN) || !strings.Contains(permit, "SHA256:") {
			f.t.Errorf("put into table %q: permit %s", in.TableName, permit)
		}
		f.answer(w, struct{}{})
	case "DynamoDB_20120810.TransactWriteItems":
		if all := fmt.Sprint(in.TransactItems); !strings.Contains(all, operatorARN) {
			f.t.Errorf("write %s does not name the operator", all)
		}
		f.answer(w, struct{}{})
	default:
		f.t.Errorf("call of %s", target)
		w.WriteHeader(http.StatusBadRequest)
	}
}

// query answers as STS and as EC2, which has the known instance and one that never enrolled.
// In eu-west-1 nobody may ask it.
func (f fakeAWS) query(w http.ResponseWriter, r *http.Request) {
	if err := r.ParseForm(); err != nil {
		f.t.Error(err)
	}
	switch {
	case r.Form.Get("Action") == "GetCallerIdentity":
		_, _ = fmt.Fprint(w, fakeIdentity)
	case r.Form.Get("Action") == "AssumeRole":
		_, _ = fmt.Fprintf(w, `<AssumeRoleResponse><AssumeRoleResult><AssumedRoleUser><Arn>arn:aws:sts::%[1]s:assumed-role/r/s</Arn><AssumedRoleId>A:s</AssumedRoleId></AssumedRoleUser>`+
			`<Credentials><AccessKeyId>ROLE%[1]s</AccessKeyId><SecretAccessKey>x</SecretAccessKey>`+
			`<SessionToken>x</SessionToken><Expiration>2999-01-01T00:00:00Z</Expiration></Credentials></AssumeRoleResult></AssumeRoleResponse>`,
			strings.Split(r.Form.Get("RoleArn"), ":")[4])
	case strings.Contains(r.Header.Get("Authorization"), "/eu-west-1/ec2/"):
		w.WriteHeader(http.StatusForbidden)
		_, _ = fmt.Fprint(w, `<Response><Errors><Error><Code>UnauthorizedOperation</Code><Message>no</Message></Error></Errors></Response>`)
	case r.Form.Get("Action") == "DescribeImages":
		_, _ = fmt.Fprint(w, `<DescribeImagesResponse><imagesSet><item><imageId>ami-0a1b2c3d4e5f60718</imageId><imageOwnerId>111122223333</imageOwnerId></item></imagesSet></DescribeImagesResponse>`)
	case r.Form.Get("Action") == "DescribeInstances":
		var items strings.Builder
		for _, id := range []string{"i-0a1b2c3d4e5f60718", "i-0dddddddddddddddd"} {
			if asked := r.Form.Get("InstanceId.1"); asked == "" || asked == id {
				_, _ = fmt.Fprintf(&items, `<item><instanceId>%s</instanceId><imageId>ami-0a1b2c3d4e5f60718</imageId><privateIpAddress>10.0.0.7</privateIpAddress>`+
					`<launchTime>2026-01-02T03:04:05.000Z</launchTime><instanceState><name>running</name></instanceState></item>`, id)
			}
		}
		owner := "111122223333"
		if _, role, ok := strings.Cut(r.Header.Get("Authorization"), "Credential=ROLE"); ok {
			owner = role[:len(owner)]
		}
		_, _ = fmt.Fprintf(w, `<DescribeInstancesResponse><reservationSet><item><ownerId>%s</ownerId><instancesSet>%s</instancesSet></item></reservationSet></DescribeInstancesResponse>`, owner, &items)
	default:
		f.t.Errorf("call of %s", r.Form.Get("Action"))
		w.WriteHeader(http.StatusBadRequest)
	}
}

// answer answers with the checksum that DynamoDB's client compares.
func (f fakeAWS) answer(w http.ResponseWriter, content any) {
	body, err := json.Marshal(content)
	if err != nil {
		f.t.Error(err)
	}
	w.Header().Set("X-Amz-Crc32", strconv.FormatUint(uint64(crc32.ChecksumIEEE(body)), 10))
	_, _ = w.Write(body)
}

func s(text string) map[string]string   { return map[string]string{"S": text} }
func n(number string) map[string]string { return map[string]string{"N": number} }

// The commands for policies are for machines without AWS: their scripts run where nothing
// answers.
func TestPolicyScriptsReachNobody(t *testing.T) {
	scripts, err := filepath.Glob(filepath.Join("testdata", "script", "policy_*.txt"))
	if err != nil || len(scripts) == 0 {
		t.Fatalf("%d scripts, error %v", len(scripts), err)
	}
	for _, script := range scripts {
		if text, err := os.ReadFile(script); err != nil || strings.Contains(string(text), "$AWS") {
			t.Errorf("%s: error %v, or it reaches AWS", script, err)
		}
	}
}

func TestReleasedFlags(t *testing.T) {
	clitest.ReleasedFlags(t, Command,
		"policy check -deployment d.yaml", "policy explain -deployment d.yaml", "policy explain -instance facts.json",
		"permit-rekey -table t", "permit-rekey -account 1", "permit-rekey -region r", "permit-rekey -instance i",
		"permit-rekey -fingerprint SHA256:a", "permit-rekey -from -", "permit-rekey -hours 0.5",
		"end -table t", "end -account 1", "end -region r", "end -instance i", "end -proxy p:443", "end -identity f", "end -roots f",
		"organization show -table t", "organization show -deployment d", "organization confirm -table t",
		"organization confirm -deployment d", "organization confirm -change c",
		"release -table t", "release -name -web")
}

func TestExitCodes(t *testing.T) {
	dir := t.TempDir()
	file := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	good := file("good.yaml", "version: 1\nrules: [{name: a, match: {image_owners: [self], max_age: any}}]\n")
	broken := file("broken.yaml", "version: 1\n")
	own := file("own.json", `{"account": "111122223333", "region": "us-west-2", "instance_id": "i-0a1b2c3d4e5f60718", "image_owner": "111122223333", "private_ip": "10.0.0.7"}`)
	foreign := file("foreign.json", `{"account": "111122223333", "region": "us-west-2", "instance_id": "i-0a1b2c3d4e5f60718", "image_owner": "999999999999"}`)
	tests := []struct {
		args []string
		want int
	}{
		{[]string{"help"}, cli.OK},
		{[]string{"policy", "check", good}, cli.OK},
		{[]string{"policy", "check", broken}, cli.Failed},
		{[]string{"policy", "check"}, cli.Usage},
		{[]string{"policy", "explain", good, "--instance", own}, cli.OK},
		{[]string{"policy", "explain", good, "--instance", foreign}, cli.Refused},
		{[]string{"policy", "explain", good, "--instance", broken}, cli.Failed},
		{nil, cli.Usage},
	}
	for _, tt := range tests {
		var out, err bytes.Buffer
		if got := cli.Run(t.Context(), Command(), tt.args, strings.NewReader(""), &out, &err); got != tt.want {
			t.Errorf("%q: exit code %d, want %d: %s", tt.args, got, tt.want, &err)
		}
	}
}
