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

// Files reads the files that decide about logins, by the patterns that name them. It leaves
// out those that it cannot read.
func (s *Server) Files(patterns []string) map[string][]byte {
	files := make(map[string][]byte)
	for _, file := range s.existing(patterns) {
		if data, err := readBounded(filepath.Join("/", s.Root, file)); err == nil {
			files[file] = data
		}
	}
	return files
}

// existing returns the files that patterns name, up to a number, as sshd names them. A
// name without wildcards stays, whether it exists or not.
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

// readBounded reads a file that decides about logins. What is no regular file, as
// /dev/null, or longer than any such list counts as empty.
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
