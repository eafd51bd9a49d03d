//go:build e2e && linux

package faults

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/e2e/fake/imds"
	"github.com/hallmark-ssh/hallmark/e2e/lab"
	"github.com/hallmark-ssh/hallmark/internal/machine/state"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
)

// briefly is long enough for a run to get to the fault, and to retry once.
const briefly = 6 * time.Second

// fromOutside are faults of the metadata service, the network and the signer.
func fromOutside() []fault {
	return []fault{
		{name: "metadata service down", finds: "metadata", begin: metadataTrouble(imds.Trouble{Silent: true})},
		{name: "metadata service switched off", finds: "metadata", begin: metadataTrouble(imds.Trouble{Disabled: true})},
		{name: "metadata service answers 401 until there is a new token", begin: metadataTrouble(imds.Trouble{Forgetful: true})},
		{name: "no instance identity role", finds: "identity role", begin: metadataTrouble(imds.Trouble{NoIdentityRole: true})},
		{name: "signer unreachable", finds: "signer", begin: unreachable, ask: briefly},
		{name: "no route to the signer, for five runs", finds: "signer", begin: noRoute, ask: briefly / 2, runs: 5},
		{name: "signer's TLS certificate of another CA", finds: "signer", begin: signerTrouble(lab.FrontTrouble{WrongCertificate: true}), ask: briefly},
		{name: "signer answers 503", finds: "signer", begin: instead(answer(http.StatusServiceUnavailable, refusal(protocol.CodeUpstream, nil))), ask: briefly},
		{name: "a proxy answers 502 for the signer", finds: "signer", begin: instead(answer(http.StatusBadGateway, "<html>Bad Gateway</html>")), ask: briefly},
		{name: "signer does not answer", finds: "signer", hangs: true, begin: instead(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }), ask: briefly},
		{name: "signer's answer is cut off", finds: "signer", begin: signerTrouble(lab.FrontTrouble{Wrap: cutOff}), ask: briefly},
		{name: "signer's answer is not JSON", finds: "signer", begin: instead(answer(http.StatusOK, "<html>Log in to the Wi-Fi</html>"))},
		{name: "clock an hour behind the signer's", finds: "clock", begin: instead(skewed), ask: briefly},
		{name: "another audience in the configuration", finds: "audience", begin: edited("/etc/hallmark/config.yaml", "s/^audience:.*/audience: someone.else/")},
	}
}

func metadataTrouble(trouble imds.Trouble) func(*testing.T, *instance) func() {
	return func(_ *testing.T, m *instance) func() {
		m.Metadata.SetTrouble(trouble)
		return func() { m.Metadata.SetTrouble(imds.Trouble{}) }
	}
}

func signerTrouble(trouble lab.FrontTrouble) func(*testing.T, *instance) func() {
	return func(*testing.T, *instance) func() {
		shared.lab.SetFrontTrouble(trouble)
		return func() { shared.lab.SetFrontTrouble(lab.FrontTrouble{}) }
	}
}

// instead answers in the signer's place.
func instead(handler http.HandlerFunc) func(*testing.T, *instance) func() {
	return signerTrouble(lab.FrontTrouble{Wrap: func(http.Handler) http.Handler { return handler }})
}

func answer(status int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	}
}

func refusal(code protocol.Code, serverTime *time.Time) string {
	body, err := json.Marshal(protocol.ErrorResponse{Error: protocol.Refusal{
		Code: code, Message: "try again later", RequestID: "request", ServerTime: serverTime,
	}})
	if err != nil {
		return err.Error() // which no machine accepts as a refusal
	}
	return string(body)
}

// skewed answers as the signer does to a machine with a wrong clock. The machines here share
// their host's clock.
func skewed(w http.ResponseWriter, r *http.Request) {
	now := time.Now().Add(time.Hour)
	answer(http.StatusUnauthorized, refusal(protocol.CodeClockSkew, &now))(w, r)
}

// cutOff lets the signer answer, and breaks the connection in the middle of the body.
func cutOff(signer http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		signer.ServeHTTP(&shortWriter{w}, r)
		panic(http.ErrAbortHandler)
	})
}

type shortWriter struct{ http.ResponseWriter }

func (w *shortWriter) Write(p []byte) (int, error) {
	_, err := w.ResponseWriter.Write(p[:len(p)/2])
	if flusher, ok := w.ResponseWriter.(http.Flusher); ok && err == nil {
		flusher.Flush()
	}
	return len(p), err
}

