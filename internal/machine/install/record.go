package install

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"github.com/hallmark-ssh/hallmark/internal/machine/config"
	"github.com/hallmark-ssh/hallmark/internal/machine/fault"
	"github.com/hallmark-ssh/hallmark/internal/machine/sshdconf"
)

// recordFile says what the first installation found, so that hallmark unenroll can restore it.
const recordFile = "/etc/hallmark/installed.json"

// record lists the files and folders that did not exist before the first installation. An
// installation of a release that kept no record has none.
type record struct {
	Version int      `json:"version"`
	Made    []string `json:"made"`
}

const recordVersion = 1

// includesVendor is all that Hallmark's own main file on SUSE has besides the marked block.
const includesVendor = "Include " + sshdconf.VendorConfig + "\n"

// readRecord returns nil if there is no record.
func (in *Installer) readRecord() (*record, error) {
	data, err := in.readInstalled(recordFile)
	if err != nil {
		return nil, fault.Newf(fault.Failed, fault.FileHint(err), "read the record of the installation: %w", err)
	}
	if data == nil {
		return nil, nil
	}
	var r record
	if err := json.Unmarshal(data, &r); err != nil || r.Version != recordVersion {
		return nil, fault.Newf(fault.Failed, "move the file away, then run hallmark again", "%s is damaged, or from a later release", filepath.Join(in.root, recordFile))
	}
	return &r, nil
}

// nextRecord returns the record before the files are put in place: what the last one lists,
// and what does not exist yet.
func (in *Installer) nextRecord(paths []string) (file, error) {
	last, err := in.readRecord()
	if err != nil {
		return file{}, err
	}
	if last == nil {
		if last, err = in.assumedRecord(); err != nil {
			return file{}, err
		}
	}
	r := record{Version: recordVersion, Made: slices.Clone(last.Made)}
	for _, path := range paths {
		missing, err := in.missing(path)
		if err != nil {
			return file{}, err
		}
		r.Made = append(r.Made, missing...)
	}
	slices.Sort(r.Made)
	r.Made = slices.Compact(r.Made)
	data, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return file{}, fmt.Errorf("encode the record of the installation: %w", err)
	}
	return file{recordFile, append(data, '\n'), 0o644}, nil
}

// missing returns the path and the folders above it, as far as they do not exist.
func (in *Installer) missing(path string) (all []string, err error) {
	for ; path != "/"; path = filepath.Dir(path) {
		here, err := in.path(path)
		if err != nil {
			return nil, err
		}
		_, err = os.Lstat(here)
		if err == nil {
			return all, nil
		}
		if !errors.Is(err, fs.ErrNotExist) {
			return nil, fmt.Errorf("find what is there before the installation: %w", err)
		}
		all = append(all, path)
	}
	return all, nil
}

// assumedRecord is for a machine without a record. If Hallmark is installed there, an earlier
// release made the program, and on SUSE a main file that only includes the vendor's.
func (in *Installer) assumedRecord() (*record, error) {
	r := &record{Version: recordVersion}
	installed, err := in.path(config.File)
	if err != nil {
		return nil, err
	}
	if _, err := os.Lstat(installed); errors.Is(err, fs.ErrNotExist) {
		return r, nil
	}
	r.Made = append(r.Made, Program)
	main, err := in.path(sshdconf.MainConfig)
	if err != nil {
		return nil, err
	}
	data, err := os.ReadFile(main)
	if err != nil {
		return r, nil //nolint:nilerr // plan reports it
	}
	if rest, err := sshdconf.WithoutBlock(data); err == nil && string(rest) == includesVendor && !bytes.Equal(rest, data) {
		r.Made = append(r.Made, sshdconf.MainConfig)
	}
	return r, nil
}

func (r *record) made(path string) bool { return slices.Contains(r.Made, path) }
