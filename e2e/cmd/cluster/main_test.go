package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/signer/node"
	"github.com/hallmark-ssh/hallmark/internal/signer/teleport"
)

// TestCluster runs the command, logs in to it with the files that it wrote, and
// has it issue a certificate for a key made by ssh-keygen.
func TestCluster(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "cluster")
	address, stderr := startServe(t, dir)
	if !strings.Contains(stderr.String(), "NOT Teleport") {
		t.Errorf("it does not say what it is: %q", stderr)
	}

	ctx := t.Context()
	client, err := teleport.Dial(ctx, teleport.Config{Address: address, Login: teleport.IdentityFile(filepath.Join(dir, "identity.pem"))})
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if client.ClusterName() != "c.example" {
		t.Errorf("cluster name %q", client.ClusterName())
	}
	if err := client.UpsertNode(ctx, node.Node{
		ID: "some-id", Hostname: "web-1", Address: "192.0.2.1:22", Expires: time.Now().Add(time.Hour),
	}); err != nil {
		t.Fatal(err)
	}
	var views []nodeView
	if err := json.Unmarshal(command(t, "nodes", "-out", dir), &views); err != nil {
		t.Fatal(err)
	}
	if len(views) != 1 || views[0].Hostname != "web-1" {
		t.Errorf("nodes: %+v", views)
	}

	key := filepath.Join(dir, "id")
	tool(t, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key)
	command(t, "issue", "-out", dir, "-login", "admin", key+".pub")
	shown := tool(t, "ssh-keygen", "-L", "-f", key+"-cert.pub")
	for _, want := range []string{"user certificate", "rsa-sha2-512", "admin", "permit-pty"} {
		if !strings.Contains(shown, want) {
			t.Errorf("%q is not in:\n%s", want, shown)
		}
	}
}

func TestCommandErrors(t *testing.T) {
	dir := t.TempDir()
	for name, args := range map[string][]string{
		"usage":           {},
		"unknown command": {"dance"},
		"-out is":         {"nodes"},
		"does it run?":    {"nodes", "-out", dir},
		"arguments after": {"issue", "-out", dir},
	} {
		err := run(t.Context(), args, io.Discard, io.Discard)
		if err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%q: got %v, want %q in it", args, err, name)
		}
	}
}

// startServe runs the serve command until the test ends, and returns the address
// that it prints.
func startServe(t *testing.T, dir string) (address string, stderr *bytes.Buffer) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	stderr = new(bytes.Buffer)
	reader, writer := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := run(ctx, []string{"serve", "-out", dir, "-name", "c.example"}, writer, stderr)
		writer.CloseWithError(io.EOF)
		done <- err
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
		if _, err := os.Stat(filepath.Join(dir, socketName)); err == nil {
			t.Error("the socket is still there")
		}
	})
	line, err := bufio.NewReader(reader).ReadString('\n')
	if err != nil {
		t.Fatalf("serve printed no address: %v", err)
	}
	return strings.TrimSpace(line), stderr
}

func command(t *testing.T, args ...string) []byte {
	t.Helper()
	var out bytes.Buffer
	if err := run(t.Context(), args, &out, io.Discard); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", name, err, out)
	}
	return string(out)
}
