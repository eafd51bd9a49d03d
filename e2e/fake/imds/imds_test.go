package imds_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	sdk "github.com/aws/aws-sdk-go-v2/feature/ec2/imds"

	"github.com/hallmark-ssh/hallmark/e2e/fake/imds"
	"github.com/hallmark-ssh/hallmark/internal/identity"
	"github.com/hallmark-ssh/hallmark/internal/identity/identitytest"
)

const region = "hm-test-1"

func start(t *testing.T, change func(*imds.Options)) (*imds.Server, string) {
	t.Helper()
	r, err := identitytest.NewRegion(region)
	if err != nil {
		t.Fatal(err)
	}
	options := imds.Options{
		Region: r,
		Instance: imds.Instance{
			ID: "i-0123456789abcdef0", AccountID: "111122223333", AvailabilityZone: region + "a", ImageID: "ami-0123456789abcdef0",
			Type: "t3.micro", Architecture: "x86_64", PrivateIP: "10.0.0.4", Hostname: "ip-10-0-0-4." + region + ".compute.internal",
			Started: time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC), Tags: map[string]string{"Name": "web", "team": "blue"},
			PublicKey: "ssh-ed25519 AAAA key", UserData: "#cloud-config\n",
		},
		IdentityRole: imds.Credential{
			AccessKeyID: "ASIATEST", SecretAccessKey: "secret", SessionToken: "token", Expires: time.Now().Add(time.Hour),
		},
		TokensRequired: true,
	}
	if change != nil {
		change(&options)
	}
	s := imds.New(options)
	server := httptest.NewServer(s)
	t.Cleanup(server.Close)
	return s, server.URL
}

// AWS's own client is the reference for what a metadata service does.
func TestContractOfTheSDK(t *testing.T) {
	s, url := start(t, nil)
	checkContract(t, sdk.New(sdk.Options{Endpoint: url, EnableFallback: aws.FalseTernary}))
	for _, r := range s.Requests() {
		if r.Method == http.MethodGet && !r.Token {
			t.Errorf("%s counts as asked without a token", r.Path)
		}
	}
}

// checkContract is what holds for this service and for AWS's.
func checkContract(t *testing.T, client *sdk.Client) {
	document, err := client.GetInstanceIdentityDocument(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for page, want := range map[string]string{
		"instance-id":                 document.InstanceID,
		"ami-id":                      document.ImageID,
		"instance-type":               document.InstanceType,
		"local-ipv4":                  document.PrivateIP,
		"placement/region":            document.Region,
		"placement/availability-zone": document.AvailabilityZone,
	} {
		if got := metadata(t, client, page); got != want || got == "" {
			t.Errorf("%s is %q, the document says %q", page, got, want)
		}
	}
	if !strings.Contains(metadata(t, client, ""), "placement/") {
		t.Error("the list of names does not end folders in a slash")
	}
	checkDocument(t, client)
	checkIdentityRole(t, client, document.AccountID)

	_, err = client.GetMetadata(t.Context(), &sdk.GetMetadataInput{Path: "no-such-page"})
	status, ok := errors.AsType[interface {
		error
		HTTPStatusCode() int
	}](err)
	if !ok || status.HTTPStatusCode() != http.StatusNotFound {
		t.Errorf("no-such-page: %v, want 404", err)
	}
}

func metadata(t *testing.T, client *sdk.Client, page string) string {
	t.Helper()
	out, err := client.GetMetadata(t.Context(), &sdk.GetMetadataInput{Path: page})
	if err != nil {
		t.Fatal(err)
	}
	return read(t, out.Content)
}

func dynamic(t *testing.T, client *sdk.Client, page string) string {
	t.Helper()
	out, err := client.GetDynamicData(t.Context(), &sdk.GetDynamicDataInput{Path: page})
	if err != nil {
		t.Fatal(err)
	}
	return read(t, out.Content)
}

func read(t *testing.T, r io.ReadCloser) string {
	t.Helper()
	defer r.Close()
	data, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// checkDocument compares the signed document with the plain one. The signature is
// for the verifier's tests.
func checkDocument(t *testing.T, client *sdk.Client) {
	signed, err := identity.Decode([]byte(dynamic(t, client, "instance-identity/rsa2048")))
	if err != nil {
		t.Fatal(err)
	}
	if plain := dynamic(t, client, "instance-identity/document"); !bytes.Contains(signed, []byte(plain)) {
		t.Errorf("rsa2048 does not hold the document\n%s", plain)
	}
}

func checkIdentityRole(t *testing.T, client *sdk.Client, account string) {
	var info struct{ Code, AccountID string }
	decode(t, metadata(t, client, "identity-credentials/ec2/info"), &info)
	if info.Code != "Success" || info.AccountID != account {
		t.Errorf("identity role's info is %+v, want account %s", info, account)
	}
	var c struct {
		Code, Type, AccessKeyID, SecretAccessKey, Token string
		Expiration                                      time.Time
	}
	decode(t, metadata(t, client, "identity-credentials/ec2/security-credentials/ec2-instance"), &c)
	if c.Code != "Success" || c.Type != "AWS-HMAC" || !strings.HasPrefix(c.AccessKeyID, "ASIA") ||
		c.SecretAccessKey == "" || c.Token == "" || !c.Expiration.After(time.Now()) {
		t.Errorf("identity role's credentials have code %q, type %q, end %v", c.Code, c.Type, c.Expiration)
	}
}

func decode(t *testing.T, text string, into any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), into); err != nil {
		t.Fatalf("%v in %s", err, text)
	}
}

