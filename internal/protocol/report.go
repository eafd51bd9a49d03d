package protocol

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Report is what a machine says about itself, since version 2. The signer logs and counts it,
// and bases no decision on it.
//
// It is the one open part of a request: it may have members that the signer does not know and
// ignores. So later releases can report more without a new version.
type Report struct {
	// Rejected says why the last certificates that the signer granted are not in use.
	Rejected *Rejection `json:"rejected,omitempty"`
	// Program is the version of the machine's program, in the form that ProgramVersion gives.
	Program string `json:"program,omitempty"`
}

// ProgramVersion returns a version as a report has it: letters, digits and a few signs, at most
// 32. Anything else is "".
func ProgramVersion(version string) string {
	version = version[:min(len(version), maxProgram)]
	if !programPattern.MatchString(version) {
		return ""
	}
	return version
}

// Rejection says what kept a machine from using what the signer granted.
type Rejection struct {
	Code RejectionCode `json:"code"`
	// RequestID is the request id of the answer.
	RequestID string `json:"requestId"`
	// Detail is one line for people.
	Detail string `json:"detail"`
}

// RejectionCode is a stable code for why a machine does not use an answer. A later machine may
// send a code that the signer does not know.
type RejectionCode string

// The codes of this version.
const (
	RejectedAnswer        RejectionCode = "answer_invalid" // it did not pass the machine's own checks
	RejectedBySSHD        RejectionCode = "sshd_refused"   // sshd does not accept its configuration
	RejectedNotInstalled  RejectionCode = "not_installed"  // the files could not be replaced
	RejectedNotPresented  RejectionCode = "not_presented"  // sshd did not present the certificates; everything was rolled back
	RejectedLoginsBlocked RejectionCode = "logins_blocked" // they are in place, but sshd's settings allow no login with one
	RejectedReloadPending RejectionCode = "reload_pending" // they wait for a reload that would activate other changes
)

const (
	// MaxReportBytes bounds an encoded Report.
	MaxReportBytes = 4 << 10
	// MaxDetailBytes bounds a Rejection's Detail.
	MaxDetailBytes = 300

	maxReportMembers = 16
	maxProgram       = 32
)

// NewRejection returns a rejection that every signer accepts: unprintable characters in the
// detail become spaces, and the rest is cut.
func NewRejection(code RejectionCode, requestID, detail string) *Rejection {
	if !requestIDPattern.MatchString(requestID) {
		requestID = ""
	}
	return &Rejection{Code: code, RequestID: requestID, Detail: printable(detail)}
}

func printable(text string) string {
	text = strings.Map(func(r rune) rune {
		if r == utf8.RuneError || !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, text)
	if len(text) <= MaxDetailBytes {
		return text
	}
	const more = "…"
	cut := MaxDetailBytes - len(more)
	for !utf8.RuneStart(text[cut]) {
		cut--
	}
	return text[:cut] + more
}

var (
	rejectionCodePattern = regexp.MustCompile(`^[a-z][a-z0-9_]{0,31}$`)
	requestIDPattern     = regexp.MustCompile(`^[A-Za-z0-9._:-]{0,64}$`)
	programPattern       = regexp.MustCompile(`^[A-Za-z0-9.()+_~-]+$`)
	memberPattern        = regexp.MustCompile(`^[a-z][A-Za-z0-9]{0,31}$`)
)

// check returns an error unless a rejection is fit for a log: short and printable.
func (r *Rejection) check() error {
	switch {
	case !rejectionCodePattern.MatchString(string(r.Code)):
		return fmt.Errorf("code %.64q is not a code", r.Code)
	case !requestIDPattern.MatchString(r.RequestID):
		return fmt.Errorf("requestId %.80q is not a request's id", r.RequestID)
	case len(r.Detail) > MaxDetailBytes:
		return fmt.Errorf("detail has %d bytes, more than %d", len(r.Detail), MaxDetailBytes)
	case strings.ContainsFunc(r.Detail, func(c rune) bool { return !unicode.IsPrint(c) }):
		return fmt.Errorf("detail %.80q is not printable", r.Detail)
	}
	return nil
}

// parseReport reads a report. For unknown members it checks only the names.
func parseReport(data []byte) (*Report, error) {
	if len(data) > MaxReportBytes {
		return nil, fmt.Errorf("%d bytes, more than %d", len(data), MaxReportBytes)
	}
	var report Report
	rejected := func(data []byte) error {
		var r Rejection
		err := object{"code": &r.Code, "requestId": &r.RequestID, "detail": &r.Detail}.decode(data)
		if err == nil {
			err = r.check()
		}
		report.Rejected = &r
		return err
	}
	// Leave out a version of another form: it is only for people, so it must not keep a machine out.
	program := func(data []byte) error {
		var text string
		if json.Unmarshal(data, &text) == nil && len(text) <= maxProgram {
			report.Program = ProgramVersion(text)
		}
		return nil
	}
	known := object{"rejected": rejected, "program": program}
	if err := known.decodeOpen(data); err != nil {
		return nil, err
	}
	return &report, nil
}
