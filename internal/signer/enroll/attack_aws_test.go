package enroll

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"github.com/hallmark-ssh/hallmark/internal/signer/inventory"
	"github.com/hallmark-ssh/hallmark/internal/signer/policy"
	"github.com/hallmark-ssh/hallmark/internal/signer/policy/live"
)

// fakeAWS is EC2 and SSM as the signer's own clients see them. It answers truthfully, except
// for actions with another answer set. It is an aws.HTTPClient.
type fakeAWS struct {
	*world
	says   map[string]awsAnswer // by action
	policy string
}

// awsAnswer is the answer of one action.
type awsAnswer struct {
	status int
	body   string
	from   string // the URL that a redirect led to, if there was one
}

// ok is an answer with status 200.
func ok(body string) awsAnswer { return awsAnswer{status: http.StatusOK, body: body} }

// fault is an error in EC2's form (Amazon EC2 API Reference, "Error responses").
func fault(status int, code string) awsAnswer {
	return awsAnswer{status: status, body: "<Response><Errors><Error><Code>" + code + "</Code><Message>m</Message></Error></Errors></Response>"}
}

func (f *fakeAWS) Do(r *http.Request) (*http.Response, error) {
	data, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	action := strings.TrimPrefix(r.Header.Get("X-Amz-Target"), "AmazonSSM.")
	if action == "" {
		form, err := url.ParseQuery(string(data))
		if err != nil {
			return nil, err
		}
		action = form.Get("Action")
	}
	f.note(action)
	answer, said := f.says[action]
	if !said {
		answer = ok(f.truth(action))
	}
	if answer.from != "" {
		if r, err = http.NewRequestWithContext(r.Context(), r.Method, answer.from, nil); err != nil {
			return nil, err
		}
	}
	return &http.Response{StatusCode: answer.status, Body: io.NopCloser(strings.NewReader(answer.body)), Request: r}, nil
}

// truth is what AWS really answers.
func (f *fakeAWS) truth(action string) string {
	switch action {
	case "DescribeInstances":
		return instancesXML(reservationXML(testAccount, instanceXML(f.instance)))
	case "DescribeImages":
		return imagesXML(imageXML(f.instance.ImageID, f.instance.ImageOwner.String()))
	case "DescribeInstanceImageMetadata":
		return launchImageXML(string(f.instance.ID), testAccount, f.instance.ImageID, f.instance.ImageOwner.String())
	case "GetParameter":
		return parameterJSON("/hallmark/policy", f.policy)
	}
	f.t.Errorf("AWS is asked to %q", action)
	return ""
}

// These are answers in the forms of the Amazon EC2 API Reference and of the AWS Systems
// Manager API Reference.

func instancesXML(reservations string) string {
	return `<DescribeInstancesResponse xmlns="http://ec2.amazonaws.com/doc/2016-11-15/"><requestId>r</requestId><reservationSet>` +
		reservations + "</reservationSet></DescribeInstancesResponse>"
}

func reservationXML(owner, instances string) string {
	return "<item><reservationId>r-1</reservationId><ownerId>" + owner + "</ownerId><instancesSet>" + instances + "</instancesSet></item>"
}

func instanceXML(i inventory.Instance) string {
	var tags strings.Builder
	for key, value := range i.Tags {
		tags.WriteString("<item><key>")
		_ = xml.EscapeText(&tags, []byte(key))
		tags.WriteString("</key><value>")
		_ = xml.EscapeText(&tags, []byte(value))
		tags.WriteString("</value></item>")
	}
	return fmt.Sprintf("<item><instanceId>%s</instanceId><imageId>%s</imageId><instanceState><code>16</code><name>%s</name></instanceState>"+
		"<launchTime>%s</launchTime><placement><availabilityZone>%s</availabilityZone></placement><vpcId>%s</vpcId>"+
		"<privateIpAddress>%s</privateIpAddress><tagSet>%s</tagSet><metadataOptions><state>applied</state><httpTokens>%s</httpTokens>"+
		"<httpPutResponseHopLimit>%d</httpPutResponseHopLimit><httpEndpoint>enabled</httpEndpoint></metadataOptions></item>",
		i.ID, i.ImageID, i.State, i.LaunchTime.UTC().Format(time.RFC3339), i.AvailabilityZone, i.VPC, i.PrivateIP, tags.String(),
		i.MetadataOptions.HTTPTokens, i.MetadataOptions.HopLimit)
}

