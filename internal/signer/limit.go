package signer

import (
	"container/list"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/time/rate"

	"github.com/hallmark-ssh/hallmark/internal/identity"
	"github.com/hallmark-ssh/hallmark/internal/ledger"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
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

	// maxBuckets bounds a limiter's memory to a few megabytes.
	maxBuckets = 8192
)

// limitAttempts stops repetition before anything is called.
//
// The bucket is the instance's and the source's together. By the instance alone,
// whoever stole its document could keep the machine itself out; by the source
// alone, a fleet behind one address would keep itself out. What is left: a thief
// behind the machine's own address, or with many addresses of his own.
func (s *Signer) limitAttempts(d *identity.Document, source string) error {
	b := bucket{instance: instanceOf(d), source: network(source)}
	if wait := s.attempts.take(b, attemptBurst, attemptEvery, s.Now()); wait > 0 {
		return limited(wait, "from one source")
	}
	return nil
}

// limitProved counts an instance's own requests alone: nobody else can use them up.
func (s *Signer) limitProved(d *identity.Document) error {
	if wait := s.proved.take(bucket{instance: instanceOf(d)}, provedBurst, provedEvery, s.Now()); wait > 0 {
		return limited(wait, "of one instance")
	}
	return nil
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
	instance ledger.Instance
	source   netip.Prefix
}

// limiter is a bounded set of token buckets. The zero value is ready for use, by
// several goroutines at once. Each process has its own: a function of N concurrent
// environments allows N times as much.
type limiter struct {
	mu      sync.Mutex
	buckets map[bucket]*list.Element
	recent  list.List // of entry, the last used in front
}

type entry struct {
	bucket bucket
	tokens *rate.Limiter
}

// take takes a token from the bucket: there are burst at first, and a new one
// after every time. It returns 0, or how long to wait for the next.
func (l *limiter) take(b bucket, burst int, every time.Duration, now time.Time) time.Duration {
	l.mu.Lock()
	defer l.mu.Unlock()
	reservation := l.find(b, burst, every).ReserveN(now, 1)
	wait := reservation.DelayFrom(now)
	if wait > 0 {
		// Put back: to be refused costs nothing, or asking too often would lock one out
		// for longer and longer.
		reservation.CancelAt(now)
	}
	return wait
}

// find returns the bucket's tokens. When there are too many buckets, the one that
// was not used for longest goes: it is the one most likely to be full again.
func (l *limiter) find(b bucket, burst int, every time.Duration) *rate.Limiter {
	if l.buckets == nil {
		l.buckets = make(map[bucket]*list.Element)
	}
	if e, ok := l.buckets[b]; ok {
		l.recent.MoveToFront(e)
		return e.Value.(entry).tokens
	}
	if oldest := l.recent.Back(); len(l.buckets) >= maxBuckets {
		delete(l.buckets, l.recent.Remove(oldest).(entry).bucket)
	}
	tokens := rate.NewLimiter(rate.Every(every), burst)
	l.buckets[b] = l.recent.PushFront(entry{bucket: b, tokens: tokens})
	return tokens
}
