package deployment

import "time"

// Now is the clock of the signer's programs. It has no monotonic reading: Lambda freezes
// a process between invocations, and Go's monotonic clock stops meanwhile, so the
// difference of two readings would omit the frozen time.
func Now() time.Time { return time.Now().Round(0) }
