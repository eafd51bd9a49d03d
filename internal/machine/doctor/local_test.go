package doctor

import (
	"testing"

	"github.com/hallmark-ssh/hallmark/internal/machine/findings"
	"github.com/hallmark-ssh/hallmark/internal/machine/sshd"
)

// A setting that keeps people out is a likelier cause than an sshd that answers late.
func TestLateAfterSettings(t *testing.T) {
	f := &Facts{Root: true, Settings: &sshd.Effective{TrustedUserCAKeys: "/ca"}, CAFile: "/ca", ListenersErr: errLate}
	if first := Local(f)[0]; first.Check != "enrollment" {
		t.Errorf("first finding %+v", first)
	}
	f.Problems = []findings.Finding{{Keyword: "PubkeyAuthentication", Value: "no", Blocks: true}}
	if first := Local(f)[0]; first.Check != "settings" {
		t.Errorf("first finding %+v", first)
	}
	late := false
	for _, found := range Local(f) {
		late = late || found.Check == "presented" && found.Level == Failure
	}
	if !late {
		t.Errorf("nothing says that sshd did not answer in time")
	}
}
