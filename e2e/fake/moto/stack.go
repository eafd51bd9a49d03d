package moto

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"strings"

	"github.com/hallmark-ssh/hallmark/e2e/cfn"
)

// maxAnswer bounds what moto answers. A stack's description has some kilobytes.
const maxAnswer = 8 << 20

// Stack is a stack that moto has created.
type Stack struct {
	// Resources are the physical ids, by logical id.
	Resources map[string]string
	Outputs   map[string]string
}

// Omits says why a stack is created without the resources of a type; it is empty for what moto
// creates.
func Omits(resourceType string) (why string) {
	switch resourceType {
	case "AWS::ApiGateway::Stage", "AWS::CloudWatch::Alarm", "AWS::Events::EventBusPolicy", "AWS::Lambda::EventInvokeConfig",
		"AWS::Lambda::Url", "AWS::Logs::MetricFilter", "AWS::SNS::Subscription", "AWS::SQS::QueuePolicy":
		return "moto cannot create one from a template"
	case "AWS::CloudWatch::Dashboard":
		return "it shows alarms, which are omitted"
	case "AWS::Lambda::EventSourceMapping":
		return "moto would take the messages, and run the function in a container"
	}
	return ""
}

// CreateStack creates a stack without what Omits names, and describes it. Conditions must be
// evaluated before: moto crashes on policies of a role that have one.
func (s *Server) CreateStack(ctx context.Context, region, name string, expanded *cfn.Stack) (*Stack, error) {
	template, err := onNamedBuses(expanded).Body(func(_ string, r cfn.Resource) bool { return Omits(r.Type) != "" })
	if err != nil {
		return nil, err
	}
	form := url.Values{"Action": {"CreateStack"}, "Version": {"2010-05-15"}, "StackName": {name}, "TemplateBody": {template}}
	if _, err := s.query(ctx, region, form); err != nil {
		return nil, fmt.Errorf("create stack %s: %w", name, err)
	}
	stack := &Stack{Resources: make(map[string]string), Outputs: make(map[string]string)}
	var stacks struct {
		Status  string                                    `xml:"DescribeStacksResult>Stacks>member>StackStatus"`
		Outputs []struct{ OutputKey, OutputValue string } `xml:"DescribeStacksResult>Stacks>member>Outputs>member"`
	}
	if err := s.describe(ctx, region, "DescribeStacks", name, &stacks); err != nil {
		return nil, err
	}
	if stacks.Status != "CREATE_COMPLETE" {
		return nil, fmt.Errorf("stack %s is in state %s: see moto's log", name, stacks.Status)
	}
	for _, output := range stacks.Outputs {
		stack.Outputs[output.OutputKey] = output.OutputValue
	}
	var resources struct {
		Resources []struct{ LogicalResourceId, PhysicalResourceId string } `xml:"DescribeStackResourcesResult>StackResources>member"` //nolint:revive // CloudFormation's names
	}
	if err := s.describe(ctx, region, "DescribeStackResources", name, &resources); err != nil {
		return nil, err
	}
	for _, r := range resources.Resources {
		stack.Resources[r.LogicalResourceId] = r.PhysicalResourceId
	}
	return stack, nil
}

// onNamedBuses replaces the buses of rules by their names. moto does not understand Ref there.
func onNamedBuses(s *cfn.Stack) *cfn.Stack {
	named := &cfn.Stack{Resources: maps.Clone(s.Resources), Outputs: s.Outputs}
	for name, r := range s.Resources {
		ref, ok := r.Properties["EventBusName"].(map[string]any)
		if !ok || r.Type != "AWS::Events::Rule" {
			continue
		}
		bus := s.Resources[fmt.Sprint(ref["Ref"])]
		r.Properties = maps.Clone(r.Properties)
		r.Properties["EventBusName"] = bus.Properties["Name"]
		named.Resources[name] = r
	}
	return named
}

func (s *Server) describe(ctx context.Context, region, action, name string, into any) error {
	data, err := s.query(ctx, region, url.Values{"Action": {action}, "Version": {"2010-05-15"}, "StackName": {name}})
	if err != nil {
		return fmt.Errorf("describe stack %s: %w", name, err)
	}
	return xml.Unmarshal(data, into)
}

func (s *Server) query(ctx context.Context, region string, form url.Values) ([]byte, error) {
	return s.call(ctx, http.MethodPost, "/", "cloudformation", region, form.Encode(),
		"Content-Type", "application/x-www-form-urlencoded")
}

// FunctionSettings are what a function's program gets.
type FunctionSettings struct {
	FunctionName string
	FunctionArn  string //nolint:revive // Lambda's name
	Role         string
	Handler      string
	Timeout      int // seconds
	MemorySize   int // MB
	Environment  struct{ Variables map[string]string }
}

// Function returns the settings of a Lambda function.
func (s *Server) Function(ctx context.Context, region, name string) (FunctionSettings, error) {
	var f FunctionSettings
	data, err := s.call(ctx, http.MethodGet, "/2015-03-31/functions/"+url.PathEscape(name)+"/configuration", "lambda", region, "")
	if err != nil {
		return f, fmt.Errorf("read function %s: %w", name, err)
	}
	return f, json.Unmarshal(data, &f)
}

// PutEvent puts an event on a bus, from where the rules take it; an empty name is the default
// bus. Unlike AWS, moto takes events whose source is AWS, and says that all are of its own
// account.
func (s *Server) PutEvent(ctx context.Context, region, bus, source, detailType string, resources []string, detail any) error {
	encoded, err := json.Marshal(detail)
	if err != nil {
		return err
	}
	entry := map[string]any{"Source": source, "DetailType": detailType, "Resources": resources, "Detail": string(encoded)}
	if bus != "" {
		entry["EventBusName"] = bus
	}
	body, err := json.Marshal(map[string]any{"Entries": []any{entry}})
	if err != nil {
		return err
	}
	data, err := s.call(ctx, http.MethodPost, "/", "events", region, string(body),
		"Content-Type", "application/x-amz-json-1.1", "X-Amz-Target", "AWSEvents.PutEvents")
	if err != nil {
		return fmt.Errorf("put an event: %w", err)
	}
	if !bytes.Contains(data, []byte(`"FailedEntryCount": 0`)) {
		return fmt.Errorf("put an event: %s", data)
	}
	return nil
}

// call sends a request. moto takes service and region from the scope of a signature that it
// does not check.
func (s *Server) call(ctx context.Context, method, path, service, region, body string, header ...string) ([]byte, error) {
	req, err := http.NewRequestWithContext(ctx, method, s.URL+path, strings.NewReader(body))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "AWS4-HMAC-SHA256 Credential=test/20260101/"+region+"/"+service+"/aws4_request, SignedHeaders=host, Signature=0")
	for n := 0; n < len(header); n += 2 {
		req.Header.Set(header[n], header[n+1])
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	data, err := io.ReadAll(io.LimitReader(res.Body, maxAnswer))
	if err != nil {
		return nil, err
	}
	if res.StatusCode >= http.StatusBadRequest {
		return nil, fmt.Errorf("status %d: %.1000s", res.StatusCode, data)
	}
	return data, nil
}
