//go:build linux

package teleportd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/gravitational/teleport/api/types"

	"github.com/hallmark-ssh/hallmark/e2e/machine"
	"github.com/hallmark-ssh/hallmark/internal/caexport"
)

// Rotate moves a CA to a phase of its rotation, and returns when the cluster's own services
// have reached it. They must reach it before the next phase: a service that misses one of the
// Host CA's phases is locked out. The services report their phase within seconds; if a report
// fails, the next one comes a minute or more later. A service that restarts in a phase may fail
// to report for longer, so there the end of the restart is the sign.
func (c *Cluster) Rotate(ctx context.Context, kind caexport.Kind, phase string) error {
	restarts := kind == caexport.Host && phase != "init" && c.behavior.RotationRestarts
	if restarts {
		if err := os.RemoveAll(c.ready()); err != nil {
			return err
		}
	}
	if _, err := c.Tctl(ctx, "auth", "rotate", "--manual", "--type="+string(kind), "--phase="+phase); err != nil {
		return err
	}
	if kind != caexport.Host {
		return nil
	}
	return machine.Poll(ctx, followLimit, func() error {
		if restarts {
			_, err := os.Stat(c.ready())
			return err
		}
		return errors.Join(c.follows(ctx, "auth_server", phase), c.follows(ctx, "proxy", phase))
	})
}

// followLimit is how long the services may take to follow a phase.
const followLimit = 10 * time.Minute

// follows checks that the service has reached the phase.
func (c *Cluster) follows(ctx context.Context, service, phase string) error {
	out, err := c.Tctl(ctx, "get", service, "--format=json")
	if err != nil {
		return err
	}
	var servers []*types.ServerV2
	if err := json.Unmarshal([]byte(out), &servers); err != nil {
		return fmt.Errorf("read what tctl get %s prints: %w", service, err)
	}
	if len(servers) == 0 {
		return fmt.Errorf("tctl get %s lists none", service)
	}
	for _, server := range servers {
		if at := server.Spec.Rotation.Phase; at != phase {
			return fmt.Errorf("%s is in phase %q, not %q", service, at, phase)
		}
	}
	return nil
}
