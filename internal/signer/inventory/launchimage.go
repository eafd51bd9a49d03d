package inventory

import (
	"context"
	"errors"
	"fmt"
	"net/url"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
)

// ErrNotPermitted says that EC2 does not let these credentials ask, or that the region does
// not have the action.
var ErrNotPermitted = errors.New("EC2 does not answer this question to these credentials")

// LaunchImage is the image that an instance was launched from.
type LaunchImage struct {
	ID    string
	Owner ec2ref.Account
}

// LaunchImage returns the image that the account's instance was launched from, even if the
// image is deregistered or no longer shared, and DescribeImages does not show it. The answer
// has no tags. It fails with ErrNotListed for an account that is not configured, before any
// call, with ErrNotFound if EC2 does not know the instance, and with ErrNotPermitted.
func (e *EC2) LaunchImage(ctx context.Context, of ec2ref.Instance) (LaunchImage, error) {
	var found LaunchImage
	err := e.retry(ctx, func() (err error) {
		found, err = e.describeLaunchImage(ctx, of)
		return err
	})
	if err != nil {
		return LaunchImage{}, fmt.Errorf("describe the image of instance %s in account %s, %s: %w", of.ID, of.Account, of.Region, err)
	}
	return found, nil
}

func (e *EC2) describeLaunchImage(ctx context.Context, of ec2ref.Instance) (LaunchImage, error) {
	question := url.Values{"Action": {"DescribeInstanceImageMetadata"}, "InstanceId.1": {string(of.ID)}}
	data, err := e.call(ctx, of.Place(), question, maxAnswerBytes)
	switch {
	case hasCode(err, "InvalidInstanceID.NotFound", "InvalidInstanceID.Malformed"):
		return LaunchImage{}, fmt.Errorf("%w: %w", ErrNotFound, err)
	case isNotPermitted(err):
		return LaunchImage{}, fmt.Errorf("%w: %w", ErrNotPermitted, err)
	case err != nil:
		return LaunchImage{}, err
	}
	answer, err := parseImageMetadata(data)
	if err != nil {
		return LaunchImage{}, err
	}
	for _, item := range answer.Instances.value.Items {
		switch image := item.Image.value; {
		case item.ID.value != string(of.ID):
			return LaunchImage{}, unasked(item.ID.value)
		case item.OwnerID.value != string(of.Account):
			return LaunchImage{}, fmt.Errorf("%w: EC2 answered for account %.16q", errAnswer, item.OwnerID.value)
		default:
			owner, err := imageOwner(image.ID.value, image.OwnerID.value)
			if err != nil {
				return LaunchImage{}, err
			}
			return LaunchImage{ID: image.ID.value, Owner: owner}, nil
		}
	}
	return LaunchImage{}, ErrNotFound
}

// isNotPermitted recognizes the codes with which EC2 refuses an action (Amazon EC2 API
// Reference, "Error codes"): a role without the permission, or a region without the action.
func isNotPermitted(err error) bool {
	api, ok := errors.AsType[*apiError](err)
	if !ok {
		return false
	}
	switch api.code {
	case "UnauthorizedOperation", "AccessDenied", "InvalidAction", "UnsupportedOperation":
		return api.status >= 400 && api.status < 500
	}
	return false
}
