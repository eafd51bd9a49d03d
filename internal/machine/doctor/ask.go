package doctor

import (
	"context"
	"errors"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"sync"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/backoff"
	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/machine/config"
	"github.com/hallmark-ssh/hallmark/internal/machine/imds"
	"github.com/hallmark-ssh/hallmark/internal/machine/signerclient"
)

// Remote are the facts about the metadata service and the signer.
type Remote struct {
	// Instance is which instance this is, as the metadata service says now.
	Instance    imds.Instance
	MetadataErr error
	RoleErr     error // the instance identity role's credentials
	// NeedsProfile says that requests to the signer are signed with the instance profile.
	NeedsProfile bool
	ProfileErr   error

	Host       string // that this machine connects to for the signer: its own or a proxy's
	ResolveErr error
	SignerURL  string
	SignerErr  error
	Signer     signerclient.Probe
	// Skew is how far this machine's clock is ahead of the signer's. It is known if HasDate.
	Skew        time.Duration
	HasDate     bool
	AudienceErr error

	// Labels are lines of "restorecon -n": files with a wrong SELinux label.
	Labels    []string
	LabelsErr error
	SELinux   bool
}

// Examine looks at the machine and asks the metadata service and the signer, all at once. It
// returns when the context ends, whatever hangs.
func (m *Machine) Examine(ctx context.Context) *Facts {
	f := m.newFacts()
	m.readFiles(f)
	// The goroutine of each question returns its own facts: one that hangs goes on alone.
	var asking sync.WaitGroup
	asking.Go(func() { m.lookAround(ctx, f) })
	var fromMetadata, fromSigner, fromLabels Remote
	asking.Go(func() {
		fromMetadata = answered(ctx, func(ctx context.Context) Remote { return m.askMetadata(ctx, f.Config) },
			Remote{MetadataErr: errLate})
	})
	if f.ConfigErr == nil {
		region := f.region()
		c := f.Config
		address, _ := c.SignerAddress() // a valid configuration has one
		asking.Go(func() {
			fromSigner = answered(ctx, func(ctx context.Context) Remote { return m.askSigner(ctx, c, region) },
				Remote{SignerURL: address, SignerErr: errLate})
		})
	}
	asking.Go(func() { fromLabels = answered(ctx, m.readLabels, Remote{LabelsErr: errLate, SELinux: true}) })
	asking.Wait()
	f.Remote = &fromSigner
	r := f.Remote
	r.Instance, r.MetadataErr, r.RoleErr = fromMetadata.Instance, fromMetadata.MetadataErr, fromMetadata.RoleErr
	r.NeedsProfile, r.ProfileErr = fromMetadata.NeedsProfile, fromMetadata.ProfileErr
	r.Labels, r.LabelsErr, r.SELinux = fromLabels.Labels, fromLabels.LabelsErr, fromLabels.SELinux
	return f
}

func answered(ctx context.Context, ask func(context.Context) Remote, late Remote) Remote {
	r, err := within(ctx, func(ctx context.Context) (Remote, error) { return ask(ctx), nil })
	if err != nil {
		return late
	}
	return r
}

// region returns where the instance is, as far as that is known without asking.
func (f *Facts) region() ec2ref.Region {
	switch {
	case f.Instance != nil:
		return f.Instance.Region
	case f.State != nil:
		return f.State.Instance.Region
	}
	return ""
}

// once asks one time: somebody waits for the answer.
func once() backoff.Policy {
	return backoff.Policy{Wait: func(context.Context, time.Duration) error { return errors.New("asked once") }}
}

func (m *Machine) metadata(ctx context.Context) *imds.Client {
	client := imds.New(once())
	if m.metadataEndpoint != "" {
		client.Endpoint = m.metadataEndpoint
	}
	client.Timeout = requestTime(ctx)
	return client
}

// requestTime bounds each request to the metadata service and the signer to two thirds of the
// time, so that a signer that does not answer gets a finding of its own. With the usual 4.5 s,
// that is 3 s. A signer that starts cold takes one.
func requestTime(ctx context.Context) time.Duration {
	const usual, least = 3 * time.Second, time.Millisecond
	end, ok := ctx.Deadline()
	if !ok {
		return usual
	}
	return max(time.Until(end)*2/3, least)
}

func (m *Machine) askMetadata(ctx context.Context, c config.Config) (r Remote) {
	client := m.metadata(ctx)
	if r.Instance, r.MetadataErr = client.Instance(ctx); r.MetadataErr != nil {
		return r
	}
	if _, r.MetadataErr = client.IdentityDocument(ctx); r.MetadataErr != nil {
		return r
	}
	_, r.RoleErr = client.RoleCredentials(ctx)
	if r.NeedsProfile = c.SignsRequests(); r.NeedsProfile {
		_, r.ProfileErr = client.ProfileCredentials(ctx)
	}
	return r
}

func (m *Machine) askSigner(ctx context.Context, c config.Config, region ec2ref.Region) (r Remote) {
	if r.SignerURL, r.SignerErr = c.SignerAddress(); r.SignerErr != nil {
		return r
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, r.SignerURL, nil)
	if err != nil {
		r.SignerErr = err
		return r
	}
	r.Host = req.URL.Hostname()
	if proxy, err := http.ProxyFromEnvironment(req); err == nil && proxy != nil {
		r.Host = proxy.Hostname()
	}
	if net.ParseIP(r.Host) == nil {
		resolving, cancel := context.WithTimeout(ctx, requestTime(ctx))
		defer cancel()
		if _, r.ResolveErr = net.DefaultResolver.LookupHost(resolving, r.Host); r.ResolveErr != nil {
			return r
		}
	}
	client, err := signerclient.New(c, once(), m.metadata(ctx), m.Now)
	if err != nil {
		r.SignerErr = err
		return r
	}
	client.Attempt = requestTime(ctx)
	r.Signer, r.SignerErr = client.Probe(ctx, region)
	if r.HasDate = !r.Signer.Date.IsZero(); r.HasDate {
		r.Skew = m.Now().Sub(r.Signer.Date)
	}
	if r.SignerErr == nil {
		r.AudienceErr = client.CheckAudience(ctx, region, c.Audience)
	}
	return r
}

// readLabels asks restorecon(8) which files of Hallmark's have a wrong label, and changes none.
func (m *Machine) readLabels(ctx context.Context) (r Remote) {
	if !m.selinux() {
		return r
	}
	r.SELinux = true
	if _, err := exec.LookPath("restorecon"); err != nil {
		r.LabelsErr = err
		return r
	}
	output, err := runProgram(ctx, "restorecon", "-n", "-v", "-R", "/etc/ssh", m.StateDir)
	r.LabelsErr = err
	for line := range strings.Lines(output) {
		if line = strings.TrimSpace(line); strings.Contains(line, "relabel") {
			r.Labels = append(r.Labels, line)
		}
	}
	return r
}
