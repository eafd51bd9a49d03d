package enroll

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/identity"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"github.com/hallmark-ssh/hallmark/internal/signer/entry"
	"github.com/hallmark-ssh/hallmark/internal/signer/inventory"
	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
	"github.com/hallmark-ssh/hallmark/internal/signer/node"
	"github.com/hallmark-ssh/hallmark/internal/signer/policy"
	"github.com/hallmark-ssh/hallmark/internal/sshkey/sshkeytest"
)

func TestLeave(t *testing.T) {
	decision := policy.Decision{Hostname: "web", Fallback: "web-" + testInstance, Names: []string{"10.0.0.7", "192.0.2.7"}}
	without := func(d policy.Decision) policy.Decision { d.Fallback = ""; return d }
	tests := map[string]struct {
		decision policy.Decision
		taken    []string
		hostname string
		names    []string
		ok       bool
	}{
		"host name":                  {decision, []string{"web"}, "web-" + testInstance, []string{"10.0.0.7", "192.0.2.7"}, true},
		"one name":                   {decision, []string{"10.0.0.7"}, "web", []string{"192.0.2.7"}, true},
		"all":                        {decision, []string{"10.0.0.7", "192.0.2.7", "web"}, "web-" + testInstance, []string{}, true},
		"nothing of ours":            {decision, []string{"other"}, "web", []string{"10.0.0.7", "192.0.2.7"}, false},
		"host name without fallback": {without(decision), []string{"web", "10.0.0.7"}, "web", []string{"192.0.2.7"}, false},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, ok := leave(tt.decision, tt.taken)
			if got.Hostname != tt.hostname || !slices.Equal(got.Names, tt.names) || ok != tt.ok {
				t.Errorf("%q with %q, %t", got.Hostname, got.Names, ok)
			}
			if len(decision.Names) != 2 || decision.Names[0] != "10.0.0.7" {
				t.Errorf("the decision itself became %q", decision.Names)
			}
		})
	}
}

// wants asks for a host name from a tag, and for an address.
func (w *world) wants(t *testing.T) ask {
	t.Helper()
	return ask{
		caller: caller{
			document: &identity.Document{Instance: theInstance()},
			keys:     []ssh.PublicKey{sshkeytest.NewSigner(t).PublicKey()},
		},
		facts: node.Facts{ImageOwner: testOwner},
		decision: policy.Decision{
			Rule: "named", Hostname: "web", Fallback: "web-" + testInstance, Names: []string{"10.0.0.7", "192.0.2.7"},
			Address: "10.0.0.7:22", Lifetime: time.Hour,
		},
	}
}

func (w *world) claim(k ask) (grant, *audit, error) {
	a := newAudit(testAudience, entry.Request{}, w.signer.Now)
	a.decision = k.decision
	g, err := w.signer.claim(w.t.Context(), fakeCluster{w}, k, a)
	return g, a, err
}

func refusesNames(names ...string) func(ledger.Claim) error {
	return func(c ledger.Claim) error {
		err := new(ledger.NameInUseError)
		for _, name := range append([]string{c.Hostname}, c.Names...) {
			if slices.Contains(names, name) {
				err.Held = append(err.Held, ledger.HeldName{Name: name, Holder: inTestAccount("i-0fedcba9876543210")})
			}
		}
		if len(err.Held) > 0 {
			return err
		}
		return nil
	}
}

func TestNamesThatOthersHoldAreLeft(t *testing.T) {
	w := newWorld(t)
	w.onClaim = refusesNames("web", "10.0.0.7")
	g, a, err := w.claim(w.wants(t))
	if err != nil {
		t.Fatal(err)
	}
	id := theInstance().NodeID()
	const fallback = "web-" + testInstance
	want := []string{fallback, id, fallback + "." + testCluster, id + "." + testCluster, "192.0.2.7"}
	if !slices.Equal(g.principals, want) {
		t.Errorf("principals %q, want %q", g.principals, want)
	}
	if g.node.Hostname != fallback || g.claim.Hostname != fallback || !slices.Equal(g.claim.Names, []string{"192.0.2.7"}) {
		t.Errorf("node %q, claim of %q and %q", g.node.Hostname, g.claim.Hostname, g.claim.Names)
	}
	if g.claim.ImageOwner != testOwner {
		t.Errorf("image owner %q", g.claim.ImageOwner)
	}
	line := decode(t, a.line(http.StatusOK, nil))
	if line["hostname"] != fallback || line["hostname_wanted"] != "web" || !equalJSON(line["skipped_principals"], []string{"10.0.0.7"}) ||
		!equalJSON(line["held_by_others"], map[string]string{"web": "i-0fedcba9876543210", "10.0.0.7": "i-0fedcba9876543210"}) {
		t.Errorf("log line %v", line)
	}
}

