// Package entrytest writes events as AWS or a machine does, and reads the answers, for tests
// and for the stand-ins for AWS's front ends.
package entrytest

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/aws/aws-lambda-go/events"

	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"github.com/hallmark-ssh/hallmark/internal/signer/entry"
)

// Event returns the event that a request becomes at an entry.
func Event(k entry.Kind, r entry.Request) ([]byte, error) {
	switch k {
	case entry.URL:
		return json.Marshal(URLEvent(r))
	case entry.PrivateAPI:
		return json.Marshal(APIEvent(r))
	case entry.Invoke:
		return json.Marshal(protocol.Invocation{
			Hallmark: protocol.InvocationVersion, Method: r.Method, IfNoneMatch: r.IfNoneMatch, Health: r.Health, Body: string(r.Body),
		})
	}
	return nil, fmt.Errorf("unknown entry %q", k)
}

// URLEvent returns the event of a function URL.
func URLEvent(r entry.Request) events.LambdaFunctionURLRequest {
	e := events.LambdaFunctionURLRequest{
		Version: "2.0", RawPath: "/", Headers: make(map[string]string), Body: string(r.Body),
	}
	for name, value := range headers(r) {
		e.Headers[strings.ToLower(name)] = value
	}
	e.RequestContext.RequestID = r.ID
	e.RequestContext.HTTP.Method = r.Method
	e.RequestContext.HTTP.Path = "/"
	e.RequestContext.HTTP.SourceIP = r.Source
	if r.IAM != nil {
		e.RequestContext.Authorizer = &events.LambdaFunctionURLRequestContextAuthorizerDescription{
			IAM: &events.LambdaFunctionURLRequestContextAuthorizerIAMDescription{AccountID: r.IAM.Account.String(), UserARN: r.IAM.ARN},
		}
	}
	return e
}

// APIEvent returns the event of a private REST API.
func APIEvent(r entry.Request) map[string]any {
	identity := map[string]any{
		"sourceIp": r.Source, "vpceId": r.Endpoint, "vpcId": "vpc-0a1b2c3d4e5f60718", "userAgent": "hallmark", "accountId": nil, "userArn": nil,
	}
	if r.IAM != nil {
		identity["accountId"], identity["userArn"] = r.IAM.Account, r.IAM.ARN
	}
	return map[string]any{
		"resource": "/", "path": "/", "httpMethod": r.Method, "headers": headers(r), "body": string(r.Body), "isBase64Encoded": false,
		"requestContext": map[string]any{
			"requestId": r.ID, "httpMethod": r.Method, "stage": "hallmark", "path": "/hallmark/", "identity": identity,
		},
	}
}

func headers(r entry.Request) map[string]string {
	h := map[string]string{}
	if r.ContentType != "" {
		h["Content-Type"] = r.ContentType
	}
	if r.IfNoneMatch != "" {
		h["If-None-Match"] = r.IfNoneMatch
	}
	if r.Health != "" {
		h[protocol.HealthHeader] = r.Health
	}
	return h
}

// Answer reads what the function returned.
func Answer(k entry.Kind, response []byte) (entry.Answer, error) {
	switch k {
	case entry.URL, entry.PrivateAPI:
		var a events.APIGatewayProxyResponse // the same fields as a function URL's
		err := json.Unmarshal(response, &a)
		return entry.Answer{Status: a.StatusCode, Header: a.Headers, Body: []byte(a.Body)}, err
	case entry.Invoke:
		var a protocol.InvocationAnswer
		err := json.Unmarshal(response, &a)
		return entry.Answer{Status: a.Status, Header: a.Header, Body: []byte(a.Body)}, err
	}
	return entry.Answer{}, fmt.Errorf("unknown entry %q", k)
}
