package replace

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// Preview collects what a Change would do, and changes nothing.
type Preview struct{ lines []string }

// Stage is like that of Change.
func (p *Preview) Stage(path string, data []byte, _ fs.FileMode) error {
	if err := refuseFolder(path); err != nil {
		return fmt.Errorf("prepare %s: %w", path, err)
	}
	exists, err := exists(path)
	switch {
	case err != nil:
		return fmt.Errorf("prepare %s: %w", path, err)
	case !exists:
		p.lines = append(p.lines, "would write "+path)
	case !holds(path, data):
		p.lines = append(p.lines, "would replace "+path)
	}
	return nil
}

// StageRemoval is like that of Change.
func (p *Preview) StageRemoval(path string) error {
	exists, err := exists(path)
	if err != nil {
		return fmt.Errorf("prepare to remove %s: %w", path, err)
	}
	if exists {
		p.lines = append(p.lines, "would remove "+path)
	}
	return nil
}

// Lines returns one line for each file that would change, in order: "would write", "would
// replace" or "would remove", and the path.
func (p *Preview) Lines() []string { return p.lines }

func exists(path string) (bool, error) {
	_, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}
