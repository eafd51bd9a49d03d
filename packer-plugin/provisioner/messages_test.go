package provisioner

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/hashicorp/hcl/v2/hcldec"
	packersdk "github.com/hashicorp/packer-plugin-sdk/packer"
	"github.com/zclconf/go-cty/cty"

	"github.com/hallmark-ssh/hallmark/internal/cli/clitest"
)

// Whatever is wrong with a field, a message names the field, in our words. This includes
// fields that do not exist yet.
func TestMessages(t *testing.T) {
	t.Chdir(t.TempDir())
	files := wrongFiles(t)
	for name, spec := range New(stubPrograms()).ConfigSpec() {
		if strings.HasPrefix(name, "packer_") {
			continue
		}
		kind := spec.(*hcldec.AttrSpec).Type
		for _, value := range wrongValues(name, kind, files) {
			block := goodBlock()
			switch name {
			case "openssh_ca_file":
				delete(block, "proxy_address")
			case "signer_function":
				delete(block, "signer_url")
			}
			block[name] = value
			doing := fmt.Sprintf("%s = %.100q", name, fmt.Sprint(value))
			explains(t, doing, name, New(stubPrograms()).Prepare(block))
			delete(block, name) // an override comes last
			explains(t, doing+", overridden", name, New(stubPrograms()).Prepare(block, map[any]any{name: value}))
		}
	}
}

// explains checks that an error has a message for a field, and that all are readable.
func explains(t *testing.T, doing, field string, err error) {
	t.Helper()
	all, ok := errors.AsType[*packersdk.MultiError](err)
	if !ok {
		t.Errorf("%s: error %v, want a list", doing, err)
		return
	}
	found := false
	for _, err := range all.Errors {
		found = found || strings.HasPrefix(err.Error(), field+": ")
		const longest = 1000
		if text := err.Error(); len(text) > longest || strings.Contains(text, "\n") {
			t.Errorf("%s: the message is too long, or has several lines: %.2000s", doing, text)
		}
		clitest.Readable(t, doing, err.Error())
	}
	if !found {
		t.Errorf("%s: no message names the field: %.2000v", doing, err)
	}
}

