package signerclient

import (
	"errors"
	"strings"
	"testing"

	"github.com/hallmark-ssh/hallmark/internal/machine/fault"
)

func TestIsProxyAddress(t *testing.T) {
	for text, want := range map[string]bool{
		"": true, "http://proxy.example.com:3128": true, "HTTP://proxy": true, "https://ann:secret@proxy.example.com": true,
		"socks5://192.0.2.7:1080": true, "proxy.example.com:3128": true, "proxy": true, "[2001:db8::7]:3128": true,
		"http://[::1": false, "http://proxy:port": false, "ftp://proxy:21": false, "socks4://proxy": false, ":::": false, ":3128": false,
		"http://": false, "the proxy": false, "://proxy": false,
	} {
		if got := isProxyAddress(text); got != want {
			t.Errorf("%q: %v", text, got)
		}
	}
}

// If there is no answer, a wrong HTTPS_PROXY is the likely cause. The message does not
// contain its password.
func TestUnreachableBehindWrongProxy(t *testing.T) {
	for _, test := range []struct{ upper, lower, want string }{
		{"", "", hintSignerDown},
		{"http://ann:hunter2@proxy:3128", "", hintSignerDown},
		{"http://ann:hunter2@proxy:port", "", "HTTPS_PROXY is not the address of a proxy"},
		{"", "http://ann:hunter2@[::1", "HTTPS_PROXY is not the address of a proxy"},
	} {
		t.Setenv("HTTPS_PROXY", test.upper)
		t.Setenv("https_proxy", test.lower)
		err := unreachable(errors.New("lookup http: no such host"))
		e, ok := errors.AsType[*fault.Error](err)
		if !ok || e.Kind != fault.Temporary || !strings.HasPrefix(e.Hint, test.want) || strings.Contains(e.Hint, "hunter2") {
			t.Errorf("%+v: %v, hint %q", test, err, e.Hint)
		}
	}
}
