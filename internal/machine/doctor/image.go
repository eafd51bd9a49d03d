package doctor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/hallmark-ssh/hallmark/internal/machine/config"
	"github.com/hallmark-ssh/hallmark/internal/machine/findings"
	"github.com/hallmark-ssh/hallmark/internal/machine/install"
	"github.com/hallmark-ssh/hallmark/internal/machine/rooted"
	"github.com/hallmark-ssh/hallmark/internal/machine/sshd"
	"github.com/hallmark-ssh/hallmark/internal/machine/sshdconf"
	"github.com/hallmark-ssh/hallmark/internal/machine/state"
)

// image is the file system of an image, mounted at root.
type image struct {
	root   string
	config config.Config
}

// Image returns the findings about an image: whether its machines will enroll, and whether it
// is sealed. It changes nothing.
func Image(ctx context.Context, root string) []Finding {
	i := &image{root: root}
	var findings []Finding
	for _, look := range []func(context.Context) []Finding{i.program, i.configuration, i.units, i.settings, i.trust, i.sealed, i.makesKeys} {
		found, err := within(ctx, func(ctx context.Context) ([]Finding, error) { return look(ctx), nil })
		if err != nil {
			found = []Finding{{Check: "image", Level: Unknown, Text: err.Error(), Fix: "run it again"}}
		}
		findings = append(findings, found...)
	}
	return examine(nil, []check{func(*Facts) []Finding { return findings }})
}

// path returns where a file of the image is on this machine, wherever links lead.
func (i *image) path(file string) string {
	inside, err := rooted.Resolve(i.root, file)
	if err != nil {
		inside = file
	}
	return filepath.Join(i.root, inside)
}

func (i *image) exists(file string) bool {
	_, err := os.Lstat(i.path(file))
	return err == nil
}

func (i *image) install() string {
	return "hallmark install --from FOLDER --root " + quote(i.root)
}

func (i *image) program(context.Context) []Finding {
	for _, program := range []string{install.Program, install.PackagedProgram} {
		info, err := os.Stat(i.path(program))
		if err == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return fine("program", program+" is installed")
		}
	}
	return []Finding{{Check: "program", Level: Failure, Text: install.Program + " is missing or not executable", Fix: "install Hallmark into the image", Command: i.install()}}
}

func (i *image) configuration(context.Context) []Finding {
	data, err := os.ReadFile(i.path(config.File))
	if err == nil {
		i.config, err = config.Parse(data)
	}
	f := Facts{ConfigFile: config.File, ConfigErr: err, Root: true}
	findings := checkConfig(&f)
	for n := range findings {
		if findings[n].Level == Failure {
			findings[n].Fix, findings[n].Command = "install Hallmark with a correct config.yaml", i.install()
		}
	}
	return findings
}

func (i *image) units(context.Context) (findings []Finding) {
	for _, unit := range []string{ServiceUnit, BootTimer, RenewTimer} {
		enabled := unit == ServiceUnit || i.exists("/etc/systemd/system/timers.target.wants/"+unit)
		installed := slices.ContainsFunc([]string{"/etc/systemd/system/", "/usr/lib/systemd/system/", "/lib/systemd/system/"},
			func(folder string) bool { return i.exists(folder + unit) })
		switch {
		case !installed:
			findings = append(findings, Finding{Check: "timers", Level: Failure, Text: unit + " is not installed", Fix: "install Hallmark into the image", Command: i.install()})
		case !enabled:
			findings = append(findings, Finding{Check: "timers", Level: Failure, Text: unit + " is not enabled", Fix: "enable it", Command: "systemctl enable --root=" + quote(i.root) + " " + unit})
		}
	}
	if len(findings) == 0 {
		return fine("timers", "the timers start at boot")
	}
	return findings
}