// wrongFiles are the names of files that are right for nothing.
func wrongFiles(t *testing.T) []any {
	t.Helper()
	for name, content := range map[string][]byte{
		"empty": nil, "binary": []byte("\x00\x01\x02\xff\xfe\n\x80"), "text": []byte("something else\n"),
		"large":   bytes.Repeat([]byte("#\n"), maxFile),
		"damaged": []byte("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"),
		"private": []byte("-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"),
		"page":    []byte("<!doctype html><html><body>Sign in"),
		"line":    []byte(strings.Repeat("x", 5000)),
	} {
		if err := os.WriteFile(name, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Mkdir("folder", 0o700); err != nil {
		t.Fatal(err)
	}
	return []any{"empty", "binary", "text", "large", "damaged", "private", "page", "line", "folder", "missing", filepath.Join("text", "x"), os.DevNull}
}

// wrongValues returns values that a field does not take.
func wrongValues(name string, kind cty.Type, files []any) []any {
	lines := []any{" ", "\x1b[2J", "{{foo}}", "{{", strings.Repeat("x", 5000), "a\nb", "\xff"}
	switch kind {
	case cty.Bool:
		return append(lines, "maybe", 2, []any{true}, map[string]any{"a": true})
	case cty.String:
		wrong := append(lines, []any{"a"}, map[string]any{"a": "b"}, []string{"a"})
		if strings.HasSuffix(name, "_file") {
			wrong = append(wrong, files...)
		}
		return wrong
	}
	wrong := []any{map[string]any{"a": "b"}, "x", 5, []any{[]any{"a"}}, []any{map[string]any{"a": "b"}}, []any{nil}, []any{"x", 5}}
	for _, line := range lines {
		wrong = append(wrong, []any{line}, []any{"y", line})
	}
	return append(wrong, []any{""})
}

// A value in HCL arrives with its type.
func TestMessagesOfHCL(t *testing.T) {
	list := func(values ...cty.Value) cty.Value { return cty.ListVal(values) }
	null := cty.NullVal(cty.String)
	good := map[string]cty.Value{
		"signer_url": cty.StringVal("https://signer.example.com/"), "audience": cty.StringVal("hallmark.example.com"),
		"proxy_address": cty.StringVal("teleport.example.com"), "openssh_ca_pins": list(cty.StringVal(pin)),
	}
	for _, test := range []struct {
		name   string
		change map[string]cty.Value
		want   []string
	}{
		{"least", nil, nil},
		{"null", map[string]cty.Value{"max_startups": null, "proxy_sources": cty.NullVal(cty.List(cty.String))}, nil},
		{"a list not known yet", map[string]cty.Value{"openssh_ca_pins": cty.ListValEmpty(cty.String)}, nil},
		{"an entry that is null", map[string]cty.Value{"openssh_ca_pins": list(cty.StringVal(pin), null), "audience": null}, []string{
			"openssh_ca_pins: entry 2 is null; write a text in quotes, or remove it",
			"audience: missing; write the signer's name, such as hallmark.example.com",
		}},
		{"everything", map[string]cty.Value{
			"signer_url": cty.StringVal("http://a/"), "audience": cty.StringVal("a b"), "signer_auth": cty.StringVal("basic"),
			"host_certificate": cty.StringVal("Keep"), "max_startups": cty.StringVal("100:30:50"),
			"extra_user_cas": list(cty.StringVal("a"), cty.StringVal("b")), "proxy_sources": list(cty.StringVal("c"), cty.StringVal("0.0.0.0/0")),
			"proxy_address": cty.StringVal("https://teleport.example.com"), "openssh_ca_file": cty.StringVal("/missing"),
			"openssh_ca_pins": list(cty.StringVal("MD5:d"), cty.StringVal(pin), cty.StringVal("e")), "skip_ca_pin": cty.True,
			"signer_ca_file": cty.StringVal("/missing"), "proxy_ca_file": cty.StringVal("/missing"),
			"remote_folder": cty.StringVal("tmp"), "execute_command": cty.StringVal("sh"),
		}, []string{
			`signer_url: "http://a/" is not of the form https://HOST/`,
			`audience: "a b" is not a name such as hallmark.example.com`,
			`signer_auth: "basic" is neither none nor aws_iam`,
			`max_startups: "100:30:50": full (50) is less than start (100)`,
			`host_certificate: "Keep" is neither keep nor replace`,
			`extra_user_cas: "a": no key found`, `extra_user_cas: "b": no key found`,
			`proxy_sources: "c" is neither an IP address`, `proxy_sources: "0.0.0.0/0" is too wide`,
			`openssh_ca_file: it contradicts proxy_address; remove one of them`,
			`skip_ca_pin: it contradicts openssh_ca_pins; remove one of them`,
			`openssh_ca_pins: "MD5:d" is not "SHA256:"`, `openssh_ca_pins: "e" is not "SHA256:"`,
			`proxy_address: "https://teleport.example.com" is not HOST or HOST:PORT; write neither https:// nor a path`,
			`signer_ca_file: there is no file "/missing"; a relative path begins at the folder that Packer runs in`,
			`proxy_ca_file: there is no file "/missing"`, `openssh_ca_file: there is no file "/missing"`,
			`remote_folder: "tmp" is not an absolute path`,
			`execute_command: it does not contain {{.Path}}`,
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			values := maps.Clone(good)
			maps.Copy(values, test.change)
			err := New(stubPrograms()).Prepare(map[string]any{"packer_core_version": "1.11.0"}, cty.ObjectVal(values), map[string]any(nil))
			all, ok := errors.AsType[*packersdk.MultiError](err)
			if !ok {
				all = &packersdk.MultiError{}
			}
			for _, want := range test.want {
				if !slices.ContainsFunc(all.Errors, func(err error) bool { return strings.HasPrefix(err.Error(), want) }) {
					t.Errorf("no message begins with %q", want)
				}
			}
			if len(all.Errors) != len(test.want) || err != nil && !ok {
				t.Errorf("%d messages, want %d: %v", len(all.Errors), len(test.want), err)
			}
		})
	}
}

// An override takes the place of a value as a whole: not of a part of its list.
func TestOverrideWins(t *testing.T) {
	p := New(stubPrograms())
	block := goodBlock()
	block["openssh_ca_pins"] = []string{"<unknown>", pin}
	if err := p.Prepare(block, map[string]any{"openssh_ca_pins": []any{pin}, "audience": "other", "fips": "true"}); err != nil {
		t.Fatal(err)
	}
	if c := p.config; !slices.Equal(c.OpenSSHCAPins, []string{pin}) || c.Audience != "other" || !c.FIPS {
		t.Errorf("%+v", c)
	}
}

// JSON templates have variables in Packer's old language.
func TestUserVariables(t *testing.T) {
	p := New(stubPrograms())
	block := goodBlock()
	block["audience"], block["fips"], block["openssh_ca_pins"] = "{{user `audience`}}", "{{user `fips`}}", "{{user `pin`}},"+pin
	variables := map[string]any{"packer_user_variables": map[string]any{"audience": "a", "fips": "true", "pin": pin}}
	if err := p.Prepare(block, variables); err != nil {
		t.Fatal(err)
	}
	if c := p.config; c.Audience != "a" || !c.FIPS || !slices.Equal(c.OpenSSHCAPins, []string{pin, pin}) {
		t.Errorf("%+v", c)
	}
}

// The text of execute_command may contain a password.
func TestMessagesHideThePassword(t *testing.T) {
	for _, command := range []string{"echo hunter2 | sudo -S sh {{.Path", "echo hunter2 | sudo -S true", "echo hunter2; {{foo}}"} {
		block := goodBlock()
		block["execute_command"] = command
		if err := New(stubPrograms()).Prepare(block); err == nil || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: error %v", command, err)
		}
	}
}
