package enroll

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/identity"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"github.com/hallmark-ssh/hallmark/internal/signer/inventory"
	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
	"github.com/hallmark-ssh/hallmark/internal/signer/node"
	"github.com/hallmark-ssh/hallmark/internal/signer/organization"
)

// inspect asks the ledger and then EC2 about the instance, and compares EC2's answer with
// the document. The ledger comes first: EC2's answer then includes every tag change that
// the ledger has noted, and the confirmation detects later notes. Also, a retired
// instance needs no call to EC2.
//
// The metadata options are not part of the facts, so no policy can depend on them.
func (s *Signer) inspect(ctx context.Context, d *identity.Document, a *audit) (facts node.Facts, options protocol.MetadataOptions, err error) {
	record, err := s.readRecord(ctx, d, a)
	if err != nil {
		return facts, options, err
	}
	members, err := s.membership(ctx, d, record, a)
	if err != nil {
		return facts, options, err
	}
	instance, err := s.describe(ctx, d, a)
	if err != nil {
		return facts, options, err
	}
	if err := checkInstance(instance, d); err != nil {
		return facts, options, err
	}
	if err := s.addLaunchImage(ctx, instance, record, a); err != nil {
		return facts, options, err
	}
	facts = node.FactsOf(instance, record)
	members.Describe(&facts)
	a.facts, a.record = &facts, record
	return facts, instance.MetadataOptions, nil
}

// membership returns the organization's accounts, for the facts. It stops the first
// enrollment of an instance whose account is a member by an old list only: the account may
// have left long ago. Renewals go on, because an outage of AWS Organizations must not empty
// Teleport; to ask EC2, the signer needs a role that AWS gives it only within the
// organization.
func (s *Signer) membership(ctx context.Context, d *identity.Document, r ledger.Record, a *audit) (organization.View, error) {
	listed := slices.Contains(s.Accounts, d.Instance.Account)
	members, err := s.members(ctx, a)
	switch {
	case err != nil && listed:
		s.Log.WarnContext(ctx, "the account's name and path are unknown", slog.Any("", d.Instance), slog.Any("error", err))
		return organization.View{}, nil
	case err != nil:
		return members, err
	case !listed && !node.IsEnrolled(r) && members.IsStale(s.now()):
		reason := fmt.Errorf("the list of the organization's accounts is from %s, more than %s ago: it admits no first enrollment",
			members.Read().UTC().Format(time.RFC3339), organization.MaxAge)
		return members, refuse(protocol.CodeUpstream, reason).withMessage("the signer's list of accounts is out of date; ask its operator")
	}
	return members, nil
}

// describe asks EC2 about the instance.
func (s *Signer) describe(ctx context.Context, d *identity.Document, a *audit) (*inventory.Instance, error) {
	var i *inventory.Instance
	err := a.step(ctx, "ec2", ec2Timeout, func(ctx context.Context) (err error) {
		i, err = s.Inventory.Instance(ctx, d.Instance)
		return err
	})
	if errors.Is(err, inventory.ErrNotFound) {
		return nil, refuse(protocol.CodeInstanceUnknown, err)
	}
	if err != nil {
		return nil, unanswered(serviceEC2, err)
	}
	return i, nil
}

// addLaunchImage fills in the owner of an image that neither EC2 nor the ledger knows:
// someone may deregister or unshare an image before the first enrollment of an instance
// launched from it. EC2 does not report its tags, so they stay unknown.
func (s *Signer) addLaunchImage(ctx context.Context, i *inventory.Instance, r ledger.Record, a *audit) error {
	if owner, _ := r.ImageOf(i.ImageID, i.ImageOwner, i.ImageTags); owner != "" || i.ImageID == "" || s.LaunchImages == nil {
		return nil
	}
	var image inventory.LaunchImage
	err := a.step(ctx, "ec2", ec2Timeout, func(ctx context.Context) (err error) {
		image, err = s.LaunchImages.LaunchImage(ctx, i.Ref())
		return err
	})
	switch {
	case errors.Is(err, inventory.ErrNotPermitted):
		// A member account's role may be older than this permission: the policy then
		// decides without it.
		if _, seen := s.unpermitted.LoadOrStore(i.OwnerID, true); !seen {
			s.Log.WarnContext(ctx, "the role may not look up deleted images, so their owners are unknown; allow ec2:DescribeInstanceImageMetadata",
				slog.String("account", i.OwnerID.String()), slog.Any("error", err))
		}
	case errors.Is(err, inventory.ErrNotFound):
	case err != nil:
		return unanswered(serviceEC2, err)
	case image.ID == i.ImageID: // the instance now runs another image
		i.ImageOwner = image.Owner
	}
	return nil
}

// readRecord reads the instance's record from the ledger. It stops an off-boarded instance:
// its document stays valid forever, and EC2 may still show it as running.
func (s *Signer) readRecord(ctx context.Context, d *identity.Document, a *audit) (ledger.Record, error) {
	var record ledger.Record
	err := a.step(ctx, "record", ledgerTimeout, func(ctx context.Context) (err error) {
		record, err = s.Ledger.Lookup(ctx, d.Instance)
		return err
	})
	if err == nil && record.Retired {
		err = ledger.ErrRetired
		if record.RetiredBy != "" {
			err = fmt.Errorf("%w by %s", err, record.RetiredBy)
		}
	}
	if err == nil && record.Signer != "" && record.Signer != s.Audience && s.now().Before(record.ValidUntil) {
		err = fmt.Errorf("%w: %q", ledger.ErrOtherSigner, record.Signer)
	}
	return record, refuseLedger(err)
}

// checkInstance compares EC2's answer with the document. Each line is independent; none
// is skipped because another is absent or disabled. It does not compare the launch time:
// the document has the time of the last start, which may differ.
func checkInstance(i *inventory.Instance, d *identity.Document) error {
	agree := []struct{ what, ec2, document string }{
		{"instance", i.ID.String(), d.Instance.ID.String()},
		// A subnet can be shared and a role can be assumed: only the reservation's owner
		// says whose instance it is.
		{"account", i.OwnerID.String(), d.Instance.Account.String()},
		{"region", i.Region.String(), d.Instance.Region.String()},
		{"availability zone", i.AvailabilityZone, d.AvailabilityZone},
		{"image", i.ImageID, d.ImageID},
		{"private address", i.PrivateIP, d.PrivateIP},
	}
	for _, fact := range agree {
		if fact.ec2 != fact.document {
			return refuse(protocol.CodeInstanceMismatch,
				fmt.Errorf("%s: EC2 says %q, the document %q", fact.what, fact.ec2, fact.document))
		}
	}
	// The document of a terminated machine stays valid forever.
	if i.State != inventory.StatePending && i.State != inventory.StateRunning {
		err := fmt.Errorf("the instance is %s", i.State)
		return refuse(protocol.CodeInstanceState, err).withMessage(err.Error())
	}
	return nil
}
