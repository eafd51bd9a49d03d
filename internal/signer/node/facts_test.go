package node

import (
	"reflect"
	"strings"
	"testing"
	"time"
)

const (
	account = "111122223333"
	ownID   = "i-0a1b2c3d4e5f60718"
	otherID = "i-0123456789abcdef0"
)

func facts() Facts {
	return Facts{
		Account: account, Region: "us-west-2", InstanceID: ownID,
		Zone: "us-west-2a", VPC: "vpc-0a1b2c3d", Subnet: "subnet-0a1b2c3d",
		InstanceProfile: "arn:aws:iam::" + account + ":instance-profile/web/front",
		Image:           "ami-0a1b2c3d", ImageOwner: "444455556666",
		LaunchTime: time.Date(2026, 7, 1, 11, 0, 0, 0, time.UTC),
		PrivateIP:  "10.0.0.7", PublicIP: "192.0.2.7", IPv6: "2001:db8::7", PrivateDNS: "ip-10-0-0-7.us-west-2.compute.internal",
		Tags: map[string]string{"Name": "Web Server", "env": "prod"},
	}
}

const allFacts = `{
  "account": "111122223333", "region": "us-west-2", "zone": "us-west-2a",
  "vpc": "vpc-0a1b2c3d", "subnet": "subnet-0a1b2c3d",
  "instance_id": "i-0a1b2c3d4e5f60718",
  "instance_profile": "arn:aws:iam::111122223333:instance-profile/web/front",
  "image": "ami-0a1b2c3d", "image_owner": "444455556666", "image_tags": {"golden": "yes"},
  "launch_time": "2026-07-01T13:00:00+02:00", "enrolled": true,
  "private_ip": "10.0.0.7", "public_ip": "192.0.2.7", "ipv6": "2001:db8::7",
  "private_dns": "ip-10-0-0-7.us-west-2.compute.internal",
  "tags": {"Name": "Web \ud83d\ude00", "env": ""}
}
`

func TestParseFacts(t *testing.T) {
	f, err := ParseFacts([]byte(allFacts))
	if err != nil {
		t.Fatal(err)
	}
	want := facts()
	want.Enrolled = true
	want.ImageTags = map[string]string{"golden": "yes"}
	want.Tags = map[string]string{"Name": "Web \U0001F600", "env": ""}
	if !f.LaunchTime.Equal(want.LaunchTime) {
		t.Errorf("launch time %s, want %s", f.LaunchTime, want.LaunchTime)
	}
	f.LaunchTime = want.LaunchTime
	if !reflect.DeepEqual(f, want) {
		t.Errorf("facts %+v, want %+v", f, want)
	}
}

// A fact that JSON can't name could not be tried.
func TestEveryFactHasAName(t *testing.T) {
	var f Facts
	named := make(map[any]bool)
	for _, field := range f.Fields() {
		named[field] = true
	}
	v := reflect.ValueOf(&f).Elem()
	for i := range v.NumField() {
		if !named[v.Field(i).Addr().Interface()] {
			t.Errorf("%s has no name", v.Type().Field(i).Name)
		}
	}
}

func TestParseFactsRefuses(t *testing.T) {
	const required = `"account": "111122223333", "region": "us-west-2", "instance_id": "i-0a1b2c3d"`
	tests := map[string]struct{ text, want string }{
		"empty":            {"", "line 1: the file ends too early"},
		"no object":        {"[]", "want a JSON object"},
		"cut":              {"{" + required, "ends too early"},
		"cut in a value":   {`{"account": "1111`, "ends too early"},
		"two objects":      {"{" + required + "}\n{}", "line 2: unexpected data"},
		"unknown key":      {"{" + required + ",\n\"vcp\": \"x\"}", `line 2: "vcp": unknown fact; did you mean vpc?`},
		"nothing like it":  {"{" + required + `, "shade": "red"}`, `line 1: "shade": unknown fact; the facts are account, account_name, account_path, enrolled,`},
		"other letters":    {"{" + required + `, "Account": "444455556666"}`, `"Account": unknown fact; did you mean account?`},
		"repeated key":     {"{" + required + `, "account": "444455556666"}`, `"account" appears twice`},
		"repeated tag":     {"{" + required + `, "tags": {"a": "1", "a": "2"}}`, `"tags": "a" appears twice`},
		"null":             {"{" + required + `, "vpc": null}`, `"vpc": null is not a value`},
		"null tags":        {"{" + required + `, "tags": null}`, `"tags": want a JSON object`},
		"null tag":         {"{" + required + `, "tags": {"a": null}}`, "null is not a value"},
		"wrong type":       {"{" + required + `, "vpc": 1}`, "\"vpc\": 1 is not a text; put it in quotes"},
		"tags as EC2 says": {"{" + required + `, "tags": [{"Key": "a", "Value": "b"}]}`, `"tags": want a JSON object`},
		"time":             {"{" + required + `, "launch_time": "yesterday"}`, `"launch_time"`},
		"no account":       {`{"region": "us-west-2", "instance_id": "i-0a1b2c3d"}`, "account is missing; account, region and instance_id are required"},
		"no instance":      {`{"account": "111122223333", "region": "us-west-2"}`, "instance_id is missing"},
		"not an address":   {"{" + required + `, "private_ip": "web"}`, `"private_ip": "web" is not an IP address`},
		"not an IPv6":      {"{" + required + `, "ipv6": "2001:db8::/32"}`, `"ipv6": "2001:db8::/32" is not an IP address`},
		"too long":         {strings.Repeat(" ", maxFactsBytes+1), "bytes, more than"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := ParseFacts([]byte(tt.text))
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("error %v; want %q", err, tt.want)
			}
		})
	}
}
