package ec2ref

import (
	"log/slog"
	"regexp"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	for _, test := range []struct {
		kind  string
		parse func(string) (string, error)
		good  []string
		bad   []string
	}{
		{
			"account", func(s string) (string, error) { a, err := ParseAccount(s); return a.String(), err },
			[]string{"000000000000", "123456789012"},
			[]string{"", "12345678901", "1234567890123", "12345678901a", "12345678901\n", " 23456789012", "١٢٣٤٥٦"},
		},
		{
			"region", func(s string) (string, error) { r, err := ParseRegion(s); return r.String(), err },
			[]string{
				"us-west-2", "ap-southeast-7", "mx-central-1", "us-gov-east-1", "eusc-de-east-1", "us-isob-east-1", "hm-test-1",
				"cn-northwest-1", "xx-aa-bb-cc-12",
			},
			[]string{
				"", "-", "us", "us-west", "us-2", "aws-global", "US-WEST-2", "us-west-2a", "us-west-123", "us-west-", "-us-west-2", "us--west-2",
				"us-west-2-", "us_west_2", "us-west-2\n", "us-wést-2", "u-west-2", "us-w-2", "us-2-west", "us-aa-bb-cc-dd-1", "areatoolong-west-1",
				"us-west-2.evil.example", "evil.example/us-west-2", "evil.example#us-west-2", "us-west-2:443", "user@us-west-2",
				"us-abcdefghijabcdefg-1", "us-abcdefghijabcdef-abcdefghijab-1", strings.Repeat("us-", 100) + "1",
			},
		},
		{
			"instance id", func(s string) (string, error) { i, err := ParseInstanceID(s); return i.String(), err },
			[]string{"i-0123456789abcdef0", "i-01234567"},
			[]string{
				"", "i-", "i-0123456", "i-012345678", "i-0123456789abcdef", "i-0123456789abcdef01", "i-0123456789ABCDEF0", "I-01234567",
				"ami-01234567", "mi-0123456789abcdef0", "i-0123456g", "i-01234567\n",
			},
		},
	} {
		for _, text := range test.good {
			if got, err := test.parse(text); err != nil || got != text {
				t.Errorf("%s %q: got %q, %v", test.kind, text, got, err)
			}
		}
		for _, text := range test.bad {
			if got, err := test.parse(text); err == nil || got != "" {
				t.Errorf("%s %.40q: got %q, %v, want nothing and an error", test.kind, text, got, err)
			}
		}
	}
}

func TestInstance(t *testing.T) {
	want := Instance{Account: "123456789012", Region: "us-west-2", ID: "i-0123456789abcdef0"}
	got, err := ParseInstance("123456789012/us-west-2/i-0123456789abcdef0")
	if err != nil || got != want {
		t.Errorf("got %v, %v, want %v", got, err, want)
	}
	if place := want.Place(); place != (Place{Account: want.Account, Region: want.Region}) {
		t.Errorf("place %v", place)
	}
	for text, part := range map[string]string{
		"": "account/region/instance", "123456789012/us-west-2": "account/region/instance",
		want.String() + "/":                               "account/region/instance",
		"us-west-2/123456789012/i-0123456789abcdef0":      "account:",
		"123456789012/i-0123456789abcdef0/us-west-2":      "region:",
		"123456789012/us-west-2/123456789012":             "instance:",
		"123456789012/us-west-2/i-0123456789abcdef0\x00a": "instance:",
	} {
		if got, err := ParseInstance(text); err == nil || !strings.Contains(err.Error(), part) || got != (Instance{}) {
			t.Errorf("%q: got %v, %v, want an error about %s", text, got, err, part)
		}
	}
}

func TestLogValue(t *testing.T) {
	var line strings.Builder
	log := slog.New(slog.NewJSONHandler(&line, nil))
	i := Instance{Account: "123456789012", Region: "us-west-2", ID: "i-0123456789abcdef0"}
	log.With(slog.Any("", i)).Info("off-boarded", slog.Any("", i.Place()), slog.Int("n", 1))
	const place = `"account":"123456789012","region":"us-west-2"`
	if want := place + `,"instance":"i-0123456789abcdef0",` + place + `,"n":1}`; !strings.Contains(line.String(), want) {
		t.Errorf("got %s, want %s", line.String(), want)
	}
}

func TestNodeIDIsStable(t *testing.T) {
	const want = "28663dc7-edf9-5081-a573-668145833f31"
	instance := Instance{Account: "111122223333", Region: "us-west-2", ID: "i-0123456789abcdef0"}
	if got := instance.NodeID(); got != want {
		t.Errorf("node id %s, want %s: nodes in people's clusters carry the old one", got, want)
	}
	for _, other := range []Instance{
		{"111122223334", "us-west-2", "i-0123456789abcdef0"},
		{"111122223333", "us-west-1", "i-0123456789abcdef0"},
		{"111122223333", "us-west-2", "i-0123456789abcdef1"},
	} {
		if other.NodeID() == want {
			t.Errorf("%s has the same node id as another instance", other)
		}
	}
}

