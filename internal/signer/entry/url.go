package entry

import (
	"encoding/json"
	"fmt"
	"strings"

	"github.com/aws/aws-lambda-go/events"

	"github.com/hallmark-ssh/hallmark/internal/protocol"
)

// urlRequest reads an event of a function URL, payload format 2.0
// (https://docs.aws.amazon.com/lambda/latest/dg/urls-invocation.html). It ignores the caller's
// own headers about its address, such as X-Forwarded-For, and reads requestContext.
func urlRequest(event []byte) (Request, error) {
	var e events.LambdaFunctionURLRequest
	if err := decode(event, &e); err != nil {
		return Request{}, err
	}
	r := Request{ID: e.RequestContext.RequestID}
	// EventBridge's events have a version too: "0".
	if e.Version != "2.0" || e.RequestContext.HTTP.Method == "" {
		return r, fmt.Errorf("version %.16q, method %.16q", e.Version, e.RequestContext.HTTP.Method)
	}
	r.Method = e.RequestContext.HTTP.Method
	r.ContentType = e.Headers["content-type"] // function URLs send names in lower case
	r.IfNoneMatch = e.Headers["if-none-match"]
	r.Health = e.Headers[strings.ToLower(protocol.HealthHeader)]
	r.Body = body(e.Body, e.IsBase64Encoded)
	r.Source = e.RequestContext.HTTP.SourceIP
	if a := e.RequestContext.Authorizer; a != nil && a.IAM != nil {
		var err error
		if r.IAM, err = iamCaller(a.IAM.AccountID, a.IAM.UserARN); err != nil {
			return r, err
		}
	}
	return r, nil
}

func urlResponse(a Answer) ([]byte, error) {
	return json.Marshal(events.LambdaFunctionURLResponse{StatusCode: a.Status, Headers: a.Header, Body: string(a.Body)})
}