func imagesXML(images string) string {
	return `<DescribeImagesResponse xmlns="http://ec2.amazonaws.com/doc/2016-11-15/"><imagesSet>` + images + "</imagesSet></DescribeImagesResponse>"
}

func imageXML(id, owner string) string {
	return "<item><imageId>" + id + "</imageId><imageOwnerId>" + owner + "</imageOwnerId></item>"
}

func launchImageXML(instance, account, image, owner string) string {
	return `<DescribeInstanceImageMetadataResponse xmlns="http://ec2.amazonaws.com/doc/2016-11-15/"><instanceImageMetadataSet><item>` +
		"<instanceId>" + instance + "</instanceId><instanceOwnerId>" + account + "</instanceOwnerId><imageMetadata><imageId>" + image +
		"</imageId><imageOwnerId>" + owner + "</imageOwnerId></imageMetadata></item></instanceImageMetadataSet></DescribeInstanceImageMetadataResponse>"
}

func parameterJSON(name, value string) string {
	text, err := json.Marshal(map[string]any{"Parameter": map[string]any{"Name": name, "Type": "String", "Value": value, "Version": 7}})
	if err != nil {
		panic(err) // of strings and a number
	}
	return string(text)
}

// useAWS makes the signer ask EC2 and SSM with its own clients.
func (w *world) useAWS() *fakeAWS {
	f := &fakeAWS{world: w, policy: "version: 1\nrules:\n- {name: web, match: {image_owners: [listed], max_age: 1h}}\n"}
	cfg := aws.Config{HTTPClient: f, Region: testRegion, Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
		return aws.Credentials{AccessKeyID: testAccessKey, SecretAccessKey: testSecretKey}, nil
	})}
	now := func() time.Time { return w.now }
	ec2 := inventory.New(inventory.Config{
		AWS: cfg, Accounts: []inventory.Account{{ID: testAccount}}, Now: now,
		Endpoint: func(region ec2ref.Region) (string, error) {
			return string("https://ec2." + region + ".amazonaws.com/"), nil
		},
	})
	ec2.Wait = func(ctx context.Context, _ time.Duration) error { return ctx.Err() }
	w.signer.Inventory, w.signer.LaunchImages = ec2, ec2
	current := live.New(live.Config{
		Fetch:    live.Parameter{AWS: cfg, Endpoint: "https://ssm.amazonaws.com/", Name: "/hallmark/policy", Now: now}.Fetch,
		LastGood: new(lastGood), Now: now, Log: w.signer.Log,
		Limits: policy.Limits{Accounts: w.signer.Accounts, Regions: w.signer.Regions, MaxLifetime: policy.LongestLifetime},
	}).Current
	w.signer.Policy = func(ctx context.Context) (p *policy.Policy, err error) {
		// If there already is a policy, a request waits at most half a second for a look,
		// which a busy machine may exceed. Further calls wait for the same look, or cost
		// nothing.
		for range 20 {
			if p, err = current(ctx); err != nil {
				break
			}
		}
		return p, err
	}
	return f
}

// lastGood keeps a text in memory.
type lastGood struct {
	mu   sync.Mutex
	text []byte
}

func (l *lastGood) Load(context.Context) ([]byte, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text, nil
}

func (l *lastGood) Save(_ context.Context, text []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.text = text
	return nil
}

// made returns the calls so far in order, with how many times in a row each was made.
func (w *world) made() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var made []string
	for n := 0; n < len(w.calls); {
		end := n
		for end < len(w.calls) && w.calls[end] == w.calls[n] {
			end++
		}
		made = append(made, w.calls[n])
		if end-n > 1 {
			made[len(made)-1] += fmt.Sprintf("*%d", end-n)
		}
		n = end
	}
	return strings.Join(made, " ")
}

