//go:build e2e

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// The messages reach the person who runs the real Packer, with all mistakes of a template at
// once. Those about types and names in a block are Packer's own.
func TestRealPackerValidate(t *testing.T) {
	dir := t.TempDir()
	runPacker(t, dir, true, "plugins", "install", "--path", built(t, "packer-plugin-hallmark"), "github.com/hallmark-ssh/hallmark")
	for _, test := range []struct {
		name, template string
		want           []string
	}{
		{"good.pkr.hcl", goodTemplate, nil},
		{"wrong.pkr.hcl", wrongTemplate, []string{
			"5 error(s) occurred:",
			"* openssh_ca_pins: entry 2 is null; write a text in quotes, or remove it",
			`* signer_url: "http://signer.example.com/" is not of the form https://HOST/`,
			"* audience: missing; write the signer's name, such as hallmark.example.com",
			`* proxy_address: "https://teleport.example.com" is not HOST or HOST:PORT; write`,
			`* signer_ca_file: there is no file "missing.pem"; a relative path begins at`,
			`* fips: write true or false, not "maybe"`,
			`* unknown field "proxi_address"; did you mean proxy_address?`,
			// Packer's own
			`An argument named "proxi_address" is not expected here. Did you mean "proxy_address"?`,
			`Inappropriate value for attribute "fips": a bool is required.`,
		}},
		{"old.json", oldTemplate, []string{
			`* fips: write true or false, not "maybe"`,
			"* audience: write one value in quotes, not a list",
			`* unknown field "proxi_address"; did you mean proxy_address?`,
			"* proxy_address: missing; write the Teleport proxy",
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			if err := os.WriteFile(filepath.Join(dir, test.name), []byte(test.template), 0o600); err != nil {
				t.Fatal(err)
			}
			printed := runPacker(t, dir, test.want == nil, "validate", test.name)
			// Packer wraps lines, and draws a line beside them.
			flat := strings.Join(strings.Fields(strings.ReplaceAll(printed, "│", "")), " ")
			for _, want := range test.want {
				if !strings.Contains(flat, want) {
					t.Errorf("it does not say %q", want)
				}
			}
			if t.Failed() {
				t.Logf("it says:\n%s", printed)
			}
		})
	}
}

// runPacker runs the real Packer in a folder that also has its plugins, and returns what it
// prints.
func runPacker(t *testing.T, dir string, succeeds bool, args ...string) string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), built(t, "packer"), args...)
	cmd.Dir = dir
	cmd.Env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "TMPDIR=" + dir, "CHECKPOINT_DISABLE=1",
		"PACKER_PLUGIN_PATH=" + filepath.Join(dir, "plugins"), "PACKER_CONFIG_DIR=" + dir, "PACKER_NO_COLOR=1",
	}
	out, err := cmd.CombinedOutput()
	if (err == nil) != succeeds {
		t.Fatalf("packer %s: %v\n%s", args[0], err, out)
	}
	return string(out)
}

// built returns the path of a program in bin.
func built(t *testing.T, name string) string {
	t.Helper()
	path, err := filepath.Abs(filepath.Join("../bin", name))
	if err != nil {
		t.Fatal(err)
	}
	return path
}

const goodTemplate = `
variable "pin" {
  default = "SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
}

source "null" "machine" {
  communicator = "none"
}

build {
  sources = ["source.null.machine"]

  provisioner "hallmark" {
    signer_url      = "https://signer.example.com/"
    audience        = "hallmark.example.com"
    proxy_address   = "teleport.example.com"
    openssh_ca_pins = [var.pin, build.ID]
    max_startups    = null
  }
}
`

const wrongTemplate = `
variable "nothing" {
  type    = string
  default = null
}

source "null" "machine" {
  communicator = "none"
}

build {
  sources = ["source.null.machine"]

  provisioner "hallmark" {
    signer_url      = "http://signer.example.com/"
    audience        = var.nothing
    proxy_address   = "https://teleport.example.com"
    openssh_ca_pins = ["SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", var.nothing]
    signer_ca_file  = "missing.pem"
  }

  provisioner "hallmark" {
    signer_url      = "https://signer.example.com/"
    audience        = "hallmark.example.com"
    proxy_address   = "teleport.example.com"
    openssh_ca_pins = ["SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"]

    override = {
      machine = {
        fips          = "maybe"
        proxi_address = "teleport.example.com"
      }
    }
  }

  provisioner "hallmark" {
    signer_url      = "https://signer.example.com/"
    audience        = "hallmark.example.com"
    proxi_address   = "teleport.example.com"
    openssh_ca_pins = ["SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"]
  }

  provisioner "hallmark" {
    signer_url      = "https://signer.example.com/"
    audience        = "hallmark.example.com"
    proxy_address   = "teleport.example.com"
    openssh_ca_pins = ["SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"]
    fips            = "maybe"
  }
}
`

const oldTemplate = `{
  "variables": {"fips": "maybe"},
  "builders": [{"type": "null", "communicator": "none"}],
  "provisioners": [{
    "type": "hallmark",
    "signer_url": "https://signer.example.com/",
    "audience": ["hallmark.example.com"],
    "proxi_address": "teleport.example.com",
    "fips": "{{user ` + "`fips`" + `}}",
    "openssh_ca_pins": ["SHA256:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"]
  }]
}
`
