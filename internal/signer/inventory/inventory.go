// Package inventory asks EC2 about instances, with the credentials for their account.
package inventory

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/aws/aws-sdk-go-v2/aws"

	"github.com/hallmark-ssh/hallmark/internal/backoff"
	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"github.com/hallmark-ssh/hallmark/internal/signer/awscall"
)

// ErrNotFound says that EC2 does not know the instance in that region.
var ErrNotFound = errors.New("EC2 does not know the instance")

// The states of an instance, as EC2 names them: the states in which it may enroll, the state
// in which it waits to be started again, and the states from which it never returns.
const (
	StatePending      = "pending"
	StateRunning      = "running"
	StateStopped      = "stopped"
	StateShuttingDown = "shutting-down"
	StateTerminated   = "terminated"
)

// Instance is what EC2 says about an instance. Text that EC2 omits is empty.
type Instance struct {
	ID               ec2ref.InstanceID
	OwnerID          ec2ref.Account // of the reservation
	State            string
	Region           ec2ref.Region
	AvailabilityZone string
	VPC              string
	Subnet           string
	PrivateIP        string
	PublicIP         string
	IPv6             string
	ImageID          string
	// ImageOwner is the account that owns the image, or empty if the image is gone
	// or no longer shared.
	ImageOwner ec2ref.Account
	// ImageTags are the image's tags. They are empty unless the instance's own account owns
	// the image.
	ImageTags          map[string]string
	InstanceProfileARN string
	PrivateDNS         string
	LaunchTime         time.Time
	Tags               map[string]string
	// MetadataOptions are those of the instance's metadata service. EC2 is still applying them
	// while the instance starts, and for a moment after each change.
	MetadataOptions protocol.MetadataOptions
}

// Ref returns which instance it is.
func (i *Instance) Ref() ec2ref.Instance {
	return ec2ref.Instance{Account: i.OwnerID, Region: i.Region, ID: i.ID}
}

const (
	// maxImages bounds how many images a warm process remembers.
	maxImages = 256
	// imageLife is how long a process remembers an image, so that a fleet that boots at once asks
	// about its image only once. An image never changes its owner, but its tags may change,
	// and so may the accounts that share it.
	imageLife = time.Minute
	// attempts bounds how often one request to EC2 is tried.
	attempts = 5
)

// imageKey contains the place, because what one place says about an image says nothing about
// another place.
type imageKey struct {
	at ec2ref.Place
	id string
}

// image is what EC2 says about an image, or the zero value if EC2 does not show it.
type image struct {
	owner ec2ref.Account
	tags  map[string]string
}

type rememberedImage struct {
	image
	until time.Time
}

// EC2 reads from EC2. It is safe for concurrent use.
type EC2 struct {
	// Wait waits for a time, or until the context ends. Tests replace it.
	Wait func(ctx context.Context, d time.Duration) error

	client      awscall.Client
	credentials *accountCredentials
	endpoint    func(region ec2ref.Region) (string, error)
	now         func() time.Time

	own      ec2ref.Account // the account without a role, if there is one
	identity CallerIdentifier

	mu         sync.Mutex
	images     map[imageKey]rememberedImage
	ownChecked bool
}

// Config says which EC2 to ask, and with which credentials. All fields but Member are
// required, Identity only for CheckAccount.
type Config struct {
	// AWS has the HTTP client, and the credentials for accounts without a role.
	AWS aws.Config
	// Accounts are the accounts to ask about.
	Accounts []Account
	// Member returns an account that is not in Accounts, if the signer may ask about it
	// now. It is optional, and makes no call.
	Member func(ec2ref.Account) (Account, bool)
	// Roles returns the credentials for accounts with a role.
	Roles RoleAssumer
	// Identity says which account the credentials without a role belong to.
	Identity CallerIdentifier
	// Endpoint returns the URL of EC2 in a region.
	Endpoint func(region ec2ref.Region) (string, error)
	Now      func() time.Time
}

// New returns an EC2. It makes no call.
func New(c Config) *EC2 {
	return &EC2{
		Wait:        backoff.Wait,
		client:      awscall.Client{HTTP: c.AWS.HTTPClient, Now: c.Now},
		credentials: newCredentials(c),
		endpoint:    c.Endpoint,
		now:         c.Now,
		own:         ownAccount(c.Accounts),
		identity:    c.Identity,
		images:      make(map[imageKey]rememberedImage),
	}
}

