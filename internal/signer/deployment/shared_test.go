package deployment

import (
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/hallmark-ssh/hallmark/internal/signer/deployment/deploymenttest"
	"github.com/hallmark-ssh/hallmark/internal/signer/stored"
)

// sharedAWS has the parameters of several signers, and the one table that they share.
type sharedAWS struct {
	parameters map[string]string
	items      map[string]json.RawMessage
}

// ServeHTTP answers one request at a time: the signers in these tests do not overlap.
func (s *sharedAWS) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var in struct {
		Name string
		Key  struct{ Pk struct{ S string } }
		Item json.RawMessage
	}
	body, err := io.ReadAll(r.Body)
	if err == nil {
		err = json.Unmarshal(body, &in)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	answer := map[string]any{}
	switch _, action, _ := strings.Cut(r.Header.Get("X-Amz-Target"), "."); action {
	case "GetParameter":
		answer["Parameter"] = map[string]string{"Name": in.Name, "Value": s.parameters[in.Name]}
	case "GetItem":
		if item, ok := s.items[in.Key.Pk.S]; ok {
			answer["Item"] = item
		}
	case "PutItem":
		var key struct{ Pk struct{ S string } }
		if err := json.Unmarshal(in.Item, &key); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		s.items[key.Pk.S] = in.Item
	default:
		http.Error(w, action, http.StatusNotFound)
		return
	}
	w.Header().Set("Content-Type", "application/x-amz-json-1.0")
	_ = json.NewEncoder(w).Encode(answer)
}

// use sets the environment of a signer with that audience.
func (s *sharedAWS) use(t *testing.T, audience string) {
	t.Helper()
	t.Setenv("HALLMARK_POLICY_PARAMETER", "/"+audience)
	t.Setenv("HALLMARK_DEPLOYMENT", deploymenttest.Write(t, map[string]string{
		"deployment.yaml": strings.NewReplacer("hallmark.example.com", audience,
			"identity.pem}", "identity.pem}, fleet_login: {method: identity-file, file: identity.pem}").Replace(deploymenttest.Minimal),
		"identity.pem": "",
	}))
}

// Two signers of a cluster share a ledger. A signer that starts with a broken parameter must not
// take the other's last good policy for its own, nor the other's place in the sweep.
func TestSignersShareALedgerButNoPolicy(t *testing.T) {
	const policyOf = "version: 1\nrules: [{name: NAME, match: {image_owners: [self], max_age: 1h}}]\n"
	aws := &sharedAWS{parameters: make(map[string]string), items: make(map[string]json.RawMessage)}
	server := httptest.NewServer(aws)
	defer server.Close()
	for name, value := range map[string]string{
		"AWS_ENDPOINT_URL_SSM": server.URL, "AWS_ENDPOINT_URL_DYNAMODB": server.URL, "AWS_REGION": "us-west-2",
		"AWS_ACCESS_KEY_ID": "AKIATEST", "AWS_SECRET_ACCESS_KEY": "secret", "HALLMARK_LEDGER_TABLE": "ledger",
	} {
		t.Setenv(name, value)
	}
	audiences := []string{"one.example.com", "two.example.com"}
	sums, names := make(map[string]string), make(map[string]bool)
	for _, audience := range audiences {
		aws.use(t, audience)
		aws.parameters["/"+audience] = strings.Replace(policyOf, "NAME", audience[:3], 1)
		sums[audience] = policyInForce(t)
		u, err := NewUpkeep(t.Context(), slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range []string{u.Cursor.Name, u.Fleet.Missing.(stored.Text).Name, u.Fleet.Walk.(stored.Text).Name} {
			if names[name] {
				t.Errorf("both signers use the item %s", name)
			}
			names[name] = true
		}
	}
	for _, audience := range audiences {
		aws.use(t, audience)
		aws.parameters["/"+audience] = "rules: none"
		if sum := policyInForce(t); sum != sums[audience] {
			t.Errorf("%s starts with the policy %s, want its own, %s", audience, sum, sums[audience])
		}
	}
}

// policyInForce starts the signer of the environment, and returns the SHA-256 of its policy.
func policyInForce(t *testing.T) string {
	t.Helper()
	s, _, err := NewSigner(t.Context(), slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	p, err := s.Policy(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return p.SHA256
}
