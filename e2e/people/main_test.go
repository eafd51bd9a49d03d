//go:build teleport && linux

// Package people tests how the people of a real Teleport cluster see enrolled machines: with
// tsh, and with OpenSSH's client as tsh configures it.
package people

import (
	"context"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sync/errgroup"

	"github.com/hallmark-ssh/hallmark/e2e/lab"
	"github.com/hallmark-ssh/hallmark/e2e/machine"
	"github.com/hallmark-ssh/hallmark/e2e/teleportd"
	"github.com/hallmark-ssh/hallmark/internal/machine/state"
)

// shared is what all tests use, and leave as it is. TestMain fills it.
var shared struct {
	lab       *lab.Lab
	image     lab.Image
	prod, dev enrolled
}

// programs is the folder from which all clusters here are started.
var programs = flag.String("programs", "../../bin/teleport", "folder with the programs of one version of Teleport")

// enrolled is an enrolled instance.
type enrolled struct {
	*lab.Instance
	state *state.State
}

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(machine.Tests("people", setUp, m.Run, machine.Debian12, machine.Debian13))
}

func setUp(ctx context.Context, f *machine.Fleet) error {
	dir, err := os.MkdirTemp("", "people-")
	if err != nil {
		return err
	}
	config := lab.Built("../..")
	config.Teleport = *programs
	shared.lab, err = lab.New(ctx, f, config, dir)
	if err != nil {
		return err
	}
	if shared.image, _, err = shared.lab.BakeQuietly(ctx, lab.Debian12()); err != nil {
		return err
	}
	group, ctx := errgroup.WithContext(ctx)
	for env, m := range map[string]*enrolled{"prod": &shared.prod, "dev": &shared.dev} {
		instance, err := shared.lab.Launch(ctx, lab.Template{Name: env, Image: shared.image, Tags: map[string]string{"Name": env, "env": env}})
		if err != nil {
			return err
		}
		m.Instance = instance
		group.Go(func() (err error) {
			m.state, err = instance.WaitEnrolled(ctx)
			if err != nil {
				err = shared.lab.WithLogs(ctx, instance, err)
			}
			return err
		})
	}
	return group.Wait()
}

// newPerson logs in a person with a role that it creates. The name is also the role's.
func newPerson(t *testing.T, cluster *teleportd.Cluster, name, allow string, more ...string) *teleportd.Person {
	t.Helper()
	role := fmt.Sprintf("kind: role\nversion: v6\nmetadata: {name: %s}\nspec: {allow: %s}\n", name, allow)
	if err := cluster.Create(t.Context(), role); err != nil {
		t.Fatal(err)
	}
	p, err := cluster.NewPerson(t.Context(), name, append([]string{name}, more...)...)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// reach is a command that only the machine itself answers with its instance id.
const reach = "cat /run/cloud-init/.instance-id"

// reached checks the outcome of running reach.
func reached(t *testing.T, m enrolled, out string, err error) {
	t.Helper()
	if err != nil {
		t.Error(err)
		return
	}
	if got := strings.TrimSpace(out); got != m.ID {
		t.Errorf("reached %q, want %s", got, m.ID)
	}
}

// refused checks that a command failed, and why.
func refused(t *testing.T, out string, err error, want ...string) {
	t.Helper()
	if err == nil {
		t.Errorf("it works, and says %q", out)
		return
	}
	if !slices.ContainsFunc(want, func(w string) bool { return strings.Contains(err.Error(), w) }) {
		t.Errorf("got %v, want one of %q", err, want)
	}
}

// poll waits until a condition holds.
func poll(t *testing.T, try func() error) {
	t.Helper()
	if err := machine.Await(t.Context(), try); err != nil {
		t.Fatal(err)
	}
}
