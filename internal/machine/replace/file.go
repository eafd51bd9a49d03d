package replace

import (
	"errors"
)

// File replaces one file as a whole.
func File(path string, data []byte) (err error) {
	change := &Change{}
	defer func() { err = errors.Join(err, change.Close()) }()
	if err := change.Stage(path, data, 0o644); err != nil {
		return err
	}
	if err := change.Commit(); err != nil {
		return err
	}
	change.Keep()
	return nil
}
