package enroll

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"github.com/hallmark-ssh/hallmark/internal/signer/entry"
	"github.com/hallmark-ssh/hallmark/internal/signer/inventory"
	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
	"github.com/hallmark-ssh/hallmark/internal/signer/node"
	"github.com/hallmark-ssh/hallmark/internal/signer/teleport"
)

// senderAttacks are refused before the signer reads a byte of the request.
func senderAttacks() map[string]attack {
	inside := netip.MustParsePrefix("192.0.2.0/24")
	from := func(source string) func(*world, *attempt) {
		return func(w *world, a *attempt) {
			w.signer.Sources = []netip.Prefix{inside}
			a.http = func(r *entry.Request) { r.Source = source }
		}
	}
	signedBy := func(account ec2ref.Account, arn string) func(*world, *attempt) {
		return func(w *world, a *attempt) {
			w.signer.RequireIAM = true
			a.http = func(r *entry.Request) { r.IAM = &entry.IAMCaller{Account: account, ARN: arn} }
		}
	}
	return map[string]attack{
		"source not in the allow-list":        {from("198.51.100.1"), protocol.CodeNotAllowed, untilNothing, nil},
		"source beside the allow-list":        {from("192.0.3.0"), protocol.CodeNotAllowed, untilNothing, nil},
		"source that is no address":           {from("192.0.2.1, 198.51.100.1"), protocol.CodeNotAllowed, untilNothing, nil},
		"no source":                           {from(""), protocol.CodeNotAllowed, untilNothing, nil},
		"source over IPv6":                    {from("2001:db8::1"), protocol.CodeNotAllowed, untilNothing, nil},
		"source in the allow-list":            {from("192.0.2.77"), codeGranted, all, checkOwnNames},
		"source in the allow-list, as mapped": {from("::ffff:192.0.2.77"), codeGranted, all, checkOwnNames},

		"VPC endpoint that is not listed": {func(w *world, a *attempt) {
			w.signer.Endpoints = []string{testEndpoint}
			a.http = func(r *entry.Request) { r.Endpoint = "vpce-0123456789abcdef0" }
		}, protocol.CodeNotAllowed, untilNothing, nil},

		"no IAM signature where one is required": {func(w *world, _ *attempt) { w.signer.RequireIAM = true },
			protocol.CodeNotAllowed, untilNothing, nil},
		"IAM caller of another account": {signedBy("999999999999", "arn:aws:sts::999999999999:assumed-role/web/"+testInstance),
			protocol.CodeNotAllowed, untilNothing, nil},
		"IAM caller whose account and ARN disagree": {signedBy(testAccount, "arn:aws:sts::999999999999:assumed-role/web/"+testInstance),
			protocol.CodeNotAllowed, untilNothing, nil},
		"IAM caller whose ARN is of our account, but not he": {signedBy("999999999999", "arn:aws:sts::"+testAccount+":assumed-role/web/"+testInstance),
			protocol.CodeNotAllowed, untilNothing, nil},
		"IAM caller of another instance": {signedBy(testAccount, "arn:aws:sts::"+testAccount+":assumed-role/web/"+otherInstance),
			protocol.CodeNotAllowed, untilNothing, nil},
		"IAM caller without an ARN": {signedBy(testAccount, ""), protocol.CodeNotAllowed, untilNothing, nil},
		"IAM caller without a proof": {func(w *world, a *attempt) {
			signedBy(testAccount, "arn:aws:sts::"+testAccount+":assumed-role/web/"+testInstance)(w, a)
			a.request = func(r *protocol.Request) { r.Caller.Authorization = "junk" }
		}, protocol.CodeCallerProofInvalid, untilSTS, nil},

		"a stolen document, again and again": {func(w *world, a *attempt) {
			for range attemptBurst {
				if _, _, refused := w.enroll(junk(w.t, w.now, "192.0.2.1")); refused.Code != protocol.CodeCallerProofInvalid {
					w.t.Fatalf("refusal %+v", refused)
				}
			}
			w.calls = nil
			w.log.Reset()
			a.request = func(r *protocol.Request) { r.Caller.Authorization = "junk" }
		}, protocol.CodeRateLimited, untilNothing, nil},
	}
}

// open admits everything. Each row restricts one thing.
const open = "image_owners: [any], max_age: any"

