package enroll

import (
	"container/list"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/crypto/ssh"
	"golang.org/x/time/rate"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"github.com/hallmark-ssh/hallmark/internal/signer/cached"
	"github.com/hallmark-ssh/hallmark/internal/signer/entry"
	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
	"github.com/hallmark-ssh/hallmark/internal/sshkey"
)

// These limits say how often an instance may ask. A healthy machine asks every few days,
// a failing one a few times a minute. The bursts are for people who try by hand.
const (
	// attemptBurst and attemptEvery limit the calls to STS about one instance from one
	// network, before the caller has proved anything.
	attemptBurst = 20
	attemptEvery = 30 * time.Second
	// provedBurst and provedEvery limit an instance that proved its identity, from any
	// network. They also limit the calls to EC2, the ledger and Teleport that its root
	// user can cause.
	provedBurst = 20
	provedEvery = time.Minute

	// maxBuckets bounds the memory of a limiter, and of the recorded keys, to a few
	// megabytes.
	maxBuckets = 8192
	// recordedFor is how long the signer caches the recorded keys of an instance. Until
	// then it does not read them again, for any caller.
	recordedFor = time.Minute
)

// pace is how many requests a bucket allows at first, and how often it allows another
// one.
type pace struct {
	burst int
	every time.Duration
}

// limitAttempts stops repetition before the signer calls STS.
//
// A bucket belongs to an instance and a source together. With buckets per instance, a
// thief with its document could lock out the machine itself. With buckets per source, a
// fleet behind one address would lock itself out. Other processes on the machine share
// both, and so may others behind its address: see take.
//
// Behind a VPC endpoint, the endpoint's id is part of the source: two networks may use
// the same addresses. Direct invocations have no source. A caller that may invoke the
// function and has the instance's document can then use up its bucket, but not the bucket
// of its recorded keys.
func (s *Signer) limitAttempts(ctx context.Context, e *evidence, r entry.Request, a *audit) error {
	b := bucket{instance: a.document.Instance, source: network(r.Source), endpoint: r.Endpoint}
	if wait := s.take(ctx, &s.attempts, b, pace{attemptBurst, attemptEvery}, e.keys, a); wait > 0 {
		return limited(wait, "from one source")
	}
	return nil
}

// limitProved counts only an instance's own requests: no other caller can use them up.
func (s *Signer) limitProved(ctx context.Context, e *evidence, a *audit) error {
	if wait := s.take(ctx, &s.proved, bucket{instance: a.document.Instance}, pace{provedBurst, provedEvery}, e.keys, a); wait > 0 {
		return limited(wait, "of one instance")
	}
	return nil
}

// take takes a token from the shared bucket. If it has none, a request signed by a
// recorded host key gets a token from a separate bucket. Any process that reaches the
// metadata service has the document and the role's credentials, and can use up the shared
// bucket; only the machine's root user has a recorded key, and its renewal must get
// through. Checking the key costs at most one read of the ledger per recordedFor, and
// none while the shared bucket has tokens.
func (s *Signer) take(ctx context.Context, from *limiter, b bucket, p pace, keys []ssh.PublicKey, a *audit) time.Duration {
	wait := from.take(b, p.burst, p.every, s.now())
	if wait > 0 && s.holdsRecorded(ctx, b.instance, keys, a) {
		b.recorded = true
		wait = from.take(b, p.burst, p.every, s.now())
	}
	return wait
}

// holdsRecorded reports whether one of the keys, all of which signed the request, is
// recorded for the instance. If the ledger does not answer, its last answer counts.
func (s *Signer) holdsRecorded(ctx context.Context, i ec2ref.Instance, keys []ssh.PublicKey, a *audit) bool {
	recorded := s.recorded.get(i, s.now(), func() ([]string, error) {
		var record ledger.Record
		err := a.step(ctx, "record", ledgerTimeout, func(ctx context.Context) (err error) {
			record, err = s.Ledger.Lookup(ctx, i)
			return err
		})
		if record.PermittedKey != "" {
			// A machine with an operator's permit must not be locked out either.
			return append(record.Fingerprints, record.PermittedKey), err
		}
		return record.Fingerprints, err
	})
	return slices.ContainsFunc(sshkey.Fingerprints(keys), func(f string) bool { return slices.Contains(recorded, f) })
}

