package sshdconf

import (
	"bytes"
	"slices"
	"testing"
)

func TestIncludesFirst(t *testing.T) {
	for _, test := range []struct {
		name, config string
		want         bool
	}{
		{"Debian", "# comment\n\nInclude /etc/ssh/sshd_config.d/*.conf\nPort 22\n", true},
		{"the file itself", "Include /etc/ssh/sshd_config.d/00-hallmark.conf\n", true},
		{"relative", "include sshd_config.d/*.conf\n", true},
		{"quoted, with equals sign", "INCLUDE=\"/etc/ssh/sshd_config.d/*.conf\"\n", true},
		{"second pattern", "Include /etc/a /etc/ssh/sshd_config.d/*.conf\n", true},
		{"second include", "Include /etc/a\nInclude /etc/ssh/sshd_config.d/*.conf\n", true},
		{"commented out", "#Include /etc/ssh/sshd_config.d/*.conf\n", false},
		{"in a comment behind", "Include /etc/a # /etc/ssh/sshd_config.d/*.conf\n", false},
		{"another folder", "Include /etc/ssh/other.d/*.conf\n", false},
		{"not first", "Port 22\nInclude /etc/ssh/sshd_config.d/*.conf\n", false},
		{"inside Match", "Match User git\nInclude /etc/ssh/sshd_config.d/*.conf\n", false},
		{"other names only", "Include /etc/ssh/sshd_config.d/[1-9]*.conf\n", false},
		{"bad pattern", "Include /etc/ssh/sshd_config.d/[\n", false},
		{"empty", "", false},
		{"without argument", "Include\n", false},
		{"in quotes that OpenSSH before 8.7 does not know", "Include '/etc/ssh/sshd_config.d/*.conf'\n", false},
		{"after such quotes", "Include '/etc/a'\nInclude /etc/ssh/sshd_config.d/*.conf\n", false},
	} {
		if got := IncludesFirst([]byte(test.config), DropIn); got != test.want {
			t.Errorf("%s: %v, want %v", test.name, got, test.want)
		}
	}
}

