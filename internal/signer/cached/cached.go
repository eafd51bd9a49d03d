// Package cached keeps one value that is read from another service: it serves the value for a
// while, reads it again when it is old, and does without a new one while the service does not
// answer. However often callers ask, they cause few reads.
package cached

import (
	"errors"
	"fmt"
	"sync"
	"time"
)

// ErrPaused says that the last read failed, and that the next one is not due yet.
var ErrPaused = errors.New("retry in a few seconds")

// Rule says how often a value is read.
type Rule struct {
	// What names the value in errors.
	What string
	// Fresh is how long a value serves before it is read again.
	Fresh time.Duration
	// Kept is how long the last value serves while it cannot be read again.
	Kept time.Duration
	// Pause is the time between two reads, if the first one failed.
	Pause time.Duration
}

// Value is a value, once it has been read. The zero value is ready to use, also by several
// goroutines at once.
type Value[T any] struct {
	mu    sync.Mutex
	value T
	read  time.Time // when the read of value began
	tried time.Time // when the last read began
}

// Get returns the value, and reads it again if it is old. One caller reads for all; the others
// get the current value, or an error. read gets the current value, and whether it may serve if
// the read fails. The clock must not be monotonic: that clock stands still while a Lambda
// function is frozen, and a value from before the freeze would seem fresh.
func (v *Value[T]) Get(rule Rule, now func() time.Time, read func(current T, usable bool) (T, error)) (T, error) {
	begun := now()
	current, usable, due := v.current(rule, begun)
	switch {
	case !due && usable:
		return current, nil
	case !due:
		return current, fmt.Errorf("the last attempt to read %s failed; %w", rule.What, ErrPaused)
	}
	next, err := read(current, usable)
	if err != nil {
		if IsRecent(v.readAt(), rule.Kept, now()) {
			return current, nil
		}
		return current, err
	}
	v.mu.Lock()
	defer v.mu.Unlock()
	v.value, v.read = next, begun
	return next, nil
}

// current returns the value, whether it may serve, and whether the caller must read it again.
func (v *Value[T]) current(rule Rule, now time.Time) (value T, usable, due bool) {
	v.mu.Lock()
	defer v.mu.Unlock()
	due = !IsRecent(v.read, rule.Fresh, now) && !IsRecent(v.tried, rule.Pause, now)
	if due {
		v.tried = now
	}
	return v.value, IsRecent(v.read, rule.Kept, now), due
}

// Last returns the value as of the last read, however old. It is the zero value before the
// first one.
func (v *Value[T]) Last() T {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.value
}

func (v *Value[T]) readAt() time.Time {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.read
}

// IsRecent reports whether a time is less than limit ago. A time in the future is not: a
// clock that was set back must not extend what the limit bounds.
func IsRecent(t time.Time, limit time.Duration, now time.Time) bool {
	age := now.Sub(t)
	return age >= 0 && age < limit
}
