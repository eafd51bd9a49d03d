package identity

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/hallmark-ssh/hallmark/internal/protocol"
)

// stsCaller is the signer of a request, according to STS.
type stsCaller struct {
	arn, account string
}

// identityXML is the answer to GetCallerIdentity (AWS STS API Reference). It uses slices
// because encoding/xml would silently keep the last of several elements.
type identityXML struct {
	XMLName xml.Name `xml:"https://sts.amazonaws.com/doc/2011-06-15/ GetCallerIdentityResponse"`
	Results []struct {
		Arns     []string `xml:"Arn"`
		Accounts []string `xml:"Account"`
	} `xml:"GetCallerIdentityResult"`
}

// errorXML is the error of a service that uses the AWS Query protocol.
type errorXML struct {
	XMLName   xml.Name `xml:"https://sts.amazonaws.com/doc/2011-06-15/ ErrorResponse"`
	Code      string   `xml:"Error>Code"`
	Message   string   `xml:"Error>Message"`
	RequestID string   `xml:"RequestId"`
}

// readSTSAnswer distinguishes three outcomes: STS knows the caller, STS refuses the proof, or
// the answer is not from a working STS.
func readSTSAnswer(status int, body []byte, proof protocol.CallerProof) (stsCaller, error) {
	if status == http.StatusOK {
		who, err := parseIdentity(body)
		if err != nil {
			return stsCaller{}, fmt.Errorf("%w: %w", ErrSTSUnavailable, err)
		}
		return who, nil
	}
	var e errorXML
	if err := decodeXML(body, &e); err != nil {
		// A proxy on the way answers 403 and 407 too. Only STS can refuse a proof.
		return stsCaller{}, fmt.Errorf("%w: status %d without an error of STS", ErrSTSUnavailable, status)
	}
	verdict := ErrSTSUnavailable
	if status >= 400 && status < 500 && !throttled(status, e.Code) {
		verdict = ErrCallerProof
	}
	return stsCaller{}, fmt.Errorf("%w: STS answered %d %.64q, request id %.64q%s",
		verdict, status, e.Code, e.RequestID, harmless(e.Message, proof))
}

func parseIdentity(body []byte) (stsCaller, error) {
	var answer identityXML
	if err := decodeXML(body, &answer); err != nil {
		return stsCaller{}, fmt.Errorf("status 200 without an identity: %w", err)
	}
	if len(answer.Results) != 1 || len(answer.Results[0].Arns) != 1 || len(answer.Results[0].Accounts) != 1 {
		return stsCaller{}, errors.New("status 200 without exactly one identity")
	}
	r := answer.Results[0]
	return stsCaller{arn: r.Arns[0], account: r.Accounts[0]}, nil
}

// throttled reports whether an answer means "later" rather than "no". The AWS Query protocol
// throttles with status 400 (AWS STS API Reference, "Common errors"; these are the codes that
// the AWS SDKs retry).
func throttled(status int, code string) bool {
	switch code {
	case "Throttling", "ThrottlingException", "ThrottledException", "RequestThrottled",
		"RequestThrottledException", "RequestLimitExceeded", "TooManyRequestsException",
		"RequestTimeout", "RequestTimeoutException":
		return true
	}
	return status == http.StatusTooManyRequests || status == http.StatusRequestTimeout
}

// harmless returns the first line of STS's message for the log, or nothing if the message
// repeats a secret: some services answer a wrong signature with the whole canonical request.
func harmless(message string, proof protocol.CallerProof) string {
	line, _, _ := strings.Cut(strings.TrimSpace(message), "\n")
	_, signature, _ := strings.Cut(proof.Authorization, "Signature=")
	if line == "" || strings.Contains(message, proof.SecurityToken) || strings.Contains(message, signature) {
		return ""
	}
	return fmt.Sprintf(": %.200q", line)
}

// decodeXML decodes one element that spans all of data.
func decodeXML(data []byte, into any) error {
	data = bytes.TrimSpace(data)
	d := xml.NewDecoder(bytes.NewReader(data))
	if err := d.Decode(into); err != nil {
		return err
	}
	if d.InputOffset() != int64(len(data)) {
		return errors.New("data after the XML element")
	}
	return nil
}
