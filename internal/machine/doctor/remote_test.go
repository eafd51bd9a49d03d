package doctor

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/machine/imds"
	"github.com/hallmark-ssh/hallmark/internal/machine/sshd"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"github.com/hallmark-ssh/hallmark/internal/sshkey"
	"github.com/hallmark-ssh/hallmark/internal/sshkey/sshkeytest"
)

// world is the metadata service and the signer of a machine without an sshd. The checks of
// both stand before those of sshd.
type world struct {
	*Machine
	t        *testing.T
	audience string // that the signer expects
	instead  http.HandlerFunc
	metadata func(w http.ResponseWriter, r *http.Request) bool
	date     time.Duration // how far the signer's clock is ahead
	probes   []protocol.Payload
	url      string
	roots    string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	dir := t.TempDir()
	w := &world{t: t, audience: "hallmark.example.com"}
	signer := httptest.NewUnstartedServer(http.HandlerFunc(w.serve))
	signer.Config.ErrorLog = log.New(io.Discard, "", 0) // refused handshakes are part of the tests
	signer.StartTLS()
	t.Cleanup(signer.Close)
	service := httptest.NewServer(http.HandlerFunc(w.serveMetadata))
	t.Cleanup(service.Close)
	w.url, w.roots = signer.URL+"/", filepath.Join(dir, "roots.pem")
	certificate := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: signer.Certificate().Raw})
	if err := os.WriteFile(w.roots, certificate, 0o600); err != nil {
		t.Fatal(err)
	}
	w.Machine = &Machine{
		ConfigFile: filepath.Join(dir, "config.yaml"), StateDir: dir, CAFile: filepath.Join(dir, "ca.pub"),
		Root: true, Now: time.Now, selinux: func() bool { return false }, metadataEndpoint: service.URL,
		units: func(context.Context) (map[string]Unit, error) { return nil, nil },
	}
	return w
}

func (w *world) serve(out http.ResponseWriter, r *http.Request) {
	out.Header().Set("Date", time.Now().Add(w.date).UTC().Format(http.TimeFormat))
	if w.instead != nil {
		w.instead(out, r)
		return
	}
	if r.Method == http.MethodGet {
		key := sshkey.Lines([]ssh.PublicKey{sshkeytest.NewSigner(w.t).PublicKey()})
		_ = json.NewEncoder(out).Encode(protocol.CAs{Version: protocol.CAsVersion, OpenSSHCAs: key, HostCAs: key})
		return
	}
	body, _ := io.ReadAll(r.Body)
	request, err := protocol.ParseRequest(body)
	if err != nil {
		w.t.Errorf("the probe is no request: %v", err)
		return
	}
	payload, err := protocol.ParsePayload(request.Payload)
	if err != nil {
		w.t.Errorf("the probe has no payload: %v", err)
		return
	}
	w.probes = append(w.probes, *payload)
	code := protocol.CodeHostKeyInvalid
	if payload.Audience != w.audience {
		code = protocol.CodeAudienceMismatch
	}
	refuse(code, http.StatusUnauthorized)(out, r)
}

func refuse(code protocol.Code, status int) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		_ = json.NewEncoder(w).Encode(protocol.ErrorResponse{Error: protocol.Refusal{Code: code, Message: "no"}})
	}
}

func (w *world) serveMetadata(out http.ResponseWriter, r *http.Request) {
	if w.metadata != nil && w.metadata(out, r) {
		return
	}
	switch {
	case r.URL.Path == "/latest/api/token":
		_, _ = io.WriteString(out, "token")
	case strings.HasSuffix(r.URL.Path, "/document"):
		_ = json.NewEncoder(out).Encode(imds.Instance{AccountID: "111122223333", Region: "us-west-2", InstanceID: "i-0"})
	case strings.HasSuffix(r.URL.Path, "/rsa2048"):
		_, _ = io.WriteString(out, "document")
	case strings.HasSuffix(r.URL.Path, "/ec2-instance"):
		_, _ = io.WriteString(out, `{"Code":"Success","AccessKeyId":"a","SecretAccessKey":"s","Token":"t"}`)
	default:
		http.NotFound(out, r)
	}
}

