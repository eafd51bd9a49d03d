package command

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
)

// environmentFile is the file that hallmark.service reads as EnvironmentFile=.
const environmentFile = "/etc/hallmark/environment"

// loadEnvironment sets the variables that the unit would set, so that a command run by hand
// uses the same proxy. It keeps variables that are already set.
func loadEnvironment(path string) error {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read the proxy settings: %w", err)
	}
	for name, value := range parseEnvironment(string(data)) {
		if _, ok := os.LookupEnv(name); ok {
			continue
		}
		if err := os.Setenv(name, value); err != nil {
			return fmt.Errorf("%s: set %q: %w", path, name, err)
		}
	}
	return nil
}

// parseEnvironment reads the lines NAME=VALUE of an EnvironmentFile (systemd.exec(5)). A value
// may be in quotes; lines that begin with # or ; are comments.
func parseEnvironment(text string) map[string]string {
	variables := map[string]string{}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		name, value, ok := strings.Cut(line, "=")
		name = strings.TrimSpace(name)
		if !ok || name == "" || strings.ContainsAny(name, "#; \t\x00") || strings.Contains(value, "\x00") {
			continue
		}
		variables[name] = unquote(strings.TrimSpace(value))
	}
	return variables
}

func unquote(value string) string {
	for _, quote := range []string{`"`, `'`} {
		if len(value) > 1 && strings.HasPrefix(value, quote) && strings.HasSuffix(value, quote) {
			return value[1 : len(value)-1]
		}
	}
	return value
}
