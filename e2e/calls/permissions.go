package calls

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
)

// permissions returns what one request needs permission for.
func permissions(header http.Header, body []byte, region, account string) ([]Call, error) {
	at := func(service, resource string) string {
		return fmt.Sprintf("arn:aws:%s:%s:%s:%s", service, region, account, resource)
	}
	target := header.Get("X-Amz-Target")
	service, operation, _ := strings.Cut(target, ".")
	switch service {
	case "DynamoDB_20120810":
		return table(operation, body, at)
	case "AmazonSSM":
		return named("ssm", operation, body, func(r request) string { return at("ssm", "parameter/"+strings.TrimPrefix(r.Name, "/")) })
	case "AWSOrganizationsV20161128":
		return named("organizations", operation, body, func(r request) string { return organizational(r.ParentID) })
	case "secretsmanager":
		return named("secretsmanager", operation, body, func(r request) string { return r.SecretID })
	case "":
		return query(body)
	}
	return nil, fmt.Errorf("unknown target %q", target)
}

// request has what names the resource in a request of a JSON protocol.
type request struct {
	Name     string
	SecretID string `json:"SecretId"`
	ParentID string `json:"ParentId"`
}

// The names of resources of AWS Organizations. A request has only their ids.
const (
	Root = "OrganizationRoot"
	Unit = "OrganizationalUnit"
)

// organizational returns the name of what has an id (AWS Organizations API Reference,
// ListAccountsForParent).
func organizational(id string) string {
	switch {
	case strings.HasPrefix(id, "r-"):
		return Root
	case strings.HasPrefix(id, "ou-"):
		return Unit
	}
	return id
}

func named(service, operation string, body []byte, resource func(request) string) ([]Call, error) {
	var r request
	if err := json.Unmarshal(body, &r); err != nil {
		return nil, fmt.Errorf("%s: %w", operation, err)
	}
	return []Call{{Action: service + ":" + operation, Resource: resource(r)}}, nil
}

// query reads a request of the Query protocol: EC2 and STS.
func query(body []byte) ([]Call, error) {
	form, err := url.ParseQuery(string(body))
	if err != nil {
		return nil, err
	}
	switch action := form.Get("Action"); {
	case action == "GetCallerIdentity": // needs no permission (AWS STS API Reference)
		return nil, nil
	case action == "AssumeRole":
		c := Call{Action: "sts:AssumeRole", Resource: form.Get("RoleArn"), Context: make(map[string][]string)}
		if id := form.Get("ExternalId"); id != "" {
			c.Context["sts:ExternalId"] = []string{id}
		}
		return []Call{c}, nil
	case strings.HasPrefix(action, "Describe"):
		return []Call{{Action: "ec2:" + action}}, nil
	default:
		return nil, fmt.Errorf("unknown action %q", action)
	}
}

// item is an item, or the key of one, by attribute.
type item map[string]struct{ S string }

// operation is a request to DynamoDB, or a part of one.
type operation struct {
	TableName                 string
	Key, Item                 item
	Select                    string
	ProjectionExpression      string
	FilterExpression          string
	ConditionExpression       string
	UpdateExpression          string
	KeyConditionExpression    string
	ExpressionAttributeNames  map[string]string
	ExclusiveStartKey         item
	ExpressionAttributeValues json.RawMessage
}

