package doctor

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/machine/cafile"
	"github.com/hallmark-ssh/hallmark/internal/machine/fault"
	"github.com/hallmark-ssh/hallmark/internal/machine/signerclient"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
)

// fullChecks are all checks, in the order in which to fix what they find. Faults of the
// machine's own files stand first: they are the cause where others fail, too.
func fullChecks() []check {
	local := localChecks()
	remote := []check{
		checkClock, checkMetadata, checkRole, checkProfile, checkNames, checkSigner, checkAudience,
	}
	const own = 3 // checkConfig, checkFolders, checkDisk
	// The options of the metadata service come last: they keep nobody out.
	last := []check{checkCurrentCAs, checkLabels, checkHopLimit, checkTokens}
	return slices.Concat(local[:own], remote, local[own:], last)
}

// Full returns the local findings and those about the metadata service and the signer, in the
// order in which to fix them.
func Full(f *Facts) []Finding { return examine(f, fullChecks()) }

// slightSkew is more than the error of any synchronized clock.
const slightSkew = 30 * time.Second

func checkClock(f *Facts) []Finding {
	const name = "clock"
	found := Finding{Check: name, Level: Failure, Fix: "set the clock, and turn on time synchronization", Command: "timedatectl set-ntp true; timedatectl"}
	for _, err := range []error{f.Remote.SignerErr, f.Remote.AudienceErr} {
		if signerclient.CodeOf(err) == protocol.CodeClockSkew {
			found.Text = err.Error()
			return []Finding{found}
		}
	}
	skew := f.Remote.Skew
	switch {
	case !f.Remote.HasDate:
		return []Finding{{Check: name, Level: Unknown, Text: "the signer's time is unknown", Fix: "compare this machine's clock with another's", Command: "timedatectl"}}
	case skew.Abs() < slightSkew:
		return fine(name, "the clock agrees with the signer's")
	case skew.Abs() < protocol.MaxClockSkew:
		found.Level = Warning
	}
	direction := "ahead of"
	if skew < 0 {
		direction = "behind"
	}
	found.Text = fmt.Sprintf("this machine's clock is %s %s the signer's", Duration(skew.Round(10*time.Second)), direction) // a Date has whole seconds
	return []Finding{found}
}

// instanceID returns the instance for commands that name one.
func (f *Facts) instanceID() string {
	switch {
	case f.Remote.Instance.InstanceID != "":
		return f.Remote.Instance.InstanceID.String()
	case f.Instance != nil:
		return f.Instance.InstanceID.String()
	case f.State != nil:
		return f.State.Instance.InstanceID.String()
	}
	return "INSTANCE"
}

func checkMetadata(f *Facts) []Finding {
	const name = "metadata"
	if f.Remote.MetadataErr == nil {
		return fine(name, "the metadata service answers requests with session tokens: this is "+f.Remote.Instance.InstanceID.String())
	}
	return []Finding{{
		Check: name, Level: Failure, Text: f.Remote.MetadataErr.Error(),
		Fix:     "turn on the metadata service; if it is on, find what blocks 169.254.169.254 on the machine",
		Command: "aws ec2 modify-instance-metadata-options --http-endpoint enabled --instance-id " + f.instanceID(), Elsewhere: true,
		Late: late(f.Remote.MetadataErr),
	}}
}

func checkRole(f *Facts) []Finding {
	const name = "identity role"
	switch {
	case f.Remote.MetadataErr != nil:
		return nil
	case f.Remote.RoleErr == nil:
		return fine(name, "the metadata service has the instance identity role")
	}
	return []Finding{{
		Check: name, Level: Failure, Text: f.Remote.RoleErr.Error(),
		Fix:     "stop and start the instance; if the role is still missing, ask AWS",
		Command: fmt.Sprintf("aws ec2 stop-instances --instance-ids %[1]s && aws ec2 wait instance-stopped --instance-ids %[1]s && aws ec2 start-instances --instance-ids %[1]s", f.instanceID()), Elsewhere: true,
		Late: late(f.Remote.RoleErr),
	}}
}

func checkProfile(f *Facts) []Finding {
	const name = "instance profile"
	switch {
	case f.Remote.MetadataErr != nil || !f.Remote.NeedsProfile:
		return nil
	case f.Remote.ProfileErr == nil:
		return fine(name, "the instance has a profile to sign requests with")
	}
	return []Finding{{
		Check: name, Level: Failure, Text: f.Remote.ProfileErr.Error(), Fix: "give the instance a profile whose role may call the signer",
		Command: "aws ec2 associate-iam-instance-profile --iam-instance-profile Name=PROFILE --instance-id " + f.instanceID(), Elsewhere: true,
		Late: late(f.Remote.ProfileErr),
	}}
}

func checkNames(f *Facts) []Finding {
	const name = "name resolution"
	r := f.Remote
	switch {
	case f.ConfigErr != nil || r.Host == "":
		return nil
	case r.ResolveErr == nil:
		return fine(name, r.Host+" resolves")
	}
	return []Finding{{
		Check: name, Level: Failure, Text: fmt.Sprintf("cannot resolve %s: %v", r.Host, r.ResolveErr),
		Fix: "correct signer_url, or the machine's DNS settings", Command: "getent hosts " + r.Host + "; cat /etc/resolv.conf",
		Late: late(r.ResolveErr), effect: f.asksAnother(),
	}}
}

