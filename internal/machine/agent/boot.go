package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/machine/imds"
	"github.com/hallmark-ssh/hallmark/internal/machine/replace"
)

// instance returns which instance this is. A machine can't become another instance without a
// boot or hibernation, so it asks the metadata service only once after each.
func (e *Enroller) instance(ctx context.Context) (imds.Instance, error) {
	slept := e.suspended()
	if i, ok := loadInstance(e.runDir, slept); ok {
		return i, nil
	}
	i, err := e.metadata.Instance(ctx)
	if err == nil && e.runDir != "" {
		e.note("save which instance this is", saveInstance(e.runDir, bootInstance{i, slept}))
	}
	return i, err
}

// bootInstance is an instance, as the metadata service described it after the last boot or
// hibernation.
type bootInstance struct {
	imds.Instance
	Slept time.Duration `json:"slept"` // suspended at that time, in nanoseconds
}

func instancePath(dir string) string { return filepath.Join(dir, "instance.json") }

// loadInstance returns the saved instance, unless the machine has slept since.
func loadInstance(dir string, slept time.Duration) (i imds.Instance, ok bool) {
	if dir == "" {
		return i, false
	}
	data, err := os.ReadFile(instancePath(dir))
	var b bootInstance
	if err != nil || json.Unmarshal(data, &b) != nil {
		return i, false
	}
	const reading = time.Second // the two clocks are not read at the same moment
	awake := (slept - b.Slept).Abs() < reading
	return b.Instance, awake && b.AccountID != "" && b.Region != "" && b.InstanceID != ""
}

// KnownInstance returns the instance that a run has noted in a folder since the last boot or
// hibernation.
func KnownInstance(runDir string) (imds.Instance, bool) { return loadInstance(runDir, suspended()) }

func saveInstance(dir string, i bootInstance) error {
	data, err := json.Marshal(i)
	if err != nil {
		return fmt.Errorf("encode: %w", err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	return replace.File(instancePath(dir), append(data, '\n'))
}