// table reads a request to DynamoDB. A transaction needs the permissions of its parts
// (Amazon DynamoDB Developer Guide, "Using IAM with DynamoDB transactions").
func table(name string, body []byte, at func(service, resource string) string) ([]Call, error) {
	var r struct {
		operation
		RequestItems  map[string]json.RawMessage
		TransactItems []map[string]operation
	}
	if err := json.Unmarshal(body, &r); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	call := func(action string, o operation) Call {
		c := Call{Action: "dynamodb:" + action, Resource: o.TableName, Context: o.context(action)}
		if !strings.HasPrefix(c.Resource, "arn:") {
			c.Resource = at("dynamodb", "table/"+c.Resource)
		}
		return c
	}
	switch name {
	case "GetItem", "PutItem", "UpdateItem", "DeleteItem", "Scan", "Query":
		return []Call{call(name, r.operation)}, nil
	case "BatchGetItem":
		return batch(r.RequestItems, call)
	case "TransactWriteItems", "TransactGetItems":
		var all []Call
		for _, part := range r.TransactItems {
			for kind, o := range part {
				action := map[string]string{
					"Put": "PutItem", "Update": "UpdateItem", "Delete": "DeleteItem", "ConditionCheck": "ConditionCheckItem", "Get": "GetItem",
				}[kind]
				c := call(action, o)
				if action != "ConditionCheckItem" { // which transactions alone can have
					c.Context[enclosing] = []string{name}
				}
				all = append(all, c)
			}
		}
		return all, nil
	}
	return nil, fmt.Errorf("unknown operation %q of DynamoDB", name)
}

func batch(items map[string]json.RawMessage, call func(string, operation) Call) ([]Call, error) {
	var all []Call
	for name, text := range items {
		var wanted struct {
			operation
			Keys []item
		}
		if err := json.Unmarshal(text, &wanted); err != nil {
			return nil, fmt.Errorf("BatchGetItem: %w", err)
		}
		for _, key := range wanted.Keys {
			wanted.TableName, wanted.Key = name, key
			all = append(all, call("BatchGetItem", wanted.operation))
		}
	}
	return all, nil
}

// context returns the values of DynamoDB's condition keys (Amazon DynamoDB Developer Guide,
// "Using IAM policy conditions for fine-grained access control").
func (o operation) context(action string) map[string][]string {
	c := make(map[string][]string)
	attributes := slices.Collect(maps.Keys(o.Item))
	for key := range o.Key {
		attributes = append(attributes, key)
	}
	for key := range o.ExclusiveStartKey {
		attributes = append(attributes, key)
	}
	for _, expression := range []string{o.ProjectionExpression, o.FilterExpression, o.ConditionExpression, o.UpdateExpression, o.KeyConditionExpression} {
		attributes = append(attributes, o.attributes(expression)...)
	}
	slices.Sort(attributes)
	c["dynamodb:Attributes"] = slices.Compact(attributes)
	for _, keyed := range []item{o.Key, o.Item} {
		if pk, ok := keyed["pk"]; ok {
			c["dynamodb:LeadingKeys"] = []string{kind(pk.S)}
		}
	}
	switch {
	case o.Select != "":
		c["dynamodb:Select"] = []string{o.Select}
	case action == "Scan" || action == "Query":
		c["dynamodb:Select"] = []string{"ALL_ATTRIBUTES"}
	}
	return c
}

// kind replaces what differs between two keys of one kind.
func kind(key string) string {
	if n := strings.IndexAny(key, "#/"); n >= 0 {
		return key[:n+1] + "x"
	}
	return key
}

// word is a name in an expression: an attribute, a placeholder of one, a value's, or a
// function with its bracket.
var word = regexp.MustCompile(`[:#]?[A-Za-z_][A-Za-z0-9_]*\s*\(?`)

// attributes returns the attributes that an expression names.
func (o operation) attributes(expression string) []string {
	var found []string
	for _, name := range word.FindAllString(expression, -1) {
		name = strings.TrimSpace(name)
		switch {
		case strings.HasPrefix(name, ":"), strings.HasSuffix(name, "("):
		case slices.Contains([]string{"AND", "OR", "NOT", "IN", "BETWEEN", "SET", "REMOVE", "ADD", "DELETE"}, strings.ToUpper(name)):
		case strings.HasPrefix(name, "#"):
			found = append(found, o.ExpressionAttributeNames[name])
		default:
			found = append(found, name)
		}
	}
	return found
}
