// Package clocktest helps to test a process that was frozen, as Lambda freezes one between
// invocations: Go's monotonic clock stands still meanwhile.
package clocktest

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"reflect"
	"strings"
	"sync/atomic"
	"testing"
	"time"
	"unsafe"
)

// HangUp closes each connection on which h has answered before, instead of answering a second
// request on it. A server that timed out the connections of a frozen process does the same if
// the process sends before it notices. It counts the connections that it closed. Use the
// server's own client.
func HangUp(t *testing.T, h http.Handler) (server *httptest.Server, closed *atomic.Int64) {
	t.Helper()
	closed = new(atomic.Int64)
	type answered struct{}
	server = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if before, _ := r.Context().Value(answered{}).(*atomic.Bool); before != nil && before.Swap(true) {
			closed.Add(1)
			panic(http.ErrAbortHandler)
		}
		h.ServeHTTP(w, r)
	}))
	server.Config.ConnContext = func(ctx context.Context, _ net.Conn) context.Context {
		return context.WithValue(ctx, answered{}, new(atomic.Bool))
	}
	server.Start()
	// With only one connection at a time, the client must use it again.
	server.Client().Transport.(*http.Transport).MaxConnsPerHost = 1
	t.Cleanup(server.Close)
	return server, closed
}

// FreezeTime is longer than anything is kept.
const FreezeTime = 45 * time.Minute

// hasMonotonic is the bit of a time.Time that says so.
const hasMonotonic = 1 << 63

// Freeze returns the time after a process was frozen for this long: the wall clock has
// continued, and the monotonic clock has not. A negative duration sets the wall clock back. It
// panics if the time has no monotonic reading.
func Freeze(t time.Time, d time.Duration) time.Time {
	r := (*struct { // as package time has it
		wall uint64
		ext  int64
		loc  *time.Location
	})(unsafe.Pointer(&t)) //nolint:gosec // no API of package time moves one reading alone
	if r.wall&hasMonotonic == 0 {
		panic("no monotonic reading")
	}
	r.wall += uint64(d/time.Second) << 30 //nolint:gosec // wraps around for a negative duration, as it should
	return t
}

// CheckStored finds all times in a value, including unexported ones, and returns how many.
// None may have a monotonic reading. It does not look into other modules' types or into
// connections, which their own goroutines write.
func CheckStored(t *testing.T, name string, value any) int {
	t.Helper()
	return check(t, name, reflect.ValueOf(value), make(map[uintptr]bool))
}

func check(t *testing.T, path string, v reflect.Value, seen map[uintptr]bool) (n int) {
	t.Helper()
	if v.IsValid() && v.Type() == reflect.TypeFor[time.Time]() {
		if v.Field(0).Uint()&hasMonotonic != 0 {
			t.Errorf("%s has a monotonic reading", path)
		}
		return 1
	}
	switch v.Kind() {
	case reflect.Pointer:
		if v.IsNil() || seen[v.Pointer()] {
			return 0
		}
		seen[v.Pointer()] = true
		return check(t, path, v.Elem(), seen)
	case reflect.Interface:
		return check(t, path, v.Elem(), seen)
	case reflect.Struct:
		if isForeign(v.Type().PkgPath()) {
			return 0
		}
		for i := range v.NumField() {
			n += check(t, path+"."+v.Type().Field(i).Name, v.Field(i), seen)
		}
	case reflect.Slice, reflect.Array:
		for i := range v.Len() {
			n += check(t, path+"[]", v.Index(i), seen)
		}
	case reflect.Map:
		for _, key := range v.MapKeys() {
			n += check(t, fmt.Sprintf("%s[%v]", path, key), v.MapIndex(key), seen)
		}
	default: // holds no time
	}
	return n
}

// isForeign reports whether a package is of another module, or of those that make
// connections.
func isForeign(pkg string) bool {
	first, _, _ := strings.Cut(pkg, "/")
	own := strings.HasPrefix(pkg, "github.com/hallmark-ssh/hallmark/")
	return strings.Contains(first, ".") && !own || first == "net" || first == "crypto"
}
