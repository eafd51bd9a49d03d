package protocol_test

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"

	"github.com/hallmark-ssh/hallmark/internal/protocol"
)

func withReport(version int, report string) []byte {
	return []byte(`{"version":` + string(rune('0'+version)) + `,"audience":"a","report":` + report + `}`)
}

// A report is open, and everything else in a payload is not. internal/signer/enroll has the
// table of attacks on it.
func TestParseReport(t *testing.T) {
	const rejected = `{"code":"not_presented","requestId":"request-1","detail":"sshd presents another"}`
	for _, test := range []struct {
		name    string
		version int
		report  string
		wantErr string
	}{
		{"a rejection", 2, `{"rejected":` + rejected + `}`, ""},
		{"nothing", 2, `{}`, ""},
		{"members of a later release", 2, `{"rejected":` + rejected + `,"health":{"a":[1,{}]},"up":null}`, ""},
		{"version 1", 1, `{}`, `version 1 has no field "report"`},
		{"an unknown member of the rejection", 2, `{"rejected":{"code":"x","level":1}}`, `unknown field "level"`},
		{"another case", 2, `{"REJECTED":{}}`, `like "rejected"`},
		{"a control character", 2, `{"rejected":{"code":"x","detail":"a\u0007"}}`, "not printable"},
		{"no object", 2, `7`, "not a JSON object"},
	} {
		t.Run(test.name, func(t *testing.T) {
			p, err := protocol.ParsePayload(withReport(test.version, test.report))
			if got := message(err); (test.wantErr == "") != (err == nil) || !strings.Contains(got, test.wantErr) {
				t.Fatalf("error %q, want it to contain %q", got, test.wantErr)
			}
			if has := strings.Contains(test.report, rejected); err == nil && (p.Report.Rejected != nil) != has {
				t.Errorf("report %+v", p.Report)
			}
		})
	}
}

// A version that is not of the form is left out: it is no reason to refuse a machine.
func TestProgramVersion(t *testing.T) {
	for report, want := range map[string]string{
		`{"program":"v1.2.3"}`:                  "v1.2.3",
		`{"program":"(devel)"}`:                 "(devel)",
		`{"program":"v1.2.3-rc.1+dirty~deb12"}`: "v1.2.3-rc.1+dirty~deb12",
		`{}`:                                    "",
		`{"program":""}`:                        "",
		`{"program":7}`:                         "",
		`{"program":null}`:                      "",
		`{"program":["v1"]}`:                    "",
		`{"program":"v1 2"}`:                    "",
		`{"program":"v1\u001b[2J"}`:             "",
		`{"program":"ｖ1"}`:                      "",
		`{"program":"` + strings.Repeat("1", 33) + `"}`: "",
		`{"program":"` + strings.Repeat("1", 32) + `"}`: strings.Repeat("1", 32),
	} {
		p, err := protocol.ParsePayload(withReport(2, report))
		if err != nil {
			t.Errorf("%s: %v", report, err)
		} else if p.Report.Program != want {
			t.Errorf("%s: program %q, want %q", report, p.Report.Program, want)
		}
	}
	for version, want := range map[string]string{
		"v1.2.3": "v1.2.3", "": "", "v1\n": "",
		"v0.0.0-20261127080000-0123456789ab+dirty": "v0.0.0-20261127080000-0123456789",
	} {
		if got := protocol.ProgramVersion(version); got != want {
			t.Errorf("ProgramVersion(%q) = %q, want %q", version, got, want)
		}
	}
}

// Whatever went wrong on a machine, its report never makes the signer refuse the request.
func FuzzNewRejection(f *testing.F) {
	for _, detail := range []string{
		"", "plain", "two\nlines\x1b[2J", "\u202e\u200b\u2028\ufeff", "\xff\xfe", strings.Repeat("é", 300), strings.Repeat("a", 298) + "日本",
	} {
		f.Add("not_presented", "request-1", detail)
	}
	f.Add("x", "\n", "a")
	f.Add("x", strings.Repeat("a", 65), "a")
	f.Fuzz(func(t *testing.T, code, requestID, detail string) {
		if !json.Valid([]byte(`"`+code+`"`)) || code == "" || code[0] < 'a' || code[0] > 'z' || len(code) > 32 || strings.Trim(code, "abcdefghijklmnopqrstuvwxyz0123456789_") != "" {
			t.Skip("codes are this package's own")
		}
		r := protocol.NewRejection(protocol.RejectionCode(code), requestID, detail)
		data, err := json.Marshal(protocol.Payload{Version: 2, Report: &protocol.Report{Rejected: r}})
		if err != nil {
			t.Fatal(err)
		}
		p, err := protocol.ParsePayload(data)
		if err != nil {
			t.Fatalf("%q: %v", data, err)
		}
		if *p.Report.Rejected != *r || len(r.Detail) > protocol.MaxDetailBytes {
			t.Errorf("sent %+v, read %+v", r, p.Report.Rejected)
		}
	})
}

// FuzzParseReport compares accepted reports with encoding/json.
func FuzzParseReport(f *testing.F) {
	f.Add([]byte(`{"rejected":{"code":"x","requestId":"r","detail":"d"},"health":{"a":1}}`))
	f.Add([]byte(`{"Rejected":{}}`))
	f.Add([]byte(`{"a":1,"a":2}`))
	f.Fuzz(func(t *testing.T, report []byte) {
		payload := withReport(2, string(report))
		p, err := protocol.ParsePayload(payload)
		if err != nil {
			return
		}
		var want protocol.Payload
		if err := json.NewDecoder(bytes.NewReader(payload)).Decode(&want); err != nil {
			t.Fatalf("accepted %q, which encoding/json refuses: %v", payload, err)
		}
		// If the text contains a member of the payload, it is not only about the report.
		if again, err := json.Marshal(p); err != nil || !bytes.Equal(again, mustMarshal(t, want)) {
			t.Errorf("read %s, encoding/json %+v", again, want)
		}
	})
}

func mustMarshal(t *testing.T, v any) []byte {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}