// A signer that does not answer is a finding after those that are certain: this machine has no
// sshd. The time is up once the signer has the question; what the other questions came to by then
// says nothing.
func TestSignerDoesNotAnswer(t *testing.T) {
	w := newWorld(t)
	w.configure("")
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	w.instead = func(_ http.ResponseWriter, r *http.Request) {
		cancel()
		<-r.Context().Done()
	}
	f := w.Examine(ctx)
	if f.Remote.SignerErr == nil {
		t.Fatal("no error")
	}
	f.Remote.MetadataErr, f.Remote.RoleErr, f.Remote.ProfileErr = nil, nil, nil
	findings := Full(f)
	if first := findings[0]; first.Check != "sshd" || first.Late {
		t.Errorf("first finding %+v", first)
	}
	first := findings[slices.IndexFunc(findings, func(f Finding) bool { return f.Late })]
	if first.Check != "signer" || first.Level != Failure || !strings.Contains(first.Command, "curl") {
		t.Errorf("first late finding %+v", first)
	}
}

// Each fault of the metadata service and the signer is the first finding, with a command.
func TestExamine(t *testing.T) {
	html := func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>Log in</html>") }
	for _, test := range []struct {
		name    string
		change  func(w *world)
		check   string
		text    string
		command string
	}{
		{"nothing", func(*world) {}, "sshd", "no sshd program", "openssh-server"},
		{"metadata switched off", func(w *world) {
			w.metadata = func(out http.ResponseWriter, _ *http.Request) bool {
				out.WriteHeader(http.StatusForbidden)
				return true
			}
		}, "metadata", "403", "modify-instance-metadata-options"},
		{"metadata silent", func(w *world) {
			w.metadata = func(http.ResponseWriter, *http.Request) bool { panic(http.ErrAbortHandler) }
		}, "metadata", "session token", "modify-instance-metadata-options"},
		{"no identity role", func(w *world) {
			w.metadata = func(out http.ResponseWriter, r *http.Request) bool {
				gone := strings.HasSuffix(r.URL.Path, "/ec2-instance")
				if gone {
					http.NotFound(out, r)
				}
				return gone
			}
		}, "identity role", "no instance identity role", "--instance-ids i-0"},
		{"no instance profile", func(w *world) { w.configure("signer_auth: aws_iam\n") }, "instance profile", "no instance profile", "associate-iam-instance-profile"},
		{"signer unreachable", func(w *world) { w.url = "https://127.0.0.1:1/"; w.configure("") }, "signer", "connection refused", "curl"},
		{"signer's name unknown", func(w *world) { w.url = "https://signer.invalid/"; w.configure("") }, "name resolution", "signer.invalid", "getent hosts signer.invalid"},
		{"another CA's TLS certificate", func(w *world) { w.roots = ""; w.configure("") }, "signer", "unknown authority", "openssl s_client"},
		{"503", func(w *world) { w.instead = refuse(protocol.CodeUpstream, http.StatusServiceUnavailable) }, "signer", "upstream_unavailable", "curl"},
		{"a proxy's 502", func(w *world) {
			w.instead = func(out http.ResponseWriter, _ *http.Request) { out.WriteHeader(http.StatusBadGateway) }
		}, "signer", "502", "curl"},
		{"not JSON", func(w *world) { w.instead = html }, "signer", "not a valid Hallmark response", "curl"},
		{"a redirect", func(w *world) {
			w.instead = func(out http.ResponseWriter, r *http.Request) { http.Redirect(out, r, "/x", http.StatusFound) }
		}, "signer", "302", "curl"},
		{"cut off", func(w *world) {
			w.instead = func(out http.ResponseWriter, _ *http.Request) {
				out.Header().Set("Content-Length", "100")
				_, _ = io.WriteString(out, "{")
			}
		}, "signer", "unexpected EOF", "curl"},
		{"another audience", func(w *world) { w.audience = "other" }, "audience", "audience_mismatch", "config.yaml"},
		{"a signer of another version", func(w *world) {
			w.instead = func(out http.ResponseWriter, r *http.Request) {
				if r.Method == http.MethodGet {
					out.WriteHeader(http.StatusMethodNotAllowed)
					return
				}
				out.WriteHeader(http.StatusBadRequest)
				_ = json.NewEncoder(out).Encode(protocol.ErrorResponse{Error: protocol.Refusal{Code: protocol.CodeUnsupportedVersion, SupportedVersions: []int{99}}})
			}
		}, "audience", "protocol version", "hallmark version"},
		{"clock behind", func(w *world) { w.date = time.Hour }, "clock", "1h behind the signer's", "timedatectl"},
		{"clock ahead", func(w *world) { w.date = -24 * time.Hour }, "clock", "1d ahead of the signer's", "timedatectl"},
		{"clock refused", func(w *world) { w.instead = refuse(protocol.CodeClockSkew, http.StatusUnauthorized) }, "clock", "clock is wrong", "timedatectl"},
		{"configuration broken", func(w *world) { w.write("signer_ulr: x\n") }, "configuration", "signer_ulr", "config.yaml"},
	} {
		t.Run(test.name, func(t *testing.T) {
			w := newWorld(t)
			w.configure("")
			test.change(w)
			first := Full(w.Examine(t.Context()))[0]
			if first.Check != test.check || first.Level != Failure || !strings.Contains(first.Text, test.text) || first.Fix == "" || !strings.Contains(first.Command, test.command) {
				t.Errorf("first finding %+v, want %s: …%s…, with a command …%s…", first, test.check, test.text, test.command)
			}
			for _, p := range w.probes {
				if len(p.HostKeys) != 1 || p.HostKeys[0] != "probe" || p.IdentityDocument != "probe" {
					t.Errorf("the probe tells %+v", p)
				}
			}
		})
	}
}