// policyAttacks come with a good proof, from a machine that the policy does not admit.
func policyAttacks() map[string]attack {
	return map[string]attack{
		"Teleport does not answer": {func(w *world, _ *attempt) {
			w.dialErr = teleport.ErrUnavailable
		}, protocol.CodeUpstream, untilConnect, nil},
		"Teleport refuses the login": {func(w *world, _ *attempt) {
			w.dialErr = fmt.Errorf("join Teleport: %w", teleport.ErrDenied)
		}, protocol.CodeTeleportRefused, untilConnect, nil},
		"account not in the policy": {func(w *world, _ *attempt) {
			w.setPolicy(`{name: a, match: {accounts: ["222222222222"], ` + open + `}}`)
		}, protocol.CodePolicyRefused, untilConnect, nil},
		"region not in the policy": {func(w *world, _ *attempt) {
			w.setPolicy(`{name: a, match: {regions: [hm-test-2], ` + open + `}}`)
		}, protocol.CodePolicyRefused, untilConnect, nil},
		"VPC not in the policy": {func(w *world, _ *attempt) {
			w.setPolicy(`{name: a, match: {vpcs: [vpc-00000000000000001], ` + open + `}}`)
		}, protocol.CodePolicyRefused, untilConnect, nil},
		"no instance profile where one is wanted": {func(w *world, _ *attempt) {
			w.setPolicy(`{name: a, match: {instance_profiles: ["arn:aws:iam::111122223333:instance-profile/*"], ` + open + `}}`)
		}, protocol.CodePolicyRefused, untilConnect, nil},
		"instance profile under another path": {func(w *world, _ *attempt) {
			w.setPolicy(`{name: a, match: {instance_profiles: ["arn:aws:iam::111122223333:instance-profile/web-*"], ` + open + `}}`)
			w.instance.InstanceProfileARN = "arn:aws:iam::111122223333:instance-profile/web-x/admin"
		}, protocol.CodePolicyRefused, untilConnect, nil},
		"no address of the wanted kind": {func(w *world, _ *attempt) {
			w.setPolicy(`{name: a, match: {` + open + `}, address: public}`)
		}, protocol.CodePolicyRefused, untilConnect, nil},

		"image of somebody else": {func(w *world, _ *attempt) {
			w.instance.ImageOwner = "999999999999"
		}, protocol.CodePolicyRefused, untilConnect, nil},
		"image whose owner nobody knows": {func(w *world, _ *attempt) {
			w.instance.ImageOwner = ""
		}, protocol.CodePolicyRefused, untilConnect, nil},
		"image of somebody else with the tags of ours": {func(w *world, _ *attempt) {
			w.setPolicy(`{name: a, match: {image_owners: [any], max_age: any, image_tags: {golden: ["yes"]}}}`)
			w.instance.ImageOwner, w.instance.ImageTags = "999999999999", map[string]string{"golden": "yes"}
		}, protocol.CodePolicyRefused, untilConnect, nil},
		"another image under the same name": {func(w *world, _ *attempt) {
			w.setPolicy(`{name: a, match: {image_owners: [listed], images: [ami-00000000000000001], max_age: any}}`)
		}, protocol.CodePolicyRefused, untilConnect, nil},

		"old machine that never enrolled": {func(w *world, _ *attempt) {
			w.instance.LaunchTime = w.now.Add(-25 * time.Hour)
		}, protocol.CodePolicyRefused, untilConnect, nil},
		"launch time to come": {func(w *world, _ *attempt) {
			w.instance.LaunchTime = w.now.Add(time.Hour)
		}, protocol.CodePolicyRefused, untilConnect, nil},
		"no launch time": {func(w *world, _ *attempt) {
			w.instance.LaunchTime = time.Time{}
		}, protocol.CodePolicyRefused, untilConnect, nil},
		"old machine whose enrollment was never confirmed": {func(w *world, _ *attempt) {
			w.hold(testInstance, testHostname, "SHA256:other")
			w.instance.LaunchTime = w.now.Add(-25 * time.Hour)
		}, protocol.CodePolicyRefused, untilConnect, nil},
		"old machine that enrolled in time": {func(w *world, a *attempt) {
			w.earlier(a)
			w.instance.LaunchTime = w.now.Add(-25 * time.Hour)
		}, codeGranted, renewal, checkOwnNames},

		"a missing tag breaks the condition of the strict rule": {func(w *world, _ *attempt) {
			w.setPolicy(`{name: strict, match: {`+open+`}, when: 'tags["env"] != "prod"'}`, `{name: lax, match: {`+open+`}}`)
		}, protocol.CodePolicyRefused, untilConnect, nil},
		"a tag of 10 kB against a pattern": {func(w *world, _ *attempt) {
			w.setPolicy(`{name: a, match: {` + open + `}, when: 'tags.get("env").matches("^(a+)+$")'}`)
			w.instance.Tags["env"] = strings.Repeat("a", 10<<10) + "!"
		}, protocol.CodePolicyRefused, untilConnect, nil},
		"tag condition with a wildcard in the tag": {func(w *world, _ *attempt) {
			w.setPolicy(`{name: a, match: {tags: {env: [dev]}, ` + open + `}}`)
			w.instance.Tags["env"] = "*"
		}, protocol.CodePolicyRefused, untilConnect, nil},
	}
}

