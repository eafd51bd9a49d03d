package install

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"go.yaml.in/yaml/v4"

	"github.com/hallmark-ssh/hallmark/internal/machine/rooted"
)

// MakesHostKeys reports whether something in the file system at root generates host keys at
// boot: cloud-init, or a unit or script that runs a program that does.
func MakesHostKeys(root string) bool {
	cloudInit := runsCloudInit(root)
	return cloudInit && cloudInitMakesKeys(root) || unitMakesKeys(root, cloudInit)
}

// unitFolders are where systemd looks for units (systemd.unit(5)), in order, and where older
// systems have scripts.
func unitFolders() []string {
	return []string{"/etc/systemd/system", "/usr/local/lib/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"}
}

// unitMakesKeys looks for units and boot scripts that generate host keys, such as Red Hat's
// sshd-keygen@.service. A unit that is masked, or overridden in /etc, does not count, and with
// cloud-init neither does one that leaves the keys to cloud-init.
func unitMakesKeys(root string, cloudInit bool) bool {
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
			file := filepath.Join(folder, entry.Name())
			if runsKeygen(root, file, "Exec") && (!cloudInit || !yieldsToCloudInit(root, file)) {
				return true
			}
		}
	}
	return runsKeygen(root, "/etc/rc.local", "") || runsKeygen(root, "/etc/rc.d/rc.local", "") || runsKeygen(root, "/etc/init.d/sshd", "")
}

// runsKeygen reports whether a file has a line with the prefix, not a comment, with a program
// that generates host keys. In a unit, other lines only name units: cloud-init.service has
// Before=sshd-keygen.service.
func runsKeygen(root, file, prefix string) bool {
	return hasLine(root, file, func(line string) bool {
		return strings.HasPrefix(line, prefix) && slices.ContainsFunc(
			[]string{"ssh-keygen", "sshd-keygen", "sshd-gen-keys", "sshdgenkeys", "reconfigure openssh-server"},
			func(program string) bool { return strings.Contains(line, program) })
	})
}

// yieldsToCloudInit reports whether a unit, or a drop-in of it, has a condition about
// cloud-init. On Red Hat and Amazon Linux, cloud-init's package adds such a drop-in to
// sshd-keygen@.service.
func yieldsToCloudInit(root, unit string) bool {
	conditional := func(line string) bool {
		return strings.HasPrefix(line, "Condition") && strings.Contains(line, "cloud-init")
	}
	files := []string{unit}
	for _, folder := range unitFolders() {
		dropIns := filepath.Join(folder, filepath.Base(unit)+".d")
		entries, err := readFolder(root, dropIns)
		if err != nil {
			continue
		}
		for _, entry := range entries {
			files = append(files, filepath.Join(dropIns, entry.Name()))
		}
	}
	return slices.ContainsFunc(files, func(file string) bool { return hasLine(root, file, conditional) })
}

// hasLine reports whether a file has such a line, which is not a comment.
func hasLine(root, file string, is func(line string) bool) bool {
	data, err := readInside(root, file)
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(data)) {
		line = strings.TrimSpace(line)
		if line != "" && !strings.HasPrefix(line, "#") && !strings.HasPrefix(line, ";") && is(line) {
			return true
		}
	}
	return false
}

// runsCloudInit reports whether cloud-init is installed, and neither switched off nor masked.
func runsCloudInit(root string) bool {
	if !exists(root, "/usr/bin/cloud-init") && !exists(root, "/usr/local/bin/cloud-init") || exists(root, "/etc/cloud/cloud-init.disabled") {
		return false
	}
	// The second and third run the ssh module: one before cloud-init 24.3, the other since.
	units := []string{"cloud-init.target", "cloud-init.service", "cloud-init-network.service", "cloud-init-main.service"}
	return !slices.ContainsFunc(units, func(unit string) bool {
		target, err := rooted.Resolve(root, filepath.Join("/etc/systemd/system", unit))
		return err == nil && target == os.DevNull
	})
}

// cloudInitMakesKeys reports whether cloud-init generates host keys (its module cc_ssh). Of
// several files, the last one wins. It reads an ssh_genkeytypes without a value as an empty
// list.
func cloudInitMakesKeys(root string) bool {
	files := []string{"/etc/cloud/cloud.cfg"}
	if entries, err := readFolder(root, "/etc/cloud/cloud.cfg.d"); err == nil {
		for _, entry := range entries { // in the order of their names
			if filepath.Ext(entry.Name()) == ".cfg" {
				files = append(files, filepath.Join("/etc/cloud/cloud.cfg.d", entry.Name()))
			}
		}
	}
	makes, runs := true, true
	for _, file := range files {
		data, err := readInside(root, file)
		var config map[string]any
		if err != nil || yaml.Unmarshal(data, &config) != nil {
			continue
		}
		if types, ok := config["ssh_genkeytypes"]; ok {
			list, isList := types.([]any)
			makes = types != nil && types != "" && (!isList || len(list) > 0)
		}
		if modules, ok := config["cloud_init_modules"].([]any); ok {
			runs = slices.ContainsFunc(modules, isSSHModule)
		}
	}
	return makes && runs
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
