package doctor

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/machine/agent"
	"github.com/hallmark-ssh/hallmark/internal/machine/cafile"
	"github.com/hallmark-ssh/hallmark/internal/machine/fault"
	"github.com/hallmark-ssh/hallmark/internal/machine/findings"
	"github.com/hallmark-ssh/hallmark/internal/machine/handshake"
	"github.com/hallmark-ssh/hallmark/internal/machine/hostkey"
	"github.com/hallmark-ssh/hallmark/internal/machine/imds"
	"github.com/hallmark-ssh/hallmark/internal/machine/sshd"
	"github.com/hallmark-ssh/hallmark/internal/machine/state"
	"github.com/hallmark-ssh/hallmark/internal/sshkey"
)

// localChecks are in the order in which to fix what they find: a cause before its effects.
func localChecks() []check {
	return []check{
		checkConfig, checkFolders, checkDisk, checkSSHD, checkSettings, checkHostKeys, checkEnrollment,
		checkCertificates, checkTrust, checkWaiting, checkListeners, checkTimers, checkLock, checkRenewal, checkLastRun, checkOthers,
	}
}

const (
	// overdue is how late a renewal may be: a run every hour, and a pause of an hour after
	// failures.
	overdue = 3 * time.Hour
	// longOverdue is when somebody has to act.
	longOverdue = 24 * time.Hour
)

func checkConfig(f *Facts) []Finding {
	const name = "configuration"
	switch {
	case f.ConfigErr == nil:
		return fine(name, f.ConfigFile+" is valid")
	case slices.Contains(f.DirsFound, f.ConfigFile):
		return nil // checkFolders says so
	case errors.Is(f.ConfigErr, fs.ErrPermission):
		return needsRoot(name, f.ConfigFile)
	case isMissing(f.ConfigErr):
		return []Finding{{
			Check: name, Level: Failure, Text: f.ConfigFile + " is missing",
			Fix: "install Hallmark with a folder that has config.yaml", Command: installCommand,
		}}
	}
	return []Finding{{
		Check: name, Level: Failure, Text: fmt.Sprintf("%s: %v", f.ConfigFile, f.ConfigErr),
		Fix: "correct the file, then run hallmark enroll", Command: "${EDITOR:-vi} " + f.ConfigFile + "; " + enrollNow,
	}}
}

// checkFolders finds folders where files belong.
func checkFolders(f *Facts) (findings []Finding) {
	const name = "files"
	for _, path := range f.DirsFound {
		then, command := "run hallmark enroll", enrollNow
		if path == f.ConfigFile { // no run writes this file
			then, command = "install Hallmark with a folder that has config.yaml", installCommand
		}
		findings = append(findings, Finding{
			Check: name, Level: Failure, Text: path + " is a folder, but must be a file",
			Fix: "move the folder away, then " + then, Command: moveAway(path) + " && " + command,
		})
	}
	if len(findings) == 0 {
		return fine(name, "no folder is where a file belongs")
	}
	return findings
}

func checkDisk(f *Facts) (findings []Finding) {
	const (
		name   = "disk"
		needed = 1 << 20 // some files of a few kilobytes
		scarce = 32 << 20
		inodes = 16
	)
	bad := func(level Level, text, fix, command string) {
		findings = append(findings, Finding{Check: name, Level: level, Text: text, Fix: fix, Command: command})
	}
	for _, d := range f.Disk {
		switch {
		case isMissing(d.Err): // it is created when it is needed
		case d.Err != nil:
			bad(Unknown, fmt.Sprintf("cannot examine %s: %v", d.Path, d.Err), "run it as root", "")
		case d.ReadOnly:
			bad(Failure, d.Path+" is read-only", "find out why, and mount it read-write", fmt.Sprintf("dmesg | tail; mount -o remount,rw \"$(findmnt -no TARGET -T %s)\"", d.Path))
		case d.Free < needed:
			bad(Failure, fmt.Sprintf("%s has only %d KiB of free space", d.Path, d.Free>>10), "free some space", "df -h "+d.Path)
		case d.Limited && d.Inodes < inodes:
			bad(Failure, fmt.Sprintf("%s has only %d free inodes", d.Path, d.Inodes), "remove some files", "df -i "+d.Path)
		case d.Free < scarce:
			bad(Warning, fmt.Sprintf("%s has only %d MiB of free space", d.Path, d.Free>>20), "free some space", "df -h "+d.Path)
		}
	}
	if len(findings) == 0 {
		return fine(name, "the folders that Hallmark writes to have space and are writable")
	}
	return findings
}

