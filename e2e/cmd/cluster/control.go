package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/signer/teleport/teleporttest"
)

const socketName = "control.sock"

// maxBytes bounds requests and answers: a list of some thousand nodes.
const maxBytes = 16 << 20

type userCertificateRequest struct {
	Key    string        `json:"key"`
	Logins []string      `json:"logins"`
	TTL    time.Duration `json:"ttl"` // nanoseconds
}

// nodeView is what the demo shows of a node.
type nodeView struct {
	ID       string            `json:"id"`
	Hostname string            `json:"hostname"`
	Address  string            `json:"address"`
	Labels   map[string]string `json:"labels"`
	Expires  time.Time         `json:"expires"`
}

// startControl serves the cluster's other commands on a socket in the folder.
// The folder's mode keeps other users away.
func startControl(cluster *teleporttest.Cluster, dir string) (*http.Server, error) {
	path := filepath.Join(dir, socketName)
	// One that was killed left its socket.
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	listener, err := net.Listen("unix", path)
	if err != nil {
		return nil, err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /user-certificate", func(w http.ResponseWriter, r *http.Request) {
		cert, err := issueUserCertificate(cluster, r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		_, _ = w.Write(cert)
	})
	mux.HandleFunc("GET /nodes", func(w http.ResponseWriter, _ *http.Request) {
		encoder := json.NewEncoder(w)
		encoder.SetIndent("", "  ")
		_ = encoder.Encode(viewNodes(cluster))
	})
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	go func() { _ = server.Serve(listener) }() // Close ends it
	return server, nil
}

func issueUserCertificate(cluster *teleporttest.Cluster, body io.Reader) ([]byte, error) {
	var request userCertificateRequest
	if err := json.NewDecoder(io.LimitReader(body, maxBytes)).Decode(&request); err != nil {
		return nil, err
	}
	key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(request.Key))
	if err != nil {
		return nil, err
	}
	if len(request.Logins) == 0 || request.TTL <= 0 {
		return nil, errors.New("a certificate needs a login and a lifetime")
	}
	cert, err := cluster.IssueUserCertificate(key, request.Logins, request.TTL)
	if err != nil {
		return nil, err
	}
	return ssh.MarshalAuthorizedKey(cert), nil
}

func viewNodes(cluster *teleporttest.Cluster) []nodeView {
	views := []nodeView{}
	for _, node := range cluster.Nodes() {
		views = append(views, nodeView{
			node.GetName(), node.GetHostname(), node.GetAddr(), node.GetAllLabels(), node.Expiry(),
		})
	}
	return views
}

func requestUserCertificate(ctx context.Context, dir string, request userCertificateRequest) ([]byte, error) {
	body, err := json.Marshal(request)
	if err != nil {
		return nil, err
	}
	return ask(ctx, dir, http.MethodPost, "/user-certificate", body)
}

func requestNodes(ctx context.Context, dir string) ([]byte, error) {
	return ask(ctx, dir, http.MethodGet, "/nodes", nil)
}

// ask sends a request to the cluster that runs on the folder.
func ask(ctx context.Context, dir, method, path string, body []byte) ([]byte, error) {
	var dialer net.Dialer
	client := &http.Client{
		Timeout: 10 * time.Second,
		Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", filepath.Join(dir, socketName))
		}},
	}
	defer client.CloseIdleConnections()
	request, err := http.NewRequestWithContext(ctx, method, "http://cluster"+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	response, err := client.Do(request)
	if err != nil {
		return nil, fmt.Errorf("ask the cluster on %s (does it run?): %w", dir, err)
	}
	defer response.Body.Close()
	data, err := io.ReadAll(io.LimitReader(response.Body, maxBytes))
	if err != nil {
		return nil, err
	}
	if response.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("the cluster answers %s: %s", response.Status, strings.TrimSpace(string(data)))
	}
	return data, nil
}
