package lambdahost

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strconv"
	"syscall"
	"time"

	"github.com/hallmark-ssh/hallmark/e2e/fake/loopback"
)

// emulator is an environment in AWS's Runtime Interface Emulator: one process, which starts
// the program with the first event, and again after a failure.
type emulator struct {
	program
	address string // where it takes events
}

// startEmulator starts an environment and waits until it takes events.
func (h *Host) startEmulator(ctx context.Context) (environment, error) {
	addresses, err := loopback.Free(ctx, 2)
	if err != nil {
		return nil, err
	}
	processContext, cancel := context.WithCancel(h.ctx)
	e := &emulator{program: program{cancel: cancel, exited: make(chan struct{})}, address: addresses[0].String()}
	//nolint:contextcheck // the emulator outlives the event that it is started for
	cmd := exec.CommandContext(processContext, h.function.Emulator, "--log-level", "warning",
		"--runtime-interface-emulator-address", addresses[0].String(), "--runtime-api-address", addresses[1].String(),
		h.function.Program, h.function.Handler)
	cmd.Dir = h.function.TaskRoot
	cmd.Env = append(h.environment(addresses[1].String()), "AWS_LAMBDA_FUNCTION_TIMEOUT="+strconv.Itoa(int(h.function.Timeout/time.Second)))
	cmd.Stdout, cmd.Stderr = h.function.Log, h.function.Log
	// The emulator starts the program as its child, and both end together.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	if err := cmd.Start(); err != nil {
		cancel()
		return nil, fmt.Errorf("start %s: %w", h.function.Emulator, err)
	}
	h.all.Go(func() {
		_ = cmd.Wait() // its log shows how it ended
		close(e.exited)
	})
	if err := e.answers(ctx); err != nil {
		e.close()
		return nil, err
	}
	return e, nil
}

// answers waits until the emulator listens.
func (e *emulator) answers(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, initLimit)
	defer cancel()
	for {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp4", e.address)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-e.exited:
			return &FunctionError{Reason: "the emulator exited"}
		case <-ctx.Done():
			return fmt.Errorf("wait for the emulator: %w", ctx.Err())
		}
	}
}

// invoke passes an event to the emulator. It answers with status 200 even if the function
// failed: then the answer is an error object or a sentence.
func (e *emulator) invoke(ctx context.Context, i invocation) ([]byte, error) {
	// The emulator itself ends the function when its time is up, and says so.
	ctx, cancel := context.WithDeadline(ctx, i.deadline.Add(initLimit))
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost,
		"http://"+e.address+"/2015-03-31/functions/function/invocations", bytes.NewReader(i.event))
	if err != nil {
		return nil, err
	}
	req.Header.Set("X-Amzn-Requestid", i.id)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		e.close()
		return nil, fmt.Errorf("invoke: %w", err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(io.LimitReader(res.Body, maxPayload+1))
	if err != nil {
		e.close()
		return nil, fmt.Errorf("read the emulator's answer: %w", err)
	}
	if reason, failed := functionFailed(res.StatusCode, body); failed {
		e.close() // the next event gets a new environment
		return nil, &FunctionError{Reason: reason}
	}
	return body, nil
}

// functionFailed tells a failure from an answer. These functions always answer with an object.
func functionFailed(status int, body []byte) (reason string, failed bool) {
	var object struct {
		ErrorType    *string `json:"errorType"`
		ErrorMessage string  `json:"errorMessage"`
	}
	switch err := json.Unmarshal(body, &object); {
	case err != nil: // "Task timed out after 3.00 seconds"
		return fmt.Sprintf("%.200q", body), true
	case object.ErrorType != nil:
		return *object.ErrorType + ": " + object.ErrorMessage, true
	default:
		return fmt.Sprintf("status %d", status), status != http.StatusOK
	}
}
