package caexport_test

import (
	"crypto/ed25519"
	"encoding/pem"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/caexport"
	"github.com/hallmark-ssh/hallmark/internal/sshkey"
)

// newKey returns a public key that depends only on the seed.
func newKey(t testing.TB, seed byte) ssh.PublicKey {
	t.Helper()
	private := ed25519.NewKeyFromSeed([]byte(strings.Repeat(string(rune('a'+seed)), ed25519.SeedSize)))
	key, err := ssh.NewPublicKey(private.Public())
	if err != nil {
		t.Fatal(err)
	}
	return key
}

// newProxy serves the handler over TLS and returns its address and roots.
func newProxy(t *testing.T, handler http.HandlerFunc) (address string, rootsPEM []byte) {
	t.Helper()
	server := httptest.NewUnstartedServer(handler)
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // handshakes fail on purpose here
	server.StartTLS()
	t.Cleanup(server.Close)
	roots := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: server.Certificate().Raw})
	return server.Listener.Addr().String(), roots
}

func newClient(t *testing.T, rootsPEM []byte) *http.Client {
	t.Helper()
	client, err := caexport.NewHTTPClient(rootsPEM)
	if err != nil {
		t.Fatal(err)
	}
	return client
}

func TestFetch(t *testing.T) {
	old, next := newKey(t, 0), newKey(t, 1)
	exports := map[string]string{
		"openssh": fmt.Sprintf("cert-authority %s clustername=c&type=user\ncert-authority %s clustername=c&type=user\n", sshkey.Line(old), sshkey.Line(next)),
		"host":    fmt.Sprintf("@cert-authority c,*.c %s type=host\n", sshkey.Line(old)),
	}
	address, roots := newProxy(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet || r.URL.Path != "/webapi/auth/export" {
			http.NotFound(w, r)
			return
		}
		fmt.Fprint(w, exports[r.URL.Query().Get("type")])
	})
	client := newClient(t, roots)

	keys, err := caexport.Fetch(t.Context(), client, address, caexport.OpenSSH)
	expect(t, err, "")
	expectKeys(t, keys, old, next)

	keys, err = caexport.Fetch(t.Context(), client, address, caexport.Host)
	expect(t, err, "")
	expectKeys(t, keys, old)

	_, err = caexport.Fetch(t.Context(), client, address, "user")
	expect(t, err, `unknown kind of CA "user"`)
}

func TestFetchRefuses(t *testing.T) {
	line := "cert-authority " + sshkey.Line(newKey(t, 0)) + " clustername=c&type=user\n"
	elsewhere, _ := newProxy(t, func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, line) })

	tests := []struct {
		name    string
		handler http.HandlerFunc
		want    string
	}{
		{"web page", answer(200, "<!doctype html><html><body>Welcome"), "a web page, not a CA export"},
		{"garbage", answer(200, "\x00\x01garbage"), "line 1"},
		{"nothing", answer(200, "\n"), "no keys"},
		{"good line, then garbage", answer(200, line+"oops\n"), "line 2"},
		{"over-long", answer(200, strings.Repeat(line, 64<<10/len(line)+1)), "more than 65536 bytes"},
		{"not found", answer(404, "404 page not found"), "404 Not Found: check that this is the address of a Teleport proxy"},
		{"too many requests", answer(429, ""), "retry in a minute"},
		{"server error", answer(500, "boom"), "500"},
		{"redirect to another host", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "https://"+elsewhere+"/webapi/auth/export?type=openssh", http.StatusFound)
		}, "it redirects to https://" + elsewhere},
		{"redirect to plain HTTP", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://"+r.Host+r.URL.Path, http.StatusFound)
		}, "it redirects to http://"},
		{"redirects in a circle", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, r.URL.String(), http.StatusFound)
		}, "redirects too many times"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			address, roots := newProxy(t, tt.handler)
			_, err := caexport.Fetch(t.Context(), newClient(t, roots), address, caexport.OpenSSH)
			expect(t, err, tt.want)
		})
	}
}

func answer(status int, body string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(status)
		fmt.Fprint(w, body)
	}
}

