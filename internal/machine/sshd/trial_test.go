package sshd

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hallmark-ssh/hallmark/internal/machine/sshdconf"
)

// A trial includes each file but the drop-in, in whose place is the new content.
func TestTrial(t *testing.T) {
	const (
		body     = "TrustedUserCAKeys /ca\n"
		included = "Include \"/etc/ssh/sshd_config.d/50-cloud-init.conf\"\n"
	)
	for _, test := range []struct{ name, folder, main, with, without string }{
		{"a folder", "etc/ssh/sshd_config.d", "Include /etc/ssh/sshd_config.d/*.conf\nPort 22\n", body + included + "Port 22\n", included + "Port 22\n"},
		{"a link to a folder", "srv/sshd.d", "Include /etc/ssh/sshd_config.d/*.conf\nPort 22\n", body + included + "Port 22\n", included + "Port 22\n"},
		{"quotes of OpenSSH 8.7", "etc/ssh/sshd_config.d", "Include '/etc/ssh/sshd_config.d/*.conf'\n", body + included, included},
		{"a comment of OpenSSH before 8.7", "etc/ssh/sshd_config.d", "Include /etc/ssh/sshd_config.d/*.conf# all\n", "Include /etc/ssh/sshd_config.d/*.conf# all\n", "Include /etc/ssh/sshd_config.d/*.conf# all\n"},
		{"another file in such quotes", "etc/ssh/sshd_config.d", "Include '/etc/ssh/sshd_config.d/5*.conf'\n", "Include '/etc/ssh/sshd_config.d/5*.conf'\n", "Include '/etc/ssh/sshd_config.d/5*.conf'\n"},
	} {
		t.Run(test.name, func(t *testing.T) {
			root := t.TempDir()
			dropIns := filepath.Join(root, filepath.Dir(sshdconf.DropIn))
			for _, folder := range []string{filepath.Dir(dropIns), filepath.Join(root, test.folder)} {
				if err := os.MkdirAll(folder, 0o755); err != nil {
					t.Fatal(err)
				}
			}
			if !strings.HasPrefix(test.folder, "etc") {
				if err := os.Symlink("/"+test.folder, dropIns); err != nil {
					t.Fatal(err)
				}
			}
			for _, name := range []string{filepath.Base(sshdconf.DropIn), "50-cloud-init.conf", ".hidden.conf"} {
				if err := os.WriteFile(filepath.Join(root, test.folder, name), nil, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			s := &Server{Root: root}
			for body, want := range map[string]string{body: test.with, "": test.without} {
				for _, body := range []string{body, strings.TrimSuffix(body, "\n")} {
					if got := string(s.Trial([]byte(test.main), []byte(body))); got != want {
						t.Errorf("with %q:\n%s\nwant\n%s", body, got, want)
					}
				}
			}
		})
	}
}

// Versions of sshd read an Include in different ways. While there is no drop-in that the trial has
// to leave out, the line stays for sshd itself to read.
func TestTrialLeavesQuotesToSSHD(t *testing.T) {
	root := t.TempDir()
	path := filepath.Join(root, filepath.Dir(sshdconf.DropIn), "50-cloud-init.conf")
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	const main = "Include '/etc/ssh/sshd_config.d/*.conf'\n"
	if got := string((&Server{Root: root}).Trial([]byte(main), nil)); got != main {
		t.Errorf("got %s", got)
	}
}

// A file's name may itself be a pattern, and have characters that no version of sshd or not every
// one lets an Include write.
func TestTrialEscapes(t *testing.T) {
	root := t.TempDir()
	folder := filepath.Join(root, filepath.Dir(sshdconf.DropIn))
	if err := os.MkdirAll(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(folder, `60 [1]*?#"\'.conf`)
	if err := os.WriteFile(path, []byte("Port 22\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := &Server{Root: root}
	trial := s.Trial([]byte("Include /etc/ssh/sshd_config.d/*.conf\n"), nil)
	if sshdconf.IsAmbiguous(string(trial)) {
		t.Errorf("not every version reads %s alike", trial)
	}
	if err := os.WriteFile(filepath.Join(root, sshdconf.MainConfig), trial, 0o600); err != nil {
		t.Fatal(err)
	}
	lines := s.Lines()
	if len(lines) != 2 || lines[0].String() != strings.TrimPrefix(path, root)+":1" {
		t.Errorf("%s includes %v", trial, lines)
	}
}
