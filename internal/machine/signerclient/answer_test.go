package signerclient

import (
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/machine/cafile"
	"github.com/hallmark-ssh/hallmark/internal/machine/hostkey"
	"github.com/hallmark-ssh/hallmark/internal/machine/imds"
	"github.com/hallmark-ssh/hallmark/internal/machine/machinetest"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"github.com/hallmark-ssh/hallmark/internal/sshkey"
)

const (
	testRegion  = "hm-test-1"
	testAccount = "111122223333"
	testCluster = "teleport.example.com"
	testName    = "web-i-0123456789abcdef0"
	testHost    = "i-0123456789abcdef0"
)

// Each row is a list of principals in addition to the node's own four. A rule of the policy
// may add the instance's addresses, as its metadata has them, and nothing else.
func TestAttackPrincipals(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	instance := imds.Instance{AccountID: testAccount, Region: testRegion, InstanceID: testHost}
	own := map[string]bool{"10.0.0.7": true, "192.0.2.7": true, "2001:db8::7": true, "ip-10-0-0-7.us-west-2.compute.internal": true}
	for name, test := range map[string]struct {
		change func(own []string) []string
		want   string // part of the error, empty if they are fine
	}{
		"its own":                 {func(own []string) []string { return own }, ""},
		"in another order":        {func(own []string) []string { slices.Reverse(own); return own }, ""},
		"its addresses":           {adding("10.0.0.7", "192.0.2.7", "2001:db8::7"), ""},
		"another's address":       {adding("10.0.0.8"), "is not provably"},
		"its EC2's DNS name":      {adding("ip-10-0-0-7.us-west-2.compute.internal"), ""},
		"none":                    {func([]string) []string { return nil }, "do not include"},
		"one too few":             {func(own []string) []string { return own[1:] }, "do not include"},
		"one in place of another": {func(own []string) []string { own[0] = "bastion"; return own }, "do not include"},
		"another host's name":     {adding("bastion"), `"bastion" is not provably`},
		"localhost":               {adding("localhost"), "is not provably"},
		"loopback":                {adding("127.0.0.1"), "is not provably"},
		"IPv6 loopback":           {adding("::1"), "is not provably"},
		"unspecified":             {adding("0.0.0.0"), "is not provably"},
		"metadata service":        {adding("169.254.169.254"), "is not provably"},
		"IPv6, in another form":   {adding("2001:DB8:0:0::7"), "is not provably"},
		"IPv4 mapped into IPv6":   {adding("::ffff:10.0.0.7"), "is not provably"},
		"zone":                    {adding("fe80::1%eth0"), "is not provably"},
		"everything":              {adding("*"), "is not provably"},
		"wildcard":                {adding("*.example.com"), "is not provably"},
		"list":                    {adding("10.0.0.7,bastion"), "is not provably"},
		"empty":                   {adding(""), "is not provably"},
		"upper case":              {adding("A.EXAMPLE.COM"), "is not provably"},
		"twice":                   {adding("10.0.0.7", "10.0.0.7"), "is listed twice"},
		"too many":                {adding("a.1x", "b.1x", "c.1x", "d.1x", "e.1x", "f.1x", "g.1x", "h.1x", "i.1x"), "is not provably"},
	} {
		t.Run(name, func(t *testing.T) {
			var answer protocol.Response
			if err := json.Unmarshal(goodAnswer(t, machinetest.SeededSigner(t, 1), now), &answer); err != nil {
				t.Fatal(err)
			}
			answer.Principals = test.change(answer.Principals)
			err := checkNode(&answer, instance, own)
			if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want %q", err, test.want)
			}
		})
	}
}

func adding(names ...string) func([]string) []string {
	return func(own []string) []string { return append(own, names...) }
}

