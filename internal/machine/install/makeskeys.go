package install

import (
	"bytes"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"go.yaml.in/yaml/v4"

	"github.com/hallmark-ssh/hallmark/internal/machine/rooted"
)

// MakesHostKeys reports whether something in the file system at root generates host keys at
// boot: cloud-init, or a unit or script that runs a program that does.
func MakesHostKeys(root string) bool { return cloudInitMakesKeys(root) || unitMakesKeys(root) }

// unitFolders are where systemd looks for units (systemd.unit(5)), in order, and where older
// systems have scripts.
func unitFolders() []string {
	return []string{"/etc/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"}
}

// unitMakesKeys looks for units and boot scripts that generate host keys, such as Red Hat's
// sshd-keygen@.service. A unit that is masked, or overridden in /etc, does not count.
func unitMakesKeys(root string) bool {
	seen := map[string]bool{}
	for _, folder := range unitFolders() {
		entries, err := readFolder(root, folder)
		if err != nil {
			continue
		}
		for _, entry := range entries {
			if entry.IsDir() || seen[entry.Name()] {
				continue
			}
			seen[entry.Name()] = true
			if runsKeygen(root, filepath.Join(folder, entry.Name())) {
				return true
			}
		}
	}
	return runsKeygen(root, "/etc/rc.local") || runsKeygen(root, "/etc/rc.d/rc.local") || runsKeygen(root, "/etc/init.d/sshd")
}

// runsKeygen reports whether a file has a line, not a comment, with a program that generates
// host keys.
func runsKeygen(root, file string) bool {
	data, err := readInside(root, file)
	if err != nil {
		return false
	}
	for line := range bytes.Lines(data) {
		line = bytes.TrimSpace(line)
		if len(line) == 0 || line[0] == '#' || bytes.HasPrefix(line, []byte("Description=")) {
			continue
		}
		for _, program := range []string{"ssh-keygen", "sshd-keygen", "sshd-gen-keys", "sshdgenkeys", "reconfigure openssh-server"} {
			if bytes.Contains(line, []byte(program)) && !bytes.HasPrefix(line, []byte("After=")) && !bytes.HasPrefix(line, []byte("Wants=")) {
				return true
			}
		}
	}
	return false
}

// cloudInitMakesKeys reports whether cloud-init is installed and generates host keys (its
// module cc_ssh).
func cloudInitMakesKeys(root string) bool {
	if !exists(root, "/usr/bin/cloud-init") && !exists(root, "/usr/local/bin/cloud-init") || exists(root, "/etc/cloud/cloud-init.disabled") {
		return false
	}
	files := []string{"/etc/cloud/cloud.cfg"}
	if entries, err := readFolder(root, "/etc/cloud/cloud.cfg.d"); err == nil {
		for _, entry := range entries { // in the order of their names; the last one wins
			if filepath.Ext(entry.Name()) == ".cfg" {
				files = append(files, filepath.Join("/etc/cloud/cloud.cfg.d", entry.Name()))
			}
		}
	}
	makes := true
	for _, file := range files {
		data, err := readInside(root, file)
		if err != nil {
			continue
		}
		var config struct {
			KeyTypes *[]string `yaml:"ssh_genkeytypes"`
			Modules  []any     `yaml:"cloud_init_modules"`
		}
		if yaml.Unmarshal(data, &config) != nil {
			continue
		}
		if config.KeyTypes != nil {
			makes = len(*config.KeyTypes) > 0
		}
		if config.Modules != nil && !slices.ContainsFunc(config.Modules, isSSHModule) {
			return false
		}
	}
	return makes
}

// isSSHModule recognizes an entry of cloud_init_modules: a name, or a list that begins
// with one.
func isSSHModule(module any) bool {
	if list, ok := module.([]any); ok && len(list) > 0 {
		module = list[0]
	}
	return module == "ssh" || module == "cc_ssh"
}

func exists(root, path string) bool {
	resolved, err := rooted.Resolve(root, path)
	if err != nil {
		return false
	}
	_, err = os.Lstat(filepath.Join(root, resolved))
	return err == nil
}

func readFolder(root, path string) ([]fs.DirEntry, error) {
	resolved, err := rooted.Resolve(root, path)
	if err != nil {
		return nil, err
	}
	return os.ReadDir(filepath.Join(root, resolved))
}

// readInside reads a file of limited size inside a root, wherever links lead.
func readInside(root, path string) ([]byte, error) {
	const most = 1 << 20
	resolved, err := rooted.Resolve(root, path)
	if err != nil {
		return nil, err
	}
	path = filepath.Join(root, resolved)
	info, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > most {
		return nil, errors.New("not a file of some size")
	}
	return os.ReadFile(path)
}