// spelledCluster has a name with capital letters, and records which nodes it was asked for.
type spelledCluster struct {
	fakeCluster
	asked *[]string
}

func (spelledCluster) ClusterName() string { return "Teleport.Example.com" }

func (c spelledCluster) NodesNamed(ctx context.Context, hostnames ...string) ([]node.Node, error) {
	*c.asked = append(*c.asked, hostnames...)
	return c.fakeCluster.NodesNamed(ctx, hostnames...)
}

// A certificate has the cluster's name behind the host name, however either is spelled.
func TestForeignNodesInAClusterWithCapitalLetters(t *testing.T) {
	for _, foreign := range []string{"web.Teleport.Example.com", "web.teleport.example.com", "WEB.TELEPORT.EXAMPLE.COM"} {
		w := newWorld(t)
		w.nodes["other"] = node.Node{ID: "other", Hostname: foreign}
		var asked []string
		k := w.wants(t)
		a := newAudit(testAudience, entry.Request{}, w.signer.Now)
		g, err := w.signer.claim(t.Context(), spelledCluster{fakeCluster{w}, &asked}, k, a)
		if err != nil || g.node.Hostname != "web-"+testInstance {
			t.Errorf("%s: host name %q, error %v", foreign, g.node.Hostname, err)
		}
		if !slices.Contains(asked, "web.Teleport.Example.com") {
			t.Errorf("%s: asked for %q", foreign, asked)
		}
	}
}

// An address that changes with every start eventually fills the record.
func TestTooManyNamesCostTheFurtherOnes(t *testing.T) {
	w := newWorld(t)
	w.onClaim = func(c ledger.Claim) error {
		if len(c.Names) > 0 {
			return ledger.ErrTooManyNames
		}
		return nil
	}
	g, a, err := w.claim(w.wants(t))
	if err != nil {
		t.Fatal(err)
	}
	if g.node.Hostname != "web" || len(g.names) != 0 || len(g.principals) != 4 {
		t.Errorf("host name %q, names %q, principals %q", g.node.Hostname, g.names, g.principals)
	}
	if line := decode(t, a.line(http.StatusOK, nil)); !equalJSON(line["skipped_principals"], []string{"10.0.0.7", "192.0.2.7"}) {
		t.Errorf("log line %v", line)
	}
	w.onClaim = func(ledger.Claim) error { return ledger.ErrTooManyNames }
	if _, _, err := w.claim(w.wants(t)); codeOf(err) != protocol.CodeNameInUse {
		t.Errorf("%v", err)
	}
}

// This tests everything with the real ledger and a rule of the policy.
func TestTheHostnameOfAnotherInstance(t *testing.T) {
	w := newWorld(t)
	w.setPolicy(`{name: named, match: {image_owners: [any], max_age: any}, teleport_hostname: {pattern: "web|db"}, principals: [private_ip]}`)
	w.instance.Tags["TeleportHostname"] = "web"
	w.hold("i-0123456789abcdef0", "web", "SHA256:other")
	status, got, refused := w.enroll(newAttempt(t, w.now))
	if status != http.StatusOK {
		t.Fatalf("%+v; log %s", refused, w.log.String())
	}
	if got.Node.Hostname != "web-"+testInstance || !slices.Contains(got.Principals, "10.0.0.7") || slices.Contains(got.Principals, "web") {
		t.Errorf("node %+v, principals %q", got.Node, got.Principals)
	}
	entry := parse(t, w.log.Bytes())
	if entry["hostname_wanted"] != "web" || !equalJSON(entry["held_by_others"], map[string]string{"web": "i-0123456789abcdef0"}) {
		t.Errorf("log line %v", entry)
	}
}

