package calls

import (
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

const ledgerARN = "arn:aws:dynamodb:us-west-2:111122223333:table/ledger"

func newRecorder() *Recorder {
	return &Recorder{
		Roles: map[string]string{"ASIAENROLL": "enroll"}, Region: "us-west-2", Account: "111122223333",
		Name: func(arn string) string {
			if arn == ledgerARN {
				return "Ledger"
			}
			return arn
		},
	}
}

// send sends a request through the recorder, and returns what its backend got.
func send(t *testing.T, r *Recorder, key, target, body string) string {
	t.Helper()
	var got string
	h := r.Handler(http.HandlerFunc(func(_ http.ResponseWriter, req *http.Request) {
		data, _ := io.ReadAll(req.Body)
		got = string(data)
	}))
	h.ServeHTTP(httptest.NewRecorder(), newRequest(t, key, target, body))
	return got
}

func newRequest(t *testing.T, key, target, body string) *http.Request {
	t.Helper()
	req := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/", strings.NewReader(body))
	req.Header.Set("Authorization", "AWS4-HMAC-SHA256 Credential="+key+"/20260101/us-west-2/x/aws4_request, SignedHeaders=host, Signature=0")
	if target != "" {
		req.Header.Set("X-Amz-Target", target)
	}
	return req
}

func TestCalls(t *testing.T) {
	const (
		dynamo        = "DynamoDB_20120810."
		organizations = "AWSOrganizationsV20161128."
	)
	for name, test := range map[string]struct {
		target, body string
		want         []Call
	}{
		"an item": {dynamo + "GetItem", `{"TableName":"ledger","Key":{"pk":{"S":"missing/1"}}}`, []Call{{
			Action: "dynamodb:GetItem", Resource: "Ledger",
			Context: map[string][]string{"dynamodb:LeadingKeys": {"missing/x"}, "dynamodb:Attributes": {"pk"}},
		}}},
		"a conditional write": {dynamo + "PutItem", `{"TableName":"` + ledgerARN + `","Item":{"pk":{"S":"key#SHA256:a"},"n":{"N":"1"}},
			"ConditionExpression":"attribute_not_exists(ended) AND (NOT #o = :a OR version IN (:b))","ExpressionAttributeNames":{"#o":"owner"}}`, []Call{{
			Action: "dynamodb:PutItem", Resource: "Ledger",
			Context: map[string][]string{"dynamodb:LeadingKeys": {"key#x"}, "dynamodb:Attributes": {"ended", "n", "owner", "pk", "version"}},
		}}},
		"a transaction": {dynamo + "TransactWriteItems", `{"TransactItems":[{"Put":{"TableName":"ledger","Item":{"pk":{"S":"name#a"}}}},
			{"ConditionCheck":{"TableName":"other","Key":{"pk":{"S":"policy"}},"ConditionExpression":"a = :b"}}]}`, []Call{
			{Action: "dynamodb:ConditionCheckItem", Resource: "arn:aws:dynamodb:us-west-2:111122223333:table/other", Context: map[string][]string{
				"dynamodb:LeadingKeys": {"policy"}, "dynamodb:Attributes": {"a", "pk"},
			}},
			{Action: "dynamodb:PutItem", Resource: "Ledger", Context: map[string][]string{
				"dynamodb:LeadingKeys": {"name#x"}, "dynamodb:Attributes": {"pk"}, "dynamodb:EnclosingOperation": {"TransactWriteItems"},
			}},
		}},
		"many items": {dynamo + "BatchGetItem", `{"RequestItems":{"ledger":{"Keys":[{"pk":{"S":"key#a"}},{"pk":{"S":"key#b"}},{"pk":{"S":"sweep"}}]}}}`, []Call{{
			Action: "dynamodb:BatchGetItem", Resource: "Ledger",
			Context: map[string][]string{"dynamodb:LeadingKeys": {"key#x", "sweep"}, "dynamodb:Attributes": {"pk"}},
		}}},
		"a scan": {dynamo + "Scan", `{"TableName":"ledger","Select":"SPECIFIC_ATTRIBUTES","FilterExpression":"begins_with(pk, :a) AND lease < :b","ProjectionExpression":"pk, ended"}`, []Call{{
			Action: "dynamodb:Scan", Resource: "Ledger",
			Context: map[string][]string{"dynamodb:Select": {"SPECIFIC_ATTRIBUTES"}, "dynamodb:Attributes": {"ended", "lease", "pk"}},
		}}},
		"a parameter": {"AmazonSSM.GetParameter", `{"Name":"/hallmark/policy"}`, []Call{{
			Action: "ssm:GetParameter", Resource: "arn:aws:ssm:us-west-2:111122223333:parameter/hallmark/policy", Context: map[string][]string{},
		}}},
		"a secret":  {"secretsmanager.GetSecretValue", `{"SecretId":"arn:s"}`, []Call{{Action: "secretsmanager:GetSecretValue", Resource: "arn:s", Context: map[string][]string{}}}},
		"instances": {"", "Action=DescribeInstances&Version=2016-11-15", []Call{{Action: "ec2:DescribeInstances", Context: map[string][]string{}}}},
		"a role": {"", "Action=AssumeRole&RoleArn=arn%3Ar&ExternalId=e", []Call{{
			Action: "sts:AssumeRole", Resource: "arn:r", Context: map[string][]string{"sts:ExternalId": {"e"}},
		}}},
		"who am I": {"", "Action=GetCallerIdentity", nil},
		"an organization": {organizations + "ListRoots", "{}", []Call{{
			Action: "organizations:ListRoots", Context: map[string][]string{},
		}}},
		"a unit's accounts": {organizations + "ListAccountsForParent", `{"ParentId":"ou-ab12-c3d4e5f6"}`, []Call{{
			Action: "organizations:ListAccountsForParent", Resource: Unit, Context: map[string][]string{},
		}}},
		"the units below the root": {organizations + "ListOrganizationalUnitsForParent", `{"ParentId":"r-ab12","MaxResults":20}`, []Call{{
			Action: "organizations:ListOrganizationalUnitsForParent", Resource: Root, Context: map[string][]string{},
		}}},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRecorder()
			if got := send(t, r, "ASIAENROLL", test.target, test.body); got != test.body {
				t.Errorf("the backend got %q", got)
			}
			got, err := r.Calls()
			for n := range test.want {
				test.want[n].By = "enroll"
			}
			if err != nil || len(got) != len(test.want) || len(got) > 0 && !reflect.DeepEqual(got, test.want) {
				t.Errorf("got %v, %v, want %v", got, err, test.want)
			}
		})
	}
}

