package deployment

import (
	"github.com/aws/aws-sdk-go-v2/aws"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/signer/inventory"
)

// Fleet is what a deployment.yaml says about the fleet, for operators.
type Fleet struct {
	Audience string
	// Places are the listed accounts, each in all listed regions. Accounts of the organization
	// are not among them.
	Places []ec2ref.Place
	// EC2 asks about instances, with the configuration's credentials or with the roles in
	// deployment.yaml.
	EC2 *inventory.EC2
	// Teleport is host:port of the cluster, and RootsFile the file of certificates to trust
	// for it, empty for none.
	Teleport, RootsFile string
}

// ReadFleet reads a deployment.yaml, and no other file. It makes no calls.
func ReadFleet(data []byte, cfg aws.Config) (Fleet, error) {
	d, err := parseDeployment(data)
	if err != nil {
		return Fleet{}, err
	}
	f := Fleet{Audience: d.Audience, EC2: newInventory(d, cfg, nil), Teleport: d.Teleport.Address, RootsFile: d.Teleport.RootsFile}
	for _, account := range d.Accounts.ids() {
		for _, region := range d.Regions {
			f.Places = append(f.Places, ec2ref.Place{Account: account, Region: region})
		}
	}
	return f, nil
}
