package main

import (
	"context"
	"log/slog"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"go.yaml.in/yaml/v3"

	"github.com/hallmark-ssh/hallmark/internal/signer/deployment"
	"github.com/hallmark-ssh/hallmark/internal/signer/deployment/deploymenttest"
	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
	"github.com/hallmark-ssh/hallmark/internal/signer/organization"
	"github.com/hallmark-ssh/hallmark/internal/signer/stored"
)

// itemsSeen is a table that ignores conditions, and records the keys that are used.
type itemsSeen struct {
	items map[string]map[string]types.AttributeValue
	keys  []string
	scans []*dynamodb.ScanInput
}

func (s *itemsSeen) see(item map[string]types.AttributeValue) string {
	key := item["pk"].(*types.AttributeValueMemberS).Value
	s.keys = append(s.keys, key)
	return key
}

func (s *itemsSeen) GetItem(_ context.Context, in *dynamodb.GetItemInput, _ ...func(*dynamodb.Options)) (*dynamodb.GetItemOutput, error) {
	return &dynamodb.GetItemOutput{Item: s.items[s.see(in.Key)]}, nil
}

func (s *itemsSeen) BatchGetItem(_ context.Context, in *dynamodb.BatchGetItemInput, _ ...func(*dynamodb.Options)) (*dynamodb.BatchGetItemOutput, error) {
	out := &dynamodb.BatchGetItemOutput{Responses: make(map[string][]map[string]types.AttributeValue)}
	for table, wanted := range in.RequestItems {
		for _, key := range wanted.Keys {
			if item := s.items[s.see(key)]; item != nil {
				out.Responses[table] = append(out.Responses[table], item)
			}
		}
	}
	return out, nil
}

func (s *itemsSeen) PutItem(_ context.Context, in *dynamodb.PutItemInput, _ ...func(*dynamodb.Options)) (*dynamodb.PutItemOutput, error) {
	s.items[s.see(in.Item)] = in.Item
	return &dynamodb.PutItemOutput{}, nil
}

func (s *itemsSeen) Scan(_ context.Context, in *dynamodb.ScanInput, _ ...func(*dynamodb.Options)) (*dynamodb.ScanOutput, error) {
	s.scans = append(s.scans, in)
	return new(dynamodb.ScanOutput), nil
}

func (s *itemsSeen) TransactWriteItems(_ context.Context, in *dynamodb.TransactWriteItemsInput, _ ...func(*dynamodb.Options)) (*dynamodb.TransactWriteItemsOutput, error) {
	for _, action := range in.TransactItems {
		s.items[s.see(action.Put.Item)] = action.Put.Item
	}
	return &dynamodb.TransactWriteItemsOutput{}, nil
}

// The fleet's role limits which items it may use by their keys. No emulator enforces that, so
// this compares the role with what the function does.
func TestTheFleetsRoleReachesItsItems(t *testing.T) {
	ctx, now := t.Context(), time.Now()
	table := &itemsSeen{items: make(map[string]map[string]types.AttributeValue)}
	l := ledger.NewDynamoDB(table, "ledger", time.Now)
	claim := ledger.Claim{Instance: ref(1), Fingerprints: []string{"SHA256:a"}, Hostname: "web-" + instanceID(1), ValidUntil: now.Add(time.Hour)}
	granted := check(l.Claim(ctx, claim, now))(t)
	if err := l.Confirm(ctx, claim, granted, now); err != nil {
		t.Fatal(err)
	}

	table.keys = nil // from here on, the fleet runs
	check(l.Lookup(ctx, ref(1)))(t)
	for _, err := range []error{l.SeeTags(ctx, ref(1), 1), l.Retire(ctx, ref(1)), l.Retire(ctx, ref(2))} {
		if err != nil {
			t.Fatal(err)
		}
	}
	texts := []stored.Text{{Client: table, Table: "ledger", Name: "policy/signer"}}
	for _, name := range namesInTable(t) {
		texts = append(texts, stored.Text{Client: table, Table: "ledger", Name: name})
	}
	for _, text := range texts {
		check(text.Load(ctx))(t)
		if err := text.Save(ctx, []byte("x")); err != nil {
			t.Fatal(err)
		}
		if err := text.Update(ctx, func([]byte) ([]byte, error) { return []byte("y"), nil }); err != nil {
			t.Fatal(err)
		}
	}
	check(l.RetireExpired(ctx, ref(3), now))(t)
	readOrganization(t, table)

	patterns := leadingKeys(t)
	used := make(map[string]bool)
	for _, key := range table.keys {
		n := slices.IndexFunc(patterns, func(pattern string) bool {
			prefix, isPrefix := strings.CutSuffix(pattern, "*")
			return key == pattern || isPrefix && strings.HasPrefix(key, prefix)
		})
		if n < 0 {
			t.Errorf("the role may not touch %s", key)
			continue
		}
		used[patterns[n]] = true
	}
	if len(used) != len(patterns) {
		t.Errorf("of %q only %v are needed", patterns, used)
	}
}

