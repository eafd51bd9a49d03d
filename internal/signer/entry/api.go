package entry

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/aws/aws-lambda-go/events"

	"github.com/hallmark-ssh/hallmark/internal/protocol"
)

// apiEvent is an event of a private REST API with proxy integration
// (https://docs.aws.amazon.com/apigateway/latest/developerguide/set-up-lambda-proxy-integrations.html).
type apiEvent struct {
	Version         string            `json:"version"` // in other APIs' events; REST APIs send none
	Method          string            `json:"httpMethod"`
	Headers         map[string]string `json:"headers"` // with names as the client wrote them
	Body            string            `json:"body"`
	IsBase64Encoded bool              `json:"isBase64Encoded"`
	RequestContext  struct {
		RequestID string `json:"requestId"`
		Identity  struct {
			SourceIP  string `json:"sourceIp"`
			Endpoint  string `json:"vpceId"`
			AccountID string `json:"accountId"`
			UserARN   string `json:"userArn"`
		} `json:"identity"`
	} `json:"requestContext"`
}

func apiRequest(event []byte) (Request, error) {
	var e apiEvent
	if err := decode(event, &e); err != nil {
		return Request{}, err
	}
	r := Request{ID: e.RequestContext.RequestID}
	identity := e.RequestContext.Identity
	switch {
	case e.Method == "" || (e.Version != "" && e.Version != "1.0"):
		return r, fmt.Errorf("version %.16q, method %.16q", e.Version, e.Method)
	case identity.Endpoint == "":
		// Without it, the API is public now, and this deployment's limits do not fit a public
		// API.
		return r, errors.New("no VPC endpoint: the API is not private")
	}
	r.Method = e.Method
	r.ContentType = header(e.Headers, "Content-Type")
	r.IfNoneMatch = header(e.Headers, "If-None-Match")
	r.Health = header(e.Headers, protocol.HealthHeader)
	r.Body = body(e.Body, e.IsBase64Encoded)
	r.Source, r.Endpoint = identity.SourceIP, identity.Endpoint
	if identity.UserARN != "" {
		var err error
		if r.IAM, err = iamCaller(identity.AccountID, identity.UserARN); err != nil {
			return r, err
		}
	}
	return r, nil
}

// header returns a header's value. If two names differ only in case, it returns none: the
// order of a map must not decide which one counts.
func header(all map[string]string, name string) string {
	value, found := "", false
	for key, v := range all {
		if !strings.EqualFold(key, name) {
			continue
		}
		if found {
			return ""
		}
		value, found = v, true
	}
	return value
}

func apiResponse(a Answer) ([]byte, error) {
	return json.Marshal(events.APIGatewayProxyResponse{StatusCode: a.Status, Headers: a.Header, Body: string(a.Body)})
}
