package replace

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
)

// MakeFolder creates a folder and those above it, as far as they do not exist, with mode 0755:
// the umask does not matter. On hardened machines it is 077.
func MakeFolder(path string) error {
	const mode = 0o755
	var missing []string
	for ; ; path = filepath.Dir(path) {
		_, err := os.Stat(path)
		if err == nil {
			break
		}
		if !errors.Is(err, fs.ErrNotExist) || path == filepath.Dir(path) {
			return err
		}
		missing = append(missing, path)
	}
	for _, folder := range slices.Backward(missing) {
		err := os.Mkdir(folder, mode)
		if errors.Is(err, fs.ErrExist) {
			continue // somebody else has just created it
		}
		if err == nil {
			err = os.Chmod(folder, mode)
		}
		if err != nil {
			return err
		}
	}
	return nil
}
