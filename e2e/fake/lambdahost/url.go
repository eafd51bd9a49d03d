package lambdahost

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"mime"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/aws/aws-lambda-go/events"
	"github.com/google/uuid"
)

// FunctionURL returns the function's URL front end: it turns requests into events of payload
// version 2 and answers back into responses.
// (https://docs.aws.amazon.com/lambda/latest/dg/urls-invocation.html)
func (h *Host) FunctionURL() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id := uuid.NewString()
		w.Header().Set("X-Amzn-Requestid", id)
		event, err := encodeRequest(w, r, id, time.Now())
		if err != nil {
			h.fail(w, http.StatusRequestEntityTooLarge, "Request must be smaller than 6291456 bytes for the InvokeFunction operation", err)
			return
		}
		answer, err := h.Invoke(r.Context(), event)
		if errors.Is(err, ErrThrottled) {
			h.fail(w, http.StatusTooManyRequests, "Rate Exceeded.", err)
			return
		}
		var response *events.LambdaFunctionURLResponse
		if err == nil {
			response, err = decodeAnswer(answer)
		}
		if err != nil {
			h.fail(w, http.StatusBadGateway, "Internal Server Error", err)
			return
		}
		if err := writeResponse(w, response); err != nil {
			fmt.Fprintf(h.function.Log, "function URL: %v\n", err)
		}
	})
}

// fail answers as AWS does, which does not tell the caller the reason.
func (h *Host) fail(w http.ResponseWriter, status int, message string, reason error) {
	fmt.Fprintf(h.function.Log, "function URL: %d: %.200s\n", status, reason)
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]string{"Message": message})
}

// encodeRequest builds the event. An error means that the body is too long.
func encodeRequest(w http.ResponseWriter, r *http.Request, id string, now time.Time) ([]byte, error) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxPayload))
	if err != nil {
		return nil, err
	}
	source, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		source = r.RemoteAddr
	}
	prefix, _, _ := strings.Cut(r.Host, ".")
	event := events.LambdaFunctionURLRequest{
		Version:        "2.0",
		RawPath:        r.URL.EscapedPath(),
		RawQueryString: r.URL.RawQuery,
		Headers:        headers(r, source),
		RequestContext: events.LambdaFunctionURLRequestContext{
			AccountID: "anonymous", RequestID: id, APIID: prefix, DomainName: r.Host, DomainPrefix: prefix,
			Time: now.UTC().Format("02/Jan/2006:15:04:05 -0700"), TimeEpoch: now.UnixMilli(),
			HTTP: events.LambdaFunctionURLRequestContextHTTPDescription{
				Method: r.Method, Path: r.URL.Path, Protocol: r.Proto, SourceIP: source, UserAgent: r.UserAgent(),
			},
		},
		Body: string(body),
	}
	for name, values := range r.URL.Query() {
		if event.QueryStringParameters == nil {
			event.QueryStringParameters = make(map[string]string)
		}
		event.QueryStringParameters[name] = strings.Join(values, ",")
	}
	for _, cookie := range r.Cookies() {
		event.Cookies = append(event.Cookies, cookie.String())
	}
	if len(body) > 0 && !isText(r.Header.Get("Content-Type"), body) {
		event.Body, event.IsBase64Encoded = base64.StdEncoding.EncodeToString(body), true
	}
	encoded, err := json.Marshal(event)
	if err == nil && len(encoded) > maxPayload {
		err = fmt.Errorf("event has %d bytes, more than %d", len(encoded), maxPayload)
	}
	return encoded, err
}

// headers returns the request's headers, with names in lower case and repeated values joined,
// and the headers that AWS's front end adds.
func headers(r *http.Request, source string) map[string]string {
	all := map[string]string{
		"host":              r.Host,
		"x-forwarded-for":   source,
		"x-forwarded-port":  "443",
		"x-forwarded-proto": "https",
	}
	for name, values := range r.Header {
		if name = strings.ToLower(name); name != "cookie" && all[name] == "" {
			all[name] = strings.Join(values, ",")
		}
	}
	return all
}

// isText reports whether the event contains the body as it is.
func isText(contentType string, body []byte) bool {
	media, _, err := mime.ParseMediaType(contentType)
	text := strings.HasPrefix(media, "text/") ||
		slices.Contains([]string{"application/json", "application/javascript", "application/xml"}, media)
	return err == nil && text && utf8.Valid(body)
}

// decodeAnswer accepts both forms of an answer: a response, and any other JSON, which becomes
// the body of a response.
func decodeAnswer(answer []byte) (*events.LambdaFunctionURLResponse, error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(answer, &fields); err == nil && fields["statusCode"] != nil {
		var response events.LambdaFunctionURLResponse
		if err := json.Unmarshal(answer, &response); err != nil {
			return nil, fmt.Errorf("the function's answer: %w", err)
		}
		return &response, nil
	}
	if !json.Valid(answer) {
		return nil, errors.New("the function's answer is not JSON")
	}
	return &events.LambdaFunctionURLResponse{StatusCode: http.StatusOK, Body: string(answer)}, nil
}

func writeResponse(w http.ResponseWriter, response *events.LambdaFunctionURLResponse) error {
	body := []byte(response.Body)
	if response.IsBase64Encoded {
		var err error
		if body, err = base64.StdEncoding.DecodeString(response.Body); err != nil {
			return fmt.Errorf("the function's answer: body: %w", err)
		}
	}
	w.Header().Set("Content-Type", "application/json")
	for _, name := range slices.Sorted(maps.Keys(response.Headers)) {
		w.Header().Set(name, response.Headers[name])
	}
	for _, cookie := range response.Cookies {
		w.Header().Add("Set-Cookie", cookie)
	}
	w.WriteHeader(response.StatusCode)
	_, err := w.Write(body)
	return err
}
