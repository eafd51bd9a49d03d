//go:build linux

// Command demo shows the whole path on one machine: it bakes an image with Packer,
// boots three machines from it, waits while they enroll themselves, and logs in to
// each with the stock OpenSSH client.
//
// Only AWS and Teleport are stand-ins, and with -teleport only AWS. Without it, the cluster
// is embedded in this program; that cluster is for tests and this demo only.
package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/gravitational/teleport/api/types"
	"golang.org/x/sync/errgroup"

	"github.com/hallmark-ssh/hallmark/e2e/lab"
	"github.com/hallmark-ssh/hallmark/e2e/machine"
	"github.com/hallmark-ssh/hallmark/internal/machine/state"
)

const machines = 3

func main() {
	var config lab.Config
	flag.StringVar(&config.Template, "template", "template.yaml", "path of the stack's template")
	flag.StringVar(&config.Bootstrap, "bootstrap", "bin/bootstrap", "path of the signer")
	flag.StringVar(&config.Packer, "packer", "bin/packer", "path of Packer 1.15")
	flag.StringVar(&config.Plugin, "plugin", "bin/packer-plugin-hallmark", "path of the Packer plugin")
	flag.StringVar(&config.Teleport, "teleport", "", "folder with Teleport's programs; empty for the embedded cluster")
	flag.Parse()
	os.Exit(machine.Main(os.Stderr, func(ctx context.Context, f *machine.Fleet) int {
		d := &demo{fleet: f, config: config, started: time.Now()}
		if err := d.run(ctx); err != nil {
			d.fail(ctx, err)
			return 1
		}
		if !d.report() {
			return 1
		}
		return 0
	}))
}

type demo struct {
	fleet   *machine.Fleet
	config  lab.Config
	started time.Time

	lab   *lab.Lab
	image lab.Image
	hosts []*host
	nodes []types.Server // in the cluster
}

// host is one of the three machines, and what happened to it.
type host struct {
	instance *lab.Instance
	state    *state.State
	took     time.Duration // from launch to enrollment
	verified bool
}

func (d *demo) run(ctx context.Context) error {
	if d.config.Teleport == "" {
		fmt.Println("moto emulates AWS, and a small cluster inside this program, for tests only, stands in for Teleport.")
		fmt.Println("Packer, the signer, systemd, cloud-init, sshd and ssh are real.")
	} else {
		fmt.Println("moto emulates AWS. Teleport, Packer, the signer, systemd, cloud-init and sshd are real.")
	}
	fmt.Println()
	for _, step := range []struct {
		what string
		do   func(context.Context) error
	}{
		{"start EC2, STS, the cluster and the signer", d.start},
		{"bake an image with Packer", d.bake},
		{"boot three machines from it, which enroll themselves", d.boot},
		{"show the nodes in the cluster", d.show},
		{"log in to each with a certificate from the cluster", d.logIn},
		{"try a certificate from another cluster", d.refuseStranger},
	} {
		fmt.Printf("==> %s\n", step.what)
		begun := time.Now()
		if err := step.do(ctx); err != nil {
			return fmt.Errorf("%s: %w", step.what, err)
		}
		fmt.Printf("    done in %.1f s\n\n", time.Since(begun).Seconds())
	}
	return nil
}

func (d *demo) start(ctx context.Context) (err error) {
	dir, err := os.MkdirTemp("", "demo-")
	if err != nil {
		return err
	}
	if d.lab, err = lab.New(ctx, d.fleet, d.config, dir); err != nil {
		return err
	}
	if d.lab.Teleport != nil {
		d.say("Teleport %s", d.lab.Teleport.Version())
	}
	d.say("region %s, signer at %s, cluster %s at %s", lab.Region, d.lab.SignerURL, d.lab.Cluster.Name(), d.lab.Cluster.Address())
	d.say("the signer logs in to the cluster with its AWS role and keeps no secret")
	return nil
}

func (d *demo) bake(ctx context.Context) (err error) {
	packer := &lines{say: d.say}
	if d.image, err = d.lab.BakeFrom(ctx, lab.Debian12(), packer); err != nil {
		return err
	}
	d.say("image %s", d.image.ID)
	return nil
}

// boot launches the machines as an Auto Scaling group does: all alike, except for
// what EC2 gives each.
func (d *demo) boot(ctx context.Context) error {
	for n := 1; n <= machines; n++ {
		tags := map[string]string{"Name": "web", "team": "storefront", "aws:autoscaling:groupName": "web"}
		instance, err := d.lab.Launch(ctx, lab.Template{Name: fmt.Sprintf("web%d", n), Image: d.image, Tags: tags})
		if err != nil {
			return err
		}
		d.say("launched %s at %s", instance.ID, instance.Address)
		d.hosts = append(d.hosts, &host{instance: instance})
	}
	launched := time.Now()
	group, ctx := errgroup.WithContext(ctx)
	for _, h := range d.hosts {
		group.Go(func() (err error) {
			if h.state, err = h.instance.WaitEnrolled(ctx); err != nil {
				return err
			}
			h.took = time.Since(launched)
			d.say("%s is %s after %.1f s", h.instance.ID, h.state.Node.Hostname, h.took.Seconds())
			return nil
		})
	}
	return group.Wait()
}

