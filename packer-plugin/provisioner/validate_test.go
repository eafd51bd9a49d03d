package provisioner

import (
	"errors"
	"maps"
	"os"
	"path/filepath"
	"testing"
	"testing/fstest"

	packersdk "github.com/hashicorp/packer-plugin-sdk/packer"
)

const pin = "SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"

// goodBlock is the smallest valid block.
func goodBlock() map[string]any {
	return map[string]any{
		"signer_url":      "https://abc.lambda-url.us-west-2.on.aws/",
		"audience":        "hallmark.example.com",
		"proxy_address":   "teleport.example.com",
		"openssh_ca_pins": []string{pin},
	}
}

func TestPrepare(t *testing.T) {
	dir := t.TempDir()
	junk := filepath.Join(dir, "junk.pem")
	if err := os.WriteFile(junk, []byte("junk"), 0o600); err != nil {
		t.Fatal(err)
	}
	private := filepath.Join(dir, "private.pem")
	if err := os.WriteFile(private, []byte("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	public := filepath.Join(dir, "ca.pub")
	if err := os.WriteFile(public, []byte(otherCA), 0o600); err != nil {
		t.Fatal(err)
	}
	remove := any(nil)
	for _, test := range []struct {
		name    string
		change  map[string]any
		wantErr string // "" stands for none
	}{
		{"least", nil, ""},
		{"unknown field", map[string]any{"proxi_address": "x"}, `unknown field "proxi_address"; did you mean proxy_address?`},
		{"a field of another tool", map[string]any{"inline": "x"}, `unknown field "inline"; remove it`},

		{"no signer", map[string]any{"signer_url": remove}, "signer_url: missing"},
		{"a function instead", map[string]any{"signer_url": remove, "signer_function": "arn:aws:lambda:us-west-2:111122223333:function:enroll"}, ""},
		{"a function not known yet", map[string]any{"signer_url": remove, "signer_function": "<unknown>"}, ""},
		{"no ARN", map[string]any{"signer_url": remove, "signer_function": "enroll"}, "signer_function: \"enroll\" is not the ARN"},
		{"a function, unsigned", map[string]any{"signer_function": "arn:aws:lambda:us-west-2:111122223333:function:enroll", "signer_auth": "none"}, "remove signer_auth"},
		{"http", map[string]any{"signer_url": "http://signer.example.com/"}, "not of the form https://"},
		{"no host", map[string]any{"signer_url": "https:///x"}, "not of the form https://"},
		{"user", map[string]any{"signer_url": "https://user@signer.example.com/"}, "not of the form https://"},
		{"signer not known yet", map[string]any{"signer_url": "<unknown>"}, ""},
		{"part of signer not known yet", map[string]any{"signer_url": "https://<unknown>/"}, ""},
		{"no audience", map[string]any{"audience": ""}, "audience: "},
		{"audience of two lines", map[string]any{"audience": "a\nb: c"}, "audience: "},
		{"audience not known yet", map[string]any{"audience": "<unknown>"}, ""},
		{"missing file", map[string]any{"signer_ca_file": filepath.Join(dir, "none.pem")}, "signer_ca_file: there is no file \"" + dir},
		{"no certificate", map[string]any{"signer_ca_file": junk}, `signer_ca_file: "` + junk + `" has no certificate`},

		{"private key", map[string]any{"signer_ca_file": private}, `signer_ca_file: "` + private + `" contains a block "PRIVATE KEY"; give a file with certificates only`},

		{"no CA", map[string]any{"proxy_address": remove}, "proxy_address: missing; write the Teleport proxy"},
		{"two CAs", map[string]any{"openssh_ca_file": public}, "openssh_ca_file: it contradicts proxy_address; remove one of them"},
		{"CA file", map[string]any{"openssh_ca_file": public, "proxy_address": remove}, ""},
		{"CA file without a CA", map[string]any{"openssh_ca_file": junk, "proxy_address": remove}, `openssh_ca_file: "` + junk + `": line 1: no key found`},
		{"missing CA file", map[string]any{"openssh_ca_file": dir + "/none", "proxy_address": remove}, "openssh_ca_file: there is no file"},
		{"proxy CA without proxy", map[string]any{"openssh_ca_file": public, "proxy_address": remove, "proxy_ca_file": junk}, "proxy_ca_file: it has no effect without proxy_address; remove it"},
		{"proxy with port", map[string]any{"proxy_address": "teleport.example.com:3080"}, ""},
		{"proxy of IPv6", map[string]any{"proxy_address": "[2001:db8::1]:443"}, ""},
		{"proxy as URL", map[string]any{"proxy_address": "https://teleport.example.com"}, "not HOST or HOST:PORT"},
		{"proxy of bare IPv6", map[string]any{"proxy_address": "2001:db8::1"}, "not HOST or HOST:PORT"},
		{"proxy with user", map[string]any{"proxy_address": "u@teleport.example.com"}, "not HOST or HOST:PORT"},
		{"proxy without host", map[string]any{"proxy_address": ":443"}, "not HOST or HOST:PORT"},
		{"proxy without port", map[string]any{"proxy_address": "teleport.example.com:"}, "not HOST or HOST:PORT"},
		{"proxy at a port that does not exist", map[string]any{"proxy_address": "teleport.example.com:70000"}, "not HOST or HOST:PORT"},
		{"proxy not known yet", map[string]any{"proxy_address": "<unknown>"}, ""},

		{"no pin", map[string]any{"openssh_ca_pins": remove}, "openssh_ca_pins: missing; list the fingerprint"},
		{"pin of another kind", map[string]any{"openssh_ca_pins": []string{"MD5:00:11"}}, `"MD5:00:11" is not "SHA256:"`},
		{"pin too short", map[string]any{"openssh_ca_pins": []string{pin, pin[:40]}}, "43 characters of base64"},
		{"pins not known yet", map[string]any{"openssh_ca_pins": []string{}}, ""},
		{"pin not known yet", map[string]any{"openssh_ca_pins": []string{"<unknown>"}}, ""},
		{"pin waived", map[string]any{"openssh_ca_pins": remove, "skip_ca_pin": true}, ""},
		{"pin and waiver", map[string]any{"skip_ca_pin": true}, "skip_ca_pin: it contradicts openssh_ca_pins; remove one of them"},

		{"trust at boot", map[string]any{"trust": "at_boot"}, ""},
		{"trust of another kind", map[string]any{"trust": "never"}, `trust: "never" is neither at_boot nor at_enrollment`},
		{"trust at enrollment", map[string]any{"trust": "at_enrollment", "proxy_address": remove, "openssh_ca_pins": remove}, ""},
		{"trust at enrollment, CA baked", map[string]any{"trust": "at_enrollment"}, `trust: "at_enrollment" bakes no OpenSSH CA; remove proxy_address, openssh_ca_pins`},

		{"signer_auth", map[string]any{"signer_auth": "aws_iam"}, ""},
		{"another signer_auth", map[string]any{"signer_auth": "basic"}, `signer_auth: "basic" is neither none nor aws_iam`},
		{"host_certificate", map[string]any{"host_certificate": "replace"}, ""},
		{"another host_certificate", map[string]any{"host_certificate": "overwrite"}, `host_certificate: "overwrite" is neither keep nor replace`},
		{"a second user CA", map[string]any{"extra_user_cas": []string{otherCA}}, ""},
		{"a second user CA not known yet", map[string]any{"extra_user_cas": []string{"<unknown>"}}, ""},
		{"a second user CA by its fingerprint", map[string]any{"extra_user_cas": []string{"SHA256:x"}}, `extra_user_cas: "SHA256:x": no key found`},
		{"a second user CA with options", map[string]any{"extra_user_cas": []string{"cert-authority " + otherCA}}, `extra_user_cas: "cert-authority ssh-ed25519 AAAAC3NzaC1lZ": option "cert-authority" before the key`},
		{"a second user CA with another line", map[string]any{"extra_user_cas": []string{otherCA + "\n" + otherCA}}, "more than one line"},
		{"MaxStartups", map[string]any{"max_startups": "100:30:200"}, ""},
		{"proxy sources", map[string]any{"proxy_sources": []string{"192.0.2.7", "2001:db8::/64"}}, ""},
		{"proxy source not known yet", map[string]any{"proxy_sources": []string{"<unknown>"}}, ""},
		{"proxy sources with a name", map[string]any{"proxy_sources": []string{"teleport.example.com"}}, `proxy_sources: "teleport.example.com" is neither an IP address`},
		{"proxy sources with a directive", map[string]any{"proxy_sources": []string{"192.0.2.7\nPermitRootLogin yes"}}, "proxy_sources: "},
		{"proxy sources that are everybody", map[string]any{"proxy_sources": []string{"::/0"}}, "is too wide"},
		{"MaxStartups with a directive", map[string]any{"max_startups": "10\nPermitRootLogin yes"}, "max_startups: "},

		{"remote folder", map[string]any{"remote_folder": "/var/tmp"}, ""},
		{"relative folder", map[string]any{"remote_folder": "tmp"}, "remote_folder"},
		{"folder with blank", map[string]any{"remote_folder": "/tmp/a b"}, "remote_folder"},
		{"folder with command", map[string]any{"remote_folder": "/tmp/$(reboot)"}, "remote_folder"},
		{"folder with dots", map[string]any{"remote_folder": "/tmp/../etc"}, "remote_folder"},
		{"folder with line break", map[string]any{"remote_folder": "/tmp\n"}, "remote_folder"},
		{"command without script", map[string]any{"execute_command": "sudo true"}, "execute_command: it does not contain {{.Path}}; write a command"},
		{"command that is no template", map[string]any{"execute_command": "sudo {{.Path"}, "execute_command: it is not a valid template: unclosed action"},
	} {
		t.Run(test.name, func(t *testing.T) {
			block := goodBlock()
			maps.Copy(block, test.change)
			maps.DeleteFunc(block, func(_ string, value any) bool { return value == remove })
			err := New(stubPrograms()).Prepare(block)
			if !matches(err, test.wantErr) {
				t.Errorf("error %v, want %q", err, test.wantErr)
			}
		})
	}
}

func TestPrepareCollectsAllErrors(t *testing.T) {
	err := New(fstest.MapFS{}).Prepare(map[string]any{"trust": "never"})
	all, ok := errors.AsType[*packersdk.MultiError](err)
	if !ok || len(all.Errors) != 4 {
		t.Errorf("error %v, want signer_url, audience, trust and the missing program", err)
	}
	if !matches(err, `no hallmark program for any architecture: use a release, or build it with "make build"`) {
		t.Errorf("error %v does not say that the plugin was built without programs", err)
	}
}

// Packer prepares the same provisioner again when all values are known; nothing from the first
// time may remain.
func TestPrepareTwice(t *testing.T) {
	p := New(stubPrograms())
	first := goodBlock()
	first["max_startups"] = "100:30:200"
	for _, block := range []map[string]any{first, goodBlock()} {
		if err := p.Prepare(block); err != nil {
			t.Fatal(err)
		}
	}
	if p.config.MaxStartups != "" {
		t.Errorf("max_startups = %q is left of the first block", p.config.MaxStartups)
	}
}

// otherCA is a public key of a CA that does not belong to the cluster.
const otherCA = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIHXQo7CkDureE6dyDV6EbqnMIVmD8Dsa97stQTHD/4+v vault"