// checkSSHD judges whether sshd is there, accepts its configuration, and runs.
func checkSSHD(f *Facts) []Finding {
	const name = "sshd"
	start := Finding{Check: name, Level: Failure, Text: "sshd is not running", Fix: "start sshd", Command: "systemctl start ssh.service || systemctl start sshd.service"}
	switch {
	case errors.Is(f.SettingsErr, sshd.ErrNoServer):
		return []Finding{{Check: name, Level: Failure, Text: f.SettingsErr.Error(), Fix: "install the OpenSSH server", Command: "apt-get install openssh-server || dnf install openssh-server"}}
	case errors.Is(f.SettingsErr, sshd.ErrNoHostKeys):
		return []Finding{{Check: name, Level: Failure, Text: "sshd has no host keys", Fix: "generate host keys, then restart sshd", Command: "ssh-keygen -A && " + reloadSSHD}}
	case errors.Is(f.SettingsErr, errLate), errors.Is(f.SettingsErr, sshd.ErrNoSystemd):
		return []Finding{{Check: name, Level: Failure, Text: fmt.Sprintf("cannot read sshd's settings: %v", f.SettingsErr), Fix: "check whether sshd and systemd answer", Command: "sshd -T; systemctl status", Late: late(f.SettingsErr)}}
	case f.SettingsErr != nil:
		return []Finding{refused(f.SettingsErr)}
	case errors.Is(f.ListenersErr, errLate): // checkListeners says so, after the settings
		return nil
	case f.ListenersErr != nil:
		return []Finding{{Check: name, Level: Unknown, Text: fmt.Sprintf("cannot tell where sshd listens: %v", f.ListenersErr), Fix: "run it as root"}}
	case len(f.Listeners) == 0:
		return []Finding{start}
	case f.Settings == nil && !f.Root:
		return needsRoot(name, "sshd's settings")
	}
	return fine(name, "sshd accepts its configuration and is running")
}

// refused is the finding that sshd does not accept its configuration. The command opens the file
// at the line that sshd names.
func refused(err error) Finding {
	f := Finding{
		Check: "sshd", Level: Failure, Text: fmt.Sprintf("sshd does not accept its configuration: %v", err),
		Fix: "correct the line that sshd names, before sshd restarts", Command: "sshd -t",
	}
	if e, ok := errors.AsType[*sshd.ConfigError](err); ok {
		f.Fix = "correct that line before sshd restarts, then reload sshd"
		f.Places = placesOf(e.Lines)
		f.Command = edit(cutPlace(f.Places[0])) + "; " + reloadSSHD
	}
	return f
}

func checkSettings(f *Facts) (findings []Finding) {
	const name = "settings"
	switch {
	case f.Settings == nil && !f.Root:
		return needsRoot(name, "sshd's settings")
	case f.Settings == nil:
		return nil // checkSSHD says why
	case f.Settings.TrustedUserCAKeys == "":
		return []Finding{{
			Check: name, Level: Failure, Text: "sshd trusts no CA: its configuration has no line TrustedUserCAKeys " + f.CAFile,
			Fix: "install Hallmark's settings", Command: installCommand,
		}}
	case !f.hasSettings():
		return []Finding{{
			Check: name, Level: Failure, Text: fmt.Sprintf("sshd trusts the CAs in %s, not those in %s", f.Settings.TrustedUserCAKeys, f.CAFile),
			Fix: "remove that TrustedUserCAKeys line, then install Hallmark's settings", Command: "grep -rn TrustedUserCAKeys /etc/ssh; " + installCommand,
		}}
	case f.ProblemsErr != nil:
		return []Finding{{Check: name, Level: Unknown, Text: fmt.Sprintf("cannot check sshd's settings: %v", f.ProblemsErr), Fix: "fix what the message names"}}
	}
	for _, p := range f.Problems {
		findings = append(findings, problem(name, p))
	}
	if len(findings) == 0 {
		return fine(name, "sshd's settings let people log in with certificates")
	}
	return findings
}

// problem turns a finding about sshd's settings into one of this package.
func problem(name string, p findings.Finding) Finding {
	f := Finding{Check: name, Level: Warning, Text: p.String(), Fix: p.Remedy + ", then reload sshd", Command: reloadSSHD}
	if p.Blocks {
		f.Level = Failure
	}
	if len(p.Places) > 0 {
		f.Places = placesOf(p.Places)
		f.Command = edit(cutPlace(f.Places[0])) + "; " + reloadSSHD
	}
	return f
}

