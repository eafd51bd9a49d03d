// Package teleport is the part of a Teleport cluster that the signer needs: the
// records of nodes, host certificates, and the keys of the cluster's CAs.
//
// It speaks to the cluster's auth service over mutual TLS, directly or through a
// proxy, as a Machine ID bot or with an identity file.
//
// What is where: client.go keeps the login and the connection, and connection.go makes one.
// login.go has identity files, bot.go bots, join.go and sts.go how a bot proves itself, and
// rotation.go when a login must be replaced early. node.go, hostkey.go, hostcert.go and
// role.go are the calls. errors.go and version.go say what to change.
package teleport

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"sync/atomic"
	"time"
)

const (
	// callTimeout bounds each call, and each dial, that comes without a deadline.
	callTimeout = 15 * time.Second

	// idleLimit is how long a connection may be idle before the client dials again. A
	// function that was frozen holds connections whose other end closed long ago without
	// notice; a call on one would hang.
	idleLimit = time.Minute

	// While a login is valid, replacing it may use renewLimit of a call's time. If that
	// is not enough, the next attempt waits for renewPause.
	renewLimit = 3 * time.Second
	renewPause = 30 * time.Second
)

// Config says how to reach a cluster and who calls.
type Config struct {
	// Address is host:port of the cluster's proxy (where its web interface is), or
	// of its auth service.
	Address string
	// RootsPEM are CA certificates to trust in addition to the system's for the proxy's
	// certificate, and in addition to the login's own for the auth service's: after a
	// rotation of the cluster's TLS CA, an identity file may not have the new one.
	// Optional.
	RootsPEM []byte
	// Login says who calls.
	Login Login
	// LoggedIn is called with the expiry of each new login; it must not block. Optional.
	LoggedIn func(end time.Time)
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// Log receives warnings about future failures. Optional.
	Log *slog.Logger

	// learned is what the client knows about the server. Dial creates it for all of the
	// client's logins.
	learned *learned
}

// learned is what a client remembers about its server.
type learned struct {
	// oldJoin says that the server has only the join service from before Teleport 18.
	oldJoin atomic.Bool
	// version is the version that warnOutdated checked last.
	version atomic.Pointer[string]
}

// Client talks to one cluster. It is safe for concurrent use, and works as long as the
// login can be renewed: it reconnects by itself.
type Client struct {
	config  Config
	cluster string
	proxy   string

	// turn holds one token, whose owner may use the fields below. Unlike with a mutex,
	// callers stop waiting at their deadline. If several need a login at once, one gets
	// it for all.
	turn     chan struct{}
	identity *identity
	live     *connection
	lastUsed time.Time
	looked   time.Time // when the login was new, or last compared with the CAs
	closed   bool
}

// Dial connects to the cluster and reads its name. It fails with ErrDenied if the login
// is not valid or the cluster is too old, and with ErrUnavailable if no service at the
// address accepts the client. The error says what to change.
func Dial(ctx context.Context, config Config) (*Client, error) {
	if config.Login == nil {
		return nil, errors.New("connect to Teleport: no login")
	}
	config.Now = wallClock(config.Now)
	if config.Log == nil {
		config.Log = slog.New(slog.DiscardHandler)
	}
	config.learned = new(learned)
	c := &Client{config: config, turn: make(chan struct{}, 1)}
	live, err := c.conn(ctx)
	if err != nil {
		return nil, err
	}
	pong, err := live.api.Ping(ctx)
	if err != nil {
		if tooNew := checkClientVersion(ctx, config); tooNew != nil {
			err = tooNew
		}
		return nil, errors.Join(failed("ping Teleport at "+config.Address, err), c.Close())
	}
	if err := checkVersion(pong.ServerVersion); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	warnOutdated(ctx, config, pong.ServerVersion)
	c.cluster, c.proxy = pong.ClusterName, hostOf(pong.ProxyPublicAddr)
	return c, nil
}

// ClusterName returns the name of the cluster.
func (c *Client) ClusterName() string { return c.cluster }

// ProxyName returns the host name by which people reach the cluster's proxy; it
// is empty if the cluster has none.
func (c *Client) ProxyName() string { return c.proxy }

// Close ends the connection. Calls after it fail.
func (c *Client) Close() error {
	c.turn <- struct{}{}
	defer func() { <-c.turn }()
	if c.closed = true; c.live == nil {
		return nil
	}
	return c.live.close()
}

// do makes a call on a connection. If one side rejects the other's certificate, as after
// a rotation of the cluster's CAs, it logs in again and retries once. doing is for the
// error.
func (c *Client) do(ctx context.Context, doing string, call func(ctx context.Context, live *connection) error) error {
	ctx, cancel := withDeadline(ctx)
	defer cancel()
	live, err := c.conn(ctx)
	if err != nil {
		return err
	}
	err = call(ctx, live)
	if turnedAway(err) {
		if live, err = c.connInPlaceOf(ctx, live, failed(doing, err)); err != nil {
			return err
		}
		err = call(ctx, live)
	}
	if err == nil {
		return nil
	}
	if isLost(err) {
		c.drop(live)
	}
	return failed(doing, err)
}

// drop makes the next call dial again. gRPC itself would first wait, and after a long
// outage that wait has grown to minutes.
func (c *Client) drop(live *connection) {
	select {
	case c.turn <- struct{}{}:
	default:
		return // another call is dialing now
	}
	defer func() { <-c.turn }()
	if c.live == live && !c.closed {
		c.live = nil
		leave(live)
	}
}

