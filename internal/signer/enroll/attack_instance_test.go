package enroll

import (
	"context"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"github.com/hallmark-ssh/hallmark/internal/signer/inventory"
)

// instanceAttacks are about EC2's answers. Each fact is compared separately.
func instanceAttacks() map[string]attack {
	return map[string]attack{
		"unknown instance": {func(w *world, _ *attempt) {
			w.ec2Err = inventory.ErrNotFound
		}, protocol.CodeInstanceUnknown, untilEC2, nil},
		"EC2 does not answer": {func(w *world, _ *attempt) {
			w.ec2Err = context.DeadlineExceeded
		}, protocol.CodeUpstream, untilEC2, nil},
		"stopped instance": {func(w *world, _ *attempt) {
			w.instance.State = "stopped"
		}, protocol.CodeInstanceState, untilEC2, nil},
		"terminated instance": {func(w *world, _ *attempt) {
			w.instance.State = "terminated"
		}, protocol.CodeInstanceState, untilEC2, nil},
		"instance without a state": {func(w *world, _ *attempt) {
			w.instance.State = ""
		}, protocol.CodeInstanceState, untilEC2, nil},
		"instance of another account": {func(w *world, _ *attempt) {
			w.instance.OwnerID = "999999999999"
		}, protocol.CodeInstanceMismatch, untilEC2, nil},
		"another image": {func(w *world, _ *attempt) {
			w.instance.ImageID = "ami-0fedcba9876543210"
		}, protocol.CodeInstanceMismatch, untilEC2, nil},
		"another address": {func(w *world, _ *attempt) {
			w.instance.PrivateIP = "10.0.0.8"
		}, protocol.CodeInstanceMismatch, untilEC2, nil},
		"another zone": {func(w *world, _ *attempt) {
			w.instance.AvailabilityZone = testRegion + "b"
		}, protocol.CodeInstanceMismatch, untilEC2, nil},
		"an answer about another instance": {func(w *world, _ *attempt) {
			w.instance.ID = "i-0123456789abcdef0"
		}, protocol.CodeInstanceMismatch, untilEC2, nil},

		"stopping instance": {func(w *world, _ *attempt) {
			w.instance.State = "stopping"
		}, protocol.CodeInstanceState, untilEC2, nil},
		"instance that shuts down": {func(w *world, _ *attempt) {
			w.instance.State = "shutting-down"
		}, protocol.CodeInstanceState, untilEC2, nil},
		"state in another case": {func(w *world, _ *attempt) {
			w.instance.State = "Running"
		}, protocol.CodeInstanceState, untilEC2, nil},
		"another region": {func(w *world, _ *attempt) {
			w.instance.Region = "hm-test-2"
		}, protocol.CodeInstanceMismatch, untilEC2, nil},
		"no address where the document has one": {func(w *world, _ *attempt) {
			w.instance.PrivateIP = ""
		}, protocol.CodeInstanceMismatch, untilEC2, nil},
		"no owner": {func(w *world, _ *attempt) {
			w.instance.OwnerID = ""
		}, protocol.CodeInstanceMismatch, untilEC2, nil},
	}
}

// ownNames are the principals of the test's instance with a host name.
func ownNames(hostname string) []string {
	id := theInstance().NodeID()
	return []string{hostname, id, hostname + "." + testCluster, id + "." + testCluster}
}

func checkOwnNames(t *testing.T, w *world, a *attempt, got protocol.Response) {
	t.Helper()
	isNamed(testHostname)(t, w, a, got)
}

// isNamed checks that the machine got exactly the names for the host name.
func isNamed(hostname string) func(*testing.T, *world, *attempt, protocol.Response) {
	return func(t *testing.T, w *world, _ *attempt, got protocol.Response) {
		t.Helper()
		if want := ownNames(hostname); got.Node.Hostname != hostname || !slices.Equal(got.Principals, want) {
			t.Errorf("host name %q, principals %q, want %q", got.Node.Hostname, got.Principals, want)
		}
		own := maps.Clone(w.nodes)
		delete(own, "other") // a foreign one
		if node := own[got.Node.ID]; node.Hostname != hostname || len(own) != 1 {
			t.Errorf("nodes %v", w.nodes)
		}
	}
}

func nameTag(value string) func(*world, *attempt) {
	return func(w *world, _ *attempt) { w.instance.Tags["Name"] = value }
}