// hostnameTag sets the tag TeleportHostname under a rule that accepts it, and the suffix, with
// a pattern that excludes nothing: only the checks that no policy can turn off remain.
func hostnameTag(value string) func(*world, *attempt) {
	return func(w *world, _ *attempt) {
		w.setPolicy(`{name: default, match: {` + open + `}, teleport_hostname: {pattern: "(?s).*", suffixes: [.corp.example.net]}}`)
		w.instance.Tags["TeleportHostname"] = value
	}
}

// hostnameTagAttacks set the tag to a name that does not belong to the machine. It gets the
// default name, which ends in its id.
func hostnameTagAttacks() map[string]attack {
	rows := map[string]attack{
		"tag TeleportHostname: a foreign node's, with the cluster's name": {func(w *world, a *attempt) {
			hostnameTag("bastion")(w, a)
			w.nodes["other"] = node.Node{ID: "other", Hostname: "Bastion." + testCluster}
		}, codeGranted, all, isNamed("bastion-" + testInstance)},
		"tag TeleportHostname, which no rule takes": {tag("TeleportHostname", "bastion"), codeGranted, all, checkOwnNames},
		"tag TeleportHostname that the pattern does not take": {func(w *world, _ *attempt) {
			w.setPolicy(`{name: default, match: {` + open + `}, teleport_hostname: {pattern: "web[0-9]+"}}`)
			w.instance.Tags["TeleportHostname"] = "web1\nbastion"
		}, codeGranted, all, checkOwnNames},
		"tag TeleportHostname that is fit":       {hostnameTag("web1"), codeGranted, all, isNamed("web1")},
		"tag TeleportHostname with a fit suffix": {hostnameTag("web1.corp.example.net"), codeGranted, all, isNamed("web1.corp.example.net")},
		"tag TeleportHostname: a foreign node's": {func(w *world, a *attempt) {
			hostnameTag("bastion")(w, a)
			w.nodes["other"] = node.Node{ID: "other", Hostname: "bastion"}
		}, codeGranted, all, isNamed("bastion-" + testInstance)},
		"tag TeleportHostname: a foreign node's, at a renaming": {func(w *world, a *attempt) {
			hostnameTag("web1")(w, a)
			w.earlier(a)
			hostnameTag("bastion")(w, a)
			w.nodes["other"] = node.Node{ID: "other", Hostname: "bastion"}
		}, codeGranted, all, isNamed("bastion-" + testInstance)},
	}
	for what, value := range map[string]string{
		"IPv4 address":                    "10.0.0.1",
		"IPv4 address, short":             "10.1",
		"IPv4 address in decimal":         "2130706433",
		"IPv4 address in hexadecimal":     "0x7f000001",
		"IPv4 address in octal":           "017700000001",
		"IPv4 address behind the suffix":  "1.corp.example.net.10",
		"IPv6 address":                    "::1",
		"IPv6 address in brackets":        "[::1]",
		"EC2's name of an address":        "ip-10-0-0-1",
		"EC2's DNS name":                  "ip-10-0-0-1.hm-test-1.compute.internal",
		"live node's id":                  "28663dc7-edf9-5081-a573-668145833f31",
		"node id without hyphens":         "28663dc7edf95081a573668145833f31",
		"Teleport's name for an EC2 node": "111122223333-" + otherInstance,
		"another instance's id":           otherInstance,
		"another instance's default name": "web-" + otherInstance,
		"another instance's, with suffix": "web-" + otherInstance + ".corp.example.net",
		"the cluster's name":              testCluster,
		"the cluster's first label":       "teleport",
		"a name in the cluster":           "bastion." + testCluster,
		"the proxy's name":                "proxy.example.com",
		"the proxy's first label":         "proxy",
		"localhost":                       "localhost",
		"below localhost":                 "web.localhost",
		"wildcard":                        "*",
		"wildcard domain":                 "*.corp.example.net",
		"list":                            "web1,bastion",
		"space":                           "web1 bastion",
		"line feed at the end":            "web1\n",
		"upper case":                      "WEB1",
		"Cyrillic look-alike":             "b\u0430stion",
		"punycode":                        "xn--bstion-3of",
		"dot at the end":                  "web1.",
		"dot in front":                    ".web1",
		"suffix that no rule has":         "web1.evil.example",
		"suffix in another case":          "web1.CORP.example.net",
		"suffix alone":                    "corp.example.net",
		"option of ssh":                   "-oProxyCommand=touch",
		"underscore":                      "web_1",
		"64 characters":                   strings.Repeat("a", 64),
		"10 kB":                           strings.Repeat("a", 10<<10),
		"nothing":                         "",
	} {
		rows["tag TeleportHostname: "+what] = attack{hostnameTag(value), codeGranted, all, checkOwnNames}
	}
	return rows
}

