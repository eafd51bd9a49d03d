package sts

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
)

// This computes the signature of a request as AWS does. It is written from the AWS IAM User
// Guide ("Create a signed AWS API request") rather than with the SDK's signer, so that each
// checks the other.

const (
	algorithm = "AWS4-HMAC-SHA256"
	amzDate   = "20060102T150405Z"

	// validity is how long AWS accepts a signature, and how far in the future it may be.
	validity = 15 * time.Minute
)

// signature is a parsed Authorization header and the date that goes with it.
type signature struct {
	accessKeyID          string
	day, region, service string // the credential scope
	signedHeaders        []string
	mac                  []byte
	date                 string // X-Amz-Date, verbatim
	time                 time.Time
}

func parseSignature(r *http.Request) (*signature, *fault) {
	values := r.Header.Values("Authorization")
	if len(values) != 1 {
		return nil, incomplete("Authorization header must be given once.")
	}
	rest, ok := strings.CutPrefix(values[0], algorithm+" ")
	if !ok {
		return nil, incomplete("Unsupported AWS 'algorithm' in Authorization header.")
	}
	fields := make(map[string]string)
	for field := range strings.SplitSeq(rest, ",") {
		name, value, _ := strings.Cut(strings.TrimSpace(field), "=")
		fields[name] = value
	}
	for _, name := range []string{"Credential", "SignedHeaders", "Signature"} {
		if fields[name] == "" {
			return nil, incomplete(fmt.Sprintf("Authorization header requires '%s' parameter.", name))
		}
	}
	credential := strings.Split(fields["Credential"], "/")
	if len(credential) != 5 || credential[4] != "aws4_request" {
		return nil, incomplete("Credential must have exactly 5 slash-delimited elements and end in 'aws4_request'.")
	}
	mac, err := hex.DecodeString(fields["Signature"])
	if err != nil {
		return nil, incomplete("Signature is not hexadecimal.")
	}
	date := r.Header.Get("X-Amz-Date")
	t, err := time.Parse(amzDate, date)
	if err != nil || t.Format(amzDate) != date {
		return nil, incomplete("Date must be in ISO-8601 'basic format'.")
	}
	return &signature{
		accessKeyID: credential[0], day: credential[1], region: credential[2], service: credential[3],
		signedHeaders: strings.Split(fields["SignedHeaders"], ";"),
		mac:           mac, date: date, time: t,
	}, nil
}

func (s *signature) checkTime(now time.Time) *fault {
	now = now.UTC()
	if s.day != s.date[:len("20060102")] {
		return mismatch("Date in Credential scope does not match date of the request.")
	}
	if oldest := now.Add(-validity); s.time.Before(oldest) {
		return mismatch(fmt.Sprintf("Signature expired: %s is now earlier than %s (%s - 15 min.)",
			s.date, oldest.Format(amzDate), now.Format(amzDate)))
	}
	if newest := now.Add(validity); s.time.After(newest) {
		return mismatch(fmt.Sprintf("Signature not yet current: %s is still later than %s (%s + 15 min.)",
			s.date, newest.Format(amzDate), now.Format(amzDate)))
	}
	return nil
}

// checkHeaders requires that the signature covers the host and everything that AWS itself
// reads from a request.
func (s *signature) checkHeaders(h http.Header) *fault {
	if !slices.IsSorted(s.signedHeaders) || !slices.Contains(s.signedHeaders, "host") {
		return mismatch("'Host' or ':authority' must be a 'SignedHeader' in the AWS Authorization.")
	}
	for name := range h {
		name = strings.ToLower(name)
		if strings.HasPrefix(name, "x-amz-") && !slices.Contains(s.signedHeaders, name) {
			return mismatch(fmt.Sprintf("'%s' must be a 'SignedHeader' in the AWS Authorization.", name))
		}
	}
	return nil
}

// matches computes the signature of the request as received and compares.
func (s *signature) matches(r *http.Request, body []byte, secret string) bool {
	key := []byte("AWS4" + secret)
	for _, part := range []string{s.day, s.region, s.service, "aws4_request"} {
		key = hmacSHA256(key, part)
	}
	return hmac.Equal(hmacSHA256(key, s.stringToSign(r, body)), s.mac)
}

func (s *signature) stringToSign(r *http.Request, body []byte) string {
	scope := strings.Join([]string{s.day, s.region, s.service, "aws4_request"}, "/")
	return strings.Join([]string{algorithm, s.date, scope, digest([]byte(s.canonicalRequest(r, body)))}, "\n")
}

func (s *signature) canonicalRequest(r *http.Request, body []byte) string {
	var headers strings.Builder
	for _, name := range s.signedHeaders {
		headers.WriteString(name + ":" + canonicalHeader(r, name) + "\n")
	}
	return strings.Join([]string{
		r.Method,
		"/", // STS has no other path
		canonicalQuery(r.URL.RawQuery),
		headers.String(),
		strings.Join(s.signedHeaders, ";"),
		digest(body),
	}, "\n")
}

// canonicalHeader returns the values of a header, in the order received, with
// runs of spaces reduced to one.
func canonicalHeader(r *http.Request, name string) string {
	if name == "host" {
		return r.Host
	}
	var values []string
	for _, v := range r.Header.Values(name) {
		values = append(values, strings.Join(strings.Fields(v), " "))
	}
	return strings.Join(values, ",")
}

// canonicalQuery sorts the parameters and encodes all characters except unreserved ones.
func canonicalQuery(raw string) string {
	if raw == "" {
		return ""
	}
	var pairs []string
	for pair := range strings.SplitSeq(raw, "&") {
		name, value, _ := strings.Cut(pair, "=")
		pairs = append(pairs, encode(name)+"="+encode(value))
	}
	slices.Sort(pairs)
	return strings.Join(pairs, "&")
}

func encode(escaped string) string {
	text, err := url.PathUnescape(escaped)
	if err != nil {
		text = escaped
	}
	return strings.ReplaceAll(url.QueryEscape(text), "+", "%20")
}

func hmacSHA256(key []byte, data string) []byte {
	h := hmac.New(sha256.New, key)
	h.Write([]byte(data))
	return h.Sum(nil)
}

func digest(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}
