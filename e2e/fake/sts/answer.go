package sts

import (
	"encoding/json"
	"encoding/xml"
	"net/http"
	"strings"

	"github.com/google/uuid"
)

// fault is an error of the AWS Query protocol.
type fault struct {
	status        int
	code, message string
}

func incomplete(message string) *fault {
	return &fault{http.StatusBadRequest, "IncompleteSignature", message}
}

func mismatch(message string) *fault {
	return &fault{http.StatusForbidden, "SignatureDoesNotMatch", message}
}

type metadata struct {
	RequestID string `xml:"RequestId" json:"RequestId"`
}

type callerIdentity struct {
	Arn     string
	UserID  string `xml:"UserId" json:"UserId"`
	Account string
}

type identityAnswer struct {
	XMLName  xml.Name       `xml:"https://sts.amazonaws.com/doc/2011-06-15/ GetCallerIdentityResponse" json:"-"`
	Result   callerIdentity `xml:"GetCallerIdentityResult" json:"GetCallerIdentityResult"`
	Metadata metadata       `xml:"ResponseMetadata" json:"ResponseMetadata"`
}

type errorDetail struct {
	Type    string
	Code    string
	Message string
}

type errorAnswer struct {
	XMLName   xml.Name    `xml:"https://sts.amazonaws.com/doc/2011-06-15/ ErrorResponse" json:"-"`
	Error     errorDetail `xml:"Error" json:"Error"`
	RequestID string      `xml:"RequestId" json:"RequestId"`
}

func writeIdentity(w http.ResponseWriter, r *http.Request, arn string) {
	id := uuid.NewString()
	answer := identityAnswer{
		Result:   callerIdentity{Arn: arn, UserID: userIDOf(arn), Account: accountOf(arn)},
		Metadata: metadata{RequestID: id},
	}
	if wantsJSON(r) {
		write(w, http.StatusOK, id, "application/json", json.Marshal, map[string]any{"GetCallerIdentityResponse": answer})
		return
	}
	write(w, http.StatusOK, id, "text/xml", marshalXML, answer)
}

func writeFault(w http.ResponseWriter, r *http.Request, f *fault) {
	id := uuid.NewString()
	answer := errorAnswer{
		Error:     errorDetail{Type: "Sender", Code: f.code, Message: f.message},
		RequestID: id,
	}
	if wantsJSON(r) {
		write(w, f.status, id, "application/json", json.Marshal, answer)
		return
	}
	write(w, f.status, id, "text/xml", marshalXML, answer)
}

// wantsJSON reports whether the client asked for JSON. STS supports JSON, although its
// reference does not say so, and Teleport's IAM join relies on it.
func wantsJSON(r *http.Request) bool {
	return strings.Contains(r.Header.Get("Accept"), "application/json")
}

func marshalXML(v any) ([]byte, error) {
	data, err := xml.MarshalIndent(v, "", "  ")
	return append(data, '\n'), err
}

func write(w http.ResponseWriter, status int, requestID, contentType string, marshal func(any) ([]byte, error), answer any) {
	data, err := marshal(answer)
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", contentType)
	w.Header().Set("X-Amzn-Requestid", requestID)
	w.WriteHeader(status)
	_, _ = w.Write(data) // the client has disconnected
}

// userIDOf returns the user id of a session, as an instance's identity role has
// it: account, role and session, joined by colons.
func userIDOf(arn string) string {
	_, session, _ := strings.Cut(arn, ":assumed-role/")
	return accountOf(arn) + ":" + strings.ReplaceAll(session, "/", ":")
}
