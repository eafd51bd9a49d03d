package main

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"
	"go.yaml.in/yaml/v3"

	"github.com/hallmark-ssh/hallmark/internal/ledger"
	"github.com/hallmark-ssh/hallmark/internal/memo"
)

// itemsSeen is a table that keeps no conditions, and notes the keys that are touched.
type itemsSeen struct {
	items map[string]map[string]types.AttributeValue
	keys  []string
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

func (s *itemsSeen) TransactWriteItems(_ context.Context, in *dynamodb.TransactWriteItemsInput, _ ...func(*dynamodb.Options)) (*dynamodb.TransactWriteItemsOutput, error) {
	for _, action := range in.TransactItems {
		s.items[s.see(action.Put.Item)] = action.Put.Item
	}
	return &dynamodb.TransactWriteItemsOutput{}, nil
}

// The fleet's role may touch items by their keys, which no emulator enforces: what the
// function does has to be among them.
func TestTheFleetsRoleReachesItsItems(t *testing.T) {
	ctx, now := t.Context(), time.Now()
	table := &itemsSeen{items: make(map[string]map[string]types.AttributeValue)}
	l := ledger.NewDynamoDB(table, "ledger", time.Now)
	claim := ledger.Claim{Instance: ref(1), Fingerprints: []string{"SHA256:a"}, Hostname: "web-" + instanceID(1), End: now.Add(time.Hour)}
	granted := check(l.Claim(ctx, claim, now))(t)
	if err := l.Confirm(ctx, claim, granted); err != nil {
		t.Fatal(err)
	}

	table.keys = nil // from here on it is the fleet
	check(l.Lookup(ctx, ref(1)))(t)
	for _, err := range []error{l.SeeTags(ctx, ref(1), 1), l.End(ctx, ref(1)), l.End(ctx, ref(2))} {
		if err != nil {
			t.Fatal(err)
		}
	}
	bookmark, last := memo.Memo{Client: table, Table: "ledger", Name: sweepMemo}, memo.Memo{Client: table, Table: "ledger", Name: "policy"}
	check(bookmark.Load(ctx))(t)
	check(last.Load(ctx))(t)
	for _, err := range []error{bookmark.Save(ctx, []byte("x")), last.Save(ctx, []byte("x"))} {
		if err != nil {
			t.Fatal(err)
		}
	}

	missing := memo.Memo{Client: table, Table: "ledger", Name: missingMemo + testAudience}
	if err := missing.Update(ctx, func([]byte) ([]byte, error) { return []byte("x"), nil }); err != nil {
		t.Fatal(err)
	}

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
