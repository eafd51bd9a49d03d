// Package caexport reads the public keys of a cluster's CAs from its proxy's export, which
// needs no login.
//
// The result is only as trustworthy as the TLS connection to the proxy: anyone who controls
// the proxy's name can add a CA. Pins guard against that.
package caexport

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/sshkey"
)

// Kind is the kind of CA to read.
type Kind string

// The CAs that Hallmark asks for.
const (
	OpenSSH Kind = "openssh" // signs user certificates for OpenSSH servers
	Host    Kind = "host"    // signs host certificates
)

const (
	timeout = 15 * time.Second

	// maxBytes bounds an export. A line has less than 1 KiB, and a cluster has at most two.
	maxBytes = 64 << 10
)

// NewHTTPClient returns a client that verifies the proxy with the system's roots and those in
// rootsPEM, which may be empty.
func NewHTTPClient(rootsPEM []byte) (*http.Client, error) {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.TLSClientConfig = &tls.Config{MinVersion: tls.VersionTLS12}
	if len(rootsPEM) > 0 {
		roots, err := x509.SystemCertPool()
		if err != nil {
			return nil, fmt.Errorf("load the system's roots: %w", err)
		}
		if !roots.AppendCertsFromPEM(rootsPEM) {
			return nil, errors.New("no PEM certificate among the roots for the Teleport proxy")
		}
		transport.TLSClientConfig.RootCAs = roots
	}
	return &http.Client{Transport: transport, Timeout: timeout}, nil
}

// Fetch returns the keys of the CA that the proxy at the address (host or host:port) exports:
// the one that Teleport signs with first, and a second one during a rotation. A nil client
// means NewHTTPClient without additional roots.
func Fetch(ctx context.Context, client *http.Client, proxyAddress string, kind Kind) ([]ssh.PublicKey, error) {
	keys, err := fetch(ctx, client, proxyAddress, kind)
	if err != nil {
		return nil, fmt.Errorf("fetch the %s CA of the Teleport proxy %s: %w", kind, proxyAddress, err)
	}
	return keys, nil
}

func fetch(ctx context.Context, client *http.Client, proxyAddress string, kind Kind) ([]ssh.PublicKey, error) {
	parse := ParseOpenSSH
	switch kind {
	case OpenSSH:
	case Host:
		parse = ParseHost
	default:
		return nil, fmt.Errorf("unknown kind of CA %q", kind)
	}
	if err := checkAddress(proxyAddress); err != nil {
		return nil, err
	}
	if client == nil {
		var err error
		if client, err = NewHTTPClient(nil); err != nil {
			return nil, err
		}
	}
	body, err := get(ctx, client, &url.URL{
		Scheme:   "https",
		Host:     proxyAddress,
		Path:     "/webapi/auth/export",
		RawQuery: url.Values{"type": {string(kind)}}.Encode(),
	})
	if err != nil {
		return nil, err
	}
	keys, _, err := parse(body)
	if err != nil {
		return nil, fmt.Errorf("read the answer: %w: check that this is the address of a Teleport proxy", err)
	}
	return keys, nil
}

// checkAddress refuses text that would change the URL: a scheme, a path, a user.
func checkAddress(address string) error {
	host := address
	if h, port, err := net.SplitHostPort(address); err == nil && port != "" {
		host = h
	}
	if host == "" || strings.ContainsAny(host, "/@?#\\ \t\r\n") {
		return errors.New("the address must be host or host:port, without https:// or a path")
	}
	return nil
}

func get(ctx context.Context, client *http.Client, from *url.URL) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, from.String(), nil)
	if err != nil {
		return nil, err
	}
	// After a redirect to another host, the keys would come from a server that the caller
	// did not name; after one to plain HTTP, from anyone on the path.
	own := *client
	own.CheckRedirect = func(next *http.Request, via []*http.Request) error {
		if next.URL.Scheme != "https" || next.URL.Host != from.Host {
			return fmt.Errorf("it redirects to %s://%s", next.URL.Scheme, next.URL.Host)
		}
		if len(via) >= 3 {
			return errors.New("it redirects too many times")
		}
		return nil
	}
	response, err := own.Do(request)
	if e, ok := errors.AsType[*url.Error](err); ok {
		if err = e.Err; e.Timeout() {
			err = fmt.Errorf("no answer within %s", timeout)
		}
	}
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	switch response.StatusCode {
	case http.StatusOK:
	case http.StatusTooManyRequests:
		return nil, errors.New("it answers 429, too many requests from this address: retry in a minute")
	default:
		return nil, fmt.Errorf("it answers %s: check that this is the address of a Teleport proxy", response.Status)
	}
	body, err := io.ReadAll(io.LimitReader(response.Body, maxBytes+1))
	if err != nil {
		return nil, fmt.Errorf("read the answer: %w", err)
	}
	if len(body) > maxBytes {
		return nil, fmt.Errorf("the answer has more than %d bytes: check that this is the address of a Teleport proxy", maxBytes)
	}
	return body, nil
}