// awsAttack is a strange answer of AWS, and its result.
type awsAttack struct {
	says map[string]awsAnswer
	// first and renewal are the codes of a first enrollment and of a renewal.
	first, renewal protocol.Code
	// calls are all calls of a first enrollment. They are also those of a renewal unless
	// renewalCalls says otherwise.
	calls, renewalCalls string
	// check looks at what the signer granted. It may be nil for a refusal.
	check func(t *testing.T, w *world, granted protocol.Response)
}

// The calls of an enrollment that EC2's answers stop, or let through.
const (
	untilInstance = "sts DescribeInstances"
	untilPatience = "sts DescribeInstances*5" // EC2 may not show a young instance yet
	untilImage    = "sts DescribeInstances DescribeImages"
	untilMetadata = "sts DescribeInstances DescribeImages DescribeInstanceImageMetadata"
	untilPolicy   = " connect GetParameter"
	wholeFirst    = untilPolicy + " lookup*2 claim issue*4 confirm"
	wholeRenewal  = untilPolicy + " claim issue*4 confirm"
)

// TestAttackAnswersOfAWS tries strange answers of EC2 and SSM. Each comes once in a first
// enrollment and once in a renewal. Afterwards AWS answers truthfully, and the honest machine
// must be able to enroll.
func TestAttackAnswersOfAWS(t *testing.T) {
	for group, rows := range map[string]map[string]awsAttack{"instances": instanceAnswers(), "images": imageAnswers(), "policy": policyAnswers()} {
		for _, name := range slices.Sorted(maps.Keys(rows)) {
			row := rows[name]
			t.Run(group+"/"+name+"/first", func(t *testing.T) { row.run(t, false, row.first, row.calls) })
			calls := row.calls
			if row.renewalCalls != "" {
				calls = row.renewalCalls
			}
			t.Run(group+"/"+name+"/renewal", func(t *testing.T) { row.run(t, true, row.renewal, calls) })
		}
	}
}

func (row awsAttack) run(t *testing.T, renews bool, code protocol.Code, calls string) {
	w := newWorld(t)
	f := w.useAWS()
	a := newAttempt(t, w.now)
	if renews {
		w.earlier(a)
		w.pass(a, 48*time.Hour)
	}
	nodes := maps.Clone(w.nodes)
	f.says = row.says
	status, granted, refused := w.enroll(a)
	if got := w.made(); got != calls {
		t.Errorf("calls %q, want %q", got, calls)
	}
	if code == codeGranted {
		if status != http.StatusOK {
			t.Fatalf("status %d, %+v; log: %s", status, refused, w.log.String())
		}
		if row.check != nil {
			row.check(t, w, granted)
		}
	} else {
		if refused.Code != code || status != outcomes()[code].status {
			t.Errorf("code %q, status %d, want %q; log: %s", refused.Code, status, code, w.log.String())
		}
		if len(w.nodes) != len(nodes) {
			t.Errorf("nodes %v, before %v", w.nodes, nodes)
		}
	}
	checkNoSecrets(t, w)

	f.says = nil
	w.pass(a, 2*time.Minute)
	if status, _, refused := w.enroll(a); status != http.StatusOK {
		t.Errorf("the honest machine afterwards: status %d, %+v; log: %s", status, refused, w.log.String())
	}
}

// stopping is a row whose answer stops every enrollment with the code.
func stopping(action string, answer awsAnswer, code protocol.Code, calls string) awsAttack {
	return awsAttack{says: map[string]awsAnswer{action: answer}, first: code, renewal: code, calls: calls}
}

