package teleporttest

import (
	"cmp"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/gravitational/teleport/api/types"
)

// nodes holds the records of nodes as Teleport does: writes go to the backend, and reads come
// from a cache that sees them later.
type nodes struct {
	now func() time.Time
	lag time.Duration

	mu      sync.Mutex
	cached  map[string]*types.ServerV2
	pending []write // that the cache has not seen, oldest first
}

// write is a put or, without a node, a deletion.
type write struct {
	at   time.Time
	name string
	node *types.ServerV2
}

func newNodes(now func() time.Time, lag time.Duration) *nodes {
	return &nodes{now: now, lag: lag, cached: make(map[string]*types.ServerV2)}
}

func (n *nodes) put(node *types.ServerV2) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.pending = append(n.pending, write{n.now(), node.GetName(), node})
}

// remove reports whether there was such a node.
func (n *nodes) remove(name string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.settle()
	backend := maps.Clone(n.cached)
	apply(backend, n.pending)
	if node := backend[name]; node == nil || n.expired(node) {
		return false
	}
	n.pending = append(n.pending, write{n.now(), name, nil})
	return true
}

// current returns what the backend holds, sorted by name.
func (n *nodes) current() []*types.ServerV2 {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.settle()
	backend := maps.Clone(n.cached)
	apply(backend, n.pending)
	return n.live(backend)
}

// visible returns what reads see, sorted by name.
func (n *nodes) visible() []*types.ServerV2 {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.settle()
	return n.live(n.cached)
}

// settle adds the writes that are old enough to the cache.
func (n *nodes) settle() {
	due := n.now().Add(-n.lag)
	count := 0
	for count < len(n.pending) && !n.pending[count].at.After(due) {
		count++
	}
	apply(n.cached, n.pending[:count])
	n.pending = slices.Clone(n.pending[count:])
}

func apply(to map[string]*types.ServerV2, writes []write) {
	for _, w := range writes {
		if w.node == nil {
			delete(to, w.name)
			continue
		}
		to[w.name] = w.node
	}
}

func (n *nodes) live(from map[string]*types.ServerV2) []*types.ServerV2 {
	var live []*types.ServerV2
	for _, node := range from {
		if !n.expired(node) {
			live = append(live, node.DeepCopy().(*types.ServerV2))
		}
	}
	slices.SortFunc(live, func(a, b *types.ServerV2) int { return cmp.Compare(a.GetName(), b.GetName()) })
	return live
}

func (n *nodes) expired(node *types.ServerV2) bool {
	return !node.Expiry().IsZero() && !n.now().Before(node.Expiry())
}
