package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/signer/deployment"
	"github.com/hallmark-ssh/hallmark/internal/signer/upkeep"
)

const (
	// spare is what a sweep leaves of an invocation's time to finish the machine it is
	// at and to note where the next sweep begins.
	spare = 20 * time.Second
	// batchTime bounds a batch of events. The queue keeps a message hidden for six times
	// as long (template.yaml), so that nobody else works on it meanwhile.
	batchTime = time.Minute
	// bookmarkTime bounds the question where the last sweep stopped.
	bookmarkTime = 3 * time.Second
	// walkTime bounds a step of the walk through expired records, which comes before each
	// sweep: an EC2 that hangs must leave the sweep its time.
	walkTime = 45 * time.Second
)

// bookmark remembers where the next sweep begins. stored.Text is one.
type bookmark interface {
	Load(ctx context.Context) ([]byte, error)
	Save(ctx context.Context, next []byte) error
}

// fleetHandler is the function "fleet". It is a lambda.Handler.
type fleetHandler struct {
	fleet    *upkeep.Fleet
	bookmark bookmark // nil: every sweep begins at the beginning
	log      *slog.Logger
}

// newFleetHandler makes the function that the deployment describes. It calls nobody.
func newFleetHandler(ctx context.Context, log *slog.Logger) (fleetHandler, error) {
	u, err := deployment.NewUpkeep(ctx, log)
	if err != nil {
		return fleetHandler{}, err
	}
	h := fleetHandler{fleet: u.Fleet, log: log}
	if u.Bookmark != nil { // a nil of a type is no nil bookmark
		h.bookmark = u.Bookmark
	}
	return h, nil
}

// refusal answers an event that the function does not act on.
type refusal struct {
	Error string `json:"error"`
}

// Invoke acts on one event: a batch of the queue, the schedule, or a person's
// {"sweep":{"limit":500}}. What is none of these is refused, with an answer and not
// with an error: Lambda runs a function again after an error, and such an event
// would not get better.
func (h fleetHandler) Invoke(ctx context.Context, event []byte) ([]byte, error) {
	batch, isBatch, err := upkeep.ParseBatch(event)
	switch {
	case err != nil:
		return h.refuse(ctx, err)
	case isBatch:
		ctx, cancel := context.WithTimeout(ctx, batchTime)
		defer cancel()
		return json.Marshal(h.fleet.Handle(ctx, batch))
	}
	e, err := upkeep.ParseEvent(event)
	if err != nil {
		return h.refuse(ctx, err)
	}
	if e.Sweep == nil {
		// A rule that was pointed at the function by hand: through the queue an event that
		// fails comes again by itself, and is kept if it goes on failing.
		return h.refuse(ctx, errors.New("events about instances come through the queue"))
	}
	report, err := h.sweep(ctx, e.Sweep.Limit)
	if err != nil {
		return nil, err // Lambda tries again, and then tells the queue for what failed
	}
	return json.Marshal(report)
}

func (h fleetHandler) refuse(ctx context.Context, reason error) ([]byte, error) {
	h.log.ErrorContext(ctx, "an event is refused", slog.Any("error", reason))
	return json.Marshal(refusal{reason.Error()})
}

// walk makes a step of the walk through expired records. The next one makes up for one
// that fails, and the sweep goes on.
func (h fleetHandler) walk(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, walkTime)
	defer cancel()
	if _, err := h.fleet.RetireExpired(ctx); err != nil {
		h.log.ErrorContext(ctx, "the walk through expired records failed: the next sweep tries again", slog.Any("error", err))
	}
}

// sweep sweeps for as long as the invocation lasts, from where the last one stopped.
func (h fleetHandler) sweep(ctx context.Context, limit int) (upkeep.Report, error) {
	h.walk(ctx)
	from := h.begin(ctx)
	sweeping, cancel := withSpare(ctx)
	defer cancel()
	report, err := h.fleet.Sweep(sweeping, from, limit)
	if err != nil {
		return report, fmt.Errorf("sweep: %w", err)
	}
	if h.bookmark == nil || report.Next == from {
		return report, nil
	}
	if err := h.bookmark.Save(ctx, []byte(report.Next)); err != nil {
		// The sweep is done; the next one begins elsewhere than it might.
		h.log.WarnContext(ctx, "where the next sweep begins could not be noted", slog.Any("error", err))
	}
	return report, nil
}

// begin returns where to begin. That is a matter of fairness alone: without it a
// sweep begins at the beginning.
func (h fleetHandler) begin(ctx context.Context) string {
	if h.bookmark == nil {
		return ""
	}
	ctx, cancel := context.WithTimeout(ctx, bookmarkTime)
	defer cancel()
	from, err := h.bookmark.Load(ctx)
	if err != nil {
		h.log.WarnContext(ctx, "where the last sweep stopped could not be read", slog.Any("error", err))
	}
	return string(from)
}

// withSpare returns a context that ends some time before the invocation does.
func withSpare(ctx context.Context) (context.Context, context.CancelFunc) {
	deadline, ok := ctx.Deadline()
	if !ok {
		return context.WithCancel(ctx)
	}
	return context.WithDeadline(ctx, deadline.Add(-spare))
}
