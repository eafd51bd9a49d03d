package protocol_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/hallmark-ssh/hallmark/internal/protocol"
)

// Whatever stands in place of the options, a response is read, and what is known is valid.
func TestMetadataOptions(t *testing.T) {
	type options = protocol.MetadataOptions
	for text, want := range map[string]options{
		`{"httpTokens":"required","httpPutResponseHopLimit":1}`:         {HTTPTokens: "required", HopLimit: 1},
		`{"httpTokens":"optional","httpPutResponseHopLimit":64}`:        {HTTPTokens: "optional", HopLimit: 64},
		`{"httpTokens":"required"}`:                                     {HTTPTokens: "required"},
		`{"httpPutResponseHopLimit":2,"state":"pending"}`:               {HopLimit: 2},
		`{"httpTokens":"Required","httpPutResponseHopLimit":65}`:        {},
		`{"httpTokens":"","httpPutResponseHopLimit":0}`:                 {},
		`{"httpTokens":1,"httpPutResponseHopLimit":"1"}`:                {},
		`{"httpTokens":null,"httpPutResponseHopLimit":-1}`:              {},
		`{"httpTokens":["required"],"httpPutResponseHopLimit":1.5}`:     {},
		`{"httpTokens":"required","httpPutResponseHopLimit":1e99}`:      {HTTPTokens: "required"},
		`{"HTTPTOKENS":"required","HttpPutResponseHopLimit":1}`:         {},
		`{"httpTokens":"` + strings.Repeat("required", 1000) + `"}`:     {},
		`{"httpPutResponseHopLimit":` + strings.Repeat("1", 1000) + `}`: {},
		`{"httpPutResponseHopLimit":{"httpPutResponseHopLimit":1}}`:     {},
		`{}`: {}, `null`: {}, `[]`: {}, `"required"`: {}, `1`: {}, `true`: {},
	} {
		r := protocol.Response{MetadataOptions: options{HTTPTokens: "before", HopLimit: 9}}
		if err := json.Unmarshal([]byte(`{"requestId":"r","metadataOptions":`+text+`,"renewAfter":"2026-01-02T03:04:05Z"}`), &r); err != nil {
			t.Errorf("%.100s: %v", text, err)
		}
		if r.MetadataOptions != want || r.RequestID != "r" || r.RenewAfter.IsZero() {
			t.Errorf("%.100s: %+v, want %+v", text, r, want)
		}
		var again protocol.Response
		if err := json.Unmarshal(must(json.Marshal(r)), &again); err != nil || again.MetadataOptions != want {
			t.Errorf("%.100s: read again as %+v, error %v", text, again.MetadataOptions, err)
		}
	}
}

// A signer that knows nothing sends what a signer from before this member sent.
func TestResponseMetadataOptions(t *testing.T) {
	const member = `,"metadataOptions":{"httpTokens":"required","httpPutResponseHopLimit":1}}`
	for want, o := range map[string]protocol.MetadataOptions{
		`:00Z"}`:      protocol.NewMetadataOptions("", 0),
		`Z"` + member: protocol.NewMetadataOptions("required", 1),
		`Z","metadataOptions":{"httpPutResponseHopLimit":2}}`: protocol.NewMetadataOptions("no-preference", 2),
	} {
		if body := string(must(json.Marshal(protocol.Response{MetadataOptions: o}))); !strings.HasSuffix(body, want) {
			t.Errorf("%+v: %s, want an end %s", o, body, want)
		}
	}
}
