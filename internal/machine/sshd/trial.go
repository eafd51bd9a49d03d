package sshd

import (
	"context"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/hallmark-ssh/hallmark/internal/machine/sshdconf"
)

// TrialConfig is the name, in the folder of the main configuration file, of one that sshd
// is asked about before anything is in place. No Include takes it for a drop-in.
const TrialConfig = ".sshd_config.hallmark-trial"

// Trial returns a configuration that comes to what main would come to with a drop-in that
// holds body, or with none if body is empty: it includes the other drop-ins by name, and
// has body where the drop-in would be.
func (s *Server) Trial(main, body []byte) []byte {
	r := lineReader{root: filepath.Join("/", s.Root)}
	var b strings.Builder
	for line := range strings.Lines(string(main)) {
		keyword, arguments := sshdconf.SplitDirective(line)
		if keyword != "include" {
			b.WriteString(line)
			continue
		}
		for _, argument := range arguments {
			body = includeEach(&b, r.glob([]string{argument}), sshdconf.Includes([]string{argument}, sshdconf.DropIn), body)
		}
	}
	return []byte(b.String())
}

// includeEach includes files one by one, in their order, but for the drop-in: in its place
// stands body. It returns what of body is still to come.
func includeEach(b *strings.Builder, files []string, dropIn bool, body []byte) []byte {
	write := func() {
		if dropIn {
			b.Write(body)
			body, dropIn = nil, false
		}
	}
	for _, file := range files {
		if file >= sshdconf.DropIn {
			write()
		}
		if file != sshdconf.DropIn {
			b.WriteString("Include " + strconv.Quote(file) + "\n")
		}
	}
	write()
	return body
}

// LoginsWith is Logins for another main configuration file, by its name in the folder of
// the server's own.
func (s *Server) LoginsWith(ctx context.Context, name string) ([]Login, error) {
	other := *s
	other.Config = filepath.Join(filepath.Dir(s.configPath()), name)
	return other.Logins(ctx)
}

// configPath is where the server's own configuration is or would be.
func (s *Server) configPath() string {
	if s.Config != "" {
		return s.Config
	}
	return sshdconf.MainConfig
}