// ParseOpenSSH reads an export of type openssh, lines such as
//
//	cert-authority ssh-rsa AAAA… clustername=example&type=user
//
// and plain public keys, the form that sshd's TrustedUserCAKeys takes. It returns
// every key, in order, and the cluster's name, which is empty if no line has it.
func ParseOpenSSH(data []byte) (keys []ssh.PublicKey, cluster string, err error) {
	return parseLines(data, func(line []byte) (ssh.PublicKey, string, error) {
		// Any other option would restrict the key where sshd reads it as an authorized
		// key, and mean nothing where it reads it as a CA.
		text := string(line)
		if after, ok := strings.CutPrefix(text, "cert-authority"); ok && strings.TrimLeft(after, " \t") != after {
			text = after
		}
		key, comment, err := sshkey.ParseWithComment(text)
		if err != nil {
			return nil, "", err
		}
		fields, err := url.ParseQuery(comment)
		if err != nil {
			fields = nil // somebody's own comment
		}
		if kind := fields.Get("type"); kind != "" && kind != "user" {
			return nil, "", fmt.Errorf("a CA of type %.100q, not user", kind)
		}
		return key, fields.Get("clustername"), nil
	})
}

// ParseHost reads an export of type host, lines of a known_hosts file such as
//
//	@cert-authority example,*.example ssh-rsa AAAA… type=host
//
// It returns every key, in order, and the cluster's name.
func ParseHost(data []byte) (keys []ssh.PublicKey, cluster string, err error) {
	return parseLines(data, func(line []byte) (ssh.PublicKey, string, error) {
		marker, hosts, key, _, _, err := ssh.ParseKnownHosts(line)
		if err != nil {
			return nil, "", err
		}
		if marker != "cert-authority" {
			return nil, "", errors.New("a line without @cert-authority")
		}
		return key, hosts[0], nil
	})
}

func parseLines(data []byte, parse func([]byte) (ssh.PublicKey, string, error)) (keys []ssh.PublicKey, cluster string, err error) {
	if looksLikeHTML(data) {
		return nil, "", errors.New("a web page, not a CA export")
	}
	for number, line := range bytes.Split(data, []byte("\n")) {
		line = bytes.TrimSpace(line)
		if len(line) == 0 || line[0] == '#' {
			continue
		}
		key, name, err := parse(line)
		if err == nil {
			err = sshkey.CheckKind(key)
		}
		if err == nil && cluster != "" && name != "" && name != cluster {
			err = fmt.Errorf("cluster %.100q beside cluster %.100q", name, cluster)
		}
		if err != nil {
			return nil, "", fmt.Errorf("line %d: %w", number+1, err)
		}
		if name != "" {
			cluster = name
		}
		if !sshkey.Contains(keys, key) {
			keys = append(keys, key)
		}
	}
	if len(keys) == 0 {
		return nil, "", errors.New("no keys")
	}
	return keys, cluster, nil
}

func looksLikeHTML(data []byte) bool {
	return strings.HasPrefix(http.DetectContentType(data), "text/html")
}

// CheckPins requires that the pins contain each key's fingerprint, in the form that
// `ssh-keygen -l` and ssh.FingerprintSHA256 write ("SHA256:…"). An attacker adds a key rather
// than replacing all, so one match is not enough.
func CheckPins(keys []ssh.PublicKey, pins []string) error {
	for _, pin := range pins {
		if !sshkey.IsFingerprint(pin) {
			return fmt.Errorf("pin %.100q is not \"SHA256:\" and 43 characters of base64, as ssh-keygen -l prints it", pin)
		}
	}
	for _, key := range keys {
		if fingerprint := ssh.FingerprintSHA256(key); !slices.Contains(pins, fingerprint) {
			return fmt.Errorf("CA key %s is not pinned", fingerprint)
		}
	}
	return nil
}
