// Package lambdahost runs a Lambda function's real program the way AWS Lambda
// does: it serves the Runtime API to it
// (https://docs.aws.amazon.com/lambda/latest/dg/runtimes-api.html), and puts a
// function URL in front.
package lambdahost

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/google/uuid"
)

// maxPayload bounds an event, and an answer.
// (https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html)
const maxPayload = 6 << 20

// initLimit is how long a program may take to ask for its first event. Lambda allows 10 seconds
// (https://docs.aws.amazon.com/lambda/latest/dg/lambda-runtime-environment.html). A busy test
// machine may need longer, which says nothing about the program.
const initLimit = time.Minute

// ErrThrottled says that all the function's environments are busy.
var ErrThrottled = errors.New("rate exceeded")

// errEndedIdle says that a program had exited before it got the event, for example because it
// had just panicked. Another program can have the event.
var errEndedIdle = errors.New("the program exited while idle")

// FunctionError says that the function failed. A refusal is an ordinary answer.
type FunctionError struct{ Reason string }

func (e *FunctionError) Error() string { return "function error: " + e.Reason }

// Function says what to run.
type Function struct {
	// Name is the function's name.
	Name string
	// Program is the path of the bootstrap program.
	Program string
	// Handler is the function's handler setting, which bootstrap finds in _HANDLER.
	Handler string
	// TaskRoot is the folder with the unpacked deployment package.
	TaskRoot string
	// Environment contains NAME=value pairs. The function inherits nothing else.
	Environment []string
	// Region is the function's region.
	Region string
	// Timeout ends an invocation; zero means three seconds, as in AWS.
	Timeout time.Duration
	// Concurrency bounds the environments, and so the requests at one time; zero
	// means one.
	Concurrency int
	// Emulator is the path of AWS's Lambda Runtime Interface Emulator, which then runs the
	// program (https://github.com/aws/aws-lambda-runtime-interface-emulator). Empty runs it on
	// this package's own Runtime API, which starts sooner and shows how a program ends.
	Emulator string
	// Log receives what the program writes.
	Log io.Writer
}

// Host runs one function. It starts environments when it needs them, and keeps them for later
// events, the last used first.
type Host struct {
	function Function
	ctx      context.Context // ends with Close, and with it all environments
	cancel   context.CancelFunc
	slots    chan struct{}

	mu   sync.Mutex
	idle []environment
	all  sync.WaitGroup
}

// New returns a host. It starts no environment before the first event.
func New(f Function) *Host {
	if f.Timeout == 0 {
		f.Timeout = 3 * time.Second
	}
	if f.Log == nil {
		f.Log = io.Discard
	}
	ctx, cancel := context.WithCancel(context.Background())
	return &Host{function: f, ctx: ctx, cancel: cancel, slots: make(chan struct{}, max(f.Concurrency, 1))}
}

// Close ends all environments.
func (h *Host) Close() {
	h.cancel()
	h.Restart()
	h.all.Wait()
}

// Restart ends all idle environments, as a deployment does.
func (h *Host) Restart() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, e := range h.idle {
		e.close()
	}
	h.idle = nil
}

// Invoke passes one event to the function and returns its answer. The error is ErrThrottled, a
// *FunctionError, or about the host itself.
func (h *Host) Invoke(ctx context.Context, event []byte) ([]byte, error) {
	if len(event) > maxPayload {
		return nil, fmt.Errorf("event has %d bytes, more than %d", len(event), maxPayload)
	}
	select {
	case h.slots <- struct{}{}:
		defer func() { <-h.slots }()
	default:
		return nil, ErrThrottled
	}
	for {
		e, err := h.take(ctx)
		if err != nil {
			return nil, err
		}
		answer, err := e.invoke(ctx, invocation{id: uuid.NewString(), event: event, deadline: time.Now().Add(h.function.Timeout)})
		if e.alive() {
			h.keep(e)
		} else {
			e.close()
		}
		if !errors.Is(err, errEndedIdle) {
			return answer, err
		}
	}
}

// take returns an idle environment, or starts one.
func (h *Host) take(ctx context.Context) (environment, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for len(h.idle) > 0 {
		last := len(h.idle) - 1
		e := h.idle[last]
		h.idle = h.idle[:last]
		if e.alive() {
			return e, nil
		}
		e.close()
	}
	if h.function.Emulator != "" {
		return h.startEmulator(ctx)
	}
	return h.startProcess(ctx)
}

func (h *Host) keep(e environment) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.idle = append(h.idle, e)
}
