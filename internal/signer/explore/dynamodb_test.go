//go:build e2e && linux

package explore

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"reflect"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hallmark-ssh/hallmark/e2e/fake/dynamodb"
	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
)

func TestMain(m *testing.M) { os.Exit(dynamodb.Isolated(m)) }

// samples is the number of orders of each pair that run on DynamoDB Local.
const samples = 1

// TestDynamoDB runs some orders of each pair on DynamoDB Local. They must end as they do in
// memory, and a sweep must repair what is wrong.
func TestDynamoDB(t *testing.T) {
	if _, err := dynamodb.Find(); err != nil {
		if os.Getenv("HALLMARK_TEST_STRICT") == "" {
			t.Skip(err)
		}
		t.Fatal(err)
	}
	local, err := dynamodb.Start(t.Context(), t.Output())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(local.Close)
	f, tables := newFixed(t), 0
	for _, p := range pairs() {
		t.Run(p.name, func(t *testing.T) {
			o := newOutside(t)
			synctest.Test(t, func(t *testing.T) {
				g, first, err := newGraph(f, p, false)
				if err != nil {
					t.Fatal(err)
				}
				defer g.close()
				for seed := range uint64(samples) {
					end, err := g.walk(first, rand.New(rand.NewPCG(seed, 2))) //nolint:gosec // a sample
					if err != nil {
						t.Fatal(err)
					}
					tables++
					if err := o.compare(local.URL, fmt.Sprintf("explored-%d", tables), g, end); err != nil {
						t.Error(g.trace(err))
					}
				}
			})
		})
	}
	t.Logf("%d orders", tables)
}

// compare runs the graph's path with a ledger in a new table.
func (o *outside) compare(url, table string, g *graph, want *vertex) error {
	w := newWorld(g.fixed)
	w.inPlace = true
	client := dynamodb.Client(url, region)
	l := remote{o, ledger.NewDynamoDB(client, table, w.clock)}
	w.ledger = l
	var err error
	o.do(func() { err = dynamodb.CreateTable(context.Background(), client, table) })
	if err != nil {
		return err
	}
	if err := g.pair.prepare(w); err != nil {
		return fmt.Errorf("prepare: %w", err)
	}
	r := newReplay(g.pair, w)
	if err := r.all(g.path); err != nil {
		return err
	}
	for k, p := range r.processes {
		if got, want := fmt.Sprint(p.result()), fmt.Sprint(want.ops[k].err); got != want {
			return fmt.Errorf("%s: %s, in memory %s", operationName(k), got, want)
		}
	}
	for n := 1; n <= 2; n++ {
		if got, want := w.record(n), want.world.record(n); !reflect.DeepEqual(got, want) {
			return fmt.Errorf("record of instance %d: %+v, in memory %+v", n, got, want)
		}
	}
	if err := w.sweep(); err != nil {
		return err
	}
	for n := 1; n <= 2; n++ {
		if err := w.checkNode(n); err != nil {
			return fmt.Errorf("after a sweep: %w", err)
		}
	}
	return nil
}

// outside runs functions outside the synctest bubble: nothing inside it may wait for the
// network.
type outside struct {
	functions chan func()
	done      chan struct{}
}

func newOutside(t *testing.T) *outside {
	o := &outside{make(chan func()), make(chan struct{})}
	go func() {
		for function := range o.functions {
			function()
			o.done <- struct{}{}
		}
	}()
	t.Cleanup(func() { close(o.functions) })
	return o
}

func (o *outside) do(function func()) {
	o.functions <- function
	<-o.done
}

// remote is a ledger on DynamoDB Local.
type remote struct {
	*outside
	ledger *ledger.DynamoDB
}

func (r remote) Lookup(ctx context.Context, i ec2ref.Instance) (found ledger.Record, err error) {
	r.do(func() { found, err = r.ledger.Lookup(ctx, i) })
	return found, err
}

func (r remote) LookupAll(ctx context.Context, all []ec2ref.Instance) (found map[ec2ref.Instance]ledger.Record, err error) {
	r.do(func() { found, err = r.ledger.LookupAll(ctx, all) })
	return found, err
}

func (r remote) Claim(ctx context.Context, c ledger.Claim, now time.Time) (g ledger.Grant, err error) {
	r.do(func() { g, err = r.ledger.Claim(ctx, c, now) })
	return g, err
}

func (r remote) Complete(ctx context.Context, c ledger.Claim, g ledger.Grant, now time.Time) (done ledger.Record, err error) {
	r.do(func() { done, err = r.ledger.Complete(ctx, c, g, now) })
	return done, err
}

func (r remote) Announce(ctx context.Context, i ec2ref.Instance) (found ledger.Record, err error) {
	r.do(func() { found, err = r.ledger.Announce(ctx, i) })
	return found, err
}

func (r remote) Leave(ctx context.Context, l ledger.Leave, now time.Time) (left ledger.Record, err error) {
	r.do(func() { left, err = r.ledger.Leave(ctx, l, now) })
	return left, err
}

func (r remote) Retire(ctx context.Context, i ec2ref.Instance) (err error) {
	r.do(func() { err = r.ledger.Retire(ctx, i) })
	return err
}

func (r remote) Permit(ctx context.Context, i ec2ref.Instance, p ledger.Permit) (err error) {
	r.do(func() { err = r.ledger.Permit(ctx, i, p) })
	return err
}

func (r remote) Expired(ctx context.Context, from string, now time.Time) (found ledger.Expired, err error) {
	r.do(func() { found, err = r.ledger.Expired(ctx, from, now) })
	return found, err
}

func (r remote) RetireExpired(ctx context.Context, i ec2ref.Instance, now time.Time) (retired bool, err error) {
	r.do(func() { retired, err = r.ledger.RetireExpired(ctx, i, now) })
	return retired, err
}

func (r remote) Release(ctx context.Context, name, by string, now time.Time) (holder ec2ref.Instance, err error) {
	r.do(func() { holder, err = r.ledger.Release(ctx, name, by, now) })
	return holder, err
}