// strange are answers that are not AWS's answer to the request, for any request.
func strange(truth string) map[string]awsAnswer {
	return map[string]awsAnswer{
		"nothing":                        ok(""),
		"HTML and 200":                   ok("<html><body>Blocked</body></html>"),
		"HTML and 403":                   {status: http.StatusForbidden, body: "<html><body>Blocked</body></html>"},
		"an error in XML, and 200":       ok(fault(http.StatusOK, "InvalidInstanceID.NotFound").body),
		"truncated":                      ok(truth[:len(truth)-20]),
		"two answers":                    ok(truth + truth),
		"huge":                           ok(truth + strings.Repeat(" ", 1<<20)),
		"from elsewhere, by a redirect":  {status: http.StatusOK, body: truth, from: "https://elsewhere.example.com/"},
		"something else, in JSON":        ok(`{"Reservations":[],"Images":[]}`),
		"another character set":          ok("<?xml version=\"1.0\" encoding=\"ISO-8859-1\"?>" + truth),
		"a refusal by somebody between":  {status: http.StatusProxyAuthRequired, body: "<html/>"},
		"not permitted, in EC2's words":  fault(http.StatusForbidden, "UnauthorizedOperation"),
		"expired credentials, EC2 says":  fault(http.StatusUnauthorized, "AuthFailure"),
		"an error without a code in XML": {status: http.StatusBadRequest, body: "<Response><Errors/></Response>"},
	}
}