// oneAccount is an organization with one account.
type oneAccount struct{}

func (oneAccount) Read(context.Context) (organization.List, error) {
	return organization.List{
		ID: "o-a1b2c3d4e5", Units: []organization.Unit{{ID: "r-ab12", Name: "Root"}},
		Accounts: []organization.Account{{ID: testAccount, Name: "test"}},
	}, nil
}

// readOrganization stores a reading, as the function does, and reads it, as both do.
func readOrganization(t *testing.T, table *itemsSeen) {
	t.Helper()
	store := organization.Store{Name: organization.Item + "signer", Text: func(name string) organization.Text {
		return stored.Text{Client: table, Table: "ledger", Name: name}
	}}
	log := slog.New(slog.DiscardHandler)
	check(organization.Refresher{Organization: oneAccount{}, Store: store, Log: log, Now: time.Now}.Refresh(t.Context()))(t)
	members := &organization.Members{Store: store, Log: log, Now: time.Now}
	if view := check(members.Current(t.Context()))(t); !view.Has(testAccount) {
		t.Error("the stored account is no member")
	}
}

// namesInTable returns the names of what the function "fleet" stores in addition to the
// ledger.
func namesInTable(t *testing.T) []string {
	t.Helper()
	t.Setenv("HALLMARK_LEDGER_TABLE", "ledger")
	t.Setenv("HALLMARK_DEPLOYMENT", deploymenttest.Write(t, map[string]string{
		"deployment.yaml": strings.Replace(deploymenttest.Minimal, "identity.pem}", "identity.pem}, fleet_login: {method: identity-file, file: identity.pem}", 1),
		"identity.pem":    "",
	}))
	u := check(deployment.NewUpkeep(t.Context(), slog.New(slog.DiscardHandler)))(t)
	return []string{u.Cursor.Name, u.Fleet.Missing.(stored.Text).Name, u.Fleet.Walk.(stored.Text).Name}
}

// A scan reaches every item, so the fleet's role limits which attributes it may request.
func TestTheFleetsRoleReachesWhatItScans(t *testing.T) {
	table := &itemsSeen{items: make(map[string]map[string]types.AttributeValue)}
	check(ledger.NewDynamoDB(table, "ledger", time.Now).Expired(t.Context(), "instance#x", time.Now()))(t)
	if len(table.scans) != 1 {
		t.Fatalf("%d scans", len(table.scans))
	}
	in := table.scans[0]
	asked := []string{"pk"} // where it begins
	for _, expression := range []*string{in.FilterExpression, in.ProjectionExpression} {
		asked = append(asked, regexp.MustCompile(`(?:^|[ (])([a-z_]+)\b`).FindAllString(aws.ToString(expression), -1)...)
	}
	for n := range asked {
		asked[n] = strings.Trim(asked[n], " (")
	}
	slices.Sort(asked)
	asked = slices.DeleteFunc(slices.Compact(asked), func(word string) bool { return word == "begins_with" || word == "attribute_not_exists" })

	var allowed []string
	var selects string
	walk(field(readTemplate(t, "template.yaml"), "Resources", "FleetRole"), "", func(_ string, n *yaml.Node) {
		for _, name := range field(n, "ForAllValues:StringEquals", "dynamodb:Attributes").Content {
			allowed = append(allowed, name.Value)
		}
		selects += field(n, "StringEquals", "dynamodb:Select").Value
	})
	slices.Sort(allowed)
	if !slices.Equal(asked, allowed) {
		t.Errorf("the scan asks for %q, and the role may ask for %q", asked, allowed)
	}
	if string(in.Select) != selects || selects == "" {
		t.Errorf("the scan selects %q, and the role may select %q", in.Select, selects)
	}
}

// leadingKeys returns the keys that the fleet's role may write.
func leadingKeys(t *testing.T) []string {
	t.Helper()
	var patterns []string
	walk(field(readTemplate(t, "template.yaml"), "Resources", "FleetRole"), "", func(_ string, n *yaml.Node) {
		for _, key := range field(n, "ForAllValues:StringLike", "dynamodb:LeadingKeys").Content {
			patterns = append(patterns, key.Value)
		}
	})
	if len(patterns) == 0 {
		t.Fatal("the template bounds no keys")
	}
	slices.Sort(patterns)
	return slices.Compact(patterns)
}

func check[T any](value T, err error) func(*testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
}
