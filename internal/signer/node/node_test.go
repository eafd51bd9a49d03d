package node

import (
	"testing"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
)

// A node's labels count only if they name an instance that can exist, and the node's id is that
// instance's: anyone who may write nodes chooses both.
func TestInstance(t *testing.T) {
	good := ec2ref.Instance{Account: "111122223333", Region: "us-west-2", ID: "i-0123456789abcdef0"}
	for name, row := range map[string]struct {
		labeled ec2ref.Instance
		id      string
		want    bool
	}{
		"its own":            {good, good.NodeID(), true},
		"another node's id":  {good, "28663dc7-edf9-5081-a573-668145833f30", false},
		"no labels":          {ec2ref.Instance{}, ec2ref.Instance{}.NodeID(), false},
		"a pattern":          {ec2ref.Instance{Account: good.Account, Region: good.Region, ID: "i-*"}, "", false},
		"no account":         {ec2ref.Instance{Account: "=1+1", Region: good.Region, ID: good.ID}, "", false},
		"no region":          {ec2ref.Instance{Account: good.Account, Region: "us-west-2/x", ID: good.ID}, "", false},
		"a line in the name": {ec2ref.Instance{Account: good.Account, Region: good.Region, ID: good.ID + "\n"}, "", false},
	} {
		t.Run(name, func(t *testing.T) {
			n := Node{ID: row.id, Labels: map[string]string{
				AccountLabel: string(row.labeled.Account), RegionLabel: string(row.labeled.Region), InstanceLabel: string(row.labeled.ID),
			}}
			if n.ID == "" {
				n.ID = row.labeled.NodeID()
			}
			if i, ok := n.Instance(); ok != row.want || ok && i != good {
				t.Errorf("got %v, %t, want %t", i, ok, row.want)
			}
		})
	}
}
