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
// cannot read.
func (s *Server) Files(patterns []string) map[string][]byte {
	files := make(map[string][]byte)
	for _, file := range s.existing(patterns) {
		if data, err := readBounded(filepath.Join("/", s.Root, file)); err == nil {
			files[file] = data
		}
	}
	return files
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
		return nil, nil
	}
	return io.ReadAll(io.LimitReader(file, most))
}
