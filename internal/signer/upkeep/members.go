package upkeep

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
)

const (
	// memberPlaces bounds how many accounts and regions in which members of the organization
	// have no nodes a sweep asks about. There may be thousands, and each costs two calls.
	memberPlaces = 100
	// memberTime bounds the time for these.
	memberTime = time.Minute
)

// countMembers counts the running instances of members where they have no nodes. It begins
// with a random account, so that over time each of a large organization is covered.
//
// The number is only for information, so it asks an inventory whose failures count nowhere: an
// account that does not use Hallmark has no role for the signer.
func (r run) countMembers(ctx context.Context, unwatched Inventory) {
	ctx, cancel := context.WithTimeout(ctx, memberTime)
	defer cancel()
	unanswered := 0
	var first error
	for _, at := range r.memberPlaces(memberPlaces) {
		live, err := unwatched.All(ctx, at)
		if ctx.Err() != nil {
			break
		}
		if err != nil {
			unanswered++
			if first == nil {
				first = err
			}
		}
		r.report.Unenrolled += running(live)
	}
	if unanswered > 0 {
		r.Log.InfoContext(ctx, "cannot list the running instances of some accounts of the organization that have no nodes; accounts that use Hallmark need the role",
			slog.Int("places", unanswered), slog.Any("first", first))
	}
}

// memberPlaces returns up to limit accounts and regions where members have no nodes.
func (r run) memberPlaces(limit int) []ec2ref.Place {
	accounts := r.members.Accounts()
	if len(accounts) == 0 {
		return nil
	}
	first := rand.IntN(len(accounts)) //nolint:gosec // nothing secret depends on it
	var places []ec2ref.Place
	for _, account := range slices.Concat(accounts[first:], accounts[:first]) {
		for _, region := range r.Regions {
			at := ec2ref.Place{Account: account, Region: region}
			if _, swept := r.byPlace[at]; swept {
				continue
			}
			if len(places) == limit {
				return places
			}
			places = append(places, at)
		}
	}
	return places
}
