//go:build teleport && linux

package people

import (
	"fmt"
	"os"
	"testing"

	"github.com/hallmark-ssh/hallmark/e2e/lab"
)

// An instance's tags decide who can reach it. When it terminates, it leaves people's lists.
func TestPeopleSeeWhatEC2Has(t *testing.T) {
	alice := newPerson(t, shared.lab.Teleport, "alice-watches", everywhere)
	prod := newPerson(t, shared.lab.Teleport, "peter", `{logins: [debian], node_labels: {aws/env: prod}}`)
	instance, err := shared.lab.Launch(t.Context(), lab.Template{
		Name: "watched", Image: shared.image, Tags: map[string]string{"Name": "watched", "env": "prod"},
	})
	if err != nil {
		t.Fatal(err)
	}
	s, err := instance.WaitEnrolled(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	m := enrolled{instance, s}
	name := s.Node.Hostname
	poll(t, func() error { // the proxy's view lags
		if list(t, prod)[name] == nil {
			return os.ErrNotExist
		}
		return nil
	})
	out, err := prod.Tsh(t.Context(), "ssh", lab.User+"@"+name, reach)
	reached(t, m, out, err)

	if err := shared.lab.EC2.Tag(t.Context(), m.ID, "env", "dev"); err != nil {
		t.Fatal(err)
	}
	if err := shared.lab.SendTags(t.Context(), m.ID, 1); err != nil {
		t.Fatal(err)
	}
	poll(t, func() error {
		if node := list(t, alice)[name]; node == nil || node.GetAllLabels()["aws/env"] != "dev" {
			return fmt.Errorf("node %v", node)
		}
		return nil
	})
	if list(t, prod)[name] != nil {
		t.Error("a role for env=prod still lists the machine")
	}
	out, err = prod.Tsh(t.Context(), "ssh", lab.User+"@"+name, reach)
	refused(t, out, err, "access denied to "+lab.User)
	out, err = alice.Tsh(t.Context(), "ssh", lab.User+"@"+name, reach)
	reached(t, m, out, err)

	if err := shared.lab.EC2.Terminate(t.Context(), m.ID); err != nil {
		t.Fatal(err)
	}
	if err := shared.lab.SendState(t.Context(), m.ID, "terminated"); err != nil {
		t.Fatal(err)
	}
	poll(t, func() error {
		if list(t, alice)[name] != nil {
			return os.ErrExist
		}
		return nil
	})
}