func limited(wait time.Duration, whose string) error {
	return refuse(protocol.CodeRateLimited, fmt.Errorf("too many requests %s; the next in %s", whose, wait)).after(wait)
}

// network returns the range of addresses that one caller can easily control: an IPv4
// address, or a /64 of IPv6. Sources that are not addresses share the zero value.
func network(source string) netip.Prefix {
	address, err := netip.ParseAddr(source)
	if err != nil {
		return netip.Prefix{}
	}
	address = address.Unmap()
	return netip.PrefixFrom(address.WithZone(""), min(address.BitLen(), 64)).Masked()
}

// bucket identifies requests that are limited together.
type bucket struct {
	instance ec2ref.Instance
	source   netip.Prefix
	endpoint string
	// recorded is set for requests signed by a recorded host key.
	recorded bool
}

// limiter is a bounded set of token buckets. The zero value is ready to use and safe for
// concurrent use. Each process has its own: a function with N concurrent environments
// allows N times as many requests.
type limiter struct {
	mu      sync.Mutex
	buckets recent[bucket, *rate.Limiter]
}

// take takes a token from the bucket, which starts with burst tokens and gains one per
// interval. It returns 0, or how long to wait for the next token.
func (l *limiter) take(b bucket, burst int, every time.Duration, now time.Time) time.Duration {
	now = now.Round(0) // a frozen process's monotonic clock stands still
	l.mu.Lock()
	defer l.mu.Unlock()
	tokens := l.buckets.find(b, func() *rate.Limiter { return rate.NewLimiter(rate.Every(every), burst) })
	reservation := tokens.ReserveN(now, 1)
	wait := reservation.DelayFrom(now)
	if wait > 0 {
		// Put it back: a refusal must be free, or a caller that asks too often would be
		// locked out for longer and longer.
		reservation.CancelAt(now)
	}
	return wait
}

// recordedKeys caches the ledger's host keys of instances. The zero value is ready to use
// and safe for concurrent use.
type recordedKeys struct {
	mu        sync.Mutex
	instances recent[ec2ref.Instance, *keysRead]
}

// keysRead are an instance's recorded keys, and when the last read of them began.
type keysRead struct {
	keys []string
	at   time.Time
}

// get returns the instance's keys. It reads them again if the last read is older than
// recordedFor. One caller reads for all; the others get the cached keys.
func (r *recordedKeys) get(i ec2ref.Instance, now time.Time, read func() ([]string, error)) []string {
	now = now.Round(0)
	r.mu.Lock()
	known := r.instances.find(i, func() *keysRead { return new(keysRead) })
	old, due := known.keys, !cached.IsRecent(known.at, recordedFor, now)
	if due {
		known.at = now
	}
	r.mu.Unlock()
	if !due {
		return old
	}
	keys, err := read()
	if err != nil {
		return old
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	known.keys = keys
	return keys
}

// recent is a bounded map that drops the least recently used entry. The zero value is
// ready to use.
type recent[K comparable, V any] struct {
	elements map[K]*list.Element
	order    list.List // of pair[K, V], the last used in front
}

type pair[K comparable, V any] struct {
	key   K
	value V
}

// find returns the value of the key, and creates it if there is none. If the map is full,
// it drops the least recently used entry: of token buckets, the one most likely to be
// full again.
func (r *recent[K, V]) find(key K, create func() V) V {
	if r.elements == nil {
		r.elements = make(map[K]*list.Element)
	}
	if e, ok := r.elements[key]; ok {
		r.order.MoveToFront(e)
		return e.Value.(pair[K, V]).value
	}
	if oldest := r.order.Back(); len(r.elements) >= maxBuckets {
		delete(r.elements, r.order.Remove(oldest).(pair[K, V]).key)
	}
	value := create()
	r.elements[key] = r.order.PushFront(pair[K, V]{key, value})
	return value
}