// What a function does with a role that it has assumed is the role's, also over another
// handler of the same recorder.
func TestAssumedRoles(t *testing.T) {
	const (
		granted = "<AssumeRoleResponse><Credentials><AccessKeyId>ASIAMEMBER</AccessKeyId></Credentials></AssumeRoleResponse>"
		refused = "<ErrorResponse><Error><Code>AccessDenied</Code></Error></ErrorResponse>"
	)
	for name, test := range map[string]struct {
		key, answer string
		status      int
		want        []string
	}{
		"a session":         {"ASIAENROLL", granted, http.StatusOK, []string{"arn:r ec2:DescribeImages", "enroll sts:AssumeRole"}},
		"a refusal":         {"ASIAENROLL", refused, http.StatusForbidden, []string{"enroll sts:AssumeRole"}},
		"another's session": {"ASIASTRANGER", granted, http.StatusOK, nil},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRecorder()
			sts := r.Handler(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("X-From", "sts")
				w.WriteHeader(test.status)
				_, _ = io.WriteString(w, test.answer)
			}))
			got := httptest.NewRecorder()
			sts.ServeHTTP(got, newRequest(t, test.key, "", "Action=AssumeRole&RoleArn=arn%3Ar"))
			if got.Code != test.status || got.Body.String() != test.answer || got.Header().Get("X-From") != "sts" {
				t.Errorf("the caller gets %d %v %s", got.Code, got.Header(), got.Body)
			}
			send(t, r, "ASIAMEMBER", "", "Action=DescribeImages")
			called, err := r.Calls()
			if err != nil {
				t.Fatal(err)
			}
			var lines []string
			for _, c := range called {
				lines = append(lines, c.By+" "+c.Action)
			}
			if !slices.Equal(lines, test.want) {
				t.Errorf("calls %q, want %q", lines, test.want)
			}
		})
	}
}