func TestClaimsAreBounded(t *testing.T) {
	tests := map[string]struct {
		onClaim func(*world, ledger.Claim) error
		claims  int
	}{
		"the fallback is held too": {func(_ *world, c ledger.Claim) error {
			return refusesNames("web", "web-"+testInstance)(c)
		}, 2},
		"each time another name is taken": {func(w *world, c ledger.Claim) error {
			return refusesNames([]string{"10.0.0.7", "192.0.2.7", "web", "web-" + testInstance}[len(w.claimed)-1])(c)
		}, maxClaims},
		"names that were not asked for": {func(*world, ledger.Claim) error {
			return &ledger.NameInUseError{Held: []ledger.HeldName{{Name: "other", Holder: inTestAccount("i-1")}}}
		}, 1},
		"an error that names nothing": {func(*world, ledger.Claim) error {
			return ledger.ErrNameInUse
		}, 1},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.onClaim = func(c ledger.Claim) error { return tt.onClaim(w, c) }
			_, _, err := w.claim(w.wants(t))
			if codeOf(err) != protocol.CodeNameInUse || len(w.claimed) != tt.claims {
				t.Errorf("%d claims, %v", len(w.claimed), err)
			}
		})
	}
}

// If Teleport shows that names belong to another node, every renewal leaves them out: nothing
// records that they were once free.
func TestNamesOfForeignNodesAreLeft(t *testing.T) {
	w := newWorld(t)
	k := w.wants(t)
	g, _, err := w.claim(k)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.ledger.Confirm(t.Context(), g.claim, g.held, w.now); err != nil {
		t.Fatal(err)
	}
	w.nodes["other"] = node.Node{ID: "other", Hostname: "10.0.0.7"}
	g, a, err := w.claim(k)
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(g.names, []string{"192.0.2.7"}) || slices.Contains(g.principals, "10.0.0.7") {
		t.Errorf("names %q, principals %q", g.names, g.principals)
	}
	if line := decode(t, a.line(http.StatusOK, nil)); !equalJSON(line["held_by_others"], map[string]string{"10.0.0.7": "node other"}) {
		t.Errorf("log line %v", line)
	}
}

// Somebody else's node keeps its host name. If there is another name to fall back to, the
// instance gets that one: a person who sets a tag must not keep a machine out.
func TestAForeignNodeKeepsItsHostname(t *testing.T) {
	w := newWorld(t)
	w.nodes["other"] = node.Node{ID: "other", Hostname: "web"}
	k := w.wants(t)
	g, _, err := w.claim(k)
	if err != nil || g.node.Hostname != "web-"+testInstance {
		t.Errorf("host name %q, error %v, want the fallback", g.node.Hostname, err)
	}
	k.decision.Fallback = ""
	if _, _, err := w.claim(k); codeOf(err) != protocol.CodeNameInUse {
		t.Errorf("%v, want %q", err, protocol.CodeNameInUse)
	}
}

// A tag that names a foreign node costs the machine only that name, at every renewal. When the
// foreign machine comes to Hallmark, the name is still free.
func TestATagWithAForeignNameSquatsNothing(t *testing.T) {
	w := newWorld(t)
	a := newAttempt(t, w.now)
	if status, _, refused := w.enroll(a); status != http.StatusOK {
		t.Fatalf("%+v", refused)
	}
	hostnameTag("bastion")(w, a)
	w.nodes["other"] = node.Node{ID: "other", Hostname: "bastion"}
	for range 5 {
		w.pass(a, 3*24*time.Hour)
		if status, got, refused := w.enroll(a); status != http.StatusOK || got.Node.Hostname != "bastion-"+testInstance {
			t.Fatalf("%+v as %q", refused, got.Node.Hostname)
		}
	}
	for _, c := range w.claimed {
		if c.Hostname == "bastion" {
			t.Error("the foreign name was claimed")
		}
	}
	w.hold(otherInstance, "bastion", "SHA256:bastion")
}

