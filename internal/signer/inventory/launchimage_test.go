package inventory

import (
	"errors"
	"net/http"
	"strings"
	"testing"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
)

// launchImage is EC2's answer to DescribeInstanceImageMetadata, as the API reference has it.
const launchImage = `<?xml version="1.0" encoding="UTF-8"?>
<DescribeInstanceImageMetadataResponse xmlns="http://ec2.amazonaws.com/doc/2016-11-15/"><requestId>r</requestId>
	<instanceImageMetadataSet><item><instanceId>` + id + `</instanceId><instanceType>t4g.micro</instanceType>
		<launchTime>2026-01-02T03:04:05.000Z</launchTime><availabilityZone>us-west-2b</availabilityZone>
		<instanceState><code>16</code><name>running</name></instanceState><instanceOwnerId>` + account + `</instanceOwnerId>
		<tagSet><item><key>Name</key><value>web</value></item></tagSet>
		<imageMetadata><imageId>` + ami + `</imageId><name>golden</name><imageOwnerId>444455556666</imageOwnerId><imageState>deregistered</imageState>
			<imageOwnerAlias/><creationDate>2025-12-01T00:00:00.000Z</creationDate><imageAllowed>true</imageAllowed><isPublic>false</isPublic></imageMetadata>
	</item></instanceImageMetadataSet></DescribeInstanceImageMetadataResponse>`

const noLaunchImage = "<DescribeInstanceImageMetadataResponse><instanceImageMetadataSet/></DescribeInstanceImageMetadataResponse>"

func TestLaunchImage(t *testing.T) {
	f := &fakeEC2{answers: map[string][]string{"DescribeInstanceImageMetadata": {fault("RequestLimitExceeded"), launchImage}}}
	e, _ := start(t, f)
	got, err := e.LaunchImage(t.Context(), theInstance())
	if want := (LaunchImage{ID: ami, Owner: "444455556666"}); err != nil || got != want {
		t.Errorf("got %+v, error %v, want %+v", got, err, want)
	}
	if asked := f.requests[0]; asked.Get("InstanceId.1") != id || asked.Get("Version") != apiVersion || len(asked) != 3 {
		t.Errorf("asked %v", asked)
	}
	if _, err := e.LaunchImage(t.Context(), ec2ref.Instance{Account: "999999999999", Region: region, ID: id}); !errors.Is(err, ErrNotListed) || len(f.requests) != 2 {
		t.Errorf("error %v after %d requests about an account that is not listed", err, len(f.requests))
	}
}

func TestLaunchImageIsNotShown(t *testing.T) {
	for name, tt := range map[string]struct {
		status int
		body   string
		want   error
	}{
		"no such instance":            {http.StatusBadRequest, fault("InvalidInstanceID.NotFound"), ErrNotFound},
		"an owner that is no account": {http.StatusOK, strings.Replace(launchImage, "444455556666", "amazon", 1), errAnswer},
		"nothing about it":            {http.StatusOK, noLaunchImage, ErrNotFound},
		"a role without the action":   {http.StatusForbidden, fault("UnauthorizedOperation"), ErrNotPermitted},
		"a region without it":         {http.StatusBadRequest, fault("InvalidAction"), ErrNotPermitted},
		"a broken EC2":                {http.StatusInternalServerError, fault("UnauthorizedOperation"), errBusy},
		"a proxy's 403":               {http.StatusForbidden, "<html>no</html>", nil},
		"not permitted, in HTML":      {http.StatusForbidden, "<html>" + fault("UnauthorizedOperation") + "</html>", nil},
		"not permitted, status 200":   {http.StatusOK, fault("UnauthorizedOperation"), errAnswer},
		"credentials that are wrong":  {http.StatusUnauthorized, fault("AuthFailure"), nil},
	} {
		t.Run(name, func(t *testing.T) {
			e := startFleet(t, answering("DescribeInstanceImageMetadata", tt.status, tt.body))
			got, err := e.LaunchImage(t.Context(), theInstance())
			if err == nil || got != (LaunchImage{}) || tt.want != nil && !errors.Is(err, tt.want) {
				t.Errorf("got %+v, error %v, want %v", got, err, tt.want)
			}
			for _, other := range []error{ErrNotFound, ErrNotPermitted, errAnswer} {
				if !errors.Is(tt.want, other) && errors.Is(err, other) {
					t.Errorf("error %v passes for %v", err, other)
				}
			}
		})
	}
}

func TestStrangeAnswersAboutALaunchImage(t *testing.T) {
	answers := strangeAnswers("DescribeInstanceImageMetadataResponse", "instanceImageMetadataSet")
	change := func(old, new string) string {
		if !strings.Contains(launchImage, old) {
			t.Fatalf("the answer has no %s", old)
		}
		return strings.ReplaceAll(launchImage, old, new)
	}
	item := launchImage[strings.Index(launchImage, "<item><instanceId>") : strings.Index(launchImage, "</imageMetadata>")+len("</imageMetadata></item>")+2]
	for name, body := range map[string]string{
		"another instance":       change("<instanceId>"+id, "<instanceId>i-00000000000000009"),
		"another account's":      change("<instanceOwnerId>"+account, "<instanceOwnerId>"+otherAccount),
		"no account":             change("<instanceOwnerId>"+account+"</instanceOwnerId>", ""),
		"no image":               change("imageMetadata>", "imageOther>"),
		"no owner":               change("<imageOwnerId>444455556666</imageOwnerId>", ""),
		"an empty owner":         change("444455556666", ""),
		"two owners":             change("<imageOwnerId>", "<imageOwnerId>999999999999</imageOwnerId><imageOwnerId>"),
		"no image id":            change("<imageId>"+ami+"</imageId>", ""),
		"two images":             change("<imageMetadata>", "<imageMetadata/><imageMetadata>"),
		"two instances":          change("</instanceImageMetadataSet>", item+"</instanceImageMetadataSet>"),
		"an owner in a tag":      change("<imageOwnerId>444455556666</imageOwnerId>", "<tagSet><item><imageOwnerId>444455556666</imageOwnerId></item></tagSet>"),
		"longer than a megabyte": change("<name>golden</name>", "<name>"+strings.Repeat("x", maxAnswerBytes)+"</name>"),
	} {
		answers[name] = body
	}
	for name, body := range answers {
		t.Run(name, func(t *testing.T) {
			e := startFleet(t, answering("DescribeInstanceImageMetadata", http.StatusOK, body))
			if got, err := e.LaunchImage(t.Context(), theInstance()); !errors.Is(err, errAnswer) || errors.Is(err, ErrNotFound) || got != (LaunchImage{}) {
				t.Errorf("got %+v, error %v", got, err)
			}
		})
	}
}