// leave closes a connection when the calls that may use it have ended. It ignores the
// error of Close: nothing depends on the connection any more.
func leave(live *connection) {
	time.AfterFunc(callTimeout, func() { _ = live.close() })
}

// conn returns a connection that is recent enough to be alive, with a valid login.
func (c *Client) conn(ctx context.Context) (*connection, error) {
	done, err := c.takeTurn(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	now := c.config.Now()
	if err := c.open(ctx, now); err != nil {
		return nil, err
	}
	c.followRotation(ctx, now)
	return c.live, nil
}

// open makes sure that there is such a connection. If that fails, the old one stays.
func (c *Client) open(ctx context.Context, now time.Time) error {
	changed, err := c.renew(ctx, now)
	if err != nil {
		return err
	}
	if c.live != nil && !changed && isRecent(c.lastUsed, now) {
		c.lastUsed = now
		return nil
	}
	err = c.connect(ctx, now)
	if turnedAway(err) && !changed {
		if err = c.replace(ctx, err); err == nil {
			err = c.connect(ctx, now)
		}
	}
	if err != nil {
		// A new login may help in any case: the next call gets one.
		c.identity = nil
	}
	return err
}

// connInPlaceOf returns a connection with a new login instead of the old one, which
// failed for the given cause. If several callers ask for the same, one gets it for all.
func (c *Client) connInPlaceOf(ctx context.Context, old *connection, cause error) (*connection, error) {
	done, err := c.takeTurn(ctx)
	if err != nil {
		return nil, errors.Join(cause, err)
	}
	defer done()
	if c.live != nil && c.live != old {
		return c.live, nil
	}
	if err := c.replace(ctx, cause); err != nil {
		return nil, err
	}
	if err := c.connect(ctx, c.config.Now()); err != nil {
		c.identity = nil
		return nil, err
	}
	return c.live, nil
}

// takeTurn waits for the turn, and returns the function that ends it.
func (c *Client) takeTurn(ctx context.Context) (done func(), err error) {
	select {
	case c.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, fmt.Errorf("wait for a login to Teleport: %w: %w", ErrUnavailable, ctx.Err())
	}
	if c.closed {
		<-c.turn
		return nil, errors.New("the Teleport client is closed")
	}
	return func() { <-c.turn }, nil
}

// connect replaces the connection. The old one stays if that fails.
func (c *Client) connect(ctx context.Context, now time.Time) error {
	live, err := connect(ctx, c.config, c.identity)
	if err != nil {
		return err
	}
	if c.live != nil {
		leave(c.live)
	}
	c.live, c.lastUsed = live, now
	return nil
}

// replace gets a new login after a server rejected the old one. There may be no other,
// for example with a file; it then returns the cause.
func (c *Client) replace(ctx context.Context, cause error) error {
	fresh, err := c.config.Login.identity(ctx, c.config)
	if err != nil {
		return fmt.Errorf("%w; logging in again failed: %w", cause, err)
	}
	if fresh.equal(c.identity) {
		return cause
	}
	c.identity, c.looked = fresh, c.config.Now()
	return nil
}

// renew makes sure that the login is valid, and reports whether it is a new one.
func (c *Client) renew(ctx context.Context, now time.Time) (changed bool, err error) {
	old := c.identity
	if old != nil && now.Before(old.renew) {
		return false, nil
	}
	if old != nil && now.Before(old.expires) {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, renewLimit)
		defer cancel()
	}
	fresh, err := c.config.Login.identity(ctx, c.config)
	if err == nil {
		c.identity = fresh
		if c.config.LoggedIn != nil {
			c.config.LoggedIn(fresh.expires)
		}
		if changed = !fresh.equal(old); changed {
			c.looked = now
		}
		return changed, nil
	}
	// Renewal begins well before the expiry, so there is time to fix what fails: until
	// then the old login works.
	if old != nil && now.Before(old.expires) {
		old.renew = now.Add(renewPause)
		c.config.Log.LogAttrs(ctx, slog.LevelWarn, "logging in to Teleport again failed; the old login works until it expires",
			slog.Time("end", old.expires), slog.String("error", err.Error()))
		return false, nil
	}
	c.identity = nil
	return false, err
}

// wallClock returns the clock, by default time.Now, without its monotonic reading. Lambda
// freezes a function between its calls, and the monotonic clock stops meanwhile: a
// connection idle for an hour would seem recent, and an expired login valid.
func wallClock(now func() time.Time) func() time.Time {
	if now == nil {
		now = time.Now
	}
	return func() time.Time { return now().Round(0) }
}

// isRecent reports whether a connection was used within idleLimit. If the clock was set
// back, it was not.
func isRecent(used, now time.Time) bool {
	rested := now.Sub(used)
	return rested >= 0 && rested < idleLimit
}

// withDeadline gives ctx a deadline if it has none.
func withDeadline(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, callTimeout)
}

// IsAddress reports whether a text is host:port, with the port as a number that exists.
func IsAddress(text string) bool {
	host, number, err := net.SplitHostPort(text)
	if err != nil || host == "" {
		return false
	}
	port, err := strconv.ParseUint(number, 10, 16)
	return err == nil && port > 0
}

// hostOf returns the host of a host:port, or all of it if it has no port.
func hostOf(address string) string {
	if host, _, err := net.SplitHostPort(address); err == nil {
		return host
	}
	return address
}
