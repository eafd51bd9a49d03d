package agent

import (
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/crypto/ssh"
)

func TestParseConfig(t *testing.T) {
	const good = "signer_url: https://signer.example.com/\naudience: hallmark.example.com\n"
	for _, test := range []struct {
		name, text, want string // want is the whole error, or empty
	}{
		{"least", good, ""},
		{"all", good + "signer_ca_file: /etc/hallmark/signer_ca.pem\nsigner_auth: aws_iam\nmax_startups: 10:30:60\nproxy_sources: [192.0.2.7, \"2001:db8::/32\"]\n", ""},
		{"signer_auth none", good + "signer_auth: none\n", ""},
		{"another signer_auth", good + "signer_auth: basic\n", `line 3: signer_auth: "basic" is neither none nor aws_iam`},
		{"empty", "", "signer_url: missing: give the https URL of the signer"},
		{"no audience", "signer_url: https://signer.example.com/\n", `audience: "" is not a name such as hallmark.example.com`},
		{"unknown key", good + "signer: x\n", "line 3: field signer not found"},
		{"key twice", good + "audience: y\n", `line 3: mapping key "audience" already defined at line 2`},
		{"http", "audience: a\nsigner_url: http://signer.example.com/\n", `line 2: signer_url: "http://signer.example.com/" is not of the form https://HOST/`},
		{"with password", "signer_url: https://me:pw@signer.example.com/\n", `line 1: signer_url: "https://me:pw@signer.example.com/" is not of the form https://HOST/`},
		{"audience with a line break", "signer_url: https://s/\naudience: \"a\\nb\"\n", `line 2: audience: "a\nb" is not a name such as hallmark.example.com`},
		{"relative CA file", good + "signer_ca_file: ca.pem\n", `line 3: signer_ca_file: "ca.pem" is not an absolute path`},
		{"directive in max_startups", good + "max_startups: \"10\\nPermitRootLogin yes\"\n", `line 3: max_startups: "10\nPermitRootLogin yes" is not of the form start:rate:full, for example 100:30:200`},
		{"directive in proxy_sources", good + "proxy_sources: [\"192.0.2.7\\nPermitRootLogin yes\"]\n", `line 3: proxy_sources: "192.0.2.7\nPermitRootLogin yes" is neither an IP address, such as 192.0.2.7, nor a network, such as 192.0.2.0/28`},
		{"proxy_sources that are everybody", good + "proxy_sources: [0.0.0.0/0]\n", `line 3: proxy_sources: "0.0.0.0/0" is too wide: list the addresses of Teleport's proxies (/8 or longer)`},
		{"proxy_sources that is no list", good + "proxy_sources: 192.0.2.7\n", "line 3: cannot unmarshal !!str `192.0.2.7` into []string"},
		{"wrong type", "signer_url: [a]\n", "line 1: cannot unmarshal !!seq into string"},
		{"not YAML", "signer_url: 'x\n", "line 2: found unexpected end of stream"},
		{"second document", good + "---\n" + good, "more than one YAML document"},
		{"too long", good + strings.Repeat("#", maxConfigBytes), "65607 bytes, more than 65536"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c, err := ParseConfig([]byte(test.text))
			if test.want != "" {
				if err == nil || err.Error() != test.want {
					t.Errorf("error %q, want %q", err, test.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			data, err := c.Marshal()
			if err != nil {
				t.Fatal(err)
			}
			if again, err := ParseConfig(data); err != nil || !reflect.DeepEqual(again, c) {
				t.Errorf("parsed again: %+v, %v, want %+v", again, err, c)
			}
		})
	}
}

func TestMarshalRefusesWhatParseConfigRefuses(t *testing.T) {
	if _, err := (Config{SignerURL: "http://signer.example.com/", Audience: "a"}).Marshal(); err == nil {
		t.Error("http was marshaled")
	}
}

func FuzzParseConfig(f *testing.F) {
	f.Add([]byte("signer_url: https://signer.example.com/\naudience: hallmark.example.com\n"))
	f.Add([]byte("max_startups: 10:30:60\nproxy_sources: [192.0.2.0/28, \"2001:db8::1\"]\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := ParseConfig(data)
		if err != nil {
			return
		}
		if _, err := c.Marshal(); err != nil {
			t.Fatalf("%q was parsed but cannot be marshaled: %v", data, err)
		}
	})
}

// Each row changes one thing about a machine that has nothing to do.
func TestStateStale(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for _, test := range []struct {
		name   string
		change func(s *State, seen *observed, now *time.Time)
		want   string
	}{
		{"nothing", func(*State, *observed, *time.Time) {}, ""},
		{"another instance", func(_ *State, o *observed, _ *time.Time) { o.instance.InstanceID = "i-2" }, "enrolled as instance i-1, but this is i-2"},
		{"stopped and started", func(_ *State, o *observed, _ *time.Time) { o.instance.Started = "2026-03-01T11:00:00Z" }, "stopped and started"},
		{"another region", func(_ *State, o *observed, _ *time.Time) { o.instance.Region = "x" }, "enrolled as instance"},
		{"configuration", func(_ *State, o *observed, _ *time.Time) { o.config = "other" }, "signer_url or audience changed"},
		{"due", func(s *State, _ *observed, now *time.Time) { *now = s.RenewAfter }, "due for renewal"},
		{"not due for a second", func(s *State, _ *observed, now *time.Time) { *now = s.RenewAfter.Add(-time.Second) }, ""},
		{"clock set back", func(s *State, _ *observed, now *time.Time) { *now = s.EnrolledAt.Add(-2 * time.Hour) }, "clock was set back"},
		{"renewal in a hundred years", func(s *State, _ *observed, _ *time.Time) { s.RenewAfter = s.EnrolledAt.Add(876_000 * time.Hour) }, "further off"},
		{"address moved", func(_ *State, o *observed, _ *time.Time) { o.moved = true }, "no longer this machine's"},
		{"an old state on newer certificates", func(s *State, _ *observed, _ *time.Time) {
			s.Certificates[0].ValidBefore = s.Certificates[0].ValidBefore.Add(-time.Minute)
		}, "is not the one that was installed"},
		{"a key more", func(_ *State, o *observed, _ *time.Time) { o.keys = append(o.keys, o.keys[0]) }, "set of host keys changed"},
		{"no key", func(_ *State, o *observed, _ *time.Time) { o.keys = nil }, "set of host keys changed"},
		{"another key", func(_ *State, o *observed, _ *time.Time) { o.keys[0].public = newSigner(t).PublicKey() }, "host key /k changed"},
		{"certificate gone", func(_ *State, o *observed, _ *time.Time) { o.keys[0].certificate = nil }, "certificate /k-cert.pub is missing"},
		{"another certificate", func(_ *State, o *observed, _ *time.Time) { o.keys[0].certificate.Serial++ }, "is not the one that was installed"},
		{"certificate ended", func(s *State, _ *observed, now *time.Time) {
			*now = s.Certificates[0].ValidBefore
			s.RenewAfter = now.Add(time.Hour)
		}, "has ended"},
		{"CA file changed", func(_ *State, o *observed, _ *time.Time) { o.caFile = append(o.caFile, '\n') }, "trusted CAs changed"},
		{"CA file gone", func(_ *State, o *observed, _ *time.Time) { o.caFile = nil }, "trusted CAs changed"},
	} {
		t.Run(test.name, func(t *testing.T) {
			s, seen, at := enrolledMachine(t, now)
			test.change(s, &seen, &at)
			got := s.stale(at, seen)
			if (got == "") != (test.want == "") || !strings.Contains(got, test.want) {
				t.Errorf("stale = %q, want %q", got, test.want)
			}
		})
	}
	var none *State
	if none.stale(now, observed{}) == "" {
		t.Error("a machine without state has nothing to do")
	}
}

func enrolledMachine(t *testing.T, now time.Time) (*State, observed, time.Time) {
	key := hostKey{path: "/k", public: newSigner(t).PublicKey()}
	key.certificate = &ssh.Certificate{Key: key.public, Serial: 7, ValidBefore: uint64(now.Add(time.Hour).Unix())}
	authority := newSigner(t).PublicKey()
	instance := Instance{AccountID: testAccount, Region: testRegion, InstanceID: "i-1"}
	s := &State{
		Version: stateVersion, Instance: instance, Config: "c",
		Certificates: []CertificateState{certificateState(key, key.certificate)},
		OpenSSHCAs:   authorizedLines([]ssh.PublicKey{authority}),
		EnrolledAt:   now.Add(-time.Minute), RenewAfter: now.Add(20 * time.Minute),
	}
	caFile := renderAuthorities([]ssh.PublicKey{authority})
	return s, observed{instance: instance, config: "c", keys: []hostKey{key}, caFile: caFile}, now
}

func TestClampRenewal(t *testing.T) {
	now := time.Unix(1_800_000_000, 0)
	certificates := []*ssh.Certificate{
		{ValidBefore: uint64(now.Add(60 * time.Hour).Unix())},
		{ValidBefore: uint64(now.Add(30 * time.Hour).Unix())},
	}
	for _, test := range []struct{ asked, want time.Duration }{
		{10 * time.Hour, 10 * time.Hour},
		{0, 3 * time.Hour},
		{-1e6 * time.Hour, 3 * time.Hour},
		{25 * time.Hour, 20 * time.Hour},
		{1e6 * time.Hour, 20 * time.Hour},
	} {
		if got := clampRenewal(now.Add(test.asked), certificates, now); !got.Equal(now.Add(test.want)) {
			t.Errorf("asked for %s: renewal in %s, want %s", test.asked, got.Sub(now), test.want)
		}
	}
}

func TestRetryWait(t *testing.T) {
	for _, test := range []struct {
		n      int
		after  time.Duration
		random float64
		want   time.Duration
	}{
		{0, 0, 0, 0},
		{0, 0, 0.5, 250 * time.Millisecond},
		{3, 0, 0.5, 2 * time.Second},
		{6, 0, 0.5, 15 * time.Second},
		{500, 0, 0.5, 15 * time.Second},
		{0, 10 * time.Second, 0.5, 10250 * time.Millisecond},
		{0, 24 * time.Hour, 0.5, time.Hour + 250*time.Millisecond},
		{0, -time.Hour, 0.5, 250 * time.Millisecond},
	} {
		r := retry{random: func() float64 { return test.random }}
		if got := r.wait(test.n, test.after); got != test.want {
			t.Errorf("wait(%d, %s) with %v = %s, want %s", test.n, test.after, test.random, got, test.want)
		}
	}
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for value, want := range map[string]time.Duration{
		"": 0, "0": 0, "12": 12 * time.Second, "-3": 0, "soon": 0, "99999999999999999999": 0,
		"Sun, 01 Mar 2026 12:00:30 GMT": 30 * time.Second,
		"Sun, 01 Mar 2026 11:00:00 GMT": 0,
	} {
		if got := retryAfter(value, now); got != want {
			t.Errorf("retryAfter(%q) = %s, want %s", value, got, want)
		}
	}
}

func TestParseAuthorities(t *testing.T) {
	key := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(newSigner(t).PublicKey())))
	for _, test := range []struct {
		name  string
		lines []string
		want  string
	}{
		{"one", []string{key}, ""},
		{"with comment", []string{key + " clustername=x"}, ""},
		{"none", nil, "no keys"},
		{"two lines in one", []string{"junk\n" + key}, "more than one line"},
		{"options", []string{"cert-authority " + key}, `option "cert-authority"`},
		{"certificate", []string{hostCertificateLine(t)}, "cannot be a CA's"},
		{"junk", []string{key, "junk"}, "key 2: "},
		{"too many", make([]string, maxAuthorities+1), "17 keys, more than 16"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, err := parseAuthorities(test.lines)
			if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want %q", err, test.want)
			}
		})
	}
}

func hostCertificateLine(t *testing.T) string {
	s := &testSigner{t: t, clock: time.Now}
	return s.certify(newSigner(t).PublicKey(), []string{"a"}, newSigner(t))
}