func unreachable(t *testing.T, _ *instance) func() {
	if err := shared.lab.StopURL(); err != nil {
		t.Fatal(err)
	}
	return func() {
		if err := shared.lab.StartURL(context.WithoutCancel(t.Context())); err != nil {
			t.Fatal(err)
		}
	}
}

// noRoute makes the kernel refuse TCP (6) to the signer's port. The address itself must stay
// reachable, because logins come from there.
func noRoute(t *testing.T, m *instance) func() {
	m.sh(t, "ip route add unreachable default table 443; ip rule add ipproto 6 dport 443 lookup 443")
	return func() { m.sh(t, "ip rule delete ipproto 6 dport 443 lookup 443; ip route flush table 443") }
}

// edited changes a file of the machine with sed.
func edited(path, script string) func(*testing.T, *instance) func() {
	return func(t *testing.T, m *instance) func() {
		before, err := os.ReadFile(m.Path(path))
		if err != nil {
			t.Fatal(err)
		}
		m.sh(t, fmt.Sprintf("sed -i '%s' %s", script, path))
		if after, err := os.ReadFile(m.Path(path)); err != nil || string(after) == string(before) {
			t.Fatalf("sed left %s as it was: %v", path, err)
		}
		return func() {
			if err := os.WriteFile(m.Path(path), before, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// twoRuns starts a second run by hand while the first waits for the signer.
func twoRuns(t *testing.T) outcome {
	forgetRequests()
	m := shared.machine
	name := m.hostname(t)
	m.makeDue(t)
	asked, release := make(chan struct{}), make(chan struct{})
	var waiting atomic.Bool
	shared.lab.SetFrontTrouble(lab.FrontTrouble{Wrap: func(signer http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if waiting.CompareAndSwap(false, true) { // the run's; the doctor asks later
				close(asked)
				<-release
			}
			signer.ServeHTTP(w, r)
		})
	}})
	defer shared.lab.SetFrontTrouble(lab.FrontTrouble{})
	before := m.logIn(t, name)
	m.begin(t, 0)
	<-asked
	out, err := m.Run(t.Context(), "sh", "-c", "hallmark renew 2>&1")
	if err != nil {
		t.Errorf("the second run: %v", err)
	}
	if _, err := m.Run(t.Context(), "hallmark", "enroll"); err == nil || !strings.Contains(err.Error(), state.ErrRunning.Error()) {
		t.Errorf("hallmark enroll: %v, want %q", err, state.ErrRunning)
	}
	d := m.diagnose(t, fault{})
	during := m.logIn(t, name)
	if during.worseThan(before) {
		t.Errorf("logins %s, and during a second run %s", before, during)
	}
	close(release)
	run := m.end(t)
	if run.exit != 0 {
		t.Errorf("the first run ends with %d: %s", run.exit, strings.Join(run.lines, "\n"))
	}
	if !m.renewed(t) {
		t.Error("the first run did not renew the certificates")
	}
	second := report{lines: strings.Split(strings.TrimSpace(out), "\n")}
	return outcome{logins: change(before, during), says: said(second), heals: "the first run", took: run.took, diagnosis: d}
}

// metadataDownAtBoot boots a machine for the first time while its metadata service is down.
func metadataDownAtBoot(t *testing.T) outcome {
	m := launch(t, lab.Template{Name: "nodata", Trouble: imds.Trouble{Silent: true}})
	// hallmark.timer starts the unit when the boot has come that far.
	m.sh(t, "until systemctl show --property=InvocationID hallmark.service | grep -q =.; do sleep 0.1; done")
	r := m.end(t)
	d := m.diagnose(t, fault{finds: "metadata"})
	during := m.logIn(t, "")
	m.follow(t, d, func() { m.Metadata.SetTrouble(imds.Trouble{}) })
	m.endPause(t)
	healing := m.serve(t, 0)
	after := m.logIn(t, m.hostname(t))
	if healing.exit != 0 || !after.teleport {
		t.Errorf("once the service is up, a run ends with %d, and logins are %s:\n%s", healing.exit, after, strings.Join(healing.lines, "\n"))
	}
	m.wantHealthy(t, "once the service is up, and a run has ended")
	return outcome{
		diagnosis: d,
		logins:    during.String() + " (cloud-init has no key pair), then " + after.String(), says: said(r), heals: healer(r, during, during, false), took: healing.took,
	}
}
