package inventory

import (
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
)

// answering is an EC2 that gives a set answer to one action, and its own to the others.
func answering(action string, status int, body string) http.Handler {
	f, _ := newFleetEC2(3)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		data, _ := io.ReadAll(r.Body)
		form, _ := url.ParseQuery(string(data))
		if form.Get("Action") == action {
			w.WriteHeader(status)
			_, _ = io.WriteString(w, body)
			return
		}
		r.Body = io.NopCloser(strings.NewReader(string(data)))
		f.ServeHTTP(w, r)
	})
}

// strangeAnswers come from somewhere else, or are half of EC2's answer. Each is an error for
// every request, and never "there is no such instance".
func strangeAnswers(root, set string) map[string]string {
	open, shut := "<"+root+">", "</"+root+">"
	empty := "<" + set + "/>"
	return map[string]string{
		"nothing":                  "",
		"a block page in HTML":     "<html><body>Blocked</body></html>",
		"a block page in XHTML":    `<?xml version="1.0"?><html xmlns="http://www.w3.org/1999/xhtml"><head><title>Blocked</title></head><body><p>no</p></body></html>`,
		"an error with status 200": fault("UnauthorizedOperation"),
		"an unknown error, spaced": "<Response ><Errors ><Error><Code>Blocked</Code></Error></Errors ></Response>",
		"another action's answer":  "<DescribeVpcsResponse>" + empty + "</DescribeVpcsResponse>",
		"another case":             strings.ToLower(open) + empty + strings.ToLower(shut),
		"another namespace":        "<" + root + ` xmlns="http://www.w3.org/1999/xhtml">` + empty + shut,
		"no list":                  open + "<requestId>r</requestId>" + shut,
		"two lists":                open + empty + empty + shut,
		"the list one level down":  open + "<body>" + empty + "</body>" + shut,
		"two documents":            open + empty + shut + open + empty + shut,
		"text at the end":          open + empty + shut + "x",
		"cut short":                open + empty,
		"another character set":    `<?xml version="1.0" encoding="ISO-8859-1"?>` + open + empty + shut,
		"not UTF-8":                open + empty + "<x>\xe9</x>" + shut,
		"a stray ampersand":        open + empty + "<x>a & b</x>" + shut,
		"an element left open":     open + empty + "<x>" + shut,
		"JSON":                     `{"` + root + `":{"` + set + `":[]}}`,
		"two tokens":               open + empty + "<nextToken>a</nextToken><nextToken>b</nextToken>" + shut,
	}
}

func TestStrangeAnswers(t *testing.T) {
	item := func(more string) string {
		return "<item><ownerId>" + account + "</ownerId><instancesSet><item>" + more + "</item></instancesSet></item>"
	}
	const state = "<instanceState><name>running</name></instanceState>"
	lists := strangeAnswers("DescribeInstancesResponse", "reservationSet")
	for name, items := range map[string]string{
		"an instance that was not asked about": reservationOf("i-00000000000000009", account),
		"an instance twice":                    strings.Repeat(reservationOf(id, account), 2),
		"an instance with two ids":             item("<instanceId>" + id + "</instanceId><instanceId>i-0</instanceId>" + state),
		"an instance with two states":          item("<instanceId>" + id + "</instanceId>" + state + state),
		"an instance without a state":          item("<instanceId>" + id + "</instanceId>"),
		"an instance without an id":            item(state),
		"an instance of two owners":            strings.Replace(reservationOf(id, account), "<instancesSet>", "<ownerId>"+otherAccount+"</ownerId><instancesSet>", 1),
	} {
		lists[name] = "<DescribeInstancesResponse><reservationSet>" + items + "</reservationSet></DescribeInstancesResponse>"
	}
	for name, body := range lists {
		t.Run("instances/"+name, func(t *testing.T) {
			e := startFleet(t, answering("DescribeInstances", http.StatusOK, body))
			if _, err := e.Instance(t.Context(), theInstance()); !errors.Is(err, errAnswer) || errors.Is(err, ErrNotFound) {
				t.Errorf("one instance: error %v", err)
			}
			if found, err := e.Instances(t.Context(), theInstance().Place(), []ec2ref.InstanceID{id, "i-1"}); !errors.Is(err, errAnswer) || found != nil {
				t.Errorf("some instances: %d found, error %v", len(found), err)
			}
			if name == "an instance that was not asked about" {
				return // of all instances none is
			}
			if found, err := e.All(t.Context(), theInstance().Place()); !errors.Is(err, errAnswer) || found != nil {
				t.Errorf("all instances: %d found, error %v", len(found), err)
			}
		})
	}
	lists = strangeAnswers("DescribeImagesResponse", "imagesSet")
	lists["an image that was not asked about"] = "<DescribeImagesResponse><imagesSet>" + imageItemOf("ami-99", account) + "</imagesSet></DescribeImagesResponse>"
	lists["an image of two owners"] = "<DescribeImagesResponse><imagesSet>" +
		strings.Replace(imageItemOf("ami-0", account), "<tagSet>", "<imageOwnerId>444455556666</imageOwnerId><tagSet>", 1) + "</imagesSet></DescribeImagesResponse>"
	for name, body := range lists {
		t.Run("images/"+name, func(t *testing.T) {
			e := startFleet(t, answering("DescribeImages", http.StatusOK, body))
			if found, err := e.All(t.Context(), theInstance().Place()); !errors.Is(err, errAnswer) || found != nil {
				t.Errorf("%d found, error %v", len(found), err)
			}
		})
	}
}