func instanceAnswers() map[string]awsAttack {
	honest := newInstance()
	item := instanceXML(honest)
	changed := func(change func(*inventory.Instance)) awsAnswer {
		i := honest
		change(&i)
		return ok(instancesXML(reservationXML(testAccount, instanceXML(i))))
	}
	replaced := func(old, new string) awsAnswer {
		if !strings.Contains(item, old) {
			panic("the answer has no " + old)
		}
		return ok(instancesXML(reservationXML(testAccount, strings.Replace(item, old, new, 1))))
	}
	good := instancesXML(reservationXML(testAccount, item))
	rows := make(map[string]awsAttack)
	add := func(name string, answer awsAnswer, code protocol.Code, calls string) {
		rows[name] = stopping("DescribeInstances", answer, code, calls)
	}
	for name, answer := range strange(good) {
		add(name, answer, protocol.CodeUpstream, untilInstance)
	}
	other := honest
	other.ID = otherInstance
	for name, answer := range map[string]awsAnswer{
		"no root element":            ok(reservationXML(testAccount, item)),
		"another root element":       ok(strings.ReplaceAll(good, "DescribeInstancesResponse", "RunInstancesResponse")),
		"another namespace":          ok(strings.Replace(good, "http://ec2.amazonaws.com/doc/2016-11-15/", "http://www.w3.org/1999/xhtml", 1)),
		"no reservationSet":          ok(`<DescribeInstancesResponse><requestId>r</requestId></DescribeInstancesResponse>`),
		"two reservationSets":        ok(strings.Replace(good, "<reservationSet>", "<reservationSet/><reservationSet>", 1)),
		"another instance":           ok(instancesXML(reservationXML(testAccount, instanceXML(other)))),
		"the instance and another":   ok(instancesXML(reservationXML(testAccount, item+instanceXML(other)))),
		"the instance twice":         ok(instancesXML(reservationXML(testAccount, item+item))),
		"the instance of two owners": ok(instancesXML(reservationXML(testAccount, item) + reservationXML(testOwner, item))),
		"two ids":                    replaced("<instanceId>", "<instanceId>"+otherInstance+"</instanceId><instanceId>"),
		"no id":                      replaced("<instanceId>"+testInstance+"</instanceId>", ""),
		"no state":                   replaced("<name>running</name>", ""),
		"two states":                 replaced("<name>running</name>", "<name>terminated</name><name>running</name>"),
		"a time that is none":        replaced("<launchTime>", "<launchTime>yesterday "),
	} {
		add(name, answer, protocol.CodeUpstream, untilInstance)
	}
	add("throttled", fault(http.StatusServiceUnavailable, "RequestLimitExceeded"), protocol.CodeUpstream, untilPatience)
	add("not found, from a broken EC2", fault(http.StatusInternalServerError, "InvalidInstanceID.NotFound"), protocol.CodeUpstream, untilPatience)
	add("not found", fault(http.StatusBadRequest, "InvalidInstanceID.NotFound"), protocol.CodeInstanceUnknown, untilPatience)
	add("an empty reservationSet", ok(instancesXML("")), protocol.CodeInstanceUnknown, untilPatience)
	add("an empty reservation", ok(instancesXML(reservationXML(testAccount, ""))), protocol.CodeInstanceUnknown, untilPatience)
	add("another account's reservation", ok(instancesXML(reservationXML(testOwner, item))), protocol.CodeInstanceMismatch, untilImage)
	add("nobody's reservation", ok(instancesXML(strings.Replace(reservationXML(testAccount, item), "<ownerId>"+testAccount+"</ownerId>", "", 1))), protocol.CodeInstanceMismatch, untilImage)
	add("terminated", changed(func(i *inventory.Instance) { i.State = inventory.StateTerminated }), protocol.CodeInstanceState, untilImage)
	add("a state that is none", changed(func(i *inventory.Instance) { i.State = "RUNNING" }), protocol.CodeInstanceState, untilImage)
	add("another private address", changed(func(i *inventory.Instance) { i.PrivateIP = "10.0.0.8" }), protocol.CodeInstanceMismatch, untilImage)

	granted := func(answer awsAnswer, check func(*testing.T, *world, protocol.Response)) awsAttack {
		return awsAttack{
			says: map[string]awsAnswer{"DescribeInstances": answer}, calls: untilImage + wholeFirst, renewalCalls: untilImage + wholeRenewal,
			first: codeGranted, renewal: codeGranted, check: check,
		}
	}
	named := func(t *testing.T, w *world, granted protocol.Response) {
		t.Helper()
		if granted.Node.Hostname != testHostname {
			t.Errorf("host name %q", granted.Node.Hostname)
		}
	}
	rows["a next token that leads round"] = granted(ok(strings.Replace(good, "</reservationSet>", "</reservationSet><nextToken>again</nextToken>", 1)), named)
	rows["a tag with a character that XML forbids"] = granted(replaced("<tagSet>", "<tagSet><item><key>note</key><value>a\x01b&#2;c</value></item>"), named)
	rows["a tag key with a character that XML forbids"] = granted(replaced("<tagSet>", "<tagSet><item><key>env\x01</key><value>prod</value></item>"),
		func(t *testing.T, w *world, granted protocol.Response) {
			for label, value := range w.nodes[granted.Node.ID].Labels {
				if value == "prod" {
					t.Errorf("label %q of a key that is not known", label)
				}
			}
		})
	// Whatever EC2 says about the metadata service decides nothing, and only what is clear
	// reaches the machine.
	options := func(want protocol.MetadataOptions) func(*testing.T, *world, protocol.Response) {
		return func(t *testing.T, _ *world, granted protocol.Response) {
			t.Helper()
			if granted.MetadataOptions != want {
				t.Errorf("metadata options %+v, want %+v", granted.MetadataOptions, want)
			}
		}
	}
	const tokens, limit = "<httpTokens>optional</httpTokens>", "<httpPutResponseHopLimit>2</httpPutResponseHopLimit>"
	rows["metadata options"] = granted(ok(good), options(honest.MetadataOptions))
	rows["no metadata options"] = granted(replaced(tokens+limit, ""), options(protocol.MetadataOptions{}))
	rows["metadata options twice"] = granted(replaced("<metadataOptions>", "<metadataOptions>"+tokens+limit+"</metadataOptions><metadataOptions>"), options(protocol.MetadataOptions{}))
	rows["metadata options that are none"] = granted(replaced(tokens+limit, "<httpTokens>\x01<b/></httpTokens><httpPutResponseHopLimit>-99999999999999999999</httpPutResponseHopLimit>"), options(protocol.MetadataOptions{}))
	rows["a hop limit that is none"] = granted(replaced(limit, "<httpPutResponseHopLimit>255</httpPutResponseHopLimit>"), options(protocol.NewMetadataOptions(protocol.TokensOptional, 0)))
	rows["no launch time"] = awsAttack{
		says:  map[string]awsAnswer{"DescribeInstances": replaced("<launchTime>"+honest.LaunchTime.UTC().Format(time.RFC3339)+"</launchTime>", "")},
		first: protocol.CodePolicyRefused, renewal: codeGranted, calls: untilImage + untilPolicy, renewalCalls: untilImage + wholeRenewal,
	}
	return rows
}

