// Package rooted finds files below another root folder, such as an image's.
package rooted

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// maxLinks is how many symbolic links a path may go through, as in the kernel.
const maxLinks = 40

// Resolve returns where a path leads inside the file system at root, for a program whose root
// folder that is: an absolute link starts at root again, and ".." does not leave it. The
// result begins with root's "/" and contains no link. Parts that do not exist keep their
// names.
func Resolve(root, path string) (string, error) {
	resolved, rest, links := "/", filepath.Clean("/"+path), 0
	for rest != "" && rest != "/" {
		name, after, _ := strings.Cut(strings.TrimPrefix(rest, "/"), "/")
		rest = after
		switch name {
		case "", ".":
			continue
		case "..":
			resolved = filepath.Dir(resolved)
			continue
		}
		next := filepath.Join(resolved, name)
		info, err := os.Lstat(filepath.Join(root, next))
		if errors.Is(err, fs.ErrNotExist) {
			resolved = next
			continue
		}
		if err != nil {
			return "", err
		}
		if info.Mode()&fs.ModeSymlink == 0 {
			resolved = next
			continue
		}
		if links++; links > maxLinks {
			return "", fmt.Errorf("%s leads through more than %d links", path, maxLinks)
		}
		target, err := os.Readlink(filepath.Join(root, next))
		if err != nil {
			return "", err
		}
		if filepath.IsAbs(target) {
			resolved = "/"
		}
		rest = target + "/" + rest
	}
	return resolved, nil
}
