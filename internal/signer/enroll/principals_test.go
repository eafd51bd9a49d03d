package enroll

import (
	"net/http"
	"slices"
	"testing"
)

// The tag may also choose the name that EC2 gives. The signer requests and holds it only once.
func TestEachPrincipalIsAskedForOnce(t *testing.T) {
	w := newWorld(t)
	w.setPolicy(`{name: default, match: {image_owners: [any], max_age: any}, principals: [private_dns], teleport_hostname: {pattern: ".*", suffixes: [.corp.example.net]}}`)
	a := newAttempt(t, w.now)
	w.instance.PrivateDNS = testInstance + ".corp.example.net"
	w.instance.Tags["TeleportHostname"] = w.instance.PrivateDNS
	for range 2 {
		status, granted, refused := w.enroll(a)
		if status != http.StatusOK || !slices.Contains(granted.Principals, w.instance.PrivateDNS) {
			t.Fatalf("status %d, %+v, principals %q", status, refused, granted.Principals)
		}
		if once := slices.Compact(slices.Sorted(slices.Values(granted.Principals))); len(once) != len(granted.Principals) {
			t.Errorf("principals %q", granted.Principals)
		}
	}
}
