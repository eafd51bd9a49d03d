package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
)

// runtimeDir is where what was found out holds until the next boot.
const runtimeDir = "/run/hallmark"

// volatileDir returns runtimeDir if what is in it does not outlive a boot, otherwise
// "": a /run that is part of the disk would become part of an image.
func volatileDir() string {
	run, err := os.Stat(filepath.Dir(runtimeDir))
	if err != nil {
		return ""
	}
	root, err := os.Stat("/")
	if err != nil {
		return ""
	}
	of, ok := run.Sys().(*syscall.Stat_t)
	disk, ok2 := root.Sys().(*syscall.Stat_t)
	if !ok || !ok2 || of.Dev == disk.Dev {
		return ""
	}
	return runtimeDir
}

// instance returns which instance this is. A machine cannot become another one
// without a boot, so the metadata service is asked once in each.
func (e *Enroller) instance(ctx context.Context) (Instance, error) {
	if i, ok := loadInstance(e.runDir); ok {
		return i, nil
	}
	i, err := e.metadata.instance(ctx)
	if err == nil && e.runDir != "" {
		e.note("note which instance this is", saveInstance(e.runDir, i))
	}
	return i, err
}

func instancePath(dir string) string { return filepath.Join(dir, "instance.json") }

func loadInstance(dir string) (i Instance, ok bool) {
	if dir == "" {
		return i, false
	}
	data, err := os.ReadFile(instancePath(dir))
	if err != nil || json.Unmarshal(data, &i) != nil {
		return Instance{}, false
	}
	return i, i.AccountID != "" && i.Region != "" && i.InstanceID != ""
}

func saveInstance(dir string, i Instance) error {
	data, err := json.Marshal(i)
	if err != nil {
		return fmt.Errorf("encode: %w", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return replaceFile(instancePath(dir), append(data, '\n'))
}
