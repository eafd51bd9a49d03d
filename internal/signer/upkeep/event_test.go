package upkeep

import (
	"errors"
	"strings"
	"testing"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
)

// These are events in AWS's own form (Amazon EC2 User Guide, "Automate Amazon EC2 using
// EventBridge"; AWS Tagging documentation, "Monitor tag changes with EventBridge").
const (
	stateEvent = `{"version":"0","id":"7bf73129-1428-4cd3-a780-95db273d1602",
		"detail-type":"EC2 Instance State-change Notification","source":"aws.ec2","account":"111122223333",
		"time":"2026-01-02T03:04:05Z","region":"us-west-2",
		"resources":["arn:aws:ec2:us-west-2:111122223333:instance/i-0a1b2c3d4e5f60718"],
		"detail":{"instance-id":"i-0a1b2c3d4e5f60718","state":"terminated"}}`
	tagEvent = `{"version":"0","id":"bddcf1d6-0251-35a1-aab0-adc1fb47c11c","detail-type":"Tag Change on Resource",
		"source":"aws.tag","account":"111122223333","time":"2026-01-02T03:04:05Z","region":"us-west-2",
		"resources":["arn:aws:ec2:us-west-2:111122223333:instance/i-0a1b2c3d4e5f60718"],
		"detail":{"changed-tag-keys":["env"],"service":"ec2","resource-type":"instance","version":3,"version-timestamp":"2026-01-02T03:04:05Z","tags":{"env":"prod"}}}`
	scheduleEvent = `{"version":"0","id":"53dc4d37-cffa-4f76-80c9-8b7d4a4d2eaa","detail-type":"Scheduled Event",
		"source":"aws.events","account":"111122223333","time":"2026-01-02T03:04:05Z","region":"us-west-2",
		"resources":["arn:aws:events:us-west-2:111122223333:rule/sweep"],"detail":{}}`
)

func eventInstance() ec2ref.Instance {
	return ec2ref.Instance{Account: "111122223333", Region: "us-west-2", ID: "i-0a1b2c3d4e5f60718"}
}

func TestParseEvent(t *testing.T) {
	for _, state := range []string{"terminated", "shutting-down", "stopped"} {
		e, err := ParseEvent([]byte(strings.Replace(stateEvent, "terminated", state, 1)))
		if err != nil || e.StateChanged == nil || *e.StateChanged != eventInstance() {
			t.Errorf("%s: %+v, error %v", state, e, err)
		}
	}
	e, err := ParseEvent([]byte(tagEvent))
	if err != nil || e.TagsChanged == nil || *e.TagsChanged != (TagChange{Instance: eventInstance(), Version: 3}) {
		t.Errorf("tags: %+v, error %v", e, err)
	}
	for _, version := range []string{"3.0", "-1", "null", `"3"`, "99999999999999999999", "{}"} { // it decides nothing
		e, err := ParseEvent([]byte(strings.Replace(tagEvent, `"version":3,`, `"version":`+version+`,`, 1)))
		if err != nil || e.TagsChanged == nil || *e.TagsChanged != (TagChange{Instance: eventInstance()}) {
			t.Errorf("tags, version %s: %+v, error %v", version, e, err)
		}
	}
	if e, err = ParseEvent([]byte(scheduleEvent)); err != nil || e.Sweep == nil {
		t.Errorf("schedule: %+v, error %v", e, err)
	}
}

func TestParseEventOfAPerson(t *testing.T) {
	e, err := ParseEvent([]byte(`{"sweep":{"limit":500}}`))
	if err != nil || e.Sweep == nil || e.Sweep.Limit != 500 {
		t.Errorf("%+v, error %v", e, err)
	}
}