// A signer that is too busy for the probe does not accept its audience.
// Another program in the signer's place does not either.
func TestAudienceUnknown(t *testing.T) {
	status := func(code int) http.HandlerFunc {
		return func(out http.ResponseWriter, _ *http.Request) { out.WriteHeader(code) }
	}
	for name, test := range map[string]struct {
		refuse http.HandlerFunc
		level  Level
		text   string
	}{
		"rate limited":       {refuse(protocol.CodeRateLimited, http.StatusTooManyRequests), Unknown, "cannot tell"},
		"a service is down":  {refuse(protocol.CodeUpstream, http.StatusServiceUnavailable), Unknown, "cannot tell"},
		"a gateway":          {status(http.StatusBadGateway), Unknown, "cannot tell"},
		"another web server": {status(http.StatusNotFound), Failure, "404"},
		"a page":             {func(out http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(out, "<html>Log in</html>") }, Failure, "not a valid Hallmark response"},
	} {
		w := newWorld(t)
		w.configure("")
		w.instead = func(out http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodGet {
				out.WriteHeader(http.StatusNotFound)
				return
			}
			test.refuse(out, r)
		}
		f := w.Examine(t.Context())
		if got := checkAudience(f)[0]; got.Level != test.level || !strings.Contains(got.Text, test.text) || got.Fix == "" || got.Command == "" {
			t.Errorf("%s: finding %+v", name, got)
		}
	}
}

func (w *world) configure(more string) {
	w.t.Helper()
	text := fmt.Sprintf("signer_url: %s\naudience: hallmark.example.com\n", w.url)
	if w.roots != "" {
		text += "signer_ca_file: " + w.roots + "\n"
	}
	w.write(text + more)
}

func (w *world) write(text string) {
	w.t.Helper()
	if err := os.WriteFile(w.ConfigFile, []byte(text), 0o600); err != nil {
		w.t.Fatal(err)
	}
}

// Warnings about the clock begin before the signer refuses it.
func TestCheckClock(t *testing.T) {
	for skew, want := range map[time.Duration]Level{
		0: OK, 29 * time.Second: OK, -29 * time.Second: OK, time.Minute: Warning, -4 * time.Minute: Warning,
		5 * time.Minute: Failure, -time.Hour: Failure,
	} {
		if got := checkClock(&Facts{Remote: &Remote{HasDate: true, Skew: skew}})[0].Level; got != want {
			t.Errorf("%s: %s, want %s", skew, got, want)
		}
	}
}

func TestCheckLabels(t *testing.T) {
	wrong := Remote{SELinux: true, Labels: []string{"Would relabel /etc/ssh/x from a to b"}}
	if f := checkLabels(&Facts{Remote: &wrong})[0]; f.Level != Warning || !strings.Contains(f.Command, "restorecon -Rv") {
		t.Errorf("%+v", f)
	}
	if f := checkLabels(&Facts{Remote: &Remote{SELinux: true}})[0]; f.Level != OK {
		t.Errorf("%+v", f)
	}
	if f := checkLabels(&Facts{Remote: &Remote{}}); len(f) > 0 {
		t.Errorf("without SELinux: %+v", f)
	}
}