// hasSettings reports whether sshd has the settings that Hallmark installs.
func (f *Facts) hasSettings() bool { return f.Settings.TrustedUserCAKeys == f.CAFile }

func checkHostKeys(f *Facts) []Finding {
	const name = "host keys"
	switch {
	case f.Settings == nil && !f.Root:
		return needsRoot(name, "sshd's host keys")
	case f.Settings == nil:
		return nil
	case f.KeysErr != nil:
		found := Finding{
			Check: name, Level: Failure, Text: f.KeysErr.Error(), Fix: "generate host keys that can be certified", Command: "ssh-keygen -A",
			effect: !f.hasSettings(), // these include the HostCertificate lines
		}
		if e, ok := errors.AsType[*fault.Error](f.KeysErr); ok {
			found.Fix, found.Command = e.Hint, installCommand
			if errors.Is(e, hostkey.ErrTaken) {
				found.Command = "${EDITOR:-vi} " + f.ConfigFile + "; " + enrollNow
			}
		}
		return []Finding{found}
	}
	return fine(name, fmt.Sprintf("host keys that can be certified: %d", len(f.Keys)))
}

func checkEnrollment(f *Facts) []Finding {
	const name = "enrollment"
	bad := func(text, fix, command string) []Finding {
		return []Finding{{Check: name, Level: Failure, Text: text, Fix: fix, Command: command}}
	}
	switch {
	case errors.Is(f.StateErr, fs.ErrPermission):
		return needsRoot(name, f.StateFile)
	case slices.Contains(f.DirsFound, f.StateFile):
		return nil // checkFolders says so
	case f.StateErr != nil:
		return bad(f.StateErr.Error(), "move the file away, then enroll again", moveAway(f.StateFile)+" && "+enrollNow)
	case f.Damaged:
		return bad(f.StateFile+" is damaged", "enroll again, which replaces it", enrollNow)
	case f.State == nil:
		return bad("this machine is not enrolled", "enroll it", enrollNow)
	case f.Instance != nil && f.Instance.InstanceID != f.State.Instance.InstanceID:
		return bad(fmt.Sprintf("enrolled as instance %s, but this is %s", f.State.Instance.InstanceID, f.Instance.InstanceID), "enroll it", enrollNow)
	case f.asksAnother():
		return bad("signer_url, signer_function or audience in "+f.ConfigFile+" changed since the enrollment",
			"check them against the signer's deployment, then enroll again", "${EDITOR:-vi} "+f.ConfigFile+"; "+enrollNow)
	}
	return fine(name, fmt.Sprintf("enrolled as %s in %s", f.State.Node.Hostname, f.State.Node.Cluster))
}

// asksAnother reports whether the configuration names another signer than at the enrollment, or
// another audience.
func (f *Facts) asksAnother() bool {
	return f.ConfigErr == nil && f.State != nil && f.State.Config != f.Config.Digest()
}

// checkCertificates judges the certificates on disk.
func checkCertificates(f *Facts) (findings []Finding) {
	const name = "certificates"
	if f.State == nil {
		return nil // checkEnrollment says so
	}
	for _, file := range f.Files {
		text, level := judgeCertificate(file, f)
		if text != "" {
			findings = append(findings, Finding{
				Check: name, Level: level, Text: text, Fix: "enroll again, which replaces it", Command: enrollNow,
				effect: expired(file.Certificate, f.Now), // something has kept the renewals from working
			})
		}
	}
	switch {
	case len(findings) > 0:
		return findings
	case len(f.Files) == 0:
		return []Finding{{Check: name, Level: Failure, Text: "this machine has no host certificate", Fix: "enroll it", Command: enrollNow}}
	}
	return fine(name, fmt.Sprintf("certificates in place and valid: %d", len(f.Files)))
}