// ask sends one request. A header is "Name: value", or nothing.
func ask(t *testing.T, method, url, header string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(header) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ": ")
		req.Header.Set(name, value)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	return res.StatusCode, read(t, res.Body)
}

func TestTokens(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	_, url := start(t, func(o *imds.Options) { o.Now = func() time.Time { return now } })
	const ttl = "X-aws-ec2-metadata-token-ttl-seconds: "
	for _, test := range []struct {
		name, header string
		want         int
	}{
		{"good", ttl + "60", http.StatusOK},
		{"no lifetime", "", http.StatusBadRequest},
		{"too long", ttl + "21601", http.StatusBadRequest},
		{"zero", ttl + "0", http.StatusBadRequest},
		{"forwarded", ttl + "60\nX-Forwarded-For: 192.0.2.1", http.StatusForbidden},
	} {
		if got, _ := ask(t, http.MethodPut, url+"/latest/api/token", test.header); got != test.want {
			t.Errorf("token, %s: %d, want %d", test.name, got, test.want)
		}
	}

	_, token := ask(t, http.MethodPut, url+"/latest/api/token", ttl+"60")
	page := url + "/latest/meta-data/instance-id"
	check := func(name, header string, want int) {
		t.Helper()
		if got, _ := ask(t, http.MethodGet, page, header); got != want {
			t.Errorf("page, %s: %d, want %d", name, got, want)
		}
	}
	check("good token", "X-aws-ec2-metadata-token: "+token, http.StatusOK)
	check("no token", "", http.StatusUnauthorized)
	check("wrong token", "X-aws-ec2-metadata-token: x", http.StatusUnauthorized)
	now = now.Add(time.Minute)
	check("old token", "X-aws-ec2-metadata-token: "+token, http.StatusUnauthorized)
}

func TestTokensOptional(t *testing.T) {
	_, url := start(t, func(o *imds.Options) { o.TokensRequired = false })
	page := url + "/2021-03-23/meta-data/instance-id"
	if status, body := ask(t, http.MethodGet, page, ""); status != http.StatusOK || body != "i-0123456789abcdef0" {
		t.Errorf("without token: %d %q", status, body)
	}
	if status, _ := ask(t, http.MethodGet, page, "X-aws-ec2-metadata-token: x"); status != http.StatusUnauthorized {
		t.Errorf("with a wrong token: %d, want 401", status)
	}
}

func TestPages(t *testing.T) {
	_, url := start(t, func(o *imds.Options) { o.TokensRequired = false })
	for page, want := range map[string]string{
		"/latest/meta-data/tags/instance/":                "Name\nteam",
		"/latest/meta-data/tags/instance/team":            "blue",
		"/latest/meta-data/public-keys/":                  "0=default",
		"/latest/meta-data/public-keys/0/":                "openssh-key",
		"/latest/meta-data/public-keys/0/openssh-key":     "ssh-ed25519 AAAA key",
		"/latest/meta-data/placement":                     "availability-zone\nregion",
		"/latest/meta-data/identity-credentials/ec2/":     "info\nsecurity-credentials/",
		"/2021-03-23/meta-data/services/partition":        "aws",
		"/latest/user-data":                               "#cloud-config\n",
		"/latest/dynamic/instance-identity/no-such-page":  "404",
		"/2021-3-23/meta-data/instance-id":                "404",
		"/latest/meta-data/tags/instance/no-such-tag":     "404",
		"/latest/meta-data/identity-credentials/ec2/inf":  "404",
		"/latest/meta-data/public-keys/0/openssh-key/abc": "404",
	} {
		status, body := ask(t, http.MethodGet, url+page, "")
		if status == http.StatusNotFound {
			body = "404"
		}
		if body != want {
			t.Errorf("%s: %d %q, want %q", page, status, body, want)
		}
	}
}

func TestTrouble(t *testing.T) {
	s, url := start(t, func(o *imds.Options) { o.TokensRequired = false })
	role := url + "/latest/meta-data/identity-credentials/ec2/security-credentials/ec2-instance"

	s.SetTrouble(imds.Trouble{NoIdentityRole: true})
	if status, _ := ask(t, http.MethodGet, role, ""); status != http.StatusNotFound {
		t.Errorf("without identity role: %d, want 404", status)
	}
	s.SetTrouble(imds.Trouble{Disabled: true})
	if status, _ := ask(t, http.MethodGet, role, ""); status != http.StatusForbidden {
		t.Errorf("disabled: %d, want 403", status)
	}

	s.SetTrouble(imds.Trouble{Delay: time.Hour})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, role, nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultClient.Do(req)
	if err == nil {
		res.Body.Close()
	}
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("slow: %v, want the deadline", err)
	}
	s.SetTrouble(imds.Trouble{})
	if status, _ := ask(t, http.MethodGet, role, ""); status != http.StatusOK {
		t.Errorf("well again: %d", status)
	}
}
