//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/hallmark-ssh/hallmark/e2e/lab"
	"github.com/hallmark-ssh/hallmark/e2e/machine"
)

var errNotYet = errors.New("not yet")

// printBoot prints the time from the network being online to the end of the
// enrollment, according to systemd's timestamps.
func printBoot(ctx context.Context, i *lab.Instance) error {
	var online, started, ended time.Duration
	err := machine.Await(ctx, func() (err error) {
		if online, err = timestamp(ctx, i, "network-online.target", "ActiveEnterTimestampMonotonic"); err != nil {
			return err
		}
		if started, err = timestamp(ctx, i, "hallmark.service", "ExecMainStartTimestampMonotonic"); err != nil {
			return err
		}
		ended, err = timestamp(ctx, i, "hallmark.service", "ExecMainExitTimestampMonotonic")
		return err
	})
	if err != nil {
		return err
	}
	fmt.Printf("%-46s %9.2f s\n", "boot: network online to hallmark's start", (started - online).Seconds())
	show("boot: hallmark's start to enrolled", (ended - started).Seconds(), 1, "s")
	return nil
}

// timestamp reads a unit's property that is a time in microseconds since boot.
func timestamp(ctx context.Context, i *lab.Instance, unit, property string) (time.Duration, error) {
	out, err := i.Run(ctx, "systemctl", "show", unit, "--value", "--property="+property)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(strings.TrimSpace(out), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s of %s: %w", property, unit, err)
	}
	if n == 0 {
		return 0, errNotYet
	}
	return time.Duration(n) * time.Microsecond, nil
}

// printEvents prints how long an event about a tag takes from the queue to the label.
func printEvents(ctx context.Context, l *lab.Lab, i *lab.Instance) error {
	state, err := i.State(ctx)
	if err != nil {
		return err
	}
	var costs []cost
	for version := 1; version <= runs; version++ {
		value := fmt.Sprint(version)
		if err := l.EC2.Tag(ctx, i.ID, "bench", value); err != nil {
			return err
		}
		start := time.Now()
		if err := l.SendTags(ctx, i.ID, version); err != nil {
			return err
		}
		err := machine.Await(ctx, func() error {
			nodes, err := l.Cluster.Nodes(ctx)
			if err != nil {
				return err
			}
			for _, node := range nodes {
				if node.GetName() == state.Node.ID && node.GetAllLabels()["aws/bench"] == value {
					return nil
				}
			}
			return errNotYet
		})
		if err != nil {
			return err
		}
		costs = append(costs, cost{wall: time.Since(start).Seconds()})
	}
	show("event to effect, queue included (median)", median(costs, wall), 1, "s")
	return nil
}
