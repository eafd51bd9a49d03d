package sshd

import (
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/hallmark-ssh/hallmark/internal/machine/sshdconf"
)

// Files reads the files that match the patterns and affect logins. It skips files that it
// cannot read. The content of a file that sshd may see but this process cannot is nil.
func (s *Server) Files(patterns []string) map[string][]byte {
	files := make(map[string][]byte)
	for _, file := range s.existing(patterns) {
		path := filepath.Join("/", s.Root, file)
		if data, err := readBounded(path); err == nil {
			files[file] = data
		} else if isHidden(path) {
			files[file] = nil
		}
	}
	return files
}

// isHidden reports whether a path is in a folder that systemd hides from this process. In
// hallmark.service, ProtectHome=yes puts an empty folder of mode 0000 in place of /home and
// /root (systemd.exec(5)).
func isHidden(path string) bool {
	for folder := filepath.Dir(path); ; folder = filepath.Dir(folder) {
		info, err := os.Lstat(folder)
		if err == nil && info.IsDir() {
			return info.Mode().Perm() == 0
		}
		if folder == "/" || err == nil {
			return false
		}
	}
}

// existing returns the files that patterns match, up to a limit, as sshd names them. It keeps
// a name without wildcards whether or not the file exists.
func (s *Server) existing(patterns []string) (files []string) {
	const most = 256
	root := filepath.Join("/", s.Root)
	for _, pattern := range patterns {
		if !sshdconf.IsPattern(pattern) {
			files = append(files, pattern)
			continue
		}
		found, _ := filepath.Glob(filepath.Join(root, pattern))
		for _, file := range found[:min(len(found), most)] {
			files = append(files, filepath.Join("/", strings.TrimPrefix(file, root)))
		}
	}
	return files
}

// readBounded reads a file that affects logins. A file that is not regular, such as /dev/null,
// or that is longer than any such list, counts as empty.
func readBounded(path string) ([]byte, error) {
	const most = 64 << 20
	file, err := os.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil || info.IsDir() {
		return nil, errors.Join(err, fs.ErrInvalid)
	}
	if !info.Mode().IsRegular() || info.Size() > most {
		return []byte{}, nil
	}
	return io.ReadAll(io.LimitReader(file, most))
}
