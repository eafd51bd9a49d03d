package signer

import (
	"net/http"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/ledger"
)

// A lifecycle policy deregisters images while their instances run on.
func TestRenewalsOutliveTheImage(t *testing.T) {
	for name, rule := range map[string]string{
		"by owner":        "{name: web, match: {image_owners: [self], max_age: 1h}}",
		"by tags":         `{name: web, match: {image_owners: [self], max_age: 1h, image_tags: {release: ["stable"]}}}`,
		"by a condition":  `{name: web, match: {image_owners: [self], max_age: 1h}, when: 'image_tags.get("release") == "stable"'}`,
		"by a missed tag": `{name: web, match: {image_owners: [self], max_age: 1h}, when: 'image_tags["release"] == "stable"'}`,
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.setPolicy(rule)
			w.instance.ImageOwner, w.instance.ImageTags = testAccount, map[string]string{"release": "stable"}
			a := newAttempt(t, w.now)
			w.earlier(a)
			w.instance.ImageOwner, w.instance.ImageTags = "", nil
			for range 3 {
				w.pass(a, 48*time.Hour)
				if status, granted, refused := w.enroll(a); status != http.StatusOK || w.nodes[granted.Node.ID].Labels["hallmark/image-owner"] != testAccount {
					t.Fatalf("status %d, %+v, nodes %v", status, refused, w.nodes)
				}
			}
		})
	}
}

// EC2 can replace the root volume of a running instance by one of another image. What the
// ledger remembers is of the image that enrolled, and vouches for no other.
func TestAnotherImageIsNotTheOneThatEnrolled(t *testing.T) {
	const rule = `{name: web, match: {image_owners: ["` + testOwner + `"], max_age: 1h}}`
	const other = "ami-0fedcba9876543210"
	for name, tt := range map[string]struct {
		owner string // as EC2 shows it now
		want  int
	}{
		"which EC2 does not show":   {"", http.StatusForbidden},
		"of a stranger":             {"999999999999", http.StatusForbidden},
		"of the owner that is fine": {testOwner, http.StatusOK},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.setPolicy(rule)
			a := newAttempt(t, w.now)
			w.earlier(a)
			w.instance.ImageID, w.instance.ImageOwner = other, tt.owner
			a.document["imageId"] = other
			w.pass(a, 48*time.Hour)
			if status, _, refused := w.enroll(a); status != tt.want {
				t.Errorf("status %d, %+v; want %d", status, refused, tt.want)
			}
			w.instance.ImageID, w.instance.ImageOwner = testImage, "" // back again, and gone
			a.document["imageId"] = testImage
			w.pass(a, time.Hour)
			want := map[int]int{http.StatusOK: http.StatusForbidden, http.StatusForbidden: http.StatusOK}[tt.want]
			if status, _, refused := w.enroll(a); status != want {
				t.Errorf("the former image: status %d, %+v; want %d", status, refused, want)
			}
		})
	}
}

// Records from before image ids were kept are filled in by the next renewal.
func TestARecordLearnsItsImage(t *testing.T) {
	w := newWorld(t)
	a := newAttempt(t, w.now)
	w.setPolicy(`{name: web, match: {image_owners: ["` + testOwner + `"], max_age: 1h}}`)
	i := inTestAccount(testInstance)
	c := ledger.Claim{Instance: i, Fingerprints: fingerprints([]ssh.PublicKey{a.keys[0].PublicKey(), a.keys[1].PublicKey()}), Hostname: testHostname, ImageOwner: testOwner, End: w.now.Add(time.Hour)}
	g, err := w.ledger.Claim(t.Context(), c, w.now)
	if err == nil {
		err = w.ledger.Confirm(t.Context(), c, g)
	}
	if err != nil {
		t.Fatal(err)
	}
	w.instance.ImageOwner = ""
	if status, _, refused := w.enroll(a); status != http.StatusOK {
		t.Fatalf("status %d, %+v", status, refused)
	}
	if r, err := w.ledger.Lookup(t.Context(), i); err != nil || r.Image != testImage || r.ImageOwner != testOwner {
		t.Errorf("record %+v, error %v", r, err)
	}
}