func checkSigner(f *Facts) []Finding {
	const name = "signer"
	r := f.Remote
	switch {
	case f.ConfigErr != nil || r.ResolveErr != nil || signerclient.CodeOf(r.SignerErr) == protocol.CodeClockSkew:
		return nil // another check says so
	case r.SignerErr == nil:
		return fine(name, "the signer answers")
	}
	found := Finding{
		Check: name, Level: Failure, Text: r.SignerErr.Error(), Fix: "check what is between this machine and the signer",
		Command: "curl -sv " + r.SignerURL, Late: late(r.SignerErr), effect: f.asksAnother(),
	}
	// For a network error, the hint only says that the service tries again, which fixes nothing.
	_, network := errors.AsType[*net.OpError](r.SignerErr)
	if e, ok := errors.AsType[*fault.Error](r.SignerErr); ok && e.Hint != "" && !network {
		found.Fix = e.Hint
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](r.SignerErr); ok {
		host := strings.TrimSuffix(strings.TrimPrefix(r.SignerURL, "https://"), "/")
		found.Command = "openssl s_client -showcerts -connect " + withPort(host) + " </dev/null"
		if e, ok := errors.AsType[x509.CertificateInvalidError](r.SignerErr); ok && e.Reason == x509.Expired {
			found.Fix = "check this machine's clock first: the signer's TLS certificate is not valid at this time"
		}
	}
	return []Finding{found}
}

func withPort(host string) string {
	host, _, _ = strings.Cut(host, "/")
	if strings.LastIndex(host, ":") > strings.LastIndex(host, "]") {
		return host
	}
	return host + ":443"
}

func checkAudience(f *Facts) []Finding {
	const name = "audience"
	err := f.Remote.AudienceErr
	code := signerclient.CodeOf(err)
	switch {
	case f.ConfigErr != nil || f.Remote.ResolveErr != nil || f.Remote.SignerErr != nil || code == protocol.CodeClockSkew:
		return nil
	case err == nil:
		return fine(name, "the signer accepts this machine's audience and protocol version")
	}
	found := Finding{Check: name, Level: Failure, Text: err.Error(), Late: late(err)}
	switch code {
	case protocol.CodeAudienceMismatch:
		found.Fix, found.Command = "set audience to that of the signer's deployment", "${EDITOR:-vi} "+f.ConfigFile+"; "+enrollNow
	case protocol.CodeUnsupportedVersion:
		found.Fix, found.Command = "update hallmark on this machine, or the signer", "hallmark version"
	default: // the signer is busy, or the answer is not the signer's
		found.Level, found.Text = Unknown, fmt.Sprintf("cannot tell whether the signer accepts this machine's audience: %v", err)
		found.Fix, found.Command = "run hallmark doctor again", "hallmark doctor"
		if e, ok := errors.AsType[*fault.Error](err); ok && e.Kind != fault.Temporary {
			found.Level, found.Text = Failure, err.Error()
			found.Fix, found.Command = orElse(e.Hint, "check that signer_url is the signer's address"), "curl -sv "+f.Remote.SignerURL
		}
	}
	return []Finding{found}
}

// checkCurrentCAs compares the CAs that sshd trusts with the cluster's. The next run installs
// new ones.
func checkCurrentCAs(f *Facts) []Finding {
	const name = "current CAs"
	cas := f.Remote.Signer.CAs
	extra, err := f.Config.ExtraCAs()
	if cas == nil || err != nil || f.CAsErr != nil || f.State == nil {
		return nil
	}
	if bytes.Equal(f.CAs, cafile.Render(cas.OpenSSH, extra...)) {
		return fine(name, "sshd trusts the cluster's current CAs")
	}
	return []Finding{{
		Check: name, Level: Warning, Text: f.CAFile + " does not list the cluster's current CAs; the next run updates it",
		Fix: "wait for the next run, or run it now", Command: enrollNow,
	}}
}

func checkLabels(f *Facts) (findings []Finding) {
	const name = "SELinux"
	r := f.Remote
	switch {
	case !r.SELinux:
		return nil
	case r.LabelsErr != nil:
		return []Finding{{Check: name, Level: Unknown, Text: fmt.Sprintf("cannot check labels: %v", r.LabelsErr), Fix: "install restorecon, and run it as root", Command: "restorecon -nvR /etc/ssh /var/lib/hallmark", Late: late(r.LabelsErr)}}
	case len(r.Labels) == 0:
		return fine(name, "Hallmark's files have the right labels")
	}
	return []Finding{{
		Check: name, Level: Warning, Text: fmt.Sprintf("files with a wrong SELinux label: %d, such as %s", len(r.Labels), r.Labels[0]),
		Fix: "restore the labels", Command: "restorecon -Rv /etc/ssh /var/lib/hallmark",
	}}
}