// Instance returns what EC2 now knows about the account's instance. It fails with ErrNotListed
// for an account that is not configured, before any call, and with ErrNotFound if EC2 still
// does not know the instance after a few seconds.
func (e *EC2) Instance(ctx context.Context, of ec2ref.Instance) (*Instance, error) {
	i, err := e.findInstance(ctx, of)
	if err != nil {
		return nil, fmt.Errorf("describe instance %s in account %s, %s: %w", of.ID, of.Account, of.Region, err)
	}
	found, err := e.findImage(ctx, of.Place(), i.ImageID)
	if err != nil {
		return nil, fmt.Errorf("describe image %s in account %s, %s: %w", i.ImageID, of.Account, of.Region, err)
	}
	i.setImage(found)
	return i, nil
}

// setImage adds what is known about the instance's image.
func (i *Instance) setImage(found image) {
	i.ImageOwner = found.owner
	// Each account tags an image for itself: anyone who may use somebody else's image can give
	// it any tags in their own account. Tags say something about an image's origin only if its
	// owner has set them.
	if found.owner == i.OwnerID {
		i.ImageTags = maps.Clone(found.tags) // a copy, because other requests share it
	}
}

func (e *EC2) findInstance(ctx context.Context, of ec2ref.Instance) (i *Instance, err error) {
	err = e.retry(ctx, func() error {
		i, err = e.describeInstance(ctx, of)
		return err
	})
	return i, err
}

// retry asks again while EC2 is busy, or says that there is no such instance: its API is
// eventually consistent, so a machine can boot before EC2 shows it (EC2 documentation,
// "Eventual consistency"). It returns EC2's last answer, rather than that time is up.
func (e *EC2) retry(ctx context.Context, ask func() error) error {
	policy := backoff.Policy{
		Growth: backoff.Growth{First: 250 * time.Millisecond, Longest: 2 * time.Second},
		Random: rand.Float64, // a fleet boots at once
		Wait:   e.Wait,
	}
	return policy.Do(ctx, attempts, func(context.Context) (again bool, after time.Duration, err error) {
		err = ask()
		return errors.Is(err, ErrNotFound) || errors.Is(err, errBusy), 0, err
	})
}

func (e *EC2) describeInstance(ctx context.Context, of ec2ref.Instance) (*Instance, error) {
	question := url.Values{"InstanceId.1": {string(of.ID)}}
	answer, err := e.askInstances(ctx, of.Place(), question, maxAnswerBytes)
	if hasCode(err, "InvalidInstanceID.NotFound", "InvalidInstanceID.Malformed") {
		return nil, fmt.Errorf("%w: %w", ErrNotFound, err)
	}
	if err != nil {
		return nil, err
	}
	var found *Instance
	for _, reservation := range answer.Reservations.value.Items {
		for _, item := range reservation.Instances.value.Items {
			if item.ID.value != string(of.ID) {
				return nil, unasked(item.ID.value)
			}
			found = newInstance(of.Region, reservation.OwnerID.value, item)
		}
	}
	if found == nil {
		return nil, ErrNotFound
	}
	return found, nil
}

// unasked says that an answer is about something else: it is the answer to another request.
func unasked(id string) error {
	return fmt.Errorf("%w: it is about %.32q, which was not asked about", errAnswer, id)
}

// askInstances sends the request DescribeInstances.
func (e *EC2) askInstances(ctx context.Context, at ec2ref.Place, question url.Values, limit int64) (instancesAnswer, error) {
	question.Set("Action", "DescribeInstances")
	// EC2 would otherwise hide instances that an AWS service manages, and they would seem to
	// be gone.
	question.Set("IncludeManagedResources", "true")
	data, err := e.call(ctx, at, question, limit)
	if err != nil {
		return instancesAnswer{}, err
	}
	return parseInstances(data)
}

// askImages sends the request DescribeImages.
func (e *EC2) askImages(ctx context.Context, at ec2ref.Place, question url.Values, limit int64) (imagesAnswer, error) {
	maps.Copy(question, url.Values{"Action": {"DescribeImages"}, "IncludeDeprecated": {"true"}, "IncludeDisabled": {"true"}})
	data, err := e.call(ctx, at, question, limit)
	if err != nil {
		return imagesAnswer{}, err
	}
	return parseImages(data)
}

