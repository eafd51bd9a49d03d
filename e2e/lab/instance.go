//go:build linux

package lab

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strings"
	"time"

	"github.com/hallmark-ssh/hallmark/e2e/fake/imds"
	"github.com/hallmark-ssh/hallmark/e2e/fake/moto"
	"github.com/hallmark-ssh/hallmark/e2e/fake/sts"
	"github.com/hallmark-ssh/hallmark/e2e/machine"
	"github.com/hallmark-ssh/hallmark/internal/machine/state"
)

// Image is an AMI: EC2's record of it, and its disk.
type Image struct {
	ID   string
	Disk machine.Image
}

// Instance is an EC2 instance: EC2's record of it, its metadata service, and the machine
// that runs it.
type Instance struct {
	*machine.Machine
	ID       string
	Metadata *imds.Server
}

// Template says what instance to launch.
type Template struct {
	// Name is the machine's name in the lab, not its tag.
	Name  string
	Image Image
	Tags  map[string]string
	// Claim is the instance id that a machine unknown to EC2 pretends to have. Empty, as
	// usual, lets EC2 pick one.
	Claim string
	// UserData is what cloud-init reads.
	UserData string
	// Profile gives it an instance profile.
	Profile bool
	// Trouble is the fault of its metadata service when it boots.
	Trouble imds.Trouble
	// BeforeBoot is called after EC2 knows the instance and before its machine boots.
	// It may be nil.
	BeforeBoot func(id string) error
	// Prepare changes the instance's disk before it boots. It may be nil.
	Prepare func(ctx context.Context, root string) error
}

// Launch runs an instance in EC2, and boots its machine.
func (l *Lab) Launch(ctx context.Context, t Template) (*Instance, error) {
	address := l.nextAddress()
	id := t.Claim
	if id == "" {
		var err error
		if id, err = l.runInstance(ctx, t, address); err != nil {
			return nil, fmt.Errorf("run an instance of %s: %w", t.Image.ID, err)
		}
	}
	if t.BeforeBoot != nil {
		if err := t.BeforeBoot(id); err != nil {
			return nil, err
		}
	}
	metadata, err := l.newMetadata(id, address, t)
	if err != nil {
		return nil, err
	}
	metadata.SetTrouble(t.Trouble)
	l.launching.Lock()
	l.metadata = append(l.metadata, metadata)
	l.launching.Unlock()
	machine, err := l.fleet.Boot(ctx, machine.Spec{Name: t.Name, Image: t.Image.Disk, Address: address, Metadata: metadata, Prepare: t.Prepare})
	if err != nil {
		return nil, err
	}
	return &Instance{Machine: machine, ID: id, Metadata: metadata}, nil
}

func (l *Lab) nextAddress() netip.Addr {
	l.addresses.Lock()
	defer l.addresses.Unlock()
	l.last = l.last.Next()
	return l.last
}

func (l *Lab) newMetadata(id string, address netip.Addr, t Template) (*imds.Server, error) {
	publicKey, err := os.ReadFile(l.keys.keyPair + ".pub")
	if err != nil {
		return nil, err
	}
	var profile imds.Credential
	if t.Profile {
		profile = l.newCredential(profileARN(id))
	}
	return imds.New(imds.Options{
		Region: l.Region, Profile: profile,
		Instance: imds.Instance{
			ID: id, AccountID: moto.Account, AvailabilityZone: zone, ImageID: t.Image.ID,
			Type: moto.InstanceType, Architecture: "x86_64", PrivateIP: address.String(),
			Hostname: fmt.Sprintf("ip-%s.%s.compute.internal", strings.ReplaceAll(address.String(), ".", "-"), Region),
			Started:  time.Now(), Tags: t.Tags, PublicKey: strings.TrimSpace(string(publicKey)), UserData: t.UserData,
		},
		IdentityRole: l.newCredential("arn:aws:sts::" + moto.Account + ":assumed-role/aws:ec2-instance/" + id),
	}), nil
}

func (l *Lab) runInstance(ctx context.Context, t Template, address netip.Addr) (string, error) {
	return l.EC2.Run(ctx, moto.Launch{Image: t.Image.ID, Subnet: l.subnet, Address: address.String(), Tags: t.Tags})
}

