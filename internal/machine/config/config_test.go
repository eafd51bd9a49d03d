package config

import (
	"reflect"
	"strings"
	"testing"
)

func TestParseConfig(t *testing.T) {
	const good = "signer_url: https://signer.example.com/\naudience: hallmark.example.com\n"
	for _, test := range []struct {
		name, text, want string // want is the whole error, or empty
	}{
		{"least", good, ""},
		{"all", good + "signer_ca_file: /etc/hallmark/signer_ca.pem\nsigner_auth: aws_iam\nfips: true\nmax_startups: 10:30:60\nproxy_sources: [192.0.2.7, \"2001:db8::/32\"]\n", ""},
		{"signer_auth none", good + "signer_auth: none\n", ""},
		{"another signer_auth", good + "signer_auth: basic\n", `line 3: signer_auth: "basic" is neither none nor aws_iam`},
		{"a function", "signer_function: arn:aws:lambda:us-west-2:111122223333:function:enroll\naudience: a\n", ""},
		{"a function at an endpoint", good + "signer_function: arn:aws-us-gov:lambda:us-gov-west-1:111122223333:function:enroll:live\nsigner_auth: aws_iam\n", ""},
		{"a function's name", "audience: a\nsigner_function: enroll\n", `line 2: signer_function: "enroll" is not the ARN of a function, as in arn:aws:lambda:us-west-2:111122223333:function:NAME`},
		{"a function of no region", "audience: a\nsigner_function: arn:aws:lambda:west:111122223333:function:enroll\n", `line 2: signer_function: "west" is not an AWS region, such as us-west-2`},
		{"a path in the function", "audience: a\nsigner_function: arn:aws:lambda:us-west-2:111122223333:function:../enroll\n", `line 2: signer_function: "arn:aws:lambda:us-west-2:111122223333:function:../enroll" is not the ARN of a function, as in arn:aws:lambda:us-west-2:111122223333:function:NAME`},
		{"a function, unsigned", "audience: a\nsigner_function: arn:aws:lambda:us-west-2:111122223333:function:enroll\nsigner_auth: none\n", "line 3: signer_auth: invocations of signer_function are always signed: remove signer_auth"},
		{"a function by http", "audience: a\nsigner_function: arn:aws:lambda:us-west-2:111122223333:function:enroll\nsigner_url: http://a/\n", `line 3: signer_url: "http://a/" is not of the form https://HOST/`},
		{"empty", "", "the file is empty"},
		{"no audience", "signer_url: https://signer.example.com/\n", "line 1: audience is missing; write the signer's name, such as hallmark.example.com"},
		{"unknown key", good + "sigher_auth: none\n", "line 3: unknown key sigher_auth; did you mean signer_auth?"},
		{"a key without a value", good + "proxy_sources:\n", ""},
		{"everything at once", "signer_url: http://a/\nproxy_sources: [x, 192.0.2.7, y]\nhost_certificate: maybe\n", `line 1: signer_url: "http://a/" is not of the form https://HOST/; line 1: audience is missing; write the signer's name, such as hallmark.example.com; line 2: proxy_sources: "x" is neither an IP address, such as 192.0.2.7, nor a network, such as 192.0.2.0/28; line 2: proxy_sources: "y" is neither an IP address, such as 192.0.2.7, nor a network, such as 192.0.2.0/28; line 3: host_certificate: "maybe" is neither keep nor replace`},
		{"key twice", good + "audience: y\n", "line 3: key audience already defined on line 2; remove one"},
		{"http", "audience: a\nsigner_url: http://signer.example.com/\n", `line 2: signer_url: "http://signer.example.com/" is not of the form https://HOST/`},
		{"with password", "signer_url: https://me:pw@signer.example.com/\naudience: a\n", `line 1: signer_url: "https://me:pw@signer.example.com/" is not of the form https://HOST/`},
		{"audience with a line break", "signer_url: https://s/\naudience: \"a\\nb\"\n", `line 2: audience: "a\nb" is not a name such as hallmark.example.com`},
		{"no host", "audience: a\nsigner_url: https://:443/\n", `line 2: signer_url: "https://:443/" is not of the form https://HOST/`},
		{"with a blank", "audience: a\nsigner_url: \"https://signer.example.com/ \"\n", `line 2: signer_url: "https://signer.example.com/ " is not of the form https://HOST/`},
		{"a second CA that is no key", good + "extra_user_cas: [a, \"SHA256:x\"]\n", `line 3: extra_user_cas: "a": no key found, or its type is not the one that the line begins with; give the public key of a CA, as in ssh-ed25519 AAAA…; line 3: extra_user_cas: "SHA256:x": no key found, or its type is not the one that the line begins with; give the public key of a CA, as in ssh-ed25519 AAAA…`},
		{"relative CA file", good + "signer_ca_file: ca.pem\n", `line 3: signer_ca_file: "ca.pem" is not an absolute path`},
		{"directive in max_startups", good + "max_startups: \"10\\nPermitRootLogin yes\"\n", `line 3: max_startups: "10\nPermitRootLogin yes" is not of the form start:rate:full, for example 100:30:200`},
		{"directive in proxy_sources", good + "proxy_sources: [\"192.0.2.7\\nPermitRootLogin yes\"]\n", `line 3: proxy_sources: "192.0.2.7\nPermitRootLogin yes" is neither an IP address, such as 192.0.2.7, nor a network, such as 192.0.2.0/28`},
		{"proxy_sources that are everybody", good + "proxy_sources: [0.0.0.0/0]\n", `line 3: proxy_sources: "0.0.0.0/0" is too wide: list the addresses of Teleport's proxies (/8 or longer)`},
		{"proxy_sources that is no list", good + "proxy_sources: 192.0.2.7\n", "line 3: proxy_sources: write a list, [192.0.2.7]"},
		{"wrong type", "signer_url: [a]\naudience: a\n", "line 1: signer_url: write one value, not a list: a"},
		{"not YAML", "signer_url: 'x\n", "line 1: this quote is not closed"},
		{"second document", good + "---\n" + good, "line 3: the file holds more than one YAML document; remove this line and what follows it"},
		{"too long", good + strings.Repeat("#", maxBytes), "the file has 65607 bytes, more than 65536"},
	} {
		t.Run(test.name, func(t *testing.T) {
			c, err := Parse([]byte(test.text))
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
			if again, err := Parse(data); err != nil || !reflect.DeepEqual(again, c) {
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
		c, err := Parse(data)
		if err != nil {
			return
		}
		if _, err := c.Marshal(); err != nil {
			t.Fatalf("%q was parsed but cannot be marshaled: %v", data, err)
		}
	})
}
