package environ

import (
	"slices"
	"strings"
	"testing"
)

func TestForPrograms(t *testing.T) {
	for name, value := range map[string]string{
		"HTTPS_PROXY": "http://me:pa55word@proxy:3128", "https_proxy": "http://me:pa55word@proxy:3128", "HTTP_PROXY": "pa55word", "http_proxy": "pa55word",
		"ALL_PROXY": "pa55word", "Https_Proxy": "pa55word", "NO_PROXY": "example.com", "SSHD_OPTS": "-4", "PROXY_NAME": "x",
	} {
		t.Setenv(name, value)
	}
	got := ForPrograms("LC_ALL=C", "SSHD_OPTS=-6")
	for _, variable := range got {
		if strings.Contains(variable, "pa55word") {
			t.Errorf("programs get %s", variable)
		}
	}
	for _, want := range []string{"SSHD_OPTS=-4", "PROXY_NAME=x", "LC_ALL=C"} {
		if !slices.Contains(got, want) {
			t.Errorf("programs do not get %s", want)
		}
	}
	if got[len(got)-1] != "SSHD_OPTS=-6" { // exec.Cmd uses the last
		t.Errorf("programs get %q", got)
	}
}
