package calls

import (
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"reflect"
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
	req := httptest.NewRequestWithContext(t.Context(), http.MethodPost, "/", strings.NewReader(body))
	req.Header.Set("Authorization", "AWS4-HMAC-SHA256 Credential="+key+"/20260101/us-west-2/x/aws4_request, SignedHeaders=host, Signature=0")
	if target != "" {
		req.Header.Set("X-Amz-Target", target)
	}
	h.ServeHTTP(httptest.NewRecorder(), req)
	return got
}

func TestCalls(t *testing.T) {
	const dynamo = "DynamoDB_20120810."
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
				"dynamodb:LeadingKeys": {"policy"}, "dynamodb:Attributes": {"a", "pk"}, "dynamodb:EnclosingOperation": {"TransactWriteItems"},
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

func TestCheck(t *testing.T) {
	path := filepath.Join(t.TempDir(), "calls.jsonl")
	const put = "DynamoDB_20120810.PutItem"
	r := newRecorder()
	send(t, r, "ASIAENROLL", put, `{"TableName":"ledger","Item":{"pk":{"S":"policy"}}}`)
	if err := r.Check(path, true); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct{ target, body, says string }{
		"the same":       {put, `{"TableName":"ledger","Item":{"pk":{"S":"policy"}}}`, ""},
		"another item":   {put, `{"TableName":"ledger","Item":{"pk":{"S":"sweep"}}}`, "sweep"},
		"another table":  {put, `{"TableName":"other","Item":{"pk":{"S":"policy"}}}`, "other"},
		"another action": {"DynamoDB_20120810.DeleteItem", `{"TableName":"ledger","Key":{"pk":{"S":"policy"}}}`, "DeleteItem"},
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
