//go:build e2e

package sts

import (
	"context"
	"encoding/xml"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awssts "github.com/aws/aws-sdk-go-v2/service/sts"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/identity"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
)

// TestGetCallerIdentityContract holds this endpoint and moto to the same form of
// answer, as the AWS SDK, Hallmark's verifier and a plain XML reader see it.
func TestGetCallerIdentityContract(t *testing.T) {
	own := New(Options{Region: testRegion})
	own.Register(testCredential())
	server := httptest.NewServer(own)
	t.Cleanup(server.Close)
	moto := startMoto(t)

	var shapes [][]string
	for name, endpoint := range map[string]string{"ours": server.URL, "moto": moto} {
		t.Run(name, func(t *testing.T) {
			client := dialing(t, strings.TrimPrefix(endpoint, "http://"))
			out, err := awsClient(client).GetCallerIdentity(t.Context(), nil)
			if err != nil {
				t.Fatal(err)
			}
			arn := aws.ToString(out.Arn)
			if !strings.HasPrefix(arn, "arn:aws:sts::") || aws.ToString(out.UserId) == "" || aws.ToString(out.Account) != accountOf(arn) {
				t.Errorf("answer = arn %q, user %q, account %q", arn, aws.ToString(out.UserId), aws.ToString(out.Account))
			}

			// The verifier reads either answer, and finds that it names somebody else.
			binding := protocol.Bind([]byte("payload"))
			c := testCredential()
			creds := identity.Credentials{AccessKeyID: c.AccessKeyID, SecretAccessKey: c.SecretAccessKey, SessionToken: c.SessionToken}
			proof, err := identity.SignCaller(t.Context(), creds, testRegion, false, binding, time.Now())
			if err != nil {
				t.Fatal(err)
			}
			v := identity.CallerVerifier{Endpoint: endpoint}
			err = v.Verify(t.Context(), proof, binding, ec2ref.Instance{Account: "999999999999", Region: testRegion, ID: "i-0fedcba9876543210"})
			if !errors.Is(err, identity.ErrCallerProof) || !strings.Contains(err.Error(), "STS names") {
				t.Errorf("Verify = %v, want another name from STS", err)
			}
			shapes = append(shapes, answerShape(t, client, proof))
		})
	}
	if len(shapes) == 2 && !slices.Equal(shapes[0], shapes[1]) {
		t.Errorf("the answers differ in form:\n%q\n%q", shapes[0], shapes[1])
	}
}

// TestAssumeRoleThroughMoto passes an action on to the real backend.
func TestAssumeRoleThroughMoto(t *testing.T) {
	backend, err := url.Parse(startMoto(t))
	if err != nil {
		t.Fatal(err)
	}
	client := start(t, New(Options{Region: testRegion, Backend: backend}))
	out, err := awsClient(client).AssumeRole(t.Context(), &awssts.AssumeRoleInput{
		RoleArn: aws.String("arn:aws:iam::123456789012:role/reader"), RoleSessionName: aws.String("hallmark"),
	})
	if err != nil {
		t.Fatal(err)
	}
	if aws.ToString(out.Credentials.SessionToken) == "" {
		t.Error("moto gave no session token")
	}
}

func awsClient(c *http.Client) *awssts.Client { return client(c, testRegion, testCredential()) }

// answerShape returns content type, namespace and the sorted paths of the
// elements of an answer.
func answerShape(t *testing.T, client *http.Client, proof protocol.CallerProof) []string {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, "http://sts."+testRegion+".amazonaws.com/",
		strings.NewReader("Action=GetCallerIdentity&Version=2011-06-15"))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded; charset=utf-8")
	req.Header.Set(protocol.BindingHeader, protocol.Bind([]byte("payload")).String())
	req.Header.Set("Authorization", proof.Authorization)
	req.Header.Set("X-Amz-Date", proof.Date)
	req.Header.Set("X-Amz-Security-Token", proof.SecurityToken)
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	mediaType, _, _ := strings.Cut(resp.Header.Get("Content-Type"), ";")
	return append(elementPaths(t, resp.Body), mediaType, resp.Status)
}

func elementPaths(t *testing.T, r io.Reader) []string {
	t.Helper()
	var path, paths []string
	d := xml.NewDecoder(r)
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			slices.Sort(paths)
			return paths
		}
		if err != nil {
			t.Fatal(err)
		}
		switch e := token.(type) {
		case xml.StartElement:
			path = append(path, e.Name.Space+" "+e.Name.Local)
			paths = append(paths, strings.Join(path, "/"))
		case xml.EndElement:
			path = path[:len(path)-1]
		}
	}
}

// startMoto runs moto_server on a free loopback port until the test ends.
func startMoto(t *testing.T) (endpoint string) {
	t.Helper()
	program, err := exec.LookPath("moto_server")
	if err != nil {
		t.Fatal("this test needs moto_server: run 'make setup'")
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := listener.Addr().String()
	host, port, _ := net.SplitHostPort(address)
	listener.Close()

	var log strings.Builder
	ctx, cancel := context.WithCancel(t.Context())
	cmd := exec.CommandContext(ctx, program, "-H", host, "-p", port)
	cmd.Stdout, cmd.Stderr = &log, &log
	// moto_server may be a wrapper around another process: end the whole group.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cancel()
		_ = cmd.Wait() // killed, as asked
		if t.Failed() {
			t.Logf("moto_server:\n%s", log.String())
		}
	})
	awaitPort(t, address)
	return "http://" + address
}

// awaitPort waits for something to listen.
func awaitPort(t *testing.T, address string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		if conn, err := new(net.Dialer).DialContext(ctx, "tcp", address); err == nil {
			conn.Close()
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("nothing listens on %s", address)
		}
	}
}
