package signerclient

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

// The machine uses the system's roots if those of signer_ca_file do not verify the signer,
// and the request arrives whole, once.
func TestRootsOnDemand(t *testing.T) {
	requests := 0
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		requests++
		_, _ = io.Copy(w, r.Body)
	}))
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	t.Cleanup(server.Close)
	theirs, nobodys := x509.NewCertPool(), x509.NewCertPool()
	theirs.AddCert(server.Certificate())
	unused := roundTripper(func(*http.Request) (*http.Response, error) {
		t.Error("the other roots are asked, too")
		return nil, errors.New("unused")
	})
	for name, tt := range map[string]struct {
		transport ownFirst
		url       string
		ok        bool
	}{
		"own":          {ownFirst{transportWith(theirs), unused}, server.URL, true},
		"the system's": {ownFirst{transportWith(nobodys), transportWith(theirs)}, server.URL, true},
		"none":         {ownFirst{transportWith(nobodys), transportWith(nobodys)}, server.URL, false},
		// An error that is not about roots would happen with other roots as well.
		"wrong name": {ownFirst{transportWith(theirs), unused}, strings.Replace(server.URL, "127.0.0.1", "localhost", 1), false},
	} {
		t.Run(name, func(t *testing.T) {
			requests = 0
			client := &http.Client{Transport: tt.transport}
			response, err := client.Post(tt.url, "text/plain", strings.NewReader("proof"))
			if !tt.ok {
				if _, ok := errors.AsType[*tls.CertificateVerificationError](err); !ok || requests != 0 {
					t.Errorf("got %v with %d requests, want a certificate error and none", err, requests)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			defer response.Body.Close()
			body, err := io.ReadAll(response.Body)
			if err != nil || string(body) != "proof" || requests != 1 {
				t.Errorf("got %q, %v with %d requests", body, err, requests)
			}
		})
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