// settings asks the image's own sshd. In a sealed image, sshd has no host keys and cannot
// answer; then settings reads the lines of its configuration.
func (i *image) settings(ctx context.Context) []Finding {
	server, err := sshd.Find(i.root)
	if err != nil {
		return []Finding{{Check: "sshd", Level: Failure, Text: err.Error(), Fix: "install the OpenSSH server into the image", Command: "chroot " + quote(i.root) + " apt-get install openssh-server"}}
	}
	f := Facts{Root: true, CAFile: sshdconf.CAFile}
	f.Settings, f.SettingsErr = server.Effective(ctx)
	switch {
	case errors.Is(f.SettingsErr, sshd.ErrNoHostKeys), errors.Is(f.SettingsErr, os.ErrPermission):
		return i.lines(server.Lines())
	case f.SettingsErr != nil:
		found := refused(f.SettingsErr)
		found.Fix = "correct the line that sshd names"
		found.Command = i.edit(found.Places, "chroot "+quote(i.root)+" sshd -t")
		return []Finding{found}
	}
	logins, err := server.Logins(ctx)
	if err == nil {
		f.Problems, err = findings.Of(ctx, server, logins, findings.Want{
			CAFile: sshdconf.CAFile, MaxStartups: i.config.SSHDOptions().MaxStartups, ProxySources: i.config.ProxySources,
		})
	}
	f.ProblemsErr = err
	found := checkSettings(&f)
	for n, one := range found {
		if one.Level == OK {
			continue
		}
		found[n].Fix = strings.TrimSuffix(one.Fix, ", then reload sshd")
		found[n].Command = i.edit(one.Places, i.install())
	}
	return found
}

// edit returns the command that opens a file of the image at the first of some places, or the
// other command if there is none.
func (i *image) edit(places []string, otherwise string) string {
	if len(places) == 0 {
		return otherwise
	}
	file, line := cutPlace(places[0])
	return edit(i.path(file), line)
}

// lines judges the configuration without sshd. The first of several lines counts.
func (i *image) lines(lines []sshd.Line) []Finding {
	const name = "settings"
	for _, l := range lines {
		if l.Keyword != "trustedusercakeys" || len(l.Match) > 0 {
			continue
		}
		if slices.Equal(l.Arguments, []string{sshdconf.CAFile}) {
			return fine(name, "sshd's configuration trusts the CAs in "+sshdconf.CAFile+"; sshd cannot report its settings without host keys")
		}
		return []Finding{{
			Check: name, Level: Failure, Text: fmt.Sprintf("%s: sshd trusts the CAs in %s", l, strings.Join(l.Arguments, " ")),
			Fix: "remove that line, then install Hallmark into the image", Command: i.install(),
		}}
	}
	return []Finding{{Check: name, Level: Failure, Text: "sshd's configuration has no line TrustedUserCAKeys " + sshdconf.CAFile, Fix: "install Hallmark into the image", Command: i.install()}}
}

func (i *image) trust(context.Context) []Finding {
	const name = "trusted CAs"
	data, err := os.ReadFile(i.path(sshdconf.CAFile))
	switch {
	case isMissing(err):
		return fine(name, "the image trusts no CA until its machines enroll")
	case err != nil:
		return []Finding{{Check: name, Level: Unknown, Text: err.Error(), Fix: "run it as root"}}
	case !bytes.Contains(data, []byte("ssh-")) && !bytes.Contains(data, []byte("ecdsa-")):
		return fine(name, sshdconf.CAFile+" lists no key")
	}
	return fine(name, sshdconf.CAFile+" lists the CAs of the bake")
}

// sealed finds what must not be in an image: each machine generates its own. It is a failure even
// while the bake goes on, so that no bake passes that forgot to seal.
func (i *image) sealed(context.Context) (findings []Finding) {
	const name = "seal"
	keys := install.HostKeys(i.root)
	if i.exists(state.Path(state.Dir)) {
		keys = append(keys, i.path(state.Path(state.Dir)))
	}
	for _, path := range keys {
		findings = append(findings, Finding{
			Check: name, Level: Failure, Text: path + " would be the same on every machine of the image",
			Fix: "seal the image as the last step of the bake", Command: "hallmark seal --root " + quote(i.root),
		})
	}
	if len(findings) == 0 {
		return fine(name, "the image is sealed: it has no host keys and no state")
	}
	return findings
}

func (i *image) makesKeys(context.Context) []Finding {
	if install.MakesHostKeys(i.root) {
		return fine("host keys", "host keys are generated at boot")
	}
	return []Finding{{
		Check: "host keys", Level: Failure, Text: "nothing in the image generates host keys at boot, so sshd would not start",
		Fix: "install cloud-init, or a unit that runs 'ssh-keygen -A'", Command: "chroot " + quote(i.root) + " apt-get install cloud-init",
	}}
}
