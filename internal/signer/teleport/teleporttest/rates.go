package teleporttest

import (
	"net"
	"sync"
	"time"

	"github.com/gravitational/trace"
	"golang.org/x/time/rate"
)

// Teleport 18 and 19 limit what one source address may ask of the public export.
const (
	exportsAtOnce    = 40
	exportsPerMinute = 20
)

// rates counts the requests of each source address.
type rates struct {
	now func() time.Time

	mu       sync.Mutex
	bySource map[string]*rate.Limiter
}

func newRates(now func() time.Time) *rates {
	return &rates{now: now, bySource: make(map[string]*rate.Limiter)}
}

// take counts a request from host:port. Beyond the limit it says when to come again.
func (r *rates) take(source string) error {
	host, _, err := net.SplitHostPort(source)
	if err != nil {
		return err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	limiter := r.bySource[host]
	if limiter == nil {
		limiter = rate.NewLimiter(rate.Every(time.Minute/exportsPerMinute), exportsAtOnce)
		r.bySource[host] = limiter
	}
	if !limiter.AllowN(r.now(), 1) {
		return trace.LimitExceeded("rate limit exceeded, try again in %s", time.Minute/exportsPerMinute)
	}
	return nil
}
