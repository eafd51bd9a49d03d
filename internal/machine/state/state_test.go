package state

import (
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/protocol"
)

// A state says later what it said, and says nothing of metadata options that are unknown.
func TestStateRoundTrip(t *testing.T) {
	dir := t.TempDir()
	for _, o := range []protocol.MetadataOptions{{}, {HopLimit: 2}, {HTTPTokens: protocol.TokensRequired, HopLimit: 1}} {
		want := &State{Version: Version, Principals: []string{"web"}, EnrolledAt: time.Unix(1_800_000_000, 0).UTC(), MetadataOptions: o}
		if err := Save(dir, want); err != nil {
			t.Fatal(err)
		}
		if got, err := Load(dir); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%+v: %+v, error %v", o, got, err)
		}
		data, err := os.ReadFile(Path(dir))
		if err != nil {
			t.Fatal(err)
		}
		if said := strings.Contains(string(data), "metadataOptions"); said != (o != protocol.MetadataOptions{}) {
			t.Errorf("%+v: %s", o, data)
		}
	}
}

// Options that somebody damaged do not make the machine enroll again.
func TestStateWithOddMetadataOptions(t *testing.T) {
	for text, want := range map[string]protocol.MetadataOptions{
		`{"httpTokens":"optional","httpPutResponseHopLimit":3}`: {HTTPTokens: "optional", HopLimit: 3},
		`{"httpTokens":7,"httpPutResponseHopLimit":"1"}`:        {},
		`"required"`: {}, `null`: {}, `{"httpPutResponseHopLimit":1000}`: {},
	} {
		s := parseState([]byte(`{"version":1,"config":"c","metadataOptions":` + text + `}`))
		if s == nil || s.Config != "c" || s.MetadataOptions != want {
			t.Errorf("%s: %+v, want %+v", text, s, want)
		}
	}
}
