package sshd

import (
	"context"
	"path/filepath"
	"slices"
	"strings"

	"github.com/hallmark-ssh/hallmark/internal/machine/sshdconf"
)

// TrialConfig is the name of a configuration file, in the folder of the main one, that
// Hallmark asks sshd about before anything is in place. No Include takes it for a drop-in.
const TrialConfig = ".sshd_config.hallmark-trial"

// Trial returns a configuration with the same effect as main would have with a drop-in that
// contains body, or with none if body is empty: it includes the other drop-ins by name, and
// has body in place of the drop-in.
func (s *Server) Trial(main, body []byte) []byte {
	r := lineReader{root: filepath.Join("/", s.Root)}
	var b strings.Builder
	for line := range strings.Lines(string(main)) {
		keyword, arguments := sshdconf.SplitDirective(line)
		// A line that versions read in different ways stays as it is, unless it includes the
		// drop-in. Then the trial has what OpenSSH since 8.7 makes of it.
		if keyword != "include" || sshdconf.IsAmbiguous(line) && !slices.Contains(r.glob(arguments), sshdconf.DropIn) {
			b.WriteString(line)
			continue
		}
		for _, argument := range arguments {
			body = includeEach(&b, r.glob([]string{argument}), sshdconf.Includes([]string{argument}, sshdconf.DropIn), body)
		}
	}
	return []byte(b.String())
}

// includeEach includes files one by one, in order. In place of the drop-in it writes body. It
// returns what is left of body.
func includeEach(b *strings.Builder, files []string, dropIn bool, body []byte) []byte {
	write := func() {
		if dropIn {
			b.Write(body)
			if len(body) > 0 && body[len(body)-1] != '\n' {
				b.WriteByte('\n') // another Include follows
			}
			body, dropIn = nil, false
		}
	}
	for _, file := range files {
		if file >= sshdconf.DropIn {
			write()
		}
		if file != sshdconf.DropIn {
			b.WriteString("Include " + quoteFile(file) + "\n")
		}
	}
	write()
	return body
}

// quoteFile writes a file's name as the argument of an Include, which takes it for a pattern
// (glob(7)). OpenSSH before 8.7 knows no way to write a quote or a "#" in an argument.
func quoteFile(file string) string {
	return `"` + strings.NewReplacer(`"`, `?`, `#`, `?`, `\`, `?`, `[`, `\[`, `*`, `\*`, `?`, `\?`).Replace(file) + `"`
}

// LoginsWith is Logins for another main configuration file, named relative to the folder of
// the server's own.
func (s *Server) LoginsWith(ctx context.Context, name string) ([]Login, error) {
	other := *s
	other.Config = filepath.Join(filepath.Dir(s.configPath()), name)
	return other.Logins(ctx)
}

// configPath is where the server's own configuration is, or would be.
func (s *Server) configPath() string {
	if s.Config != "" {
		return s.Config
	}
	return sshdconf.MainConfig
}
