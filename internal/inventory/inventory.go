// Package inventory asks EC2 what it knows of an instance.
package inventory

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"slices"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
)

// ErrNotFound says that EC2 does not know the instance in that region.
var ErrNotFound = errors.New("EC2 does not know the instance")

// The states of an instance in which it may enroll, as EC2 names them.
const (
	StatePending = "pending"
	StateRunning = "running"
)

// Instance is what EC2 says of an instance. Text that EC2 leaves out is empty.
type Instance struct {
	ID               string
	OwnerID          string // the account that owns the reservation
	State            string
	Region           string
	AvailabilityZone string
	VPC              string
	Subnet           string
	PrivateIP        string
	PublicIP         string
	IPv6             string
	ImageID          string
	// ImageOwner is the account that owns the image, or empty if the image is gone
	// or no longer shared.
	ImageOwner         string
	InstanceProfileARN string
	LaunchTime         time.Time
	Tags               map[string]string
}

// maxCachedImages bounds what a warm process remembers.
const maxCachedImages = 256

// EC2 reads from EC2.
type EC2 struct {
	// Wait blocks for a time, or until the context ends. Tests replace it.
	Wait func(ctx context.Context, d time.Duration) error

	config   aws.Config
	endpoint func(region string) (string, error)

	mu          sync.Mutex
	imageOwners map[string]string // by image id; an image never changes its owner
}

// New returns an EC2 that takes credentials and HTTP client from cfg, both
// required, and calls the URL that endpoint returns for a region.
func New(cfg aws.Config, endpoint func(region string) (string, error)) *EC2 {
	return &EC2{
		Wait:        wait,
		config:      cfg,
		endpoint:    endpoint,
		imageOwners: make(map[string]string),
	}
}

func wait(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

// Instance returns what EC2 knows of the instance now. It fails with ErrNotFound
// if EC2 still does not know the instance after a few seconds.
func (e *EC2) Instance(ctx context.Context, region, id string) (*Instance, error) {
	i, err := e.findInstance(ctx, region, id)
	if err != nil {
		return nil, fmt.Errorf("describe instance %s in %s: %w", id, region, err)
	}
	if i.ImageOwner, err = e.imageOwner(ctx, region, i.ImageID); err != nil {
		return nil, fmt.Errorf("describe image %s in %s: %w", i.ImageID, region, err)
	}
	return i, nil
}

func (e *EC2) findInstance(ctx context.Context, region, id string) (i *Instance, err error) {
	err = e.patiently(ctx, func() error {
		i, err = e.describeInstance(ctx, region, id)
		return err
	})
	return i, err
}

// patiently asks again while EC2 is busy, or says that there is no such instance:
// its API is eventually consistent, and a machine can boot before EC2 will admit
// that it exists (EC2 documentation, "Eventual consistency"). The waits have full
// jitter, since a fleet boots at once.
func (e *EC2) patiently(ctx context.Context, ask func() error) error {
	const (
		attempts  = 5
		firstWait = 250 * time.Millisecond
	)
	for longest := firstWait; ; longest *= 2 {
		err := ask()
		again := errors.Is(err, ErrNotFound) || errors.Is(err, errBusy)
		if !again || longest >= firstWait<<(attempts-1) {
			return err
		}
		if e.Wait(ctx, rand.N(longest)) != nil { //nolint:gosec // jitter is no secret
			return err // what EC2 last said, rather than that time is up
		}
	}
}

func (e *EC2) describeInstance(ctx context.Context, region, id string) (*Instance, error) {
	var answer instancesAnswer
	err := e.call(ctx, region, url.Values{"Action": {"DescribeInstances"}, "InstanceId.1": {id}}, &answer)
	if hasCode(err, "InvalidInstanceID.NotFound", "InvalidInstanceID.Malformed") {
		return nil, fmt.Errorf("%w: %w", ErrNotFound, err)
	}
	if err != nil {
		return nil, err
	}
	for _, reservation := range answer.Reservations {
		for _, item := range reservation.Instances {
			// Judge the answer by what it says, not by what was asked for.
			if item.ID == id {
				return newInstance(region, reservation.OwnerID, item), nil
			}
		}
	}
	return nil, ErrNotFound
}

func newInstance(region, owner string, item instanceItem) *Instance {
	i := &Instance{
		ID:                 item.ID,
		OwnerID:            owner,
		State:              item.State,
		Region:             region,
		AvailabilityZone:   item.AvailabilityZone,
		VPC:                item.VPC,
		Subnet:             item.Subnet,
		PrivateIP:          item.PrivateIP,
		PublicIP:           item.PublicIP,
		IPv6:               item.IPv6,
		ImageID:            item.ImageID,
		InstanceProfileARN: item.ProfileARN,
		LaunchTime:         item.LaunchTime,
		Tags:               make(map[string]string, len(item.Tags)),
	}
	for _, tag := range item.Tags {
		i.Tags[tag.Key] = tag.Value
	}
	return i
}

// imageOwner returns the account that owns the image, or "" if EC2 does not show
// the image: an image may be deregistered while its instances run on.
func (e *EC2) imageOwner(ctx context.Context, region, image string) (string, error) {
	if image == "" {
		return "", nil
	}
	if owner, ok := e.cachedOwner(image); ok {
		return owner, nil
	}
	var answer imagesAnswer
	err := e.patiently(ctx, func() error {
		return e.call(ctx, region, url.Values{
			"Action": {"DescribeImages"}, "ImageId.1": {image},
			"IncludeDeprecated": {"true"}, "IncludeDisabled": {"true"},
		}, &answer)
	})
	if hasCode(err, "InvalidAMIID.NotFound", "InvalidAMIID.Unavailable", "InvalidAMIID.Malformed") {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	for _, found := range answer.Images {
		if found.ID == image {
			e.cacheOwner(image, found.OwnerID)
			return found.OwnerID, nil
		}
	}
	return "", nil
}

func (e *EC2) cachedOwner(image string) (string, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	owner, ok := e.imageOwners[image]
	return owner, ok
}

func (e *EC2) cacheOwner(image, owner string) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.imageOwners) >= maxCachedImages {
		clear(e.imageOwners)
	}
	e.imageOwners[image] = owner
}

func hasCode(err error, codes ...string) bool {
	var api *apiError
	return errors.As(err, &api) && slices.Contains(codes, api.code)
}
