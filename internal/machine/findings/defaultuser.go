package findings

import (
	"maps"
	"path"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"
)

// cloudInitFiles are the files in which cloud-init's configuration names the default user. A later
// one wins.
func cloudInitFiles() []string {
	return []string{"/etc/cloud/cloud.cfg", "/etc/cloud/cloud.cfg.d/*.cfg"}
}

// defaultUser returns the account that cloud-init creates for people to log in to, such as admin or
// ec2-user, or "" if no configuration names one.
func (f evidence) defaultUser() (name string) {
	for _, file := range slices.Sorted(maps.Keys(f.Files)) {
		if !slices.ContainsFunc(cloudInitFiles(), func(pattern string) bool { ok, err := path.Match(pattern, file); return ok && err == nil }) {
			continue
		}
		var config struct {
			SystemInfo struct {
				DefaultUser struct {
					Name string `yaml:"name"`
				} `yaml:"default_user"`
			} `yaml:"system_info"`
		}
		if yaml.Unmarshal(f.Files[file], &config) != nil {
			continue // cloud-init skips it, too
		}
		if user := strings.TrimSpace(config.SystemInfo.DefaultUser.Name); user != "" {
			name = user
		}
	}
	return name
}
