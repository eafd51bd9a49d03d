//go:build linux

package lab

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/google/uuid"

	"github.com/hallmark-ssh/hallmark/e2e/fake/lambdahost"
	"github.com/hallmark-ssh/hallmark/e2e/fake/moto"
	"github.com/hallmark-ssh/hallmark/e2e/fake/sts"
	"github.com/hallmark-ssh/hallmark/e2e/machine"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"github.com/hallmark-ssh/hallmark/internal/signer/entry"
	"github.com/hallmark-ssh/hallmark/internal/signer/entry/entrytest"
)

// The names of the VPC endpoints, both at the hub. Machines find them in /etc/hosts.
const (
	// APIHost is the name of the private REST API.
	APIHost    = "lab.execute-api." + Region + ".amazonaws.com"
	lambdaHost = "lambda." + Region + ".amazonaws.com"

	// VPCEndpoint is the id of the endpoint for execute-api.
	VPCEndpoint = "vpce-0a1b2c3d4e5f60718"

	apiPath   = "/hallmark/"
	invokeARN = "arn:aws:lambda:" + Region + ":" + moto.Account + ":function:hallmark-invoke"
)

// HostsLines are the lines of /etc/hosts that stand for the private DNS of the endpoints.
const HostsLines = machine.Hub + " " + APIHost + "\n" + machine.Hub + " " + lambdaHost + "\n"

// Endpoint is a way to reach a signer without a route to the internet.
type Endpoint struct {
	SignerURL, SignerFunction, SignerAuth string // the settings of a machine

	signer *lambdahost.Host
}

// Restart ends the signer's idle environments: what they cached is gone.
func (e *Endpoint) Restart() { e.signer.Restart() }

// StartEndpoint starts a separate signer behind a stand-in for a VPC endpoint. Like a real
// one, it verifies who signed a request.
func (l *Lab) StartEndpoint(ctx context.Context, kind entry.Kind) (*Endpoint, error) {
	var (
		way      Endpoint
		host     string
		settings map[string]any
		front    func(*lambdahost.Host) http.Handler
	)
	switch kind {
	case entry.PrivateAPI:
		way = Endpoint{SignerURL: "https://" + APIHost + apiPath, SignerAuth: "aws_iam"}
		host, front = APIHost, l.api
		settings = map[string]any{"url_auth": "aws_iam", "allow_sources": []string{VPCEndpoint, machine.Subnet}}
	case entry.Invoke:
		way = Endpoint{SignerFunction: invokeARN}
		host, front = lambdaHost, l.lambda
	default:
		return nil, fmt.Errorf("no endpoint for entry %q", kind)
	}
	root := filepath.Join(l.dir, string(kind))
	if err := l.writeDeployment(root, settings); err != nil {
		return nil, err
	}
	log, err := l.createLog("signer")
	if err != nil {
		return nil, err
	}
	signer := lambdahost.New(lambdahost.Function{
		Name: l.stack.enroll.FunctionName, Program: l.config.Bootstrap, Emulator: l.config.Emulator, Handler: l.stack.enroll.Handler, TaskRoot: root, Region: Region,
		Environment: append(l.environment(l.stack.enroll, l.login.enroll), "HALLMARK_ENTRY="+string(kind)),
		Concurrency: 2, Timeout: 20 * time.Second, Log: log,
	})
	context.AfterFunc(ctx, signer.Close)
	l.front.mu.Lock()
	defer l.front.mu.Unlock()
	if l.front.endpoints == nil {
		l.front.endpoints = make(map[string]http.Handler)
	}
	l.front.endpoints[host] = front(signer)
	way.signer = signer
	return &way, nil
}