// heldNameAttacks ask for a name that another instance has, or had.
func heldNameAttacks() map[string]attack {
	const fallback = "a-" + testInstance
	held := func(prepare func(*world)) func(*world, *attempt) {
		return func(w *world, a *attempt) {
			hostnameTag("a")(w, a)
			prepare(w)
		}
	}
	until := func(w *world, end time.Duration) {
		w.claimFor(inTestAccount(otherInstance), "a", "SHA256:other", w.now.Add(end))
	}
	return map[string]attack{
		"another instance's name": {held(func(w *world) { until(w, time.Hour) }), codeGranted, all, isNamed(fallback)},
		"name of an instance that is stopped for years": {held(func(w *world) {
			until(w, -3*365*24*time.Hour)
			w.others = map[string]string{otherInstance: inventory.StateStopped}
		}), codeGranted, all, isNamed(fallback)},
		"name of an instance that was gone for weeks when nobody noticed": {held(func(w *world) { until(w, -longExpired) }),
			codeGranted, "sts ec2 connect lookup claim release issue confirm", isNamed("a")},
		"name of an instance that is gone since yesterday, as EC2 says": {held(func(w *world) { until(w, time.Second-longExpired) }),
			codeGranted, all, isNamed(fallback)},
		"name of an instance about which EC2 cannot be asked": {held(func(w *world) {
			until(w, -longExpired)
			w.others = map[string]string{otherInstance: ec2Fails}
		}), codeGranted, all, isNamed(fallback)},
		"name of an instance that is gone, but not its certificates": {held(func(w *world) {
			until(w, time.Hour)
			w.endOf(otherInstance)
		}), codeGranted, all, isNamed(fallback)},
		"rename a, b, c while another claims a": {held(func(w *world) {
			for _, name := range []string{"a", "b", "c"} {
				w.hold(otherInstance, name, "SHA256:other")
			}
		}), codeGranted, all, isNamed(fallback)},
		"rename a, b, a: the former name is one's own": {func(w *world, a *attempt) {
			for _, name := range []string{"a", "b"} {
				hostnameTag(name)(w, a)
				w.earlier(a)
			}
			hostnameTag("a")(w, a)
		}, codeGranted, all, isNamed("a")},
		"the name and its fallback are both another's": {held(func(w *world) {
			until(w, time.Hour)
			w.hold(otherInstance, fallback, "SHA256:other")
		}), protocol.CodeNameInUse, untilClaim, nil},
		"names without end": {func(w *world, a *attempt) {
			for n := range ledger.MaxNames {
				_, err := w.ledger.Claim(w.t.Context(), ledger.Claim{
					Instance: inTestAccount(testInstance), Fingerprints: []string{fingerprintOf(a.keys[0])},
					Hostname: "name-" + string(rune('a'+n%26)) + strings.Repeat("x", n/26), ValidUntil: w.now.Add(time.Hour),
				}, w.now)
				if err != nil {
					w.t.Fatal(err)
				}
			}
		}, codeGranted, all, isNamed(testInstance)},
		// This row must succeed: conditions compare times, and do not wait for a record to be
		// deleted.
		"expired record that is not deleted yet": {held(func(w *world) {
			until(w, -time.Second)
			w.endOf(otherInstance)
		}), codeGranted, all, isNamed("a")},
	}
}

