package upkeep

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
)

// maxEventBytes bounds an event. EventBridge's own limit is 256 KiB.
const maxEventBytes = 1 << 20

// Event is an event, reduced to what Hallmark needs. Exactly one field is set.
type Event struct {
	// StateChanged is an instance that stopped or is gone, according to the event.
	StateChanged *ec2ref.Instance
	TagsChanged  *TagChange
	// Sweep is a sweep requested by the schedule or an operator.
	Sweep *SweepRequest
	// Health is a health check requested by its schedule or an operator.
	Health bool
	// Organization asks for a reading of the organization's accounts.
	Organization bool
	// Ignored says why the event needs no action.
	Ignored string
}

// SweepRequest asks for a sweep.
type SweepRequest struct {
	// Limit is how many nodes of missing instances this sweep may delete; 0 means the
	// daily limit.
	Limit int `json:"limit"`
}

// ErrEvent says that this package does not act on the input.
var ErrEvent = errors.New("not an event for the fleet")

// envelope is an event of EventBridge (Amazon EventBridge User Guide, "Event structure").
// AWS sets account and region. Only AWS can use sources that begin with "aws.".
type envelope struct {
	DetailType string          `json:"detail-type"`
	Source     string          `json:"source"`
	Account    string          `json:"account"`
	Region     string          `json:"region"`
	Resources  []string        `json:"resources"`
	Detail     json.RawMessage `json:"detail"`
	// Sweep is the input of an operator's invocation: {"sweep":{"limit":500}}. An event
	// from a bus cannot have this field, because EventBridge writes the envelope.
	Sweep *SweepRequest `json:"sweep"`
	// Health is the schedule's input for a health check: {"health":{}}.
	Health *struct{} `json:"health"`
	// Organization is the input of the stack's rule for that, {"organization":{}}, or of an
	// operator's invocation.
	Organization *struct{} `json:"organization"`
}

// ParseEvent reads an event. It fails with ErrEvent for anything else; a retry cannot
// help then.
func ParseEvent(data []byte) (Event, error) {
	if len(data) > maxEventBytes {
		return Event{}, fmt.Errorf("%w: %d bytes, more than %d", ErrEvent, len(data), maxEventBytes)
	}
	var e envelope
	if err := json.Unmarshal(data, &e); err != nil {
		return Event{}, fmt.Errorf("%w: %w", ErrEvent, err)
	}
	switch {
	case e.Health != nil && e.Source == "" && e.DetailType == "":
		return Event{Health: true}, nil
	case e.Sweep != nil && e.Source == "" && e.DetailType == "":
		if e.Sweep.Limit < 0 {
			return Event{}, fmt.Errorf("%w: a limit of %d", ErrEvent, e.Sweep.Limit)
		}
		return Event{Sweep: e.Sweep}, nil
	case e.Organization != nil && e.Source == "" && e.DetailType == "":
		return Event{Organization: true}, nil
	case e.DetailType == "Scheduled Event" && (e.Source == "aws.events" || e.Source == "aws.scheduler"):
		return Event{Sweep: new(SweepRequest)}, nil
	case e.DetailType == "EC2 Instance State-change Notification" && e.Source == "aws.ec2":
		return stateChange(e)
	case e.DetailType == "Tag Change on Resource" && e.Source == "aws.tag":
		return tagChange(e)
	}
	return Event{}, fmt.Errorf("%w: source %.64q, detail-type %.64q", ErrEvent, e.Source, e.DetailType)
}

func stateChange(e envelope) (Event, error) {
	var detail struct {
		InstanceID string `json:"instance-id"`
		State      string `json:"state"`
	}
	if err := json.Unmarshal(e.Detail, &detail); err != nil {
		return Event{}, fmt.Errorf("%w: detail: %w", ErrEvent, err)
	}
	i, err := e.instance(detail.InstanceID)
	if err != nil {
		return Event{}, err
	}
	switch detail.State {
	case "stopped", "shutting-down", "terminated":
		return Event{StateChanged: &i}, nil
	}
	return Event{Ignored: fmt.Sprintf("instance %s is %.32q", i.ID, detail.State)}, nil
}

func tagChange(e envelope) (Event, error) {
	var detail struct {
		Service      string          `json:"service"`
		ResourceType string          `json:"resource-type"`
		Version      json.RawMessage `json:"version"`
	}
	if err := json.Unmarshal(e.Detail, &detail); err != nil {
		return Event{}, fmt.Errorf("%w: detail: %w", ErrEvent, err)
	}
	if detail.Service != "ec2" || detail.ResourceType != "instance" {
		return Event{Ignored: fmt.Sprintf("tags of a resource of type %.32q of %.32q", detail.ResourceType, detail.Service)}, nil
	}
	if len(e.Resources) != 1 {
		return Event{}, fmt.Errorf("%w: %d resources, not 1", ErrEvent, len(e.Resources))
	}
	i, err := e.instanceOf(e.Resources[0])
	if err != nil {
		return Event{}, err
	}
	// The version decides nothing, so one of another form must not lose the event.
	var version uint64
	if json.Unmarshal(detail.Version, &version) != nil {
		version = 0
	}
	return Event{TagsChanged: &TagChange{Instance: i, Version: version}}, nil
}

// instanceOf reads the ARN of an instance. It must match the envelope: a member account's
// event must not name another account's instance.
func (e envelope) instanceOf(arn string) (ec2ref.Instance, error) {
	parts := strings.SplitN(arn, ":", 6)
	if len(parts) != 6 || parts[0] != "arn" || parts[2] != "ec2" || parts[3] != e.Region || parts[4] != e.Account {
		return ec2ref.Instance{}, fmt.Errorf("%w: resource %.128q is not an instance in account %.16q, region %.32q", ErrEvent, arn, e.Account, e.Region)
	}
	id, ok := strings.CutPrefix(parts[5], "instance/")
	if !ok {
		return ec2ref.Instance{}, fmt.Errorf("%w: resource %.128q is not an instance", ErrEvent, arn)
	}
	return e.instance(id)
}

func (e envelope) instance(id string) (ec2ref.Instance, error) {
	i, err := ec2ref.NewInstance(e.Account, e.Region, id)
	if err != nil {
		return ec2ref.Instance{}, fmt.Errorf("%w: %w", ErrEvent, err)
	}
	return i, nil
}