// newInstance is the instance of every world, launched a little earlier.
func newInstance() inventory.Instance {
	return inventory.Instance{
		ID: testInstance, OwnerID: testAccount, Region: testRegion, AvailabilityZone: testRegion + "a", State: inventory.StateRunning,
		VPC: "vpc-1", ImageID: testImage, LaunchTime: time.Now().Add(-time.Minute), PrivateIP: "10.0.0.7", Tags: map[string]string{"Name": "web"},
		MetadataOptions: protocol.NewMetadataOptions(protocol.TokensOptional, 2),
	}
}

func imageAnswers() map[string]awsAttack {
	const otherImage = "ami-0fedcba9876543210"
	image, metadata := imagesXML(imageXML(testImage, testOwner)), launchImageXML(testInstance, testAccount, testImage, testOwner)
	rows := make(map[string]awsAttack)
	for name, answer := range strange(image) {
		rows[name] = stopping("DescribeImages", answer, protocol.CodeUpstream, untilImage)
	}
	rows["another image"] = stopping("DescribeImages", ok(imagesXML(imageXML(otherImage, testOwner))), protocol.CodeUpstream, untilImage)
	rows["no imagesSet"] = stopping("DescribeImages", ok("<DescribeImagesResponse/>"), protocol.CodeUpstream, untilImage)
	rows["of two owners"] = stopping("DescribeImages",
		ok(strings.Replace(image, "<imageOwnerId>", "<imageOwnerId>999999999999</imageOwnerId><imageOwnerId>", 1)), protocol.CodeUpstream, untilImage)
	rows["of a stranger"] = stopping("DescribeImages", ok(imagesXML(imageXML(testImage, "999999999999"))), protocol.CodePolicyRefused, untilImage+untilPolicy)

	// The image is gone: in a renewal the ledger remembers its owner, and the signer asks
	// nobody else.
	gone := func(metadata awsAnswer, code protocol.Code, calls string) awsAttack {
		return awsAttack{
			says:  map[string]awsAnswer{"DescribeImages": ok(imagesXML("")), "DescribeInstanceImageMetadata": metadata},
			first: code, renewal: codeGranted, calls: untilMetadata + calls, renewalCalls: untilImage + wholeRenewal,
		}
	}
	for name, answer := range strange(metadata) {
		rows["gone; of its instance: "+name] = gone(answer, protocol.CodeUpstream, "")
	}
	rows["gone; of its instance: not permitted, in EC2's words"] = gone(fault(http.StatusForbidden, "UnauthorizedOperation"), protocol.CodePolicyRefused, untilPolicy)
	rows["gone; EC2 knows the owner"] = gone(ok(metadata), codeGranted, wholeFirst)
	rows["gone; of another instance"] = gone(ok(launchImageXML(otherInstance, testAccount, testImage, testOwner)), protocol.CodeUpstream, "")
	rows["gone; of another account's instance"] = gone(ok(launchImageXML(testInstance, testOwner, testImage, testOwner)), protocol.CodeUpstream, "")
	rows["gone; of another image"] = gone(ok(launchImageXML(testInstance, testAccount, otherImage, testOwner)), protocol.CodePolicyRefused, untilPolicy)
	rows["gone; and a stranger's"] = gone(ok(launchImageXML(testInstance, testAccount, testImage, "999999999999")), protocol.CodePolicyRefused, untilPolicy)
	rows["gone; and nobody's"] = gone(ok(launchImageXML(testInstance, testAccount, testImage, "")), protocol.CodeUpstream, "")
	return rows
}