// A proxy whose certificate is not signed by a known root is not asked for anything.
func TestFetchVerifiesTLS(t *testing.T) {
	address, roots := newProxy(t, func(http.ResponseWriter, *http.Request) { t.Error("a request came through") })
	_, err := caexport.Fetch(t.Context(), nil, address, caexport.OpenSSH)
	expect(t, err, "certificate")

	// The certificate is for 127.0.0.1 and example.com, not for this name.
	_, port, _ := strings.Cut(address, ":")
	_, err = caexport.Fetch(t.Context(), newClient(t, roots), "localhost:"+port, caexport.OpenSSH)
	expect(t, err, "certificate is valid for")
}

func TestFetchRefusesAddresses(t *testing.T) {
	for _, address := range []string{
		"", "https://proxy.example.com", "proxy.example.com/path", "user@proxy.example.com",
		"proxy.example.com?x", "proxy.example.com:443/x", "a b",
	} {
		_, err := caexport.Fetch(t.Context(), nil, address, caexport.OpenSSH)
		if err == nil {
			t.Errorf("address %q: no error", address)
		}
	}
}

func TestNewHTTPClientRefusesBadRoots(t *testing.T) {
	_, err := caexport.NewHTTPClient([]byte("not PEM"))
	expect(t, err, "no PEM certificate")
}

func TestParseOpenSSH(t *testing.T) {
	old, next := newKey(t, 0), newKey(t, 1)
	exported := func(key ssh.PublicKey, comment string) string {
		return "cert-authority " + sshkey.Line(key) + " " + comment + "\n"
	}
	tests := []struct {
		name, data string
		keys       []ssh.PublicKey
		cluster    string
		want       string
	}{
		{"one key", exported(old, "clustername=c.example&type=user"), []ssh.PublicKey{old}, "c.example", ""},
		{"a rotation", exported(next, "clustername=c&type=user") + exported(old, "clustername=c&type=user"),
			[]ssh.PublicKey{next, old}, "c", ""},
		{"no newline at the end", strings.TrimSpace(exported(old, "clustername=c&type=user")), []ssh.PublicKey{old}, "c", ""},
		{"CRLF", "cert-authority " + sshkey.Line(old) + " clustername=c&type=user\r\n", []ssh.PublicKey{old}, "c", ""},
		{"plain keys, as written for sshd", "# a comment\n\n" + sshkey.Line(old) + "\n" + sshkey.Line(next) + " my CA%\n", []ssh.PublicKey{old, next}, "", ""},
		{"the same key twice", exported(old, "clustername=c&type=user") + exported(old, "clustername=c&type=user"),
			[]ssh.PublicKey{old}, "c", ""},
		{"two clusters", exported(old, "clustername=c&type=user") + exported(next, "clustername=d&type=user"), nil, "", `cluster "d" beside cluster "c"`},
		{"a host CA", exported(old, "clustername=c&type=host"), nil, "", `type "host", not user`},
		{"known_hosts line", "@cert-authority c,*.c " + sshkey.Line(old), nil, "", "line 1"},
		{"other options", `cert-authority,principals="root" ` + sshkey.Line(old), nil, "", `option "cert-authority" before the key`},
		{"HTML", "<html>", nil, "", "a web page"},
		{"empty", "", nil, "", "no keys"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			keys, cluster, err := caexport.ParseOpenSSH([]byte(tt.data))
			expect(t, err, tt.want)
			expectKeys(t, keys, tt.keys...)
			if cluster != tt.cluster {
				t.Errorf("cluster %q, want %q", cluster, tt.cluster)
			}
		})
	}
}

func TestParseHost(t *testing.T) {
	old, next := newKey(t, 0), newKey(t, 1)
	keys, cluster, err := caexport.ParseHost(fmt.Appendf(nil,
		"@cert-authority c,*.c %s type=host\n@cert-authority c,*.c %s type=host\n", sshkey.Line(old), sshkey.Line(next)))
	expect(t, err, "")
	expectKeys(t, keys, old, next)
	if cluster != "c" {
		t.Errorf("cluster %q, want c", cluster)
	}
	_, _, err = caexport.ParseHost([]byte("c " + sshkey.Line(old)))
	expect(t, err, "without @cert-authority")
	_, _, err = caexport.ParseHost([]byte("@revoked c " + sshkey.Line(old)))
	expect(t, err, "without @cert-authority")
	_, _, err = caexport.ParseHost([]byte("oops"))
	expect(t, err, "line 1")
}