// The expected arguments are what OpenSSH's argv_split makes of each line since 8.7, and what
// strdelim made of it before, if that differs.
func TestSplitDirective(t *testing.T) {
	same := []string{"the same"}
	for _, test := range []struct {
		line, keyword      string
		arguments, earlier []string
	}{
		{"", "", nil, same},
		{"  # Port 22", "", nil, same},
		{"PORT 22\r\n", "port", []string{"22"}, same},
		{"Port=22", "port", []string{"22"}, same},
		{"\tport \t= \t22 ", "port", []string{"22"}, same},
		{"Port", "port", nil, same},
		{`"Port" 22`, "port", []string{"22"}, same},
		{`  Po"rt" 22`, "port", []string{"22"}, same},
		{`"Port" = 22`, "port", []string{"=", "22"}, nil},
		{`"Port 22`, "", nil, same},
		{"=Port=22", "port", []string{"22"}, same},
		{"Port == 22", "port", []string{"=", "22"}, nil},
		{"\rPort\r22\f", "port", []string{"22"}, same},
		{"Port a\u00a0", "port", []string{"a\u00a0"}, same},
		{"Match User=git", "match", []string{"User=git"}, []string{"User", "git"}},
		{`Banner "a b" c # d`, "banner", []string{"a b", "c"}, same},
		{`Include "/etc/a"`, "include", []string{"/etc/a"}, same},
		{`Include '/etc/a b' /etc/c`, "include", []string{"/etc/a b", "/etc/c"}, []string{"'/etc/a", "b'", "/etc/c"}},
		{`Include /etc/"a b".conf`, "include", []string{"/etc/a b.conf"}, []string{"/etc/a b", ".conf"}},
		{`Include "/etc/ssh"/*.conf`, "include", []string{"/etc/ssh/*.conf"}, []string{"/etc/ssh", "/*.conf"}},
		{`Include /etc/a\ b`, "include", []string{"/etc/a b"}, []string{`/etc/a\`, "b"}},
		{`Include "a\"b" 'c\'d' e\\f g\h`, "include", []string{`a"b`, "c'd", `e\f`, `g\h`}, []string{`a\`}},
		{`Include "" b`, "include", []string{"", "b"}, nil},
		{"Include /etc/a#b", "include", []string{"/etc/a#b"}, []string{"/etc/a"}},
		{"HostKey /etc/a# the key", "hostkey", []string{"/etc/a#", "the", "key"}, []string{"/etc/a"}},
		{"HostKey /etc/keys#1/rsa", "hostkey", []string{"/etc/keys#1/rsa"}, []string{"/etc/keys"}},
		{`HostKey "/etc/a#b"`, "hostkey", []string{"/etc/a#b"}, nil},
		{"HostKey #/etc/a", "hostkey", nil, same},
		{`Include "never closed`, "include", []string{"never closed"}, nil},
		{`Include a\`, "include", []string{`a\`}, same},
	} {
		keyword, arguments := SplitDirective(test.line)
		if keyword != test.keyword || !slices.Equal(arguments, test.arguments) {
			t.Errorf("%q: %q %q, want %q %q", test.line, keyword, arguments, test.keyword, test.arguments)
		}
		differs := !slices.Equal(test.earlier, same)
		if !differs {
			test.earlier = arguments
		}
		if earlier := SplitAsBefore87(test.line); !slices.Equal(earlier, test.earlier) || IsAmbiguous(test.line) != differs {
			t.Errorf("%q: %q before 8.7, ambiguous %v, want %q", test.line, earlier, !differs, test.earlier)
		}
	}
}

func TestBlock(t *testing.T) {
	const block = "# BEGIN hallmark\nA 1\n# END hallmark\n"
	for _, test := range []struct {
		name, config, with, without string
	}{
		{"empty", "", block, ""},
		{"plain", "Port 22\n", block + "Port 22\n", "Port 22\n"},
		{"Match at the end", "Port 22\nMatch User a\n X no\n", block + "Port 22\nMatch User a\n X no\n", "Port 22\nMatch User a\n X no\n"},
		{"no line break at the end", "Port 22", block + "Port 22", "Port 22"},
		{"the same block", block + "Port 22\n", block + "Port 22\n", "Port 22\n"},
		{"an older block", "# BEGIN hallmark\nB 2\nC 3\n# END hallmark\nPort 22\n", block + "Port 22\n", "Port 22\n"},
		{"a block that was moved", "Port 22\n# BEGIN hallmark\nB 2\n# END hallmark\nUsePAM yes\n", block + "Port 22\nUsePAM yes\n", "Port 22\nUsePAM yes\n"},
		{"Windows line ends", "# BEGIN hallmark\r\nB 2\r\n# END hallmark\r\nPort 22\r\n", block + "Port 22\r\n", "Port 22\r\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			with, err := WithBlock([]byte(test.config), []byte("A 1\n"))
			if err != nil || string(with) != test.with {
				t.Errorf("with: %q, %v, want %q", with, err, test.with)
			}
			without, err := WithoutBlock([]byte(test.config))
			if err != nil || string(without) != test.without {
				t.Errorf("without: %q, %v, want %q", without, err, test.without)
			}
		})
	}
	for name, config := range map[string]string{
		"no end":         "# BEGIN hallmark\nPort 22\n",
		"no beginning":   "Port 22\n# END hallmark\n",
		"wrong order":    "# END hallmark\n# BEGIN hallmark\n",
		"two":            block + block,
		"one in another": "# BEGIN hallmark\n" + block + "# END hallmark\n",
	} {
		if got, err := WithBlock([]byte(config), nil); err == nil {
			t.Errorf("%s: %q, want an error", name, got)
		}
	}
}

func FuzzBlock(f *testing.F) {
	f.Add("Port 22\n# BEGIN hallmark\nB 2\n# END hallmark\n")
	f.Fuzz(func(t *testing.T, config string) {
		with, err := WithBlock([]byte(config), []byte("A 1"))
		if err != nil {
			return
		}
		rest, err := WithoutBlock([]byte(config))
		if err != nil {
			t.Fatalf("%q takes a block but cannot lose one: %v", config, err)
		}
		again, err := WithoutBlock(with)
		if err != nil || !bytes.Equal(again, rest) {
			t.Fatalf("%q became %q, %v, want %q", config, again, err, rest)
		}
	})
}

func TestMatchPattern(t *testing.T) {
	for _, test := range []struct {
		pattern, s string
		want       bool
	}{
		{"", "", true}, {"", "a", false}, {"a", "a", true}, {"a", "b", false}, {"*", "", true}, {"*", "abc", true},
		{"a*", "abc", true}, {"*c", "abc", true}, {"a*c", "abbc", true}, {"a*b", "abbc", false}, {"a?c", "abc", true}, {"?", "", false},
		{"**a", "ba", true},
	} {
		if got := MatchPattern(test.pattern, test.s); got != test.want {
			t.Errorf("%q on %q: %v", test.pattern, test.s, got)
		}
	}
}

// Lines of others stay, also those in Match blocks that set what Hallmark sets.
func TestOthersLines(t *testing.T) {
	own := string(DefaultOptions().Render())
	for others, want := range map[string]string{
		"":                       "",
		"PermitTTY no":           "PermitTTY no",
		"MaxStartups 10\r\n\r\n": "",
		"Match User git\n\tTrustedUserCAKeys /etc/git_ca.pub\nMatch all\n": "Match User git\n\tTrustedUserCAKeys /etc/git_ca.pub\nMatch all\n",
	} {
		if got := string(OthersLines([]byte(own + others))); got != want {
			t.Errorf("%q: %q, want %q", others, got, want)
		}
	}
}