func TestPartitionAndHosts(t *testing.T) {
	for region, want := range map[Region][2]string{
		"us-west-2":      {"aws", "sts.us-west-2.amazonaws.com"},
		"ap-southeast-7": {"aws", "sts.ap-southeast-7.amazonaws.com"},
		"mx-central-1":   {"aws", "sts.mx-central-1.amazonaws.com"},
		"hm-test-1":      {"aws", "sts.hm-test-1.amazonaws.com"},
		"cn-northwest-1": {"aws-cn", "sts.cn-northwest-1.amazonaws.com.cn"},
		"us-gov-east-1":  {"aws-us-gov", "sts.us-gov-east-1.amazonaws.com"},
		"eusc-de-east-1": {"aws-eusc", "sts.eusc-de-east-1.amazonaws.eu"},
		"us-iso-east-1":  {"aws-iso", "sts.us-iso-east-1.c2s.ic.gov"},
		"us-isob-east-1": {"aws-iso-b", "sts.us-isob-east-1.sc2s.sgov.gov"},
		"eu-isoe-west-1": {"aws-iso-e", "sts.eu-isoe-west-1.cloud.adc-e.uk"},
		"us-isof-east-1": {"aws-iso-f", "sts.us-isof-east-1.csp.hci.ic.gov"},
	} {
		partition, err := region.Partition()
		if err != nil {
			t.Errorf("partition of %s: %v", region, err)
		}
		host, err := STS.Host(region)
		if got := [2]string{string(partition), host}; err != nil || got != want {
			t.Errorf("%s: got %q, %v, want %q", region, got, err, want)
		}
	}
}

// TestHostRefuses has regions, made without a parser, that would lead to another host than the
// region's.
func TestHostRefuses(t *testing.T) {
	for _, region := range []Region{"", "aws-global", "us-west-2.evil.example", "evil.example/us-west-2", "us-west-2:443", "user@us-west-2"} {
		if host, err := EC2.Host(region); err == nil {
			t.Errorf("host in %q is %q, want an error", region, host)
		}
		for _, fips := range []bool{false, true} {
			if host, err := STSHost(region, fips); err == nil {
				t.Errorf("STS in %q (FIPS: %t) is %q, want an error", region, fips, host)
			}
		}
		if partition, err := region.Partition(); err == nil {
			t.Errorf("partition of %q is %q, want an error", region, partition)
		}
	}
}

func TestSTSHost(t *testing.T) {
	if host, err := STSHost("us-east-1", false); host != "sts.us-east-1.amazonaws.com" || err != nil {
		t.Errorf("got %q, %v", host, err)
	}
	for region, want := range map[Region]string{
		"us-east-1":     "sts-fips.us-east-1.amazonaws.com",
		"us-west-2":     "sts-fips.us-west-2.amazonaws.com",
		"us-gov-west-1": "sts.us-gov-west-1.amazonaws.com",
		"eu-west-1":     "",
		"cn-north-1":    "",
	} {
		if host, err := STSHost(region, true); host != want || (err == nil) != (want != "") {
			t.Errorf("FIPS host in %s: got %q, %v, want %q", region, host, err, want)
		}
	}
}

// FuzzParse compares the parsers with their forms, written another way, and the name of an
// instance with its parts.
func FuzzParse(f *testing.F) {
	f.Add("123456789012", "us-west-2", "i-0123456789abcdef0")
	f.Add("123456789012", "us-gov-east-1", "i-01234567")
	f.Add("12345678901/", "us-west-2/", "i-0123456789abcdef0/")
	account := regexp.MustCompile(`^[0-9]{12}$`)
	region := regexp.MustCompile(`^[a-z]{2,8}(-[a-z]{2,16}){1,3}-[0-9]{1,2}$`)
	id := regexp.MustCompile(`^i-([0-9a-f]{8}|[0-9a-f]{17})$`)
	f.Fuzz(func(t *testing.T, a, r, i string) {
		want := account.MatchString(a) && region.MatchString(r) && len(r) <= maxRegion && id.MatchString(i)
		made, err := NewInstance(a, r, i)
		if (err == nil) != want {
			t.Fatalf("%q, %q, %q: got %v, want accepted: %t", a, r, i, err, want)
		}
		if again, err := ParseInstance(a + "/" + r + "/" + i); (err == nil) != want || again != made {
			t.Fatalf("%q, %q, %q: as one text %v, %v, in parts %v", a, r, i, again, err, made)
		}
		if want && made.String() != a+"/"+r+"/"+i {
			t.Fatalf("%q is not what was read", made)
		}
	})
}
