package teleporttest

import (
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/gravitational/teleport/api/client/webclient"
	"github.com/gravitational/trace"

	"github.com/hallmark-ssh/hallmark/internal/sshkey"
)

// webHandler is the proxy's public web API. It needs no login.
func (c *Cluster) webHandler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /webapi/auth/export", c.export)
	mux.HandleFunc("GET /webapi/find", c.find)
	mux.HandleFunc("GET /webapi/ping", c.find)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if err := c.called(r.Context(), r.URL.Path); err != nil {
			http.Error(w, err.Error(), trace.ErrorToCode(err))
			return
		}
		mux.ServeHTTP(w, r)
	})
}

func (c *Cluster) find(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	// The headers are sent: an error can no longer be reported.
	_ = json.NewEncoder(w).Encode(webclient.PingResponse{
		ServerVersion:    c.options.Generation.version(),
		MinClientVersion: c.options.MinClientVersion,
		ClusterName:      c.Name(),
		Proxy: webclient.ProxySettings{
			TLSRoutingEnabled: true,
			SSH:               webclient.SSHProxySettings{PublicAddr: c.PublicAddress(), ListenAddr: c.Address()},
		},
	})
}

// export writes a CA's keys in the form that sshd or ssh reads.
func (c *Cluster) export(w http.ResponseWriter, r *http.Request) {
	if c.options.Generation >= Generation19 {
		if err := c.rates.take(r.RemoteAddr); err != nil {
			http.Error(w, err.Error(), trace.ErrorToCode(err))
			return
		}
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	switch kind := r.URL.Query().Get("type"); kind {
	case "openssh":
		for _, key := range c.ca.openssh.trusted() {
			fmt.Fprintf(w, "cert-authority %s clustername=%s&type=user\n", sshkey.Line(key), c.Name())
		}
	case "host":
		for _, line := range knownHostsLines(c.Name(), c.ca.host.trusted()) {
			_, _ = w.Write(line)
		}
	default:
		http.Error(w, fmt.Sprintf("unknown or unsupported certificate type %q", kind), http.StatusBadRequest)
	}
}
