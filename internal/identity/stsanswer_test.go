package identity

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

const stsNamespace = "https://sts.amazonaws.com/doc/2011-06-15/"

func identityAnswer(arn, account string) string {
	return fmt.Sprintf(`<GetCallerIdentityResponse xmlns="%s"><GetCallerIdentityResult><Arn>%s</Arn>`+
		`<UserId>x</UserId><Account>%s</Account></GetCallerIdentityResult><ResponseMetadata><RequestId>`+
		`01234567-89ab-cdef-0123-456789abcdef</RequestId></ResponseMetadata></GetCallerIdentityResponse>`+"\n", stsNamespace, arn, account)
}

func errorAnswer(code, message string) string {
	return fmt.Sprintf(`<ErrorResponse xmlns="%s"><Error><Type>Sender</Type><Code>%s</Code><Message>%s</Message></Error>`+
		`<RequestId>01234567-89ab-cdef-0123-456789abcdef</RequestId></ErrorResponse>`, stsNamespace, code, message)
}

func TestReadSTSAnswer(t *testing.T) {
	proof := newAttempt(t).proof
	good := identityAnswer(callerARN, callerAccount)
	for name, row := range map[string]struct {
		status int
		body   string
		err    error
		want   string
	}{
		"identity":                  {200, good, nil, ""},
		"identity with declaration": {200, `<?xml version="1.0" encoding="UTF-8"?>` + "\n" + good, nil, ""},

		"refused":                  {403, errorAnswer("SignatureDoesNotMatch", "No."), ErrCallerProof, `403 "SignatureDoesNotMatch", request id "01234567-89ab-cdef-0123-456789abcdef": "No."`},
		"refused without message":  {403, errorAnswer("ExpiredToken", ""), ErrCallerProof, `"ExpiredToken"`},
		"region not activated":     {403, errorAnswer("RegionDisabledException", "STS is not activated."), ErrCallerProof, "RegionDisabledException"},
		"message with the token":   {403, errorAnswer("SignatureDoesNotMatch", "Should have been x-amz-security-token:"+proof.SecurityToken), ErrCallerProof, "SignatureDoesNotMatch"},
		"message with signature":   {403, errorAnswer("SignatureDoesNotMatch", proof.Authorization[len(proof.Authorization)-64:]+" is wrong"), ErrCallerProof, "SignatureDoesNotMatch"},
		"token on a later line":    {403, errorAnswer("SignatureDoesNotMatch", "No.\n\nPOST\n"+proof.SecurityToken), ErrCallerProof, "SignatureDoesNotMatch"},
		"message with a log entry": {403, errorAnswer("X", "a\nb\x1b"), ErrSTSUnavailable, "without an error of STS"},

		"throttled":               {400, errorAnswer("Throttling", "Rate exceeded"), ErrSTSUnavailable, `"Throttling"`},
		"throttled, other word":   {400, errorAnswer("ThrottlingException", "Rate exceeded"), ErrSTSUnavailable, `"ThrottlingException"`},
		"throttled by status":     {429, errorAnswer("SlowDown", "Rate exceeded"), ErrSTSUnavailable, "429"},
		"unavailable":             {503, errorAnswer("ServiceUnavailable", ""), ErrSTSUnavailable, "503"},
		"failure":                 {500, errorAnswer("InternalFailure", ""), ErrSTSUnavailable, "InternalFailure"},
		"failure without text":    {502, "", ErrSTSUnavailable, "status 502 without an error of STS"},
		"proxy on the way":        {403, "<html><body>Forbidden by policy</body></html>", ErrSTSUnavailable, "status 403 without an error of STS"},
		"proxy wants a password":  {407, "", ErrSTSUnavailable, "407"},
		"redirect":                {302, "", ErrSTSUnavailable, "302"},
		"another 2xx":             {204, "", ErrSTSUnavailable, "204"},
		"identity with wrong 2xx": {202, good, ErrSTSUnavailable, "202"},

		"empty":              {200, "", ErrSTSUnavailable, "without an identity"},
		"web page":           {200, "<html><body>Welcome</body></html>", ErrSTSUnavailable, "without an identity"},
		"JSON":               {200, `{"GetCallerIdentityResponse":{}}`, ErrSTSUnavailable, "without an identity"},
		"error with 200":     {200, errorAnswer("AccessDenied", ""), ErrSTSUnavailable, "without an identity"},
		"other namespace":    {200, strings.Replace(good, "2011-06-15", "2099-01-01", 1), ErrSTSUnavailable, "without an identity"},
		"other action":       {200, strings.ReplaceAll(good, "GetCallerIdentityRe", "AssumeRoleRe"), ErrSTSUnavailable, "without an identity"},
		"cut off":            {200, good[:len(good)/2], ErrSTSUnavailable, "without an identity"},
		"something after it": {200, good + good, ErrSTSUnavailable, "data after"},
		"two ARNs":           {200, strings.Replace(good, "<Arn>", "<Arn>arn:aws:iam::1:user/x</Arn><Arn>", 1), ErrSTSUnavailable, "exactly one identity"},
		"two accounts":       {200, strings.Replace(good, "<Account>", "<Account>1</Account><Account>", 1), ErrSTSUnavailable, "exactly one identity"},
		"two results": {200, strings.Replace(good, "<ResponseMetadata>",
			"<GetCallerIdentityResult><Arn>x</Arn><Account>1</Account></GetCallerIdentityResult><ResponseMetadata>", 1), ErrSTSUnavailable, "exactly one identity"},
		"no result": {200, `<GetCallerIdentityResponse xmlns="` + stsNamespace + `"/>`, ErrSTSUnavailable, "exactly one identity"},
	} {
		t.Run(name, func(t *testing.T) {
			who, err := readSTSAnswer(row.status, []byte(row.body), proof)
			checkNoSecret(t, err, proof)
			if row.err == nil {
				if want := (stsCaller{callerARN, callerAccount}); err != nil || who != want {
					t.Errorf("readSTSAnswer = %v, %v, want %v", who, err, want)
				}
				return
			}
			if !errors.Is(err, row.err) || !strings.Contains(err.Error(), row.want) {
				t.Errorf("error = %v, want %v with %q", err, row.err, row.want)
			}
			if strings.ContainsAny(err.Error(), "\n\x1b") {
				t.Errorf("error %q breaks out of its line of the log", err)
			}
		})
	}
}
