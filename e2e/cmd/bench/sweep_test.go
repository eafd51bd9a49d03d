//go:build linux

package main

import (
	"context"
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/signer/upkeep"
)

// A sweep of a large fleet makes every change that it should, and no needless request to EC2.
func TestSweepsOfALargeFleet(t *testing.T) {
	// Two pages of EC2's answers for each account.
	const nodes, unenrolled = 5000, 500
	tests := map[string]struct {
		gone, retagged int
		want           upkeep.Report
		pages          int // of DescribeInstances, besides what is asked again
	}{
		"nothing to do": {0, 0, upkeep.Report{Nodes: nodes, Unenrolled: unenrolled}, 10},
		"some of each":  {100, 500, upkeep.Report{Nodes: nodes, Unenrolled: unenrolled, Deleted: 100, Repaired: 500}, 10 + 5},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := measureSweep(t.Context(), nodes, func(w *sweepWorld) {
				w.ec2.Wait = func(ctx context.Context, _ time.Duration) error { return ctx.Err() }
				w.change(tt.gone, tt.retagged)
			})
			if err != nil {
				t.Fatal(err)
			}
			t.Log(got)
			if got.report != tt.want {
				t.Errorf("report %+v, want %+v", got.report, tt.want)
			}
			if n := got.calls["EC2 DescribeInstances"]; n != tt.pages {
				t.Errorf("EC2 was asked %d times, want %d", n, tt.pages)
			}
			if got.calls["policy"] != 1 || got.calls["Teleport DeleteNode"] != tt.gone || got.calls["Teleport UpsertNode"] != tt.retagged {
				t.Errorf("calls %v", got.calls)
			}
		})
	}
}