// judgeCertificate returns what is wrong with a certificate on disk, or "".
func judgeCertificate(file File, f *Facts) (string, Level) {
	cert := file.Certificate
	switch {
	case isMissing(file.Err):
		return file.Path + " is missing", Failure
	case errors.Is(file.Err, fs.ErrPermission) && !f.Root:
		return "cannot read " + file.Path + " without root", Unknown
	case slices.Contains(f.DirsFound, file.Path):
		return "", OK // checkFolders says so
	case file.Err != nil:
		return fmt.Sprintf("%s: %v", file.Path, file.Err), Failure
	}
	end, start := hostkey.FirstEnd([]*ssh.Certificate{cert}), hostkey.Start(cert)
	n := slices.IndexFunc(f.State.Certificates, func(c state.Certificate) bool { return c.Path == file.Path })
	switch {
	case expired(cert, f.Now):
		return fmt.Sprintf("%s expired at %s", file.Path, end.UTC().Format(time.RFC3339)), Failure
	case f.Now.Before(start):
		return fmt.Sprintf("%s is not valid before %s: this machine's clock is wrong", file.Path, start.UTC().Format(time.RFC3339)), Failure
	case n < 0:
		return file.Path + " is not one that Hallmark installed", Failure
	case f.State.Certificates[n].Fingerprint != ssh.FingerprintSHA256(cert.Key):
		return file.Path + " is a certificate of another key", Failure
	case f.State.Certificates[n].Serial != cert.Serial:
		return file.Path + " is not the certificate that Hallmark installed", Failure
	case len(f.State.HostCAs) > 0 && !slices.Contains(f.State.HostCAs, sshkey.Line(cert.SignatureKey)):
		return file.Path + " is signed by a CA that is not the cluster's", Failure
	}
	return "", OK
}

func expired(cert *ssh.Certificate, now time.Time) bool {
	return cert != nil && !now.Before(hostkey.FirstEnd([]*ssh.Certificate{cert}))
}

// checkTrust judges the file of CAs that sshd trusts for people.
func checkTrust(f *Facts) []Finding {
	const name = "trusted CAs"
	bad := func(text string) []Finding {
		return []Finding{{Check: name, Level: Failure, Text: text, Fix: "enroll again, which restores the file", Command: enrollNow}}
	}
	switch {
	case slices.Contains(f.DirsFound, f.CAFile):
		return nil // checkFolders says so
	case isMissing(f.CAsErr):
		return bad(f.CAFile + " is missing: nobody can log in through Teleport")
	case errors.Is(f.CAsErr, fs.ErrPermission) && !f.Root:
		return needsRoot(name, f.CAFile)
	case f.CAsErr != nil:
		return bad(f.CAsErr.Error())
	case f.State == nil:
		return nil
	}
	cas, err := cafile.ParseKeys(f.State.OpenSSHCAs)
	extra, err2 := f.Config.ExtraCAs()
	if err != nil || err2 != nil || f.ConfigErr != nil {
		return nil // an old state, or a wrong configuration, which checkConfig reports
	}
	if !bytes.Equal(f.CAs, cafile.Render(cas, extra...)) {
		return bad(f.CAFile + " is not the file that Hallmark wrote")
	}
	return fine(name, fmt.Sprintf("CAs that sshd trusts for people: %d", len(cafile.Fingerprints(f.CAs))))
}

// checkWaiting judges certificates that wait for a reload of sshd.
func checkWaiting(f *Facts) []Finding {
	if f.State == nil || f.State.Waiting == nil {
		return nil
	}
	w := f.State.Waiting
	found := Finding{
		Check: "reload", Level: Warning, Text: fmt.Sprintf("%s; %s", w, w.Access(f.Now)),
		Fix: "reload sshd once the pending change may take effect", Command: "hallmark enroll --reload",
	}
	if w.Urgent(f.Now) {
		found.Level = Failure
	}
	return []Finding{found}
}

// checkListeners judges what sshd presents wherever it listens.
func checkListeners(f *Facts) (findings []Finding) {
	const name = "presented"
	if errors.Is(f.ListenersErr, errLate) {
		return []Finding{{Check: name, Level: Failure, Text: "sshd did not answer in time", Fix: "see what sshd is waiting for, then restart it", Command: "systemctl status ssh sshd; journalctl -n 20 -u ssh -u sshd", Late: true}}
	}
	if f.State != nil && f.State.Waiting != nil || len(f.Listeners) == 0 {
		return nil // checkWaiting and checkSSHD say so
	}
	offers := 0
	for _, l := range f.Listeners {
		for _, o := range l.Offers {
			if !f.hasCertificate(o.Path) {
				continue // checkEnrollment or checkCertificates says so
			}
			offers++
			text, level := judgeOffer(o)
			if level == OK {
				continue
			}
			findings = append(findings, Finding{
				Check: name, Level: level, Text: fmt.Sprintf("sshd at %s %s", l.Address, text),
				Fix: "reload sshd", Command: reloadSSHD,
			})
		}
	}
	switch {
	case len(findings) > 0:
		return findings
	case offers == 0:
		return nil // there is no certificate to present
	}
	return fine(name, fmt.Sprintf("addresses at which sshd presents the certificates: %d", len(f.Listeners)))
}

