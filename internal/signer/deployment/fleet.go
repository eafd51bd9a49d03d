package deployment

import (
	"context"
	"errors"
	"log/slog"
	"slices"

	"github.com/aws/aws-sdk-go-v2/aws"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/signer/inventory"
	organizations "github.com/hallmark-ssh/hallmark/internal/signer/organization"
)

// Fleet is what a deployment.yaml says about the fleet, for operators.
type Fleet struct {
	Audience string
	// Places are the listed accounts, each in all listed regions. Accounts of the organization
	// are not among them.
	Places []ec2ref.Place
	// EC2 asks about instances, with the configuration's credentials or with the roles in
	// deployment.yaml. It knows the organization's accounts after Organization was called.
	EC2 *inventory.EC2
	// Organization reads the stored list of the organization's accounts. It is nil without an
	// organization or a table.
	Organization func(ctx context.Context) (organizations.View, error)
	// Teleport is host:port of the cluster, and RootsFile the file of certificates to trust
	// for it, empty for none.
	Teleport, RootsFile string

	regions []ec2ref.Region
}

// ReadFleet reads a deployment.yaml, and no other file. It makes no calls. The table holds the
// list of the organization's accounts; without one, they are not known.
func ReadFleet(data []byte, cfg aws.Config, table string) (Fleet, error) {
	d, err := parseDeployment(data)
	if err != nil {
		return Fleet{}, err
	}
	f := Fleet{Audience: d.Audience, Teleport: d.Teleport.Address, RootsFile: d.Teleport.RootsFile, regions: d.Regions}
	var members *organizations.Members
	if d.Organization != nil && table != "" {
		members = &organizations.Members{
			Store: d.store(newDynamoDB(cfg, table), table), Scope: d.Organization.scope(), Log: slog.New(slog.DiscardHandler), Now: Now,
		}
		f.Organization = members.Current
	}
	f.EC2 = newInventory(d, cfg, members)
	for _, account := range d.Accounts.ids() {
		f.Places = append(f.Places, f.placesOf(account)...)
	}
	return f, nil
}

func (f Fleet) placesOf(account ec2ref.Account) []ec2ref.Place {
	places := make([]ec2ref.Place, len(f.regions))
	for n, region := range f.regions {
		places[n] = ec2ref.Place{Account: account, Region: region}
	}
	return places
}

// ErrNotRead says that the signer has not read the organization yet.
var ErrNotRead = errors.New("the signer has not stored a list of the organization's accounts yet")

// MemberPlaces returns the organization's accounts that may enroll instances, each in all
// listed regions, without those in Places.
func (f Fleet) MemberPlaces(ctx context.Context) ([]ec2ref.Place, error) {
	if f.Organization == nil {
		return nil, nil
	}
	view, err := f.Organization(ctx)
	switch {
	case err != nil:
		return nil, err
	case view.Read().IsZero():
		return nil, ErrNotRead
	}
	var places []ec2ref.Place
	for _, account := range view.Accounts() {
		if !slices.ContainsFunc(f.Places, func(p ec2ref.Place) bool { return p.Account == account }) {
			places = append(places, f.placesOf(account)...)
		}
	}
	return places, nil
}