func policyAnswers() map[string]awsAttack {
	const laxer = "version: 1\nrules:\n- {name: older, match: {image_owners: [listed], max_age: any}}\n"
	const narrow = "version: 1\nrules:\n- {name: web, match: {image_owners: [\"999999999999\"], max_age: 1h}}\n"
	// A process that starts then has no policy; a running one keeps the last good one.
	lost := func(answer awsAnswer) awsAttack {
		return awsAttack{
			says: map[string]awsAnswer{"GetParameter": answer}, first: protocol.CodeUpstream, renewal: codeGranted,
			calls: untilImage + untilPolicy, renewalCalls: untilImage + wholeRenewal,
			check: func(t *testing.T, w *world, _ protocol.Response) {
				t.Helper()
				if !strings.Contains(w.log.String(), `"alarm":true`) {
					t.Errorf("no alarm in %s", w.log.String())
				}
			},
		}
	}
	rows := make(map[string]awsAttack)
	for name, answer := range map[string]awsAnswer{
		"nothing":                   ok(""),
		"HTML":                      ok("<html><body>Blocked</body></html>"),
		"HTML and 403":              {status: http.StatusForbidden, body: "<html/>"},
		"truncated":                 ok(parameterJSON("/hallmark/policy", laxer)[:60]),
		"an empty value":            ok(parameterJSON("/hallmark/policy", "")),
		"no value":                  ok(`{"Parameter":{"Name":"/hallmark/policy"}}`),
		"no parameter":              ok(`{}`),
		"another parameter":         ok(parameterJSON("/other/policy", laxer)),
		"a name in another case":    ok(parameterJSON("/HALLMARK/policy", laxer)),
		"the name twice":            ok(`{"Parameter":{"Name":"/other","Name":"/hallmark/policy","Value":"version: 1"}}`),
		"huge":                      ok(parameterJSON("/hallmark/policy", strings.Repeat("#", 2<<20))),
		"a value that is huge":      ok(parameterJSON("/hallmark/policy", laxer+strings.Repeat("# x\n", 1<<17))),
		"no YAML":                   ok(parameterJSON("/hallmark/policy", "\t{{{")),
		"YAML that is no policy":    ok(parameterJSON("/hallmark/policy", "hello: world\n")),
		"two documents":             ok(parameterJSON("/hallmark/policy", laxer+"---\n"+laxer)),
		"half of the policy":        ok(parameterJSON("/hallmark/policy", laxer[:40])),
		"a version of the future":   ok(parameterJSON("/hallmark/policy", strings.Replace(laxer, "version: 1", "version: 2", 1))),
		"wider than the deployment": ok(parameterJSON("/hallmark/policy", strings.Replace(laxer, "{image_owners", `{accounts: ["999999999999"], image_owners`, 1))),
		"from elsewhere":            {status: http.StatusOK, body: parameterJSON("/hallmark/policy", laxer), from: "https://elsewhere.example.com/"},
		"an error and 200":          ok(`{"__type":"ParameterNotFound","message":"m"}`),
		"not permitted":             {status: http.StatusBadRequest, body: `{"__type":"AccessDeniedException","message":"m"}`},
		"another service's answer":  ok(`{"SecretString":"version: 1"}`),
	} {
		rows[name] = lost(answer)
	}
	// Anyone who may write the parameter chooses among its versions. The line says which one
	// is in force.
	sum := sha256.Sum256([]byte(laxer))
	rows["an older version"] = awsAttack{
		says: map[string]awsAnswer{"GetParameter": ok(parameterJSON("/hallmark/policy", laxer))}, first: codeGranted, renewal: codeGranted,
		calls: untilImage + wholeFirst, renewalCalls: untilImage + wholeRenewal,
		check: func(t *testing.T, w *world, _ protocol.Response) {
			t.Helper()
			if !strings.Contains(w.log.String(), hex.EncodeToString(sum[:])) {
				t.Errorf("log %s", w.log.String())
			}
		},
	}
	rows["a narrower policy"] = stopping("GetParameter", ok(parameterJSON("/hallmark/policy", narrow)), protocol.CodePolicyRefused, untilImage+untilPolicy)
	return rows
}
