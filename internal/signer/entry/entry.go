// Package entry reads the events through which requests reach the enroll function, and writes
// the answers in the form that each event expects.
//
// A function has one entry, and refuses the events of the others. What an event says about its
// sender counts only if AWS wrote it: with a function URL or a private API, only that service
// may invoke the function. With direct invocations the sender writes the whole event, so that
// form has no such fields.
package entry

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
)

// Kind says how requests reach the function. The zero value is invalid.
type Kind string

// The entries. docs/networks.md says which one fits which network.
const (
	// URL is a Lambda function URL.
	URL Kind = "url"
	// PrivateAPI is a private REST API of API Gateway, reached through a VPC endpoint for
	// execute-api.
	PrivateAPI Kind = "private-api"
	// Invoke is Lambda's own Invoke operation, reached through a VPC endpoint for lambda.
	Invoke Kind = "invoke"
)

// Sender says which facts about a sender the events of an entry have.
type Sender struct {
	Source   bool // Request.Source
	Endpoint bool // Request.Endpoint
	IAM      bool // Request.IAM
}

// form is what the events and answers of an entry look like.
type form struct {
	kind     Kind
	sender   Sender
	request  func(event []byte) (Request, error)
	response func(Answer) ([]byte, error)
}

// forms returns all entries. To add an entry, add a line.
func forms() []form {
	return []form{
		{URL, Sender{Source: true, IAM: true}, urlRequest, urlResponse},
		{PrivateAPI, Sender{Source: true, Endpoint: true, IAM: true}, apiRequest, apiResponse},
		{Invoke, Sender{}, invokeRequest, invokeResponse},
	}
}

// form fails for an unknown entry.
func (k Kind) form() (form, error) {
	var names []string
	for _, f := range forms() {
		if f.kind == k {
			return f, nil
		}
		names = append(names, string(f.kind))
	}
	return form{}, fmt.Errorf("%.64q is not an entry: give one of %s", string(k), strings.Join(names, ", "))
}

// Kinds returns all entries.
func Kinds() (kinds []Kind) {
	for _, f := range forms() {
		kinds = append(kinds, f.kind)
	}
	return kinds
}

// Sender returns which facts about a sender the entry's events have: none for an unknown entry.
func (k Kind) Sender() Sender {
	f, _ := k.form()
	return f.sender
}

// Parse reads the name of an entry.
func Parse(text string) (Kind, error) {
	f, err := Kind(text).form()
	return f.kind, err
}

// Request is a request to the signer.
type Request struct {
	// ID names the request in the answer and in the log.
	ID          string
	Method      string
	ContentType string
	// IfNoneMatch is the header of that name.
	IfNoneMatch string
	// Health is the header protocol.HealthHeader: a claim that anyone can write, until its
	// signature is verified.
	Health string
	// Body may be cut at one byte more than protocol.MaxRequestBytes.
	Body []byte
	// Source is the caller's address as AWS saw it, never as a header says. It is empty
	// for direct invocations.
	Source string
	// Endpoint is the id of the VPC endpoint that a request to a private API came through, and
	// empty otherwise. Private addresses repeat, so Source means little without it.
	Endpoint string
	// IAM is who signed the HTTP request, or nil if the entry requires no signature.
	IAM *IAMCaller
}

// IAMCaller is who signed a request with IAM credentials, as AWS verified it. It is an additional
// check, not a proof: the holder of an instance's role chooses the session's name.
type IAMCaller struct {
	Account ec2ref.Account
	ARN     string
}

// iamCaller reads who signed a request. AWS writes the number of the caller's account.
func iamCaller(account, arn string) (*IAMCaller, error) {
	a, err := ec2ref.ParseAccount(account)
	if err != nil {
		return nil, errors.New("the IAM caller has no account number")
	}
	return &IAMCaller{Account: a, ARN: arn}, nil
}

// Answer is an HTTP response.
type Answer struct {
	Status int
	Header map[string]string
	Body   []byte
}

// Request reads an event. Its errors do not repeat the event's content. Even with an error it
// returns the request's ID if the event has one.
func (k Kind) Request(event []byte) (Request, error) {
	f, err := k.form()
	if err != nil {
		return Request{}, err
	}
	return f.request(event)
}

// Response writes an answer in the form that the entry expects.
func (k Kind) Response(a Answer) ([]byte, error) {
	f, err := k.form()
	if err != nil {
		return nil, err
	}
	return f.response(a)
}

// decode reads the JSON of an event.
func decode(event []byte, into any) error {
	if err := json.Unmarshal(event, into); err != nil {
		return errors.New("not the JSON of such an event") // the decoder's own message quotes the event
	}
	return nil
}
