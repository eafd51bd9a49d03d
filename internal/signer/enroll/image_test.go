package enroll

import (
	"context"
	"errors"
	"net/http"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"github.com/hallmark-ssh/hallmark/internal/signer/inventory"
	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
	"github.com/hallmark-ssh/hallmark/internal/sshkey"
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

// EC2 can replace the root volume of a running instance with one from another image. What the
// ledger remembers is about the image that enrolled, and no other.
func TestAnotherImageIsNotTheOneThatEnrolled(t *testing.T) {
	const rule = `{name: web, match: {image_owners: ["` + testOwner + `"], max_age: 1h}}`
	const other = "ami-0fedcba9876543210"
	for name, tt := range map[string]struct {
		owner ec2ref.Account // as EC2 shows it now
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
			w.instance.ImageID, w.instance.ImageOwner = testImage, "" // restored, and gone
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
	c := ledger.Claim{Instance: i, Fingerprints: sshkey.Fingerprints([]ssh.PublicKey{a.keys[0].PublicKey(), a.keys[1].PublicKey()}), Hostname: testHostname, ImageOwner: testOwner, ValidUntil: w.now.Add(time.Hour)}
	g, err := w.ledger.Claim(t.Context(), c, w.now)
	if err == nil {
		err = w.ledger.Confirm(t.Context(), c, g, w.now)
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

// launchImages returns the image of an instance, whatever EC2 shows, and counts the calls.
type launchImages struct {
	image inventory.LaunchImage
	err   error
	asked int
}

func (l *launchImages) LaunchImage(_ context.Context, of ec2ref.Instance) (inventory.LaunchImage, error) {
	l.asked++
	if of != theInstance() {
		return inventory.LaunchImage{}, inventory.ErrNotListed
	}
	return l.image, l.err
}

// The image of a first enrollment may be deregistered while its instance boots.
func TestTheImageIsGoneBeforeTheFirstEnrollment(t *testing.T) {
	const owners = `{name: web, match: {image_owners: ["` + testOwner + `"], max_age: 1h}}`
	const anyone = `{name: web, match: {image_owners: [any], max_age: 1h}}`
	known := inventory.LaunchImage{ID: testImage, Owner: testOwner}
	for name, tt := range map[string]struct {
		rule     string
		launched *launchImages // nil: nobody is asked
		want     protocol.Code
	}{
		"its owner is admitted":             {owners, &launchImages{image: known}, codeGranted},
		"its owner is a stranger":           {owners, &launchImages{image: inventory.LaunchImage{ID: testImage, Owner: "999999999999"}}, protocol.CodePolicyRefused},
		"another image is told":             {owners, &launchImages{image: inventory.LaunchImage{ID: "ami-0fedcba9876543210", Owner: testOwner}}, protocol.CodePolicyRefused},
		"EC2 does not know the instance":    {owners, &launchImages{err: inventory.ErrNotFound}, protocol.CodePolicyRefused},
		"the role may not ask":              {owners, &launchImages{err: inventory.ErrNotPermitted}, protocol.CodePolicyRefused},
		"the role may not, and need not":    {anyone, &launchImages{err: inventory.ErrNotPermitted}, codeGranted},
		"nobody is asked":                   {owners, nil, protocol.CodePolicyRefused},
		"EC2 does not answer":               {owners, &launchImages{err: errors.New("timeout")}, protocol.CodeUpstream},
		"a tag is wanted, and none is told": {`{name: web, match: {image_owners: ["` + testOwner + `"], max_age: 1h, image_tags: {release: [stable]}}}`, &launchImages{image: known}, protocol.CodePolicyRefused},
		"a tag must not be there": {
			`{name: web, match: {image_owners: [self], max_age: 1h}, when: '!("broken" in image_tags)'}`,
			&launchImages{image: inventory.LaunchImage{ID: testImage, Owner: testAccount}}, protocol.CodePolicyRefused,
		},
		"a tag must have no value": {
			`{name: web, match: {image_owners: [self], max_age: 1h}, when: 'image_tags.get("broken") != "yes"'}`,
			&launchImages{image: inventory.LaunchImage{ID: testImage, Owner: testAccount}}, protocol.CodePolicyRefused,
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.setPolicy(tt.rule)
			w.instance.ImageOwner, w.instance.ImageTags = "", nil
			if tt.launched != nil {
				w.signer.LaunchImages = tt.launched
			}
			a := newAttempt(t, w.now)
			_, granted, refused := w.enroll(a)
			if tt.want != codeGranted {
				if refused.Code != tt.want {
					t.Errorf("code %s, want %s: %s", refused.Code, tt.want, w.log.String())
				}
				return
			}
			if refused.Code != "" {
				t.Fatalf("refused: %+v; log %s", refused, w.log.String())
			}
			if tt.launched.err == nil && w.nodes[granted.Node.ID].Labels["hallmark/image-owner"] != testOwner {
				t.Errorf("labels %v", w.nodes[granted.Node.ID].Labels)
			}
		})
	}
}

// Once the ledger remembers the image, the signer asks nobody. It does not ask while EC2 shows
// the image either.
func TestRenewalsDoNotAskForTheLaunchImage(t *testing.T) {
	w := newWorld(t)
	w.setPolicy(`{name: web, match: {image_owners: ["` + testOwner + `"], max_age: 1h}}`)
	seen := &launchImages{image: inventory.LaunchImage{ID: testImage, Owner: testOwner}}
	w.signer.LaunchImages = seen
	w.instance.ImageOwner = ""
	a := newAttempt(t, w.now)
	w.earlier(a)
	if seen.asked != 1 {
		t.Fatalf("asked %d times by the first enrollment", seen.asked)
	}
	seen.err = inventory.ErrNotPermitted
	for range 2 {
		w.pass(a, 48*time.Hour)
		if status, _, refused := w.enroll(a); status != http.StatusOK {
			t.Fatalf("status %d, %+v", status, refused)
		}
	}
	other := newWorld(t) // EC2 shows the image
	other.signer.LaunchImages = seen
	other.earlier(newAttempt(t, other.now))
	if seen.asked != 1 {
		t.Errorf("asked %d times, want once", seen.asked)
	}
}

// The role of a member account is older than this action. The signer logs that once, not for
// every machine.
func TestALackingPermissionIsLoggedOnce(t *testing.T) {
	w := newWorld(t)
	w.setPolicy(`{name: web, match: {image_owners: [any], max_age: any}}`)
	w.signer.LaunchImages = &launchImages{err: inventory.ErrNotPermitted}
	w.instance.ImageOwner = ""
	a := newAttempt(t, w.now)
	for range 3 {
		if status, _, refused := w.enroll(a); status != http.StatusOK {
			t.Fatalf("status %d, %+v", status, refused)
		}
		w.pass(a, time.Hour)
	}
	if n := strings.Count(w.log.String(), "ec2:DescribeInstanceImageMetadata"); n != 1 {
		t.Errorf("logged %d times: %s", n, w.log.String())
	}
}