// hasCertificate reports whether there is a certificate on disk that sshd could present.
func (f *Facts) hasCertificate(path string) bool {
	return slices.ContainsFunc(f.Files, func(file File) bool { return file.Path == path && file.Certificate != nil })
}

func judgeOffer(o Offer) (string, Level) {
	switch {
	case o.Same:
		return "", OK
	case o.Err == nil:
		return "presents a different certificate than " + o.Path, Failure
	case errors.Is(o.Err, handshake.ErrNotPresented):
		return "does not present " + o.Path, Failure
	case errors.Is(o.Err, handshake.ErrNoAnswer):
		return fmt.Sprintf("does not answer: %v", o.Err), Failure
	}
	// TCP wrappers or a firewall may admit others, but not this machine itself.
	return fmt.Sprintf("does not let this machine check for %s: %v", o.Path, o.Err), Warning
}

func checkTimers(f *Facts) (findings []Finding) {
	const name = "timers"
	if errors.Is(f.UnitsErr, errNoSystemd) {
		return []Finding{{Check: name, Level: Warning, Text: "this machine does not run systemd, so nothing renews the certificates", Fix: "run hallmark renew every hour", Command: "hallmark renew"}}
	}
	if f.UnitsErr != nil {
		return []Finding{{Check: name, Level: Unknown, Text: fmt.Sprintf("cannot check the timers: %v", f.UnitsErr), Fix: "check whether systemd answers", Command: "systemctl status", Late: late(f.UnitsErr)}}
	}
	for _, unit := range []string{BootTimer, RenewTimer} {
		u := f.Units[unit]
		switch {
		case !u.Loaded:
			findings = append(findings, Finding{Check: name, Level: Failure, Text: unit + " is not installed", Fix: "install Hallmark's units", Command: installCommand})
		case u.Enabled != "enabled" && u.Enabled != "enabled-runtime":
			findings = append(findings, Finding{Check: name, Level: Failure, Text: unit + " is " + orElse(u.Enabled, "not enabled"), Fix: "enable the timers", Command: enableTimers})
		case !u.Active:
			findings = append(findings, Finding{Check: name, Level: Failure, Text: unit + " is not running", Fix: "start the timers", Command: enableTimers})
		}
	}
	if !f.Units[ServiceUnit].Loaded {
		findings = append(findings, Finding{Check: name, Level: Failure, Text: ServiceUnit + " is not installed", Fix: "install Hallmark's units", Command: installCommand})
	}
	if len(findings) == 0 {
		return fine(name, BootTimer+" and "+RenewTimer+" are running")
	}
	return findings
}

func orElse(text, otherwise string) string {
	if text == "" {
		return otherwise
	}
	return text
}

func checkLock(f *Facts) []Finding {
	const name = "lock"
	switch since := f.Now.Sub(f.LockedSince); {
	case f.LockedSince.IsZero():
		return nil
	case since > state.LongestRun:
		return []Finding{{
			Check: name, Level: Failure, Text: "a run of hallmark has been stuck since " + f.LockedSince.UTC().Format(time.RFC3339),
			Fix: "stop that process", Command: "fuser -vk " + f.LockFile,
		}}
	}
	return fine(name, "a run of hallmark has been in progress since "+f.LockedSince.UTC().Format(time.RFC3339))
}

// checkRenewal judges what a run would do now.
func checkRenewal(f *Facts) []Finding {
	const name = "renewal"
	if f.State == nil {
		return nil
	}
	late := f.Now.Sub(f.State.RenewAfter)
	found := Finding{Check: name, Level: Failure, Fix: "renew now", Command: enrollNow, effect: true}
	switch {
	case f.Now.Before(f.State.EnrolledAt.Add(-time.Hour)):
		found.Text = "this machine's clock shows a time before its enrollment at " + f.State.EnrolledAt.UTC().Format(time.RFC3339)
		found.Fix, found.Command = "set the clock", "timedatectl set-ntp true; timedatectl"
		return []Finding{found}
	case late >= overdue:
		found.Text = fmt.Sprintf("the renewal is overdue by %s, since %s", Duration(late), f.State.RenewAfter.UTC().Format(time.RFC3339))
		if late < longOverdue {
			found.Level = Warning
		}
		return []Finding{found}
	case late >= 0:
		return fine(name, "the certificates are due for renewal; the next run renews them")
	}
	if reason := f.dueFor(); reason != "" {
		found.Level, found.Text, found.Fix = Warning, "the next run will renew: "+reason, "wait for it, or renew now"
		return []Finding{found}
	}
	return fine(name, fmt.Sprintf("due in %s, at %s", Duration(-late), f.State.RenewAfter.UTC().Format(time.RFC3339)))
}