// Each row is a line that an attacker in the proxy's place passes off as a CA. In sshd's or
// ssh's file it would mean more than one key, or another.
func TestAttackCALine(t *testing.T) {
	key := sshkey.Line(newKey(t, 0))
	openssh := "cert-authority " + key + " clustername=c&type=user\n"
	host := "@cert-authority c,*.c " + key + " type=host\n"
	for name, line := range map[string]string{
		"option":                    `principals="root" ` + key,
		"option beside the marker":  `cert-authority,principals="root" ` + key,
		"forced command":            `cert-authority,command="/bin/sh" ` + key,
		"option with a line feed":   "environment=\"A=b\nC=d\" " + key,
		"option in another case":    "Cert-Authority " + key,
		"CA of another kind":        "cert-authority " + key + " clustername=c&type=windows",
		"another cluster's CA":      "cert-authority " + key + " clustername=evil&type=user",
		"revoked":                   "@revoked c " + key,
		"marker in another case":    "@Cert-Authority c " + key,
		"two markers":               "@cert-authority @cert-authority c " + key,
		"no host":                   "@cert-authority " + key,
		"another cluster's host CA": "@cert-authority evil,*.evil " + key,
		"DSA":                       "ssh-dss AAAAB3NzaC1kc3MAAAAA",
		"type and blob disagree":    strings.Replace(key, "ssh-ed25519", "ssh-rsa", 1),
		"cut short":                 key[:len(key)-8],
		"configuration":             "TrustedUserCAKeys /etc/passwd",
		"web page":                  "<html>" + key,
	} {
		t.Run(name, func(t *testing.T) {
			if keys, _, err := caexport.ParseOpenSSH([]byte(openssh + line + "\n")); err == nil {
				t.Errorf("as an OpenSSH CA: %d keys", len(keys))
			}
			if keys, _, err := caexport.ParseHost([]byte(host + line + "\n")); err == nil {
				t.Errorf("as a host CA: %d keys", len(keys))
			}
		})
	}
}

func TestCheckPins(t *testing.T) {
	old, next := newKey(t, 0), newKey(t, 1)
	pin := ssh.FingerprintSHA256
	both := []ssh.PublicKey{old, next}
	expect(t, caexport.CheckPins(both, []string{pin(next), pin(old)}), "")
	expect(t, caexport.CheckPins(both[:1], []string{pin(next), pin(old)}), "")
	expect(t, caexport.CheckPins(both, []string{pin(old)}), pin(next)+" is not pinned")
	expect(t, caexport.CheckPins(both, nil), "is not pinned")
	expect(t, caexport.CheckPins(both, []string{"MD5:00"}), "is not \"SHA256:\"")
}

func FuzzParse(f *testing.F) {
	key := newKey(f, 0)
	f.Add([]byte("cert-authority " + sshkey.Line(key) + " clustername=c&type=user\n"))
	f.Add([]byte("@cert-authority c,*.c " + sshkey.Line(key) + " type=host\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		for _, parse := range []func([]byte) ([]ssh.PublicKey, string, error){caexport.ParseOpenSSH, caexport.ParseHost} {
			if keys, _, err := parse(data); (err == nil) != (len(keys) > 0) {
				t.Errorf("%d keys with error %v", len(keys), err)
			}
		}
	})
}

func expectKeys(t *testing.T, got []ssh.PublicKey, want ...ssh.PublicKey) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("%d keys, want %d", len(got), len(want))
	}
	for i := range got {
		if sshkey.Line(got[i]) != sshkey.Line(want[i]) {
			t.Errorf("key %d is %s, want %s", i, sshkey.Line(got[i]), sshkey.Line(want[i]))
		}
	}
}

// expect fails the test unless err contains the text, or is nil if that is empty.
func expect(t *testing.T, err error, text string) {
	t.Helper()
	switch {
	case text == "" && err != nil:
		t.Errorf("unexpected error: %v", err)
	case text != "" && err == nil:
		t.Errorf("no error, want %q", text)
	case text != "" && !strings.Contains(err.Error(), text):
		t.Errorf("got error %q, want %q in it", err, text)
	}
}
