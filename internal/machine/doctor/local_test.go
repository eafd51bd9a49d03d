package doctor

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/machine/findings"
	"github.com/hallmark-ssh/hallmark/internal/machine/sshd"
	"github.com/hallmark-ssh/hallmark/internal/machine/state"
	"github.com/hallmark-ssh/hallmark/internal/sshkey/sshkeytest"
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

// On a busy machine several answers are late. What is certain stands first, and what either has
// caused stands last.
func TestCertainty(t *testing.T) {
	refused := errors.New("connection refused")
	late := fmt.Errorf("ask the signer: %w", context.DeadlineExceeded)
	now := time.Now()
	key := sshkeytest.NewSigner(t).PublicKey()
	enrolled := func(f *Facts) {
		f.State = &state.State{
			Config: f.Config.Digest(), EnrolledAt: now.Add(-time.Hour), RenewAfter: now.Add(time.Hour),
			Certificates: []state.Certificate{{Path: "/c", Fingerprint: ssh.FingerprintSHA256(key)}},
		}
		f.Files = []File{{Path: "/c", Certificate: &ssh.Certificate{Key: key, ValidBefore: ssh.CertTimeInfinity}}}
	}
	for _, test := range []struct {
		name   string
		change func(*Facts)
		want   string
		late   bool
	}{
		{"late alone", func(f *Facts) { enrolled(f); f.Remote.SignerErr = late }, "signer", true},
		{"late before a certain one", func(f *Facts) { enrolled(f); f.Remote.MetadataErr, f.Remote.SignerErr = late, refused }, "signer", false},
		{"another signer in the configuration", func(f *Facts) {
			enrolled(f)
			f.Config.SignerURL = "https://other.example.com/"
			f.Remote.SignerErr = refused
		}, "enrollment", false},
		{"an unknown signer in the configuration", func(f *Facts) {
			enrolled(f)
			f.Config.SignerURL = "https://other.example.com/"
			f.Remote.Host, f.Remote.ResolveErr = "other.example.com", refused
		}, "enrollment", false},
		{"late sshd", func(f *Facts) { f.SettingsErr, f.ListenersErr = errLate, errLate }, "enrollment", false},
		{"late systemd", func(f *Facts) { enrolled(f); f.UnitsErr = errLate; f.Remote.SignerErr = refused }, "signer", false},
		{"an overdue renewal", func(f *Facts) { enrolled(f); f.State.RenewAfter = now.Add(-48 * time.Hour); f.Remote.SignerErr = late }, "signer", true},
		{"a certificate that expired", func(f *Facts) {
			enrolled(f)
			f.Files = []File{{Path: "/c", Certificate: &ssh.Certificate{Key: key, ValidBefore: uint64(now.Add(-time.Minute).Unix())}}}
			f.Remote.SignerErr = late
		}, "signer", true},
		{"a certificate that is missing", func(f *Facts) {
			enrolled(f)
			f.Files = []File{{Path: "/c", Err: errors.New("damaged")}}
			f.Remote.SignerErr = late
		}, "certificates", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			units := map[string]Unit{}
			for _, name := range []string{ServiceUnit, BootTimer, RenewTimer} {
				units[name] = Unit{Name: name, Loaded: true, Active: true, Enabled: "enabled"}
			}
			f := &Facts{
				Now: now, Root: true, CAFile: "/ca", Settings: &sshd.Effective{TrustedUserCAKeys: "/ca"}, Units: units, Remote: &Remote{},
				Listeners: []Listener{{Address: "127.0.0.1:22"}},
			}
			test.change(f)
			if first := Full(f)[0]; first.Check != test.want || first.Late != test.late || first.Level != Failure {
				t.Errorf("first finding %+v, want %s, late %t", first, test.want, test.late)
			}
		})
	}
}