func TestParseEventIgnores(t *testing.T) {
	for name, event := range map[string]string{
		"a running instance":      strings.Replace(stateEvent, "terminated", "running", 1),
		"a state that is new":     strings.Replace(stateEvent, "terminated", "hibernating", 1),
		"tags of a volume":        strings.Replace(tagEvent, `"resource-type":"instance"`, `"resource-type":"volume"`, 1),
		"tags of another service": strings.Replace(tagEvent, `"service":"ec2"`, `"service":"rds"`, 1),
	} {
		if e, err := ParseEvent([]byte(event)); err != nil || e.Ignored == "" || e.StateChanged != nil || e.TagsChanged != nil || e.Sweep != nil {
			t.Errorf("%s: %+v, error %v", name, e, err)
		}
	}
}

func TestParseEventRefuses(t *testing.T) {
	for name, event := range map[string]string{
		"nothing":                         "",
		"no JSON":                         "hello",
		"an array":                        "[]",
		"a function URL's event":          `{"version":"2.0","rawPath":"/","requestContext":{"http":{"method":"POST"}},"body":"{}"}`,
		"a source of somebody's own":      strings.Replace(stateEvent, "aws.ec2", "my.ec2", 1),
		"a schedule of somebody's own":    strings.Replace(scheduleEvent, "aws.events", "my.events", 1),
		"no account":                      strings.Replace(stateEvent, `"account":"111122223333"`, `"account":""`, 1),
		"a region that is a host":         strings.Replace(stateEvent, `"region":"us-west-2"`, `"region":"evil.example/us-west-2"`, 1),
		"an id that is none":              strings.Replace(stateEvent, `"instance-id":"i-0a1b2c3d4e5f60718"`, `"instance-id":"i-*"`, 1),
		"a detail that is text":           strings.Replace(stateEvent, `{"instance-id":"i-0a1b2c3d4e5f60718","state":"terminated"}`, `"terminated"`, 1),
		"another account's instance":      strings.Replace(tagEvent, "us-west-2:111122223333:instance", "us-west-2:444455556666:instance", 1),
		"another region's instance":       strings.Replace(tagEvent, "ec2:us-west-2:", "ec2:eu-west-1:", 1),
		"an ARN that is none":             strings.Replace(tagEvent, "arn:aws:ec2", "arn", 1),
		"an ARN of a volume":              strings.Replace(tagEvent, "instance/i-", "volume/vol-", 1),
		"a negative limit":                `{"sweep":{"limit":-1}}`,
		"a sweep inside an event":         strings.Replace(stateEvent, `"source":"aws.ec2"`, `"source":"my.ec2","sweep":{"limit":500}`, 1),
		"two resources":                   strings.Replace(tagEvent, `"resources":[`, `"resources":["arn:aws:ec2:us-west-2:111122223333:instance/i-0123456789abcdef0",`, 1),
		"no resource":                     strings.Replace(tagEvent, `["arn:aws:ec2:us-west-2:111122223333:instance/i-0a1b2c3d4e5f60718"]`, `[]`, 1),
		"more bytes than EventBridge has": stateEvent + strings.Repeat(" ", maxEventBytes),
	} {
		if e, err := ParseEvent([]byte(event)); !errors.Is(err, ErrEvent) {
			t.Errorf("%s: %+v, error %v", name, e, err)
		}
	}
}

// Any event names a well-formed instance or nothing.
func FuzzParseEvent(f *testing.F) {
	for _, seed := range []string{stateEvent, tagEvent, scheduleEvent, `{"sweep":{}}`, "", "null", "[]"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		e, err := ParseEvent(data)
		if err != nil {
			return
		}
		set := 0
		for _, i := range []*ec2ref.Instance{e.StateChanged, tagged(e)} {
			if i == nil {
				continue
			}
			set++
			if parsed, err := ec2ref.ParseInstance(i.String()); err != nil || parsed != *i {
				t.Errorf("instance %+v", i)
			}
		}
		if e.Sweep != nil {
			set++
		}
		if e.Ignored != "" {
			set++
		}
		if set != 1 {
			t.Errorf("%+v says %d things", e, set)
		}
	})
}

func tagged(e Event) *ec2ref.Instance {
	if e.TagsChanged == nil {
		return nil
	}
	return &e.TagsChanged.Instance
}
