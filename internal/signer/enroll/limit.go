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
	"github.com/hallmark-ssh/hallmark/internal/signer/entry"
	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
	"github.com/hallmark-ssh/hallmark/internal/sshkey"
)

// How often an instance may ask. A machine that is well asks every few days, and
// one that fails a few times a minute; the bursts are for people who try by hand.
const (
	// attemptBurst and attemptEvery limit the calls to STS about one instance from
	// one network, before it is known who asks.
	attemptBurst = 20
	attemptEvery = 30 * time.Second
	// provedBurst and provedEvery limit an instance that proved itself, wherever it
	// calls from, and with it what its root can make EC2, the ledger and Teleport do.
	provedBurst = 20
	provedEvery = time.Minute

	// maxBuckets bounds a limiter's memory to a few megabytes, and that of the recorded
	// keys.
	maxBuckets = 8192
	// recordedFor is how long the recorded keys of an instance are remembered. Until
	// then they are not read again, whoever asks.
	recordedFor = time.Minute
)

// pace is how many requests a bucket allows at first, and how long each further one
// takes.
type pace struct {
	burst int
	every time.Duration
}

// limitAttempts stops repetition before STS is called.
//
// The bucket is the instance's and the source's together. By the instance alone,
// whoever stole its document could keep the machine itself out; by the source
// alone, a fleet behind one address would keep itself out. Other processes on the
// machine share both, and so may others behind its address: see take.
//
// Behind a VPC endpoint, its id is part of the source: addresses of two networks may be
// the same. Direct invocations have no source. Then whoever may invoke the function and
// has the instance's document can use up its bucket, but not that of its recorded keys.
func (s *Signer) limitAttempts(ctx context.Context, e *evidence, r entry.Request, a *audit) error {
	b := bucket{instance: a.document.Instance, source: network(r.Source), endpoint: r.Endpoint}
	if wait := s.take(ctx, &s.attempts, b, pace{attemptBurst, attemptEvery}, e.keys, a); wait > 0 {
		return limited(wait, "from one source")
	}
	return nil
}

// limitProved counts an instance's own requests alone: nobody else can use them up.
func (s *Signer) limitProved(ctx context.Context, e *evidence, a *audit) error {
	if wait := s.take(ctx, &s.proved, bucket{instance: a.document.Instance}, pace{provedBurst, provedEvery}, e.keys, a); wait > 0 {
		return limited(wait, "of one instance")
	}
	return nil
}

// take takes a token from the bucket that everybody shares, and if there is none, for
// a request that a recorded host key signed, from a bucket of its own. Any process that
// reaches the metadata service has the document and the role's credentials, and can use
// up what is shared; only the machine's root has a recorded key, and its renewal must
// get through. Looking for the key costs one read of the ledger, in recordedFor at
// most, and none while the shared bucket has tokens.
func (s *Signer) take(ctx context.Context, from *limiter, b bucket, p pace, keys []ssh.PublicKey, a *audit) time.Duration {
	wait := from.take(b, p.burst, p.every, s.now())
	if wait > 0 && s.holdsRecorded(ctx, b.instance, keys, a) {
		b.recorded = true
		wait = from.take(b, p.burst, p.every, s.now())
	}
	return wait
}

// holdsRecorded reports whether one of the keys, all of which signed the request, is
// recorded for the instance. If the ledger does not answer, what it last said counts.
func (s *Signer) holdsRecorded(ctx context.Context, i ec2ref.Instance, keys []ssh.PublicKey, a *audit) bool {
	recorded := s.recorded.get(i, s.now(), func() ([]string, error) {
		var record ledger.Record
		err := a.step(ctx, "record", ledgerTimeout, func(ctx context.Context) (err error) {
			record, err = s.Ledger.Lookup(ctx, i)
			return err
		})
		if record.PermittedKey != "" {
			// Whoever an operator let in must not be starved either.
			return append(record.Fingerprints, record.PermittedKey), err
		}
		return record.Fingerprints, err
	})
	return slices.ContainsFunc(sshkey.Fingerprints(keys), func(f string) bool { return slices.Contains(recorded, f) })
}

func limited(wait time.Duration, whose string) error {
	return refuse(protocol.CodeRateLimited, fmt.Errorf("too many requests %s; the next in %s", whose, wait)).after(wait)
}

// network returns what one caller can easily have all addresses of: an IPv4
// address, or a /64 of IPv6. Sources that are no addresses share the zero value.
func network(source string) netip.Prefix {
	address, err := netip.ParseAddr(source)
	if err != nil {
		return netip.Prefix{}
	}
	address = address.Unmap()
	return netip.PrefixFrom(address.WithZone(""), min(address.BitLen(), 64)).Masked()
}

// bucket names what is limited together.
type bucket struct {
	instance ec2ref.Instance
	source   netip.Prefix
	endpoint string
	// recorded is set for requests that a recorded host key signed.
	recorded bool
}

// limiter is a bounded set of token buckets. The zero value is ready for use, by
// several goroutines at once. Each process has its own: a function of N concurrent
// environments allows N times as much.
type limiter struct {
	mu      sync.Mutex
	buckets recent[bucket, *rate.Limiter]
}

// take takes a token from the bucket: there are burst at first, and a new one
// after every time. It returns 0, or how long to wait for the next.
func (l *limiter) take(b bucket, burst int, every time.Duration, now time.Time) time.Duration {
	now = now.Round(0) // a frozen process's monotonic clock stands still
	l.mu.Lock()
	defer l.mu.Unlock()
	tokens := l.buckets.find(b, func() *rate.Limiter { return rate.NewLimiter(rate.Every(every), burst) })
	reservation := tokens.ReserveN(now, 1)
	wait := reservation.DelayFrom(now)
	if wait > 0 {
		// Put back: to be refused costs nothing, or asking too often would lock one out
		// for longer and longer.
		reservation.CancelAt(now)
	}
	return wait
}

// recordedKeys remembers the host keys that the ledger has of instances. The zero
// value is ready for use, by several goroutines at once.
type recordedKeys struct {
	mu        sync.Mutex
	instances recent[ec2ref.Instance, *keysRead]
}

// keysRead are the recorded keys of an instance, and when reading them last began.
type keysRead struct {
	keys []string
	at   time.Time
}

// get returns the instance's keys, read again if the last time is recordedFor ago. One
// caller reads for all: the others have what there is.
func (r *recordedKeys) get(i ec2ref.Instance, now time.Time, read func() ([]string, error)) []string {
	now = now.Round(0)
	r.mu.Lock()
	known := r.instances.find(i, func() *keysRead { return new(keysRead) })
	old, due := known.keys, !isYoung(known.at, recordedFor, now)
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

// isYoung reports whether a time is less than limit ago. One in the future is not: a
// clock that was put back must not keep for longer what was kept by it.
func isYoung(t time.Time, limit time.Duration, now time.Time) bool {
	age := now.Sub(t)
	return age >= 0 && age < limit
}

// recent is a bounded map that forgets what was not used for longest. The zero value is
// ready for use.
type recent[K comparable, V any] struct {
	elements map[K]*list.Element
	order    list.List // of pair[K, V], the last used in front
}

type pair[K comparable, V any] struct {
	key   K
	value V
}

// find returns the value of the key, which it makes if there is none. When there are
// too many, the one that was not used for longest goes: of token buckets it is the one
// most likely to be full again.
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