func TestRequestsThatNobodyUnderstands(t *testing.T) {
	for name, request := range map[string][2]string{
		"an unknown service":          {"AWSOther.Do", "{}"},
		"an unknown action":           {"", "Action=RunEverything"},
		"an unknown kind of DynamoDB": {"DynamoDB_20120810.ExecuteStatement", "{}"},
		"no JSON":                     {"AmazonSSM.GetParameter", "Name"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRecorder()
			send(t, r, "ASIASTRANGER", request[0], request[1])
			if _, err := r.Calls(); err != nil {
				t.Errorf("a stranger's request: %v", err)
			}
			send(t, r, "ASIAENROLL", request[0], request[1])
			if _, err := r.Calls(); err == nil {
				t.Error("no error")
			}
		})
	}
}

func TestCheckWithOthers(t *testing.T) {
	dir := t.TempDir()
	own, other := filepath.Join(dir, "own.jsonl"), filepath.Join(dir, "other.jsonl")
	for path, key := range map[string]string{own: "policy", other: "sweep"} {
		if err := Write(path, []Call{{By: "enroll", Action: "dynamodb:PutItem", Resource: "Ledger", Context: map[string][]string{
			"dynamodb:LeadingKeys": {key}, "dynamodb:Attributes": {"pk"},
		}}}); err != nil {
			t.Fatal(err)
		}
	}
	r := newRecorder()
	for _, key := range []string{"policy", "sweep"} {
		send(t, r, "ASIAENROLL", "DynamoDB_20120810.PutItem", `{"TableName":"ledger","Item":{"pk":{"S":"`+key+`"}}}`)
	}
	if err := r.Check(own, false); err == nil || !strings.Contains(err.Error(), "sweep") {
		t.Errorf("alone: error %v", err)
	}
	if err := r.Check(own, false, other); err != nil {
		t.Errorf("with the other recording: %v", err)
	}
}

func TestMerge(t *testing.T) {
	call := func(by, action, key string) Call {
		return Call{By: by, Action: action, Context: map[string][]string{"dynamodb:LeadingKeys": {key}}}
	}
	got := Merge([]Call{call("a", "x", "1"), call("a", "y", "1")}, []Call{call("a", "x", "2"), call("b", "x", "1"), call("a", "x", "1")})
	want := []Call{call("a", "x", "1"), call("a", "y", "1"), call("b", "x", "1")}
	want[0].Context["dynamodb:LeadingKeys"] = []string{"1", "2"}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestCheck(t *testing.T) {
	path := filepath.Join(t.TempDir(), "calls.jsonl")
	const put = "DynamoDB_20120810.PutItem"
	r := newRecorder()
	const scan = "DynamoDB_20120810.Scan"
	send(t, r, "ASIAENROLL", put, `{"TableName":"ledger","Item":{"pk":{"S":"policy"}}}`)
	send(t, r, "ASIAENROLL", scan, `{"TableName":"ledger","ProjectionExpression":"pk"}`)
	if err := r.Check(path, true); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct{ target, body, says string }{
		"the same":                     {put, `{"TableName":"ledger","Item":{"pk":{"S":"policy"}}}`, ""},
		"an item with more attributes": {put, `{"TableName":"ledger","Item":{"pk":{"S":"policy"},"program":{"S":"1"}}}`, ""},
		"another attribute is read":    {scan, `{"TableName":"ledger","ProjectionExpression":"pk, lease"}`, "lease"},
		"another item":                 {put, `{"TableName":"ledger","Item":{"pk":{"S":"sweep"}}}`, "sweep"},
		"another table":                {put, `{"TableName":"other","Item":{"pk":{"S":"policy"}}}`, "other"},
		"another action":               {"DynamoDB_20120810.DeleteItem", `{"TableName":"ledger","Key":{"pk":{"S":"policy"}}}`, "DeleteItem"},
		"in a transaction": {"DynamoDB_20120810.TransactWriteItems",
			`{"TransactItems":[{"Put":{"TableName":"ledger","Item":{"pk":{"S":"policy"}}}}]}`, "TransactWriteItems"},
	} {
		t.Run(name, func(t *testing.T) {
			r := newRecorder()
			send(t, r, "ASIAENROLL", test.target, test.body)
			err := r.Check(path, false)
			if test.says == "" && err != nil || test.says != "" && (err == nil || !strings.Contains(err.Error(), test.says)) {
				t.Errorf("error %v, want %q in it", err, test.says)
			}
		})
	}
}
