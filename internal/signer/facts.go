package signer

import (
	"errors"
	"fmt"

	"github.com/hallmark-ssh/hallmark/internal/identity"
	"github.com/hallmark-ssh/hallmark/internal/inventory"
	"github.com/hallmark-ssh/hallmark/internal/policy"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
)

func refuseInventory(err error) error {
	if errors.Is(err, inventory.ErrNotFound) {
		return refuse(protocol.CodeInstanceUnknown, err)
	}
	return refuse(protocol.CodeUpstream, err)
}

// checkInstance compares EC2's answer with the document. Each line stands for
// itself; none is skipped because another is absent or off.
func checkInstance(i *inventory.Instance, d *identity.Document) error {
	agree := []struct{ what, ec2, document string }{
		{"instance", i.ID, d.InstanceID},
		// A subnet can be shared and a role assumed: only the reservation's owner says
		// whose instance it is.
		{"account", i.OwnerID, d.AccountID},
		{"region", i.Region, d.Region},
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
	// The document of a machine that is gone stays valid for ever.
	if i.State != inventory.StatePending && i.State != inventory.StateRunning {
		err := fmt.Errorf("the instance is %s", i.State)
		return refuse(protocol.CodeInstanceState, err).saying(err.Error())
	}
	return nil
}

func policyFacts(i *inventory.Instance, d *identity.Document) policy.Facts {
	return policy.Facts{
		Account:    d.AccountID,
		Region:     d.Region,
		InstanceID: d.InstanceID,
		VPC:        i.VPC,
		ImageOwner: i.ImageOwner,
		PrivateIP:  i.PrivateIP,
		PublicIP:   i.PublicIP,
		IPv6:       i.IPv6,
		Tags:       i.Tags,
	}
}