func (d *demo) show(ctx context.Context) error {
	if err := machine.Await(ctx, func() error { return d.list(ctx) }); err != nil {
		return err
	}
	for _, node := range d.nodes {
		d.say("%s  %s  %s", node.GetName(), node.GetHostname(), node.GetAddr())
		labels := node.GetAllLabels()
		for _, key := range slices.Sorted(maps.Keys(labels)) {
			fmt.Printf("               %s=%s\n", key, labels[key])
		}
	}
	return nil
}

// list reads the cluster's nodes. It fails until all machines are among them.
func (d *demo) list(ctx context.Context) (err error) {
	if d.nodes, err = d.lab.Cluster.Nodes(ctx); err != nil {
		return machine.Fatal(err)
	}
	for _, h := range d.hosts {
		if !slices.ContainsFunc(d.nodes, func(node types.Server) bool { return node.GetName() == h.state.Node.ID }) {
			return fmt.Errorf("the cluster does not list %s", h.state.Node.Hostname)
		}
	}
	return nil
}

func (d *demo) logIn(ctx context.Context) error {
	for _, h := range d.hosts {
		name := d.typed(h)
		out, err := d.lab.SSH(ctx, h.instance, name, "cat /run/cloud-init/.instance-id")
		if err != nil {
			return err
		}
		if out = strings.TrimSpace(out); out != h.instance.ID {
			return fmt.Errorf("ssh %s reached %q, want %q", name, out, h.instance.ID)
		}
		h.verified = true
		d.say("%s: reached %s", name, out)
	}
	return nil
}

func (d *demo) refuseStranger(ctx context.Context) error {
	h := d.hosts[0]
	_, err := d.lab.SSHByStranger(ctx, h.instance, d.typed(h), "true")
	if err == nil {
		return fmt.Errorf("%s let in a user of another cluster", h.instance.ID)
	}
	if !strings.Contains(err.Error(), "Permission denied") {
		return fmt.Errorf("want Permission denied: %w", err)
	}
	d.say("refused: Permission denied")
	return nil
}

// typed is the host name that people type.
func (d *demo) typed(h *host) string { return h.state.Node.Hostname + "." + d.lab.Cluster.Name() }

// report prints the cluster's nodes, and returns whether every machine enrolled and
// every login worked.
func (d *demo) report() bool {
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "HOST\tNODE\tADDRESS\tLABELS\tENROLLED IN\tSSH")
	enrolled, verified := 0, 0
	for _, node := range d.nodes {
		i := slices.IndexFunc(d.hosts, func(h *host) bool { return h.state.Node.ID == node.GetName() })
		if i < 0 {
			continue // not a machine of this demo
		}
		enrolled++
		result := "failed"
		if d.hosts[i].verified {
			verified++
			result = "verified"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%d\t%.1f s\t%s\n", node.GetHostname(), node.GetName(), node.GetAddr(),
			len(node.GetAllLabels()), d.hosts[i].took.Seconds(), result)
	}
	_ = t.Flush()
	fmt.Printf("\ntotal %.1f s\n", time.Since(d.started).Seconds())
	fmt.Printf("demo: %d of %d machines enrolled, ssh verified on %d of %d\n", enrolled, machines, verified, machines)
	return enrolled == machines && verified == machines
}

// fail prints the error and the machines' logs, unless the demo was interrupted.
func (d *demo) fail(ctx context.Context, err error) {
	if ctx.Err() != nil {
		fmt.Fprintln(os.Stderr, "demo: interrupted")
		return
	}
	fmt.Fprintf(os.Stderr, "demo: error: %v\n", err)
	for _, h := range d.hosts {
		h.instance.Dump(ctx, os.Stderr)
	}
	if d.lab != nil {
		fmt.Fprintf(os.Stderr, "--- log of the signer\n%s\n", d.lab.SignerLog())
	}
}

// lines is a writer that passes complete lines to say.
type lines struct {
	say  func(format string, args ...any)
	rest []byte // of an unfinished line
}

func (l *lines) Write(p []byte) (int, error) {
	l.rest = append(l.rest, p...)
	for {
		line, rest, ended := bytes.Cut(l.rest, []byte("\n"))
		if !ended {
			return len(p), nil
		}
		l.rest = rest
		if len(bytes.TrimSpace(line)) > 0 {
			l.say("%s", line)
		}
	}
}

func (d *demo) say(format string, args ...any) {
	fmt.Printf("    %5.1f s  "+format+"\n", append([]any{time.Since(d.started).Seconds()}, args...)...)
}