// dueFor returns why a run would ask for certificates although none is due, or "". Only root
// sees enough to tell.
func (f *Facts) dueFor() string {
	if f.ConfigErr != nil || f.Settings == nil || f.KeysErr != nil {
		return ""
	}
	var instance imds.Instance
	if f.Instance != nil {
		instance = *f.Instance
	}
	reason, err := agent.Due(agent.Found{State: f.State, Instance: instance, Config: f.Config, Keys: f.Keys, CAFile: f.CAs}, f.Now)
	if err != nil {
		return ""
	}
	return reason
}

// checkLastRun judges how the last run ended. A run that only an outage stopped does no harm
// while the certificates are valid.
func checkLastRun(f *Facts) []Finding {
	const name = "last run"
	if s := f.FailedRuns; s != nil {
		found := Finding{Check: name, Level: Failure, Text: failedText(s, f.Now), Fix: orElse(s.Hint, "follow the message"), Command: enrollNow, effect: true}
		if s.Kind == fault.Temporary && f.certified() {
			found.Level = Warning
		}
		return []Finding{found}
	}
	u, ok := f.Units[ServiceUnit]
	if !ok || u.Ended.IsZero() || u.Result == "success" || u.Started.After(u.Ended) {
		return fine(name, "no run has failed")
	}
	found := Finding{Check: name, Level: Warning, Text: fmt.Sprintf("the last run ended with %s at %s", u.ending(), u.Ended.Format(time.RFC3339)), Fix: "run it again, and read its messages", Command: startService + "; journalctl -n 20 -u hallmark.service", effect: true}
	return []Finding{found}
}

func failedText(s *agent.FailedRuns, now time.Time) string {
	text := fmt.Sprintf("the last run failed: %s", s.Reason)
	if s.Failures > 1 {
		text = fmt.Sprintf("the last %d runs failed: %s", s.Failures, s.Reason)
	}
	if now.Before(s.NotBefore) {
		text += "; the next attempt is at " + s.NotBefore.UTC().Format(time.RFC3339)
	}
	return text
}

// certified reports whether every certificate on disk is valid now.
func (f *Facts) certified() bool {
	for _, file := range f.Files {
		if file.Certificate == nil || expired(file.Certificate, f.Now) {
			return false
		}
	}
	return len(f.Files) > 0
}

func (u Unit) ending() string {
	if u.Signal {
		return fmt.Sprintf("signal %d (%s)", u.ExitCode, u.Result)
	}
	return fmt.Sprintf("exit code %d (%s)", u.ExitCode, u.Result)
}

// checkOthers finds settings for other CAs in sshd's configuration.
func checkOthers(f *Facts) (findings []Finding) {
	const name = "other CAs"
	if f.Settings == nil {
		return nil
	}
	for _, other := range f.Others {
		findings = append(findings, Finding{
			Check: name, Level: Warning, Text: "a setting for another CA: " + other,
			Fix: "remove the line if nobody uses that CA anymore", Command: "grep -rnE 'TrustedUserCAKeys|HostCertificate' /etc/ssh/sshd_config /etc/ssh/sshd_config.d",
		})
	}
	if len(findings) == 0 {
		return fine(name, "sshd's configuration names no other CA")
	}
	return findings
}

// Duration formats a duration for people: its two largest units, such as "2d 5h".
func Duration(d time.Duration) string {
	d = d.Abs().Round(time.Second)
	units := []struct {
		name string
		size time.Duration
	}{{"d", 24 * time.Hour}, {"h", time.Hour}, {"min", time.Minute}, {"s", time.Second}}
	var parts []string
	for n, u := range units {
		if count := d / u.size; count > 0 {
			parts = append(parts, fmt.Sprintf("%d%s", count, u.name))
			if rest := d % u.size; n+1 < len(units) && rest >= units[n+1].size {
				parts = append(parts, fmt.Sprintf("%d%s", rest/units[n+1].size, units[n+1].name))
			}
			break
		}
	}
	if len(parts) == 0 {
		return "0s"
	}
	return strings.Join(parts, " ")
}
