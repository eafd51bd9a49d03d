package upkeep

import (
	"testing"

	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
)

// letLeave has an instance leave, and its signer die before it deletes the node.
func (w *world) letLeave(n int) {
	w.t.Helper()
	l := ledger.Leave{Instance: ref(n), Fingerprints: w.record(n).Fingerprints, IssuedAt: w.now}
	if _, err := w.ledger.Leave(w.t.Context(), l, w.now); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) record(n int) ledger.Record {
	w.t.Helper()
	record, err := w.ledger.Lookup(w.t.Context(), ref(n))
	if err != nil {
		w.t.Fatal(err)
	}
	return record
}

// The node of an instance that left goes with the next sweep or tag event, and the record
// stays as it is: the machine may enroll again.
func TestNodesOfInstancesThatLeft(t *testing.T) {
	for name, act := range map[string]func(*world) error{
		"sweep": func(w *world) error {
			report, err := w.fleet.Sweep(t.Context(), "", 0)
			if report.Repaired != 1 || report.Deleted != 0 {
				t.Errorf("report %+v", report)
			}
			return err
		},
		"tag event": func(w *world) error { return w.fleet.TagsChanged(t.Context(), []TagChange{{Instance: ref(1)}})[0] },
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.enroll(1)
			w.enroll(2)
			w.letLeave(1)
			if err := act(w); err != nil {
				t.Fatal(err)
			}
			if _, there := w.node(1); there {
				t.Error("the node of the instance that left is still there")
			}
			if _, there := w.node(2); !there {
				t.Error("another instance's node is gone")
			}
			if r := w.record(1); !r.Left || r.Retired {
				t.Errorf("record %+v", r)
			}
			w.enrollInstance(1, w.instances[ref(1).ID])
			if err := sweepAgain(w); err != nil {
				t.Fatal(err)
			}
			if _, there := w.node(1); !there || w.record(1).Left {
				t.Error("it has enrolled again, and has no node")
			}
		})
	}
}

func sweepAgain(w *world) error {
	_, err := w.fleet.Sweep(w.t.Context(), "", 0)
	return err
}
