package main

import (
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"packer-plugin-hallmark": main})
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{Dir: "testdata"})
}

func TestPluginVersion(t *testing.T) {
	for build, want := range map[string]string{
		"1.2.3":     "1.2.3",
		"v1.2.3":    "1.2.3",
		"0.1.0-dev": "0.1.0-dev",
		"(devel)":   "0.0.0-dev",
		"v0.0.0-20260102030405-0123456789ab+dirty": "0.0.0-dev",
		"1.2.3-rc.1": "0.0.0-dev",
	} {
		if got := pluginVersion(build); got != want {
			t.Errorf("pluginVersion(%q) = %q, want %q", build, got, want)
		}
	}
}