// api stands for a private REST API with authorization AWS_IAM.
func (l *Lab) api(signer *lambdahost.Host) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, caller, err := l.authenticate(w, r, "execute-api")
		if err != nil || r.URL.Path != apiPath {
			http.Error(w, `{"message":"Forbidden"}`, http.StatusForbidden)
			return
		}
		source, _, _ := net.SplitHostPort(r.RemoteAddr)
		event, err := entrytest.Event(entry.PrivateAPI, entry.Request{
			ID: uuid.NewString(), Method: r.Method, ContentType: r.Header.Get("Content-Type"), IfNoneMatch: r.Header.Get("If-None-Match"), Health: r.Header.Get(protocol.HealthHeader),
			Body: body, Source: source, Endpoint: VPCEndpoint, IAM: &entry.IAMCaller{Account: moto.Account, ARN: caller.ARN},
		})
		var response []byte
		if err == nil {
			response, err = signer.Invoke(r.Context(), event)
		}
		var answer entry.Answer
		if err == nil {
			answer, err = entrytest.Answer(entry.PrivateAPI, response)
		}
		if err != nil {
			http.Error(w, `{"message":"Internal server error"}`, http.StatusBadGateway)
			return
		}
		for name, value := range answer.Header {
			w.Header().Set(name, value)
		}
		w.WriteHeader(answer.Status)
		_, _ = w.Write(answer.Body)
	})
}

// lambda stands for Lambda's own API.
func (l *Lab) lambda(signer *lambdahost.Host) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		event, _, err := l.authenticate(w, r, "lambda")
		if err != nil || r.URL.Path != "/2015-03-31/functions/"+invokeARN+"/invocations" {
			w.Header().Set("X-Amzn-Errortype", "AccessDeniedException")
			http.Error(w, `{"Message":"not authorized"}`, http.StatusForbidden)
			return
		}
		answer, err := signer.Invoke(r.Context(), event)
		if _, failed := errors.AsType[*lambdahost.FunctionError](err); failed {
			w.Header().Set("X-Amz-Function-Error", "Unhandled")
			answer, err = []byte(`{"errorType":"Runtime.ExitError"}`), nil
		}
		if err != nil {
			http.Error(w, `{"Message":"Rate Exceeded."}`, http.StatusTooManyRequests)
			return
		}
		_, _ = w.Write(answer)
	})
}

var accessKey = regexp.MustCompile(`Credential=([A-Z0-9]+)/.*SignedHeaders=([a-z0-9;-]+),`)

// authenticate returns a request's body and who signed the request. It signs the request again
// with the secret that AWS knows.
func (l *Lab) authenticate(w http.ResponseWriter, r *http.Request, service string) ([]byte, sts.Credential, error) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 2*protocol.MaxRequestBytes))
	if err != nil {
		return nil, sts.Credential{}, err
	}
	parts := accessKey.FindStringSubmatch(r.Header.Get("Authorization"))
	if parts == nil {
		return nil, sts.Credential{}, errors.New("the request is not signed")
	}
	known, ok := l.credentials.Load(parts[1])
	if !ok {
		return nil, sts.Credential{}, errors.New("unknown credentials")
	}
	c := known.(sts.Credential)
	at, err := time.Parse("20060102T150405Z", r.Header.Get("X-Amz-Date"))
	if err != nil {
		return nil, sts.Credential{}, err
	}
	again, err := http.NewRequestWithContext(r.Context(), r.Method, "https://"+r.Host+r.URL.EscapedPath(), bytes.NewReader(body))
	if err != nil {
		return nil, sts.Credential{}, err
	}
	for name := range strings.SplitSeq(parts[2], ";") {
		if name != "host" && name != "content-length" && name != "x-amz-security-token" {
			again.Header.Set(name, r.Header.Get(name))
		}
	}
	sum := sha256.Sum256(body)
	credentials := aws.Credentials{AccessKeyID: c.AccessKeyID, SecretAccessKey: c.SecretAccessKey, SessionToken: c.SessionToken}
	if err := v4.NewSigner().SignHTTP(r.Context(), credentials, again, hex.EncodeToString(sum[:]), service, Region, at); err != nil {
		return nil, sts.Credential{}, err
	}
	if again.Header.Get("Authorization") != r.Header.Get("Authorization") {
		return nil, sts.Credential{}, errors.New("the signature is not that of the request")
	}
	return body, c, nil
}