// An image lacks one thing after the other, until it is complete and sealed.
func TestImage(t *testing.T) {
	root := t.TempDir()
	put := func(name, content string, mode os.FileMode) {
		t.Helper()
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), mode); err != nil {
			t.Fatal(err)
		}
	}
	want := func(check string, level Level, text string) {
		t.Helper()
		first := Image(t.Context(), root)[0]
		if first.Check != check || first.Level != level || !strings.Contains(first.Text, text) || level != OK && first.Command == "" {
			t.Errorf("first finding %+v, want %s (%s): %s", first, check, level, text)
		}
	}
	want("program", Failure, "is missing")
	put("usr/bin/hallmark", "", 0o755) // a package's
	want("configuration", Failure, "is missing")
	if err := os.Remove(filepath.Join(root, "usr/bin/hallmark")); err != nil {
		t.Fatal(err)
	}
	put("usr/local/bin/hallmark", "", 0o755)
	want("configuration", Failure, "is missing")
	put("etc/hallmark/config.yaml", "signer_ulr: x\n", 0o644)
	want("configuration", Failure, "signer_ulr")
	put("etc/hallmark/config.yaml", "signer_url: https://signer.example.com/\naudience: hallmark.example.com\n", 0o644)
	want("timers", Failure, "hallmark.service is not installed")
	for _, unit := range []string{"hallmark.service", "hallmark.timer", "hallmark-renew.timer"} {
		put("etc/systemd/system/"+unit, "", 0o644)
	}
	want("timers", Failure, "hallmark.timer is not enabled")
	put("etc/systemd/system/timers.target.wants/hallmark.timer", "", 0o644)
	put("etc/systemd/system/timers.target.wants/hallmark-renew.timer", "", 0o644)
	want("sshd", Failure, "no sshd program")
	put("usr/sbin/sshd", "#!/bin/sh\n", 0o755) // no shell is there, so it does not run
	want("sshd", Failure, "does not accept")
}

// Without host keys, sshd's lines decide.
func TestImageLines(t *testing.T) {
	i := &image{root: "/image"}
	for text, want := range map[string]Level{
		"TrustedUserCAKeys /etc/ssh/hallmark/openssh_ca.pub\nTrustedUserCAKeys /x\n": OK,
		"TrustedUserCAKeys /x\nTrustedUserCAKeys /etc/ssh/hallmark/openssh_ca.pub\n": Failure,
		"PermitRootLogin no\n": Failure,
	} {
		root := t.TempDir()
		path := filepath.Join(root, "etc/ssh/sshd_config")
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := i.lines((&sshd.Server{Root: root}).Lines())[0].Level; got != want {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
}

// No service that tries again repairs a network.
func TestFixOfUnreachableSigner(t *testing.T) {
	w := newWorld(t)
	w.url = "https://127.0.0.1:1/"
	w.configure("")
	if got := Full(w.Examine(t.Context()))[0]; got.Check != "signer" || got.Fix != "check what is between this machine and the signer" {
		t.Errorf("first finding %+v", got)
	}
}

// Each host key that Seal would remove is named, wherever sshd's configuration has it.
func TestImageThatIsNotSealed(t *testing.T) {
	i := &image{root: t.TempDir()}
	named := map[string]bool{"/etc/ssh/ssh_host_rsa_key": true, "/var/keys/a": true, "/var/lib/hallmark/state.json": true}
	files := map[string]string{"/etc/ssh/sshd_config": "HostKey /etc/ssh/ssh_host_rsa_key\nHostKey /var/keys/a\nHostKey /var/keys/missing\n"}
	for name := range named {
		files[name] = ""
	}
	for name, content := range files {
		path := filepath.Join(i.root, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(content), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	for _, f := range i.sealed(t.Context()) {
		path, _, _ := strings.Cut(strings.TrimPrefix(f.Text, i.root), " ")
		if !named[path] || f.Level != Failure {
			t.Errorf("finding %+v", f)
		}
		delete(named, path)
	}
	if len(named) > 0 {
		t.Errorf("no finding names %v", named)
	}
}