// principalAttacks are about addresses, which repeat across VPCs and pass from one
// machine to the next.
func principalAttacks() map[string]attack {
	withAddresses := func(prepare func(*world)) func(*world, *attempt) {
		return func(w *world, _ *attempt) {
			w.setPolicy(`{name: default, match: {` + open + `}, principals: [private_ip, public_ip, ipv6, private_dns]}`)
			prepare(w)
		}
	}
	with := func(names ...string) func(*testing.T, *world, *attempt, protocol.Response) {
		return func(t *testing.T, _ *world, _ *attempt, got protocol.Response) {
			if want := slices.Concat(ownNames(testHostname), names); !slices.Equal(got.Principals, want) {
				t.Errorf("principals %q, want %q", got.Principals, want)
			}
		}
	}
	neighbor := func(w *world, end time.Duration) {
		_, err := w.ledger.Claim(w.t.Context(), ledger.Claim{
			Instance: inTestAccount(otherInstance), Fingerprints: []string{"SHA256:other"}, Hostname: "other",
			Names: []string{"10.0.0.7"}, ValidUntil: w.now.Add(end),
		}, w.now)
		if err != nil {
			w.t.Fatal(err)
		}
	}
	rows := map[string]attack{
		"its own address": {withAddresses(func(*world) {}), codeGranted, all, with("10.0.0.7")},
		"the same address in two VPCs": {withAddresses(func(w *world) { neighbor(w, time.Hour) }),
			codeGranted, all, with()},
		"an address used again, while certificates for it are out": {withAddresses(func(w *world) {
			neighbor(w, time.Hour)
			w.endOf(otherInstance)
		}), codeGranted, all, with()},
		"an address used again, when they have ended": {withAddresses(func(w *world) {
			neighbor(w, -time.Second)
			w.endOf(otherInstance)
		}), codeGranted, all, with("10.0.0.7")},
		"an address that is a foreign node's name": {withAddresses(func(w *world) {
			w.nodes["other"] = node.Node{ID: "other", Hostname: "10.0.0.7"}
		}), codeGranted, all, with()},
		"a host name that is a neighbor's address in DNS": {withAddresses(func(w *world) {
			w.instance.PrivateDNS = "ip-10-0-0-7.hm-test-1.compute.internal"
			_, err := w.ledger.Claim(w.t.Context(), ledger.Claim{
				Instance: inTestAccount(otherInstance), Fingerprints: []string{"SHA256:other"},
				Hostname: "ip-10-0-0-7.hm-test-1.compute.internal", ValidUntil: w.now.Add(time.Hour),
			}, w.now)
			if err != nil {
				w.t.Fatal(err)
			}
		}), codeGranted, all, with("10.0.0.7")},
	}
	for what, change := range map[string]func(*world){
		"loopback":               func(w *world) { w.instance.PublicIP = "127.0.0.1" },
		"unspecified":            func(w *world) { w.instance.PublicIP = "0.0.0.0" },
		"metadata service":       func(w *world) { w.instance.PublicIP = "169.254.169.254" },
		"IPv6 loopback":          func(w *world) { w.instance.IPv6 = "::1" },
		"IPv6 link-local":        func(w *world) { w.instance.IPv6 = "fe80::1" },
		"IPv6 with a zone":       func(w *world) { w.instance.IPv6 = "2001:db8::1%eth0" },
		"IPv4 mapped into IPv6":  func(w *world) { w.instance.IPv6 = "::ffff:10.0.0.8" },
		"IPv4 in place of IPv6":  func(w *world) { w.instance.IPv6 = "10.0.0.8" },
		"a name":                 func(w *world) { w.instance.PublicIP = "bastion" },
		"a wildcard":             func(w *world) { w.instance.PrivateDNS = "*" },
		"the proxy's name":       func(w *world) { w.instance.PrivateDNS = "proxy.example.com" },
		"localhost":              func(w *world) { w.instance.PrivateDNS = "localhost" },
		"a name in the cluster":  func(w *world) { w.instance.PrivateDNS = "bastion." + testCluster },
		"another instance's id":  func(w *world) { w.instance.PrivateDNS = otherInstance + ".hm-test-1.compute.internal" },
		"a name with two in one": func(w *world) { w.instance.PrivateDNS = "a,b" },
	} {
		rows["principal: "+what] = attack{withAddresses(change), codeGranted, all, with("10.0.0.7")}
	}
	return rows
}
