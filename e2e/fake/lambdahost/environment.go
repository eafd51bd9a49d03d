package lambdahost

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strconv"
	"sync"
	"time"
)

// invocation is one event on its way through an environment.
type invocation struct {
	id       string
	event    []byte
	deadline time.Time
	result   chan<- result // of capacity one
}

type result struct {
	answer []byte
	err    error
}

// environment runs the program, and passes it one event at a time.
type environment interface {
	invoke(context.Context, invocation) ([]byte, error)
	alive() bool
	close()
}

// program is a process that the host started.
type program struct {
	cancel context.CancelFunc
	exited chan struct{} // closed when it has ended
}

func (p program) alive() bool {
	select {
	case <-p.exited:
		return false
	default:
		return true
	}
}

// close kills the program. AWS gives no warning either.
func (p program) close() {
	p.cancel()
	<-p.exited
}

// process is an environment without AWS's emulator: a process, and the Runtime API that it
// talks to.
type process struct {
	program
	arn    string
	events chan invocation
	ready  chan struct{} // closed when the program asks for its first event
	server *http.Server

	mu      sync.Mutex
	current invocation
	asked   sync.Once
}

// startProcess starts an environment and waits until its program asks for an event.
func (h *Host) startProcess(ctx context.Context) (environment, error) {
	l, err := new(net.ListenConfig).Listen(ctx, "tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	processContext, cancel := context.WithCancel(h.ctx)
	e := &process{
		program: program{cancel: cancel, exited: make(chan struct{})},
		arn:     fmt.Sprintf("arn:aws:lambda:%s:123456789012:function:%s", h.function.Region, h.function.Name),
		events:  make(chan invocation),
		ready:   make(chan struct{}),
	}
	e.server = &http.Server{Handler: e.runtimeAPI(), ReadHeaderTimeout: 10 * time.Second}
	h.all.Go(func() { _ = e.server.Serve(l) }) // until close

	//nolint:contextcheck // the program outlives the event that it is started for
	cmd := exec.CommandContext(processContext, h.function.Program)
	cmd.Dir = h.function.TaskRoot
	cmd.Env = h.environment(l.Addr().String())
	cmd.Stdout, cmd.Stderr = h.function.Log, h.function.Log
	if err := cmd.Start(); err != nil {
		close(e.exited)
		e.close()
		return nil, fmt.Errorf("start %s: %w", h.function.Program, err)
	}
	h.all.Go(func() {
		_ = cmd.Wait() // its log shows how it ended
		close(e.exited)
	})

	select {
	case <-e.ready:
		return e, nil
	case <-e.exited:
		err = &FunctionError{Reason: "the program exited before it asked for an event"}
	case <-time.After(initLimit):
		err = &FunctionError{Reason: fmt.Sprintf("no event asked for within %v", initLimit)}
	case <-ctx.Done():
		err = ctx.Err()
	}
	e.close()
	return nil, err
}

// environment returns the variables that Lambda sets, and the function's own.
// (https://docs.aws.amazon.com/lambda/latest/dg/configuration-envvars.html)
func (h *Host) environment(runtimeAPI string) []string {
	f := h.function
	return append([]string{
		"PATH=/usr/local/bin:/usr/bin:/bin",
		"TZ=:UTC",
		"AWS_EXECUTION_ENV=AWS_Lambda_provided.al2023",
		"AWS_LAMBDA_FUNCTION_NAME=" + f.Name,
		"AWS_LAMBDA_FUNCTION_VERSION=$LATEST",
		"AWS_LAMBDA_FUNCTION_MEMORY_SIZE=256",
		"AWS_LAMBDA_INITIALIZATION_TYPE=on-demand",
		"AWS_LAMBDA_RUNTIME_API=" + runtimeAPI,
		"AWS_REGION=" + f.Region,
		"AWS_DEFAULT_REGION=" + f.Region,
		"LAMBDA_TASK_ROOT=" + f.TaskRoot,
		"_HANDLER=" + f.Handler,
	}, f.Environment...)
}

func (e *process) close() {
	e.program.close()
	_ = e.server.Close()
}

// invoke passes an event to the program and waits for the answer. It kills a program that does
// not answer in time.
func (e *process) invoke(ctx context.Context, i invocation) ([]byte, error) {
	results := make(chan result, 1)
	i.result = results
	ctx, cancel := context.WithDeadline(ctx, i.deadline)
	defer cancel()
	select {
	case e.events <- i:
	case <-e.exited:
		return nil, errEndedIdle
	case <-ctx.Done():
		e.close()
		return nil, timedOut(ctx)
	}
	select {
	case r := <-results:
		return r.answer, r.err
	case <-e.exited:
		return nil, &FunctionError{Reason: "the program exited without an answer"}
	case <-ctx.Done():
		e.close()
		return nil, timedOut(ctx)
	}
}

func timedOut(ctx context.Context) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return &FunctionError{Reason: "task timed out"}
	}
	return ctx.Err()
}

// runtimeAPI serves the calls that a program makes. There is one program, and it
// makes one call at a time.
func (e *process) runtimeAPI() http.Handler {
	const base = "/2018-06-01/runtime/"
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+base+"invocation/next", e.next)
	mux.HandleFunc("POST "+base+"invocation/{id}/response", e.finish(func(body []byte) result {
		return result{answer: body}
	}))
	mux.HandleFunc("POST "+base+"invocation/{id}/error", e.finish(func(body []byte) result {
		return result{err: &FunctionError{Reason: string(body)}}
	}))
	mux.HandleFunc("POST "+base+"init/error", func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusAccepted) // the program says why in its log, and ends
	})
	return mux
}

func (e *process) next(w http.ResponseWriter, r *http.Request) {
	e.asked.Do(func() { close(e.ready) })
	var i invocation
	select {
	case i = <-e.events:
	case <-r.Context().Done():
		return
	}
	e.mu.Lock()
	e.current = i
	e.mu.Unlock()
	header := w.Header()
	header.Set("Content-Type", "application/json")
	header.Set("Lambda-Runtime-Aws-Request-Id", i.id)
	header.Set("Lambda-Runtime-Deadline-Ms", strconv.FormatInt(i.deadline.UnixMilli(), 10))
	header.Set("Lambda-Runtime-Invoked-Function-Arn", e.arn)
	_, _ = w.Write(i.event) // a program that disconnected is noticed as ended
}

// finish takes the program's answer to the current event.
func (e *process) finish(convert func(body []byte) result) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		results := e.settle(r.PathValue("id"))
		if results == nil {
			http.Error(w, "not the current invocation", http.StatusBadRequest)
			return
		}
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxPayload))
		if err != nil {
			results <- result{err: &FunctionError{Reason: "response: " + err.Error()}}
			http.Error(w, "response size too large", http.StatusRequestEntityTooLarge)
			return
		}
		results <- convert(body)
		w.WriteHeader(http.StatusAccepted)
	}
}

// settle ends the current event, which is answered once, and returns where its result goes, or
// nil if the id belongs to another event.
func (e *process) settle(id string) chan<- result {
	e.mu.Lock()
	defer e.mu.Unlock()
	if id != e.current.id {
		return nil
	}
	results := e.current.result
	e.current = invocation{}
	return results
}