func newInstance(region ec2ref.Region, owner string, item instanceItem) *Instance {
	return &Instance{
		ID:                 ec2ref.InstanceID(item.ID.value),
		OwnerID:            ec2ref.Account(owner),
		State:              item.State.value,
		Region:             region,
		AvailabilityZone:   item.AvailabilityZone.value,
		VPC:                item.VPC.value,
		Subnet:             item.Subnet.value,
		PrivateIP:          item.PrivateIP.value,
		PublicIP:           item.PublicIP.value,
		IPv6:               item.IPv6.value,
		ImageID:            item.ImageID.value,
		InstanceProfileARN: item.ProfileARN.value,
		PrivateDNS:         item.PrivateDNS.value,
		LaunchTime:         item.LaunchTime.value,
		Tags:               tagMap(item.Tags.value.Items),
		MetadataOptions:    metadataOptions(item),
	}
}

// metadataOptions returns the options that are stated once, with a value that EC2 documents.
func metadataOptions(item instanceItem) protocol.MetadataOptions {
	hopLimit, err := strconv.Atoi(only(item.HopLimit))
	if err != nil {
		hopLimit = 0 // unknown
	}
	return protocol.NewMetadataOptions(only(item.HTTPTokens), hopLimit)
}

// only returns the text that is not one of several, or nothing.
func only(texts []string) string {
	if len(texts) != 1 {
		return ""
	}
	return texts[0]
}

// tagMap returns the tags. It leaves out a tag whose key contains a character that XML
// forbids: its real key is unknown, and two such keys could look the same.
func tagMap(items []tagItem) map[string]string {
	tags := make(map[string]string, len(items))
	for _, item := range items {
		if !strings.ContainsRune(item.Key.value, utf8.RuneError) {
			tags[item.Key.value] = item.Value.value
		}
	}
	return tags
}

// findImage returns what EC2 says about the image, or nothing if EC2 does not show it: an
// image may be deregistered while its instances still run.
func (e *EC2) findImage(ctx context.Context, at ec2ref.Place, id string) (image, error) {
	if id == "" {
		return image{}, nil
	}
	key := imageKey{at, id}
	if remembered, ok := e.cachedImage(key); ok {
		return remembered, nil
	}
	var found image
	err := e.retry(ctx, func() (err error) {
		found, err = e.describeImage(ctx, at, id)
		return err
	})
	if err == nil && found.owner != "" {
		e.remember(key, found)
	}
	return found, err
}

func (e *EC2) describeImage(ctx context.Context, at ec2ref.Place, id string) (image, error) {
	answer, err := e.askImages(ctx, at, url.Values{"ImageId.1": {id}}, maxAnswerBytes)
	if hasCode(err, "InvalidAMIID.NotFound", "InvalidAMIID.Unavailable", "InvalidAMIID.Malformed") {
		return image{}, nil
	}
	if err != nil {
		return image{}, err
	}
	var found image
	for _, item := range answer.Images.value.Items {
		if item.ID.value != id {
			return image{}, unasked(item.ID.value)
		}
		if found, err = newImage(item); err != nil {
			return image{}, err
		}
	}
	return found, nil
}

func newImage(item imageItem) (image, error) {
	owner, err := imageOwner(item.ID.value, item.OwnerID.value)
	return image{owner: owner, tags: tagMap(item.Tags.value.Items)}, err
}

// imageOwner reads the account that owns an image, or nothing if EC2 does not name one.
func imageOwner(id, owner string) (ec2ref.Account, error) {
	if owner == "" {
		return "", nil
	}
	account, err := ec2ref.ParseAccount(owner)
	if err != nil {
		return "", fmt.Errorf("%w: owner of image %.32q: account %w", errAnswer, id, err)
	}
	return account, nil
}

func (e *EC2) cachedImage(key imageKey) (image, bool) {
	e.mu.Lock()
	defer e.mu.Unlock()
	remembered, ok := e.images[key]
	return remembered.image, ok && e.now().Before(remembered.until)
}

func (e *EC2) remember(key imageKey, i image) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if len(e.images) >= maxImages {
		clear(e.images)
	}
	// Strip the monotonic reading: that clock stands still while a Lambda function is frozen.
	e.images[key] = rememberedImage{i, e.now().Round(0).Add(imageLife)}
}

// hasCode reports whether EC2 refused the request with one of the codes.
func hasCode(err error, codes ...string) bool {
	api, ok := errors.AsType[*apiError](err)
	return ok && api.status == http.StatusBadRequest && slices.Contains(codes, api.code)
}
