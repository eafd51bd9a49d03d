package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"hash/crc32"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	if os.Getenv("AWS_LAMBDA_RUNTIME_API") != "" { // e2e/lambdahost runs this test as the function
		main()
		return
	}
	testscript.Main(m, map[string]func(){"hallmark-signer": main})
}

// TestScript runs the command lines in testdata/script against the real main. AWS is
// out of reach of the scripts, but for an STS and a DynamoDB at $AWS.
func TestScript(t *testing.T) {
	aws := httptest.NewServer(fakeAWS{t})
	t.Cleanup(aws.Close)
	testscript.Run(t, testscript.Params{
		Dir: filepath.Join("testdata", "script"),
		Setup: func(env *testscript.Env) error {
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

const (
	// operator is who runs the commands of the scripts.
	operator = "arn:aws:sts::111122223333:assumed-role/Operator/ann"
	// newKey is the host key that they permit, for the one instance that is known.
	newKey       = "SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
	knownRecord  = "instance#111122223333/us-west-2/i-0a1b2c3d4e5f60718"
	fakeIdentity = `<GetCallerIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><GetCallerIdentityResult>` +
		`<Arn>` + operator + `</Arn></GetCallerIdentityResult></GetCallerIdentityResponse>`
)

// fakeAWS answers as STS, and as DynamoDB with a ledger that knows one instance.
type fakeAWS struct{ t *testing.T }

func (f fakeAWS) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var in struct {
		RequestItems map[string]struct {
			Keys []struct{ PK struct{ S string } }
		}
		TableName string
		Item      map[string]any
	}
	target := r.Header.Get("X-Amz-Target")
	if strings.HasPrefix(target, "DynamoDB_") {
		if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
			f.t.Error(err)
		}
	}
	switch target {
	case "":
		_, _ = fmt.Fprint(w, fakeIdentity)
	case "DynamoDB_20120810.BatchGetItem":
		items := []any{}
		if keys := in.RequestItems["hallmark"].Keys; len(keys) == 1 && keys[0].PK.S == knownRecord {
			items = append(items, map[string]any{
				"pk": s(knownRecord), "version": n("3"), "generation": n("1"), "keys": map[string]any{"SS": []string{"SHA256:old"}},
				"names": map[string]any{"M": map[string]any{}},
			})
		}
		f.answer(w, map[string]any{"Responses": map[string]any{"hallmark": items}})
	case "DynamoDB_20120810.PutItem":
		permit := fmt.Sprint(in.Item["permit"])
		if in.TableName != "hallmark" || !strings.Contains(permit, operator) || !strings.Contains(permit, newKey) {
			f.t.Errorf("put into table %q: permit %s", in.TableName, permit)
		}
		f.answer(w, struct{}{})
	default:
		f.t.Errorf("call of %s", target)
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

// The commands for policies are for machines without AWS: their scripts run where
// nobody answers.
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
		{[]string{"help"}, exitOK},
		{[]string{"policy", "check", good}, exitOK},
		{[]string{"policy", "check", broken}, exitFailed},
		{[]string{"policy", "check"}, exitUsage},
		{[]string{"policy", "explain", good, "--instance", own}, exitOK},
		{[]string{"policy", "explain", good, "--instance", foreign}, exitRefused},
		{[]string{"policy", "explain", good, "--instance", broken}, exitFailed},
		{nil, exitUsage},
	}
	for _, tt := range tests {
		var out, err bytes.Buffer
		if got := runCommand(t.Context(), tt.args, strings.NewReader(""), &out, &err); got != tt.want {
			t.Errorf("%q: exit code %d, want %d: %s", tt.args, got, tt.want, &err)
		}
	}
}