// profileARN is the session of an instance profile's role. EC2 names it by the instance.
func profileARN(instance string) string {
	return "arn:aws:sts::" + moto.Account + ":assumed-role/machine/" + instance
}

// newCredential creates credentials of an assumed role, and registers them with STS.
func (l *Lab) newCredential(arn string) imds.Credential {
	c := imds.Credential{
		AccessKeyID: "ASIA" + rand.Text()[:16], SecretAccessKey: rand.Text(), SessionToken: rand.Text() + rand.Text(),
		Expires: time.Now().Add(6 * time.Hour),
	}
	registered := sts.Credential{
		AccessKeyID: c.AccessKeyID, SecretAccessKey: c.SecretAccessKey, SessionToken: c.SessionToken, Expires: c.Expires, ARN: arn,
	}
	l.STS.Register(registered)
	l.credentials.Store(c.AccessKeyID, registered)
	return c
}

// WaitEnrolled waits until the instance has enrolled, and returns its state.
func (i *Instance) WaitEnrolled(ctx context.Context) (*state.State, error) {
	var state *state.State
	err := machine.Await(ctx, func() (err error) {
		state, err = i.State(ctx)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("%s does not enroll: %w", i.Name, err)
	}
	return state, nil
}

// State returns what the instance's last enrollment left.
func (i *Instance) State(context.Context) (*state.State, error) {
	// Tests poll this. Running a program in the machine each time would slow down the boot that they
	// wait for.
	data, err := os.ReadFile(i.Path(state.Path(state.Dir)))
	if err != nil {
		return nil, err
	}
	state := new(state.State)
	if err := json.Unmarshal(data, state); err != nil {
		return nil, fmt.Errorf("%s: read the state: %w", i.Name, err)
	}
	return state, nil
}

// Hallmark runs hallmark on the instance, and returns its whole output, which the error
// repeats. The instance's own timers run hallmark too. If such a run has the lock, this one
// waits.
func (i *Instance) Hallmark(ctx context.Context, args ...string) (said string, err error) {
	busy := machine.Await(ctx, func() error {
		said, err = i.Run(ctx, "sh", append([]string{"-c", `exec hallmark "$@" 2>&1`, "hallmark"}, args...)...)
		if strings.Contains(said, state.ErrRunning.Error()) {
			return state.ErrRunning
		}
		return nil
	})
	if busy != nil {
		return said, fmt.Errorf("%s: hallmark %s: %w", i.Name, strings.Join(args, " "), busy)
	}
	if err != nil {
		err = fmt.Errorf("%w%s", err, strings.TrimSpace(said))
	}
	return said, err
}

// WithLogs adds an instance's logs and the signer's to an error.
func (l *Lab) WithLogs(ctx context.Context, i *Instance, err error) error {
	var dump bytes.Buffer
	i.Dump(ctx, &dump)
	return fmt.Errorf("%w\n%s--- signer\n%s", err, &dump, l.SignerLog())
}

// Dump writes logs that help to find out why an instance failed.
func (i *Instance) Dump(ctx context.Context, w io.Writer) {
	i.Machine.Dump(ctx, w)
	fmt.Fprintf(w, "--- metadata requests of %s (%s)\n", i.Name, i.ID)
	for _, r := range i.Metadata.Requests() {
		fmt.Fprintf(w, "%d %s %s token=%t %s\n", r.Status, r.Method, r.Path, r.Token, r.UserAgent)
	}
}

// BaseImage returns an image of Amazon's, with a freshly installed Debian on it.
func (l *Lab) BaseImage(ctx context.Context, release machine.Release) (Image, error) {
	disk, err := l.fleet.BaseImage(release)
	if err != nil {
		return Image{}, err
	}
	images, err := l.EC2.Images(ctx, "x86_64")
	if err != nil {
		return Image{}, err
	}
	if len(images) == 0 {
		return Image{}, errors.New("EC2 has no image for x86_64")
	}
	return Image{ID: images[0], Disk: disk}, nil
}
