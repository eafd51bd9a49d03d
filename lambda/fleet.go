package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/signer/deployment"
	"github.com/hallmark-ssh/hallmark/internal/signer/organization"
	"github.com/hallmark-ssh/hallmark/internal/signer/upkeep"
)

const (
	// spare is the part of an invocation's time that a sweep leaves for finishing the
	// current instance and storing where the next sweep begins.
	spare = 20 * time.Second
	// batchTime bounds a batch of events. The queue hides a message for six times as long
	// (template.yaml), so that no other invocation handles it meanwhile.
	batchTime = time.Minute
	// cursorTime bounds reading where the last sweep stopped.
	cursorTime = 3 * time.Second
	// walkTime bounds a step of the walk through expired records, which runs before each
	// sweep: a hanging EC2 must leave the sweep enough time.
	walkTime = 45 * time.Second
	// readingTime bounds a reading of the organization. The next one begins two minutes after
	// this one (template.yaml).
	readingTime = 110 * time.Second
)

// reading reads which accounts an organization has. *organization.Refresher implements it.
type reading interface {
	Refresh(ctx context.Context) (organization.Report, error)
}

// cursor stores where the next sweep begins. *stored.Text implements it.
type cursor interface {
	Load(ctx context.Context) ([]byte, error)
	Save(ctx context.Context, next []byte) error
}

// fleetHandler is the function "fleet". It implements lambda.Handler.
type fleetHandler struct {
	fleet  *upkeep.Fleet
	cursor cursor // nil: every sweep starts from the beginning
	// organization is nil if the deployment has none.
	organization reading
	log          *slog.Logger
}

// newFleetHandler builds the function that the deployment describes. It makes no calls.
func newFleetHandler(ctx context.Context, log *slog.Logger) (fleetHandler, error) {
	u, err := deployment.NewUpkeep(ctx, log)
	if err != nil {
		return fleetHandler{}, err
	}
	h := fleetHandler{fleet: u.Fleet, log: log}
	if u.Cursor != nil { // a typed nil is not a nil interface
		h.cursor = u.Cursor
	}
	if u.Organization != nil {
		h.organization = u.Organization
	}
	return h, nil
}

// refusal is the answer to an event that the function does not act on.
type refusal struct {
	Error string `json:"error"`
}

// Invoke acts on one event: a batch from the queue, a schedule, or an operator's
// {"sweep":{"limit":500}} or {"organization":{}}. It refuses anything else with an answer, not
// with an error: Lambda would run the function again after an error, and a retry cannot help.
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
	if e.Health {
		report, err := h.checkHealth(ctx)
		if err != nil {
			return nil, err
		}
		return json.Marshal(report)
	}
	if e.Organization {
		return h.readOrganization(ctx)
	}
	if e.Sweep == nil {
		// Someone pointed a rule at the function by hand. An event through the queue
		// would come again by itself after a failure, and be kept if it keeps failing.
		return h.refuse(ctx, errors.New("events about instances come through the queue"))
	}
	report, err := h.sweep(ctx, e.Sweep.Limit)
	if err != nil {
		return nil, err // Lambda retries, and then sends the event to the queue for failures
	}
	return json.Marshal(report)
}

// readOrganization reads which accounts the organization has. It answers a failure, which
// has its own alarm, instead of returning it: Lambda would run the function again, and the
// schedule does so anyway.
func (h fleetHandler) readOrganization(ctx context.Context) ([]byte, error) {
	if h.organization == nil {
		return h.refuse(ctx, errors.New("deployment.yaml names no organization"))
	}
	ctx, cancel := context.WithTimeout(ctx, readingTime)
	defer cancel()
	report, err := h.organization.Refresh(ctx)
	if err != nil {
		return json.Marshal(refusal{err.Error()})
	}
	return json.Marshal(report)
}

func (h fleetHandler) refuse(ctx context.Context, reason error) ([]byte, error) {
	h.log.ErrorContext(ctx, "event refused", slog.Any("error", reason))
	return json.Marshal(refusal{reason.Error()})
}

// walk takes a step of the walk through expired records. If it fails, the sweep still
// runs, and the next step makes up for it.
func (h fleetHandler) walk(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, walkTime)
	defer cancel()
	if _, err := h.fleet.RetireExpired(ctx); err != nil {
		h.log.ErrorContext(ctx, "the walk through expired records failed: the next sweep tries again", slog.Any("error", err))
	}
}

// sweep sweeps for as long as the invocation lasts, starting where the last one stopped.
func (h fleetHandler) sweep(ctx context.Context, limit int) (upkeep.Report, error) {
	h.walk(ctx)
	from := h.begin(ctx)
	sweeping, cancel := withSpare(ctx)
	defer cancel()
	report, err := h.fleet.Sweep(sweeping, from, limit)
	if err != nil {
		return report, fmt.Errorf("sweep: %w", err)
	}
	if h.cursor == nil || report.Next == from {
		return report, nil
	}
	if err := h.cursor.Save(ctx, []byte(report.Next)); err != nil {
		// The sweep is done; only the next one's starting point is wrong.
		h.log.WarnContext(ctx, "cannot save where the next sweep begins", slog.Any("error", err))
	}
	return report, nil
}

// checkHealth checks for as long as the invocation lasts.
func (h fleetHandler) checkHealth(ctx context.Context) (upkeep.HealthReport, error) {
	ctx, cancel := withSpare(ctx)
	defer cancel()
	report, err := h.fleet.CheckHealth(ctx)
	if err != nil {
		return report, fmt.Errorf("check the nodes' health: %w", err)
	}
	return report, nil
}

// begin returns where to begin. It only matters for fairness: without it, a sweep starts
// from the beginning.
func (h fleetHandler) begin(ctx context.Context) string {
	if h.cursor == nil {
		return ""
	}
	ctx, cancel := context.WithTimeout(ctx, cursorTime)
	defer cancel()
	from, err := h.cursor.Load(ctx)
	if err != nil {
		h.log.WarnContext(ctx, "cannot read where the last sweep stopped", slog.Any("error", err))
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
