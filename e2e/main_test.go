//go:build e2e && linux

// Package e2e tests the whole path with real parts: Packer bakes an image, machines boot from
// it and enroll, and ssh logs in to them. The tests share one lab and one image, and run one
// after the other: some stop the signer, which affects every machine.
package e2e

import (
	"context"
	"flag"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/e2e/lab"
	"github.com/hallmark-ssh/hallmark/e2e/machine"
)

// policy asks for what the default does not give, so the difference shows.
const policy = `version: 1
rules:
  - name: e2e
    match:
      image_owners: [self]
      max_age: 1h
    teleport_hostname: {pattern: "bastion-[0-9]+"}
    labels:
      static: {purpose: e2e}
      tag_prefix: tag/
      deny_tags: [secret*]
    certificate_lifetime: 36h
`

const lifetime = 36 * time.Hour

// shared is what all tests use. TestMain fills it.
var shared struct {
	lab   *lab.Lab
	image lab.Image
	web   *lab.Instance // enrolled; tests leave it that way
}

var update = flag.Bool("update", false, "write the recording of the functions' calls; run all tests")

func TestMain(m *testing.M) {
	flag.Parse()
	// Which function is the first to see a new policy, for example, differs between runs. The
	// other recording has both.
	checked := func() int {
		return shared.lab.Checked(m.Run(), *update, "testdata/calls.jsonl", "stack/testdata/calls.jsonl")
	}
	os.Exit(machine.Tests("e2e", setUp, checked))
}

func setUp(ctx context.Context, f *machine.Fleet) (err error) {
	dir, err := os.MkdirTemp("", "e2e-")
	if err != nil {
		return err
	}
	config := lab.Built("..")
	config.Operator, config.Policy = "../bin/hallmark-signer", policy
	shared.lab, err = lab.New(ctx, f, config, dir)
	if err != nil {
		return err
	}
	if shared.image, _, err = shared.lab.BakeQuietly(ctx, lab.Debian12()); err != nil {
		return err
	}
	shared.web, err = shared.lab.Launch(ctx, lab.Template{
		Name: "web", Image: shared.image, Tags: map[string]string{"Name": "Web", "team": "storefront", "secret-key": "x"},
	})
	if err != nil {
		return err
	}
	if _, err := shared.web.WaitEnrolled(ctx); err != nil {
		return shared.lab.WithLogs(ctx, shared.web, err)
	}
	return nil
}

// launch boots a machine of the golden image, which is powered off after the test.
func launch(t *testing.T, template lab.Template) *lab.Instance {
	t.Helper()
	return launchOf(t, shared.image, template)
}

func launchOf(t *testing.T, image lab.Image, template lab.Template) *lab.Instance {
	t.Helper()
	template.Image = image
	i, err := shared.lab.Launch(t.Context(), template)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := i.PowerOff(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	dumpOnFailure(t, i)
	return i
}

// web returns the machine that all tests share.
func web(t *testing.T) *lab.Instance {
	t.Helper()
	dumpOnFailure(t, shared.web)
	return shared.web
}

func dumpOnFailure(t *testing.T, i *lab.Instance) {
	t.Cleanup(func() {
		if t.Failed() {
			i.Dump(context.WithoutCancel(t.Context()), t.Output())
			t.Logf("--- signer\n%s", shared.lab.SignerLog())
		}
	})
}

// stopSigner makes the signer unreachable, until start is called or the test ends.
func stopSigner(t *testing.T) (start func()) {
	t.Helper()
	if err := shared.lab.StopURL(); err != nil {
		t.Fatal(err)
	}
	start = sync.OnceFunc(func() {
		if err := shared.lab.StartURL(context.WithoutCancel(t.Context())); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(start)
	return start
}

// poll waits until a condition holds.
func poll(t *testing.T, try func() error) {
	t.Helper()
	if err := machine.Await(t.Context(), try); err != nil {
		t.Fatal(err)
	}
}

// run runs a command in a machine, which must succeed.
func run(t *testing.T, i *lab.Instance, name string, args ...string) string {
	t.Helper()
	out, err := i.Run(t.Context(), name, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// hallmark runs it on the instance, and returns what it says.
func hallmark(t *testing.T, i *lab.Instance, args ...string) string {
	t.Helper()
	said, err := i.Hallmark(t.Context(), args...)
	if err != nil {
		t.Fatal(err)
	}
	return said
}

func must[T any](t *testing.T) func(T, error) T {
	return func(value T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
}
