package teleporttest

import (
	"encoding/json"
	"net/http"
	"time"

	trustpb "github.com/gravitational/teleport/api/gen/proto/go/teleport/trust/v1"
	"github.com/gravitational/teleport/api/types"
	"github.com/gravitational/trace"
	"google.golang.org/protobuf/types/known/durationpb"
)

// authHandler is the auth service's older API: JSON over HTTP 1.1, for clients
// with a certificate.
func (c *Cluster) authHandler() http.Handler {
	mux := http.NewServeMux()
	if c.options.Generation == Generation13 {
		mux.HandleFunc("POST /v2/ca/host/certs", c.legacyHostCert)
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor != 1 {
			// Teleport sorts connections by the protocol that TLS agreed on.
			http.Error(w, "gRPC only", http.StatusUnsupportedMediaType)
			return
		}
		if len(r.TLS.VerifiedChains) == 0 {
			trace.WriteError(w, trace.AccessDenied("no client certificate of this cluster"))
			return
		}
		if err := c.called(r.Context(), r.URL.Path); err != nil {
			trace.WriteError(w, err)
			return
		}
		mux.ServeHTTP(w, r)
	})
}

func (c *Cluster) legacyHostCert(w http.ResponseWriter, r *http.Request) {
	var request struct {
		Key         []byte            `json:"key"`
		HostID      string            `json:"hostname"`
		NodeName    string            `json:"node_name"`
		Principals  []string          `json:"principals"`
		ClusterName string            `json:"auth_domain"`
		Roles       types.SystemRoles `json:"roles"`
		TTL         time.Duration     `json:"ttl"`
	}
	if err := json.NewDecoder(r.Body).Decode(&request); err != nil {
		trace.WriteError(w, trace.BadParameter("request: %v", err))
		return
	}
	if len(request.Roles) != 1 {
		trace.WriteError(w, trace.BadParameter("exactly one system role is required"))
		return
	}
	cert, err := c.generateHostCert(&trustpb.GenerateHostCertRequest{
		Key: request.Key, HostId: request.HostID, NodeName: request.NodeName, Principals: request.Principals,
		ClusterName: request.ClusterName, Role: string(request.Roles[0]), Ttl: durationpb.New(request.TTL),
	})
	if err != nil {
		trace.WriteError(w, err)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	// The headers are sent: an error can no longer be reported.
	_ = json.NewEncoder(w).Encode(string(cert))
}