// Only EC2's own refusal, in its own form, says that there is no such instance.
func TestStrangeRefusals(t *testing.T) {
	const code = "InvalidInstanceID.NotFound"
	for name, tt := range map[string]struct {
		status   int
		body     string
		notFound bool
	}{
		"EC2's own":           {http.StatusBadRequest, fault(code), true},
		"of a broken EC2":     {http.StatusInternalServerError, fault(code), false},
		"with another status": {http.StatusForbidden, fault(code), false},
		"of another service":  {http.StatusBadRequest, "<ErrorResponse><Errors><Error><Code>" + code + "</Code></Error></Errors></ErrorResponse>", false},
		"two codes":           {http.StatusBadRequest, "<Response><Errors><Error><Code>x</Code><Code>" + code + "</Code></Error></Errors></Response>", false},
		"a block page":        {http.StatusForbidden, "<html><body>" + fault(code) + "</body></html>", false},
		"not the whole":       {http.StatusBadRequest, fault(code) + fault(code), false},
	} {
		t.Run(name, func(t *testing.T) {
			e := startFleet(t, answering("DescribeInstances", tt.status, tt.body))
			if _, err := e.Instance(t.Context(), theInstance()); err == nil || errors.Is(err, ErrNotFound) != tt.notFound {
				t.Errorf("error %v, want not found: %v", err, tt.notFound)
			}
			if found, err := e.Instances(t.Context(), theInstance().Place(), []ec2ref.InstanceID{id}); err == nil {
				t.Errorf("%d found without an error", len(found))
			}
		})
	}
}

// The client follows a redirect, including the body. An answer from there does not count.
func TestARedirectIsNoAnswer(t *testing.T) {
	f, _ := newFleetEC2(0)
	e := startFleet(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/elsewhere" {
			f.ServeHTTP(w, r)
			return
		}
		http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
	}))
	if found, err := e.Instances(t.Context(), theInstance().Place(), []ec2ref.InstanceID{id}); !errors.Is(err, errAnswer) {
		t.Errorf("%d found, error %v", len(found), err)
	}
}

// AWS allows characters in a tag that XML 1.0 forbids. Only that tag is affected.
func TestATagWithAForbiddenCharacter(t *testing.T) {
	for name, forbidden := range map[string]string{
		"a reference":             "&#x1;",
		"a decimal reference":     "&#8;",
		"an upper-case reference": "&#xB;",
		"one beyond Unicode":      "&#x110000;",
		"half of a pair":          "&#xD83D;",
		"the character itself":    "\x01",
		"a non-character":         "&#xFFFE;",
	} {
		t.Run(name, func(t *testing.T) {
			tags := "<tagSet><item><key>odd</key><value>a" + forbidden + "b</value></item><item><key>odd" + forbidden + "key</key><value>v</value></item>" +
				"<item><key>Name</key><value>web&#39;s &amp; more&#x2014;</value></item></tagSet>"
			f, ids := newFleetEC2(3)
			f.spoil = func(action string, _ int) string {
				if action != "DescribeInstances" {
					return ""
				}
				var b strings.Builder
				for n, id := range ids {
					reservation := reservationOf(string(id), account)
					if n == 1 {
						reservation = strings.Replace(reservation, "<imageId>", tags+"<imageId>", 1)
					}
					b.WriteString(reservation)
				}
				return "<DescribeInstancesResponse><reservationSet>" + b.String() + "</reservationSet></DescribeInstancesResponse>"
			}
			found, err := startFleet(t, f).All(t.Context(), theInstance().Place())
			if err != nil {
				t.Fatal(err)
			}
			checkFleet(t, found, ids)
			got := found[ids[1]].Tags
			if len(got) != 2 || got["odd"] != "a\ufffdb" || got["Name"] != "web's & more\u2014" {
				t.Errorf("tags %q", got)
			}
		})
	}
}

func TestQuestionsIncludeManagedInstances(t *testing.T) {
	f, ids := newFleetEC2(3)
	e := startFleet(t, f)
	_, one := e.Instances(t.Context(), theInstance().Place(), ids)
	_, all := e.All(t.Context(), theInstance().Place())
	if err := errors.Join(one, all); err != nil {
		t.Fatal(err)
	}
	for _, r := range f.requests {
		if r.Get("Action") == "DescribeInstances" && r.Get("IncludeManagedResources") != "true" {
			t.Errorf("request %v", r)
		}
	}
}

// Any answer is read or refused, and a refusal contains nothing from it.
func FuzzAnswers(f *testing.F) {
	for _, seed := range []string{instance, images, noInstances, noImages, fault("InvalidInstanceID.NotFound"), "&#x1;", "&#", "<a>&#xFFFE;\x00</a>"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		if a, err := parseInstances(data); err == nil && !a.Reservations.there {
			t.Error("an answer without a list")
		}
		if a, err := parseImages(data); err == nil && !a.Images.there {
			t.Error("an answer without a list")
		}
		if code, _, ok := parseError(data); ok && code == "" {
			t.Error("an error without a code")
		}
	})
}
