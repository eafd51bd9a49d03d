package state

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/hallmark-ssh/hallmark/internal/machine/fault"
	"github.com/hallmark-ssh/hallmark/internal/machine/replace"
)

// Original is a certificate of another CA that an enrollment overwrote because the
// configuration says host_certificate: replace. hallmark unenroll restores it.
type Original struct {
	Path    string `json:"path"`
	Content []byte `json:"content"`
}

// originalsPath returns the file with the originals in a folder.
func originalsPath(dir string) string { return filepath.Join(dir, "originals.json") }

// MaxOriginalBytes bounds the content of an original. A certificate has some kilobytes.
const MaxOriginalBytes = 64 << 10

// LoadOriginals returns the originals in a folder.
func LoadOriginals(dir string) ([]Original, error) {
	data, err := os.ReadFile(originalsPath(dir))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fault.Newf(fault.Failed, fault.FileHint(err), "read the certificates of other CAs: %w", err)
	}
	var list []Original
	if err := json.Unmarshal(data, &list); err != nil {
		return nil, fault.Newf(fault.Failed, "move the file away, then run hallmark again", "read %s: %w", originalsPath(dir), err)
	}
	return list, nil
}

// SaveOriginals adds originals to those in a folder, except paths that it already has: what
// came later is not what the machine had before Hallmark.
func SaveOriginals(dir string, more []Original) error {
	list, err := LoadOriginals(dir)
	if err != nil {
		return err
	}
	known := len(list)
	for _, o := range more {
		has := func(other Original) bool { return other.Path == o.Path }
		if len(o.Content) <= MaxOriginalBytes && !slices.ContainsFunc(list, has) {
			list = append(list, o)
		}
	}
	if len(list) == known {
		return nil
	}
	data, err := json.MarshalIndent(list, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the certificates of other CAs: %w", err)
	}
	return replace.File(originalsPath(dir), append(data, '\n'))
}