// FuzzAnswer reads an answer from the network as the machine does. An accepted answer has
// certificates for the machine's own keys, and CA files with plain keys only.
func FuzzAnswer(f *testing.F) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	host := machinetest.SeededSigner(f, 1)
	keys := []hostkey.Key{{Path: "/k", Public: host.PublicKey()}}
	instance := imds.Instance{AccountID: testAccount, Region: testRegion, InstanceID: testHost}
	f.Add(200, goodAnswer(f, host, now))
	f.Add(200, []byte(`{"version":1,"certificates":[""]}`))
	f.Add(401, []byte(`{"error":{"code":"clock_skew","message":"x","serverTime":"2026-01-02T03:04:05Z"}}`))
	f.Add(503, []byte(`<html>`))
	f.Fuzz(func(t *testing.T, code int, data []byte) {
		if code != http.StatusOK {
			if err := readRefusal(code, data, protocol.Version); strings.ContainsAny(err.Error(), "\n\x1b") {
				t.Errorf("error %q is more than a line for a terminal", err)
			}
			return
		}
		answer, err := readAnswer(data)
		if err != nil {
			if strings.ContainsAny(err.Error(), "\n\x1b") {
				t.Errorf("error %q is more than a line for a terminal", err)
			}
			return
		}
		if o := answer.MetadataOptions; o != protocol.NewMetadataOptions(o.HTTPTokens, o.HopLimit) {
			t.Errorf("metadata options %+v", o)
		}
		g, err := Check(answer, keys, instance, nil, now)
		if err != nil {
			return
		}
		if string(g.Certificates[0].Key.Marshal()) != string(host.PublicKey().Marshal()) {
			t.Error("a certificate of another key")
		}
		if again, err := cafile.Parse(cafile.Render(g.OpenSSH)); err != nil || len(again) != len(g.OpenSSH) {
			t.Errorf("%d CAs were written and %d read: %v", len(g.OpenSSH), len(again), err)
		}
		if g.RenewAfter.Before(now) || g.RenewAfter.After(hostkey.FirstEnd(g.Certificates)) {
			t.Errorf("renewal at %s", g.RenewAfter)
		}
	})
}

// goodAnswer is the same in every process, so a fuzzer's workers agree on it.
func goodAnswer(t testing.TB, host ssh.Signer, now time.Time) []byte {
	t.Helper()
	ca := machinetest.SeededSigner(t, 2)
	id := ec2ref.Instance{Account: testAccount, Region: testRegion, ID: testHost}.NodeID()
	names := []string{testName, id, testName + "." + testCluster, id + "." + testCluster}
	certificate := &ssh.Certificate{
		Key: host.PublicKey(), CertType: ssh.HostCert, ValidPrincipals: names, Nonce: make([]byte, 32),
		ValidAfter: uint64(now.Add(-time.Minute).Unix()), ValidBefore: uint64(now.Add(24 * time.Hour).Unix()),
	}
	if err := certificate.SignCert(zeros{}, ca); err != nil {
		t.Fatal(err)
	}
	data, err := json.Marshal(protocol.Response{
		Version: protocol.Version, RequestID: "r",
		Node:         protocol.Node{ID: id, Hostname: testName, Address: "10.0.0.7:22", Cluster: testCluster},
		Principals:   names,
		Certificates: []string{sshkey.Line(certificate)},
		OpenSSHCAs:   []string{sshkey.Line(machinetest.SeededSigner(t, 3).PublicKey())},
		HostCAs:      []string{sshkey.Line(ca.PublicKey())},
		RenewAfter:   now.Add(8 * time.Hour),

		MetadataOptions: protocol.NewMetadataOptions(protocol.TokensRequired, 1),
	})
	if err != nil {
		t.Fatal(err)
	}
	if answer, err := readAnswer(data); err != nil {
		t.Fatal(err)
	} else if _, err := Check(answer, []hostkey.Key{{Public: host.PublicKey()}}, imds.Instance{AccountID: testAccount, Region: testRegion, InstanceID: testHost}, nil, now); err != nil {
		t.Fatal(err)
	}
	return data
}

// zeros is a source of randomness that is not random.
type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func TestClampRenewal(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	certificates := []*ssh.Certificate{
		{ValidBefore: uint64(now.Add(60 * time.Hour).Unix())},
		{ValidBefore: uint64(now.Add(30 * time.Hour).Unix())},
	}
	for _, test := range []struct{ asked, want time.Duration }{
		{10 * time.Hour, 10 * time.Hour},
		{0, 3 * time.Hour},
		{-1e6 * time.Hour, 3 * time.Hour},
		{25 * time.Hour, 20 * time.Hour},
		{1e6 * time.Hour, 20 * time.Hour},
	} {
		if got := clampRenewal(now.Add(test.asked), certificates, now); !got.Equal(now.Add(test.want)) {
			t.Errorf("asked for %s: renewal in %s, want %s", test.asked, got.Sub(now), test.want)
		}
	}
}
