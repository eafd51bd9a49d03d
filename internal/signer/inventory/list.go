package inventory

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strconv"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
)

const (
	// maxFilterValues is EC2's bound on the values of a filter (Amazon EC2 API
	// Reference, "Filter").
	maxFilterValues = 200
	// pageSize is the most that EC2 returns in one page (same reference, DescribeInstances).
	pageSize = 1000
	// maxPages bounds one listing: half a million instances of one account and region.
	maxPages = 500
)

// Instances returns those of the account's instances that EC2 knows, by id. It never leaves
// out an instance that it could not ask about: any failure fails the whole call. It asks again
// for a few seconds about instances that EC2 does not show, as Instance does, because an
// off-boarding by mistake cannot be undone.
func (e *EC2) Instances(ctx context.Context, at ec2ref.Place, ids []ec2ref.InstanceID) (map[ec2ref.InstanceID]*Instance, error) {
	found := make(map[ec2ref.InstanceID]*Instance, len(ids))
	missing := slices.Compact(slices.Sorted(slices.Values(ids)))
	var failed error
	_ = e.retry(ctx, func() error {
		missing, failed = e.seek(ctx, at, missing, found)
		if len(missing) > 0 {
			return ErrNotFound
		}
		return nil
	})
	if failed == nil && len(missing) > 0 {
		failed = ctx.Err() // running out of time is not an answer
	}
	if failed == nil {
		failed = e.addImages(ctx, at, found)
	}
	if failed != nil {
		return nil, fmt.Errorf("describe %d instances in account %s, %s: %w", len(ids), at.Account, at.Region, failed)
	}
	return found, nil
}

// seek asks for instances, adds them to found, and returns the ids of the others. With an
// error it returns none.
func (e *EC2) seek(ctx context.Context, at ec2ref.Place, ids []ec2ref.InstanceID, found map[ec2ref.InstanceID]*Instance) (missing []ec2ref.InstanceID, err error) {
	for batch := range slices.Chunk(ids, maxFilterValues) {
		// Use a filter: if ids are passed directly, one that EC2 does not know fails the whole
		// request.
		if err := e.listInstances(ctx, at, filter("instance-id", batch), found); err != nil {
			return nil, err
		}
	}
	return slices.DeleteFunc(ids, func(id ec2ref.InstanceID) bool { return found[id] != nil }), nil
}

// All returns all instances of an account in a region, by id. Instances that start or
// terminate during the call may be missing.
func (e *EC2) All(ctx context.Context, at ec2ref.Place) (map[ec2ref.InstanceID]*Instance, error) {
	found := make(map[ec2ref.InstanceID]*Instance)
	err := e.listInstances(ctx, at, url.Values{}, found)
	if err == nil {
		err = e.addImages(ctx, at, found)
	}
	if err != nil {
		return nil, fmt.Errorf("list the instances of account %s, %s: %w", at.Account, at.Region, err)
	}
	return found, nil
}

// States returns the state of every instance of an account in a region. It needs no more
// than ec2:DescribeInstances there.
func (e *EC2) States(ctx context.Context, at ec2ref.Place) (map[ec2ref.InstanceID]string, error) {
	found := make(map[ec2ref.InstanceID]*Instance)
	if err := e.listInstances(ctx, at, url.Values{}, found); err != nil {
		return nil, fmt.Errorf("list the instances of account %s, %s: %w", at.Account, at.Region, err)
	}
	states := make(map[ec2ref.InstanceID]string, len(found))
	for id, i := range found {
		states[id] = i.State
	}
	return states, nil
}

// filter asks for what has one of these values.
func filter[T ~string](name string, values []T) url.Values {
	form := url.Values{"Filter.1.Name": {name}}
	for n, value := range values {
		form.Set(filterValue(n), string(value))
	}
	return form
}

func filterValue(n int) string { return fmt.Sprintf("Filter.1.Value.%d", n+1) }

// asksAbout reports whether a request has no filter, or a filter with this value.
func asksAbout(question url.Values, value string) bool {
	for n := 0; question.Has(filterValue(n)); n++ {
		if question.Get(filterValue(n)) == value {
			return true
		}
	}
	return !question.Has("Filter.1.Name")
}

// listInstances adds the instances on the request's pages to found. If the request is about
// certain ids, an answer about another id is an error.
func (e *EC2) listInstances(ctx context.Context, at ec2ref.Place, question url.Values, found map[ec2ref.InstanceID]*Instance) error {
	return e.pages(ctx, question, func(question url.Values) (next string, err error) {
		answer, err := e.askInstances(ctx, at, question, maxListBytes)
		if err != nil {
			return "", err
		}
		for _, reservation := range answer.Reservations.value.Items {
			// An answer for another account says nothing about this one, and certainly not
			// that its instances are gone.
			if owner := reservation.OwnerID.value; owner != string(at.Account) {
				return "", fmt.Errorf("EC2 answered for account %.16q", owner)
			}
			for _, item := range reservation.Instances.value.Items {
				if !asksAbout(question, item.ID.value) {
					return "", unasked(item.ID.value)
				}
				i := newInstance(at.Region, reservation.OwnerID.value, item)
				found[i.ID] = i
			}
		}
		return answer.NextToken.value, nil
	})
}

// pages asks for one page after the other, with retries. A page may be empty without being
// the last (Amazon EC2 API Reference, "Pagination").
func (e *EC2) pages(ctx context.Context, question url.Values, ask func(url.Values) (next string, err error)) error {
	question.Set("MaxResults", strconv.Itoa(pageSize))
	seen := make(map[string]bool)
	for range maxPages {
		var next string
		err := e.retry(ctx, func() (err error) {
			next, err = ask(question)
			return err
		})
		switch {
		case err != nil || next == "":
			return err
		case seen[next]:
			return errors.New("EC2 returned the same page token twice")
		}
		seen[next] = true
		question.Set("NextToken", next)
	}
	return fmt.Errorf("EC2 has more than %d pages", maxPages)
}

// addImages fills in what is known about the instances' images, asking for all at once.
func (e *EC2) addImages(ctx context.Context, at ec2ref.Place, instances map[ec2ref.InstanceID]*Instance) error {
	images := make(map[string]image)
	var unknown []string
	for _, i := range instances {
		if _, asked := images[i.ImageID]; asked || i.ImageID == "" {
			continue
		}
		remembered, ok := e.cachedImage(imageKey{at, i.ImageID})
		if images[i.ImageID] = remembered; !ok {
			unknown = append(unknown, i.ImageID)
		}
	}
	slices.Sort(unknown)
	for batch := range slices.Chunk(unknown, maxFilterValues) {
		if err := e.listImages(ctx, at, batch, images); err != nil {
			return fmt.Errorf("describe images: %w", err)
		}
	}
	for _, i := range instances {
		i.setImage(images[i.ImageID])
	}
	return nil
}

// listImages adds to images what EC2 says about those with these ids.
func (e *EC2) listImages(ctx context.Context, at ec2ref.Place, ids []string, images map[string]image) error {
	// Use a filter, as in Instances: an image may be gone.
	return e.pages(ctx, filter("image-id", ids), func(question url.Values) (next string, err error) {
		answer, err := e.askImages(ctx, at, question, maxListBytes)
		if err != nil {
			return "", err
		}
		for _, item := range answer.Images.value.Items {
			if !asksAbout(question, item.ID.value) {
				return "", unasked(item.ID.value)
			}
			found, err := newImage(item)
			if err != nil {
				return "", err
			}
			images[item.ID.value] = found
			e.remember(imageKey{at, item.ID.value}, found)
		}
		return answer.NextToken.value, nil
	})
}