// nameAttacks set the tag Name. With the default policy it chooses the beginning of a label
// that ends in the instance's own id, and nothing else.
func nameAttacks() map[string]attack {
	rows := make(map[string]attack)
	for what, row := range map[string]struct{ tag, front string }{
		"list of names":                   {"a,b", "a-b-"},
		"spaces":                          {"a b", "a-b-"},
		"wildcard":                        {"*", ""},
		"wildcard domain":                 {"*.example.com", "example-com-"},
		"question mark":                   {"?", ""},
		"negated pattern":                 {"!web", "web-"},
		"line feed":                       {"web\nbastion", "web-bastion-"},
		"NUL":                             {"web\x00bastion", "web-bastion-"},
		"escape sequence":                 {"\x1b[2Jweb", "2jweb-"},
		"10 kB":                           {strings.Repeat("a", 10<<10), strings.Repeat("a", 63-1-len(testInstance)) + "-"},
		"10 kB of hyphens":                {strings.Repeat("-", 10<<10), ""},
		"Cyrillic look-alike":             {"b\u0430stion", "b-stion-"},
		"full-width letters":              {"\uff42astion", "astion-"},
		"Kelvin sign for k":               {"\u212aube", "ube-"},
		"right-to-left override":          {"\u202ebastion", "bastion-"},
		"bad UTF-8":                       {"\xffweb", "web-"},
		"option of ssh":                   {"-oProxyCommand=touch", "oproxycommand-touch-"},
		"user at host":                    {"root@bastion", "root-bastion-"},
		"path":                            {"../bastion", "bastion-"},
		"IPv4 address":                    {"10.0.0.1", "10-0-0-1-"},
		"IPv4 address in decimal":         {"2130706433", "2130706433-"},
		"IPv4 address in hexadecimal":     {"0x7f000001", "0x7f000001-"},
		"IPv6 address":                    {"::1", "1-"},
		"localhost":                       {"localhost", "localhost-"},
		"the cluster's name":              {testCluster, "teleport-example-com-"},
		"the proxy's name":                {"proxy.example.com", "proxy-example-com-"},
		"a name in the cluster":           {"bastion." + testCluster, "bastion-teleport-example-com-"},
		"node id of a live node":          {"28663dc7-edf9-5081-a573-668145833f31", "28663dc7-edf9-5081-a573-668145833f31-"},
		"another instance's id":           {otherInstance, otherInstance + "-"},
		"another instance's default name": {"web-" + otherInstance, "web-" + otherInstance + "-"},
		"Teleport's name for an EC2 node": {"111122223333", ""},
		"nothing":                         {"", ""},
		"punycode":                        {"xn--bstion-3of", "xn-bstion-3of-"},
	} {
		rows["tag Name: "+what] = attack{nameTag(row.tag), codeGranted, all, isNamed(row.front + testInstance)}
	}
	return rows
}

// hasLabels checks that the node has these labels, and no reserved labels except those from
// verified facts.
func hasLabels(want map[string]string) func(*testing.T, *world, *attempt, protocol.Response) {
	return func(t *testing.T, w *world, _ *attempt, got protocol.Response) {
		t.Helper()
		labels := w.nodes[got.Node.ID].Labels
		for key, value := range want {
			if labels[key] != value {
				t.Errorf("label %q is %q, want %q", key, labels[key], value)
			}
		}
		checkReservedLabels(t, labels)
	}
}

func checkReservedLabels(t *testing.T, labels map[string]string) {
	t.Helper()
	facts := map[string]string{
		"teleport.dev/instance-id": testInstance, "teleport.dev/account-id": testAccount, "teleport.dev/aws-region": testRegion,
		"hallmark/signer": testAudience, "hallmark/account": testAccount, "hallmark/vpc": "vpc-1",
		"hallmark/image-owner": "444455556666", "hallmark/rule": "default",
	}
	valid := regexp.MustCompile(`^[a-zA-Z/.0-9_:-]+$`)
	for key, value := range labels {
		reserved := strings.HasPrefix(key, "teleport.") || strings.HasPrefix(key, "hallmark/")
		if want, known := facts[key]; reserved && (!known || value != want) {
			t.Errorf("reserved label %q is %q, want %q", key, value, want)
		}
		if !valid.MatchString(key) || strings.ContainsAny(value, "\n\r\x00\x1b") || len(value) > 1024 {
			t.Errorf("label %q has value %q", key, value)
		}
	}
	for key := range facts {
		if _, ok := labels[key]; !ok {
			t.Errorf("no label %q", key)
		}
	}
}

func tag(key, value string) func(*world, *attempt) {
	return func(w *world, _ *attempt) { w.instance.Tags[key] = value }
}

// labelAttacks set other tags. People grant access based on labels.
func labelAttacks() map[string]attack {
	rows := make(map[string]attack)
	for _, reserved := range []string{
		"teleport.dev/instance-id", "teleport.dev/origin", "teleport.internal/resource-id", "teleport.hidden/x",
		"hallmark/account", "hallmark/image-owner", "hallmark/signer", "hallmark/vpc", "hallmark/admin",
	} {
		rows["tag like the label "+reserved] = attack{tag(reserved, "evil"), codeGranted, all, hasLabels(map[string]string{"aws/" + reserved: "evil"})}
	}
	for what, key := range map[string]string{
		"wildcard": "*", "spaces": "a b", "list": "a,b", "line feed": "a\nb", "look-alike": "h\u0430llmark/account",
		"equals sign": "env=prod", "quote": `env"`, "10 kB": strings.Repeat("k", 10<<10),
	} {
		rows["tag key: "+what] = attack{tag(key, "evil"), codeGranted, all, func(t *testing.T, w *world, a *attempt, got protocol.Response) {
			hasLabels(map[string]string{"aws/Name": "web", "aws/" + key: ""})(t, w, a, got)
		}}
	}
	for what, value := range map[string]string{
		"line feed": "a\nhallmark/account: 999999999999", "escape sequence": "\x1b[2J", "bad UTF-8": "\xff", "10 kB": strings.Repeat("v", 10<<10),
	} {
		rows["tag value: "+what] = attack{tag("env", value), codeGranted, all, hasLabels(map[string]string{"aws/env": ""})}
	}
	rows["a thousand tags"] = attack{func(w *world, _ *attempt) {
		for i := range 1000 {
			w.instance.Tags[fmt.Sprintf("tag-%04d", i)] = "v"
		}
	}, codeGranted, all, func(t *testing.T, w *world, a *attempt, got protocol.Response) {
		hasLabels(nil)(t, w, a, got)
		if n := len(w.nodes[got.Node.ID].Labels); n > 100 {
			t.Errorf("%d labels", n)
		}
	}}
	return rows
}