// A year of renames, with addresses that change at every start, keeps no machine out.
func TestRenamesAndAddressesDoNotLockOut(t *testing.T) {
	for name, pause := range map[string]time.Duration{"over a year": 7 * 24 * time.Hour, "within a day": 25 * time.Minute} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.setPolicy(`{name: default, match: {` + open + `}, principals: [public_ip]}`)
			a := newAttempt(t, w.now)
			renew := func() {
				t.Helper()
				w.pass(a, pause)
				if status, _, refused := w.enroll(a); status != http.StatusOK {
					t.Fatalf("%+v", refused)
				}
			}
			for n := range ledger.MaxNames + 2 {
				w.instance.PublicIP = fmt.Sprintf("203.0.113.%d", n+1)
				renew()
			}
			for n := range ledger.MaxNames + 2 {
				w.instance.Tags["Name"] = fmt.Sprintf("web-%d-v", n)
				renew()
			}
		})
	}
}

func TestAnInstanceThatEndedIsRefusedAtOnce(t *testing.T) {
	w := newWorld(t)
	w.end()
	_, _, refused := w.enroll(newAttempt(t, w.now))
	if refused.Code != protocol.CodeInstanceEnded || w.upstream() != untilSTS { // it does not wait for EC2
		t.Errorf("code %q after calls %q", refused.Code, w.upstream())
	}
}

func TestALedgerThatCannotBeReadIsTriedAgain(t *testing.T) {
	w := newWorld(t)
	w.lookupErr = errors.New("connection refused")
	if _, _, refused := w.enroll(newAttempt(t, w.now)); refused.Code != protocol.CodeUpstream || w.upstream() != untilSTS {
		t.Errorf("code %q after calls %q", refused.Code, w.upstream())
	}
}

func TestFacts(t *testing.T) {
	launched := time.Date(2026, 1, 2, 3, 4, 0, 0, time.UTC)
	i := inventory.Instance{
		ID: testInstance, OwnerID: testAccount, Region: testRegion, AvailabilityZone: testRegion + "a",
		VPC: "vpc-1", Subnet: "subnet-1", PrivateIP: "10.0.0.7", PublicIP: "192.0.2.7", IPv6: "2001:db8::7",
		ImageID: testImage, ImageOwner: testOwner, ImageTags: map[string]string{"os": "debian"},
		InstanceProfileARN: "arn:aws:iam::111122223333:instance-profile/web", PrivateDNS: "ip-10-0-0-7.internal",
		LaunchTime: launched, Tags: map[string]string{"Name": "web"},
	}
	want := node.Facts{
		Account: testAccount, Region: testRegion, InstanceID: testInstance, VPC: "vpc-1", Subnet: "subnet-1",
		Zone: testRegion + "a", InstanceProfile: i.InstanceProfileARN, Image: testImage, ImageOwner: testOwner,
		ImageTags: i.ImageTags, LaunchTime: launched, PrivateIP: "10.0.0.7", PublicIP: "192.0.2.7", IPv6: "2001:db8::7",
		PrivateDNS: "ip-10-0-0-7.internal", Tags: i.Tags,
	}
	if got := node.FactsOf(&i, ledger.Record{}); !equalJSON(got, want) {
		t.Errorf("facts %+v, want %+v", got, want)
	}
	recorded := ledger.Record{ConfirmedHostname: "web", ImageOwner: "777788889999"}
	if got := node.FactsOf(&i, recorded); !got.Enrolled || got.ImageOwner != testOwner {
		t.Errorf("of a known instance: %+v", got)
	}
	i.ImageOwner = ""
	if got := node.FactsOf(&i, recorded); got.ImageOwner != "777788889999" {
		t.Errorf("image owner %q of an image that is gone, want the recorded one", got.ImageOwner)
	}
	if got := node.FactsOf(&i, ledger.Record{Generation: 1, ImageOwner: "777788889999"}); got.Enrolled {
		t.Error("an enrollment that never went through stands in for the age")
	}
}
