package wayin

import (
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/machine/cafile"
	"github.com/hallmark-ssh/hallmark/internal/machine/findings"
	"github.com/hallmark-ssh/hallmark/internal/sshkey"
)

// hasKey reports whether an authorized_keys file lets somebody in. With StrictModes, sshd
// ignores a file that others could have written.
func (l *lookup) hasKey(file string) bool {
	if !l.isReadable(file) || l.settings.Value("strictmodes") != "no" && !l.isSafe(file) {
		return false
	}
	data, err := l.read(file)
	if err != nil {
		return false
	}
	for line := range strings.Lines(string(data)) {
		key, options, ok := parseAuthorized(line)
		if !ok || l.restricts(options) {
			continue
		}
		accepts := l.usable
		if slices.ContainsFunc(options, func(o option) bool { return o.name == "cert-authority" }) {
			accepts = l.usableCA
		}
		if accepts(key) {
			return true
		}
	}
	return false
}

// option is one option of an authorized key (sshd(8)). Its name is in lower case.
type option struct {
	name, value string
	quoted      bool // the value is in quotes, as sshd requires
}

// parseAuthorized reads a line of an authorized_keys file as strictly as sshd.
func parseAuthorized(line string) (key ssh.PublicKey, options []option, ok bool) {
	line = strings.TrimSpace(line)
	if line == "" || line[0] == '#' {
		return nil, nil, false
	}
	if key, err := sshkey.Parse(line); err == nil {
		return key, nil, true
	}
	options, rest := cutOptions(line)
	key, err := sshkey.Parse(rest)
	return key, options, err == nil
}

// cutOptions takes options from the front. Commas and blanks in quotes are part of a value.
func cutOptions(line string) (options []option, rest string) {
	start, quoted := 0, false
	for n := range len(line) {
		c := line[n]
		switch {
		case c == '"' && (n == 0 || line[n-1] != '\\'):
			quoted = !quoted
		case !quoted && (c == ',' || c == ' ' || c == '\t'):
			options = append(options, newOption(line[start:n]))
			start = n + 1
			if c != ',' {
				return options, line[start:]
			}
		}
	}
	return options, ""
}

func newOption(text string) option {
	name, value, _ := strings.Cut(text, "=")
	inner, opened := strings.CutPrefix(value, `"`)
	inner, closed := strings.CutSuffix(inner, `"`)
	return option{name: strings.ToLower(name), value: inner, quoted: opened && closed}
}

// restricts reports whether options let nobody do anything from another machine, or are wrong,
// so that sshd refuses the key. Images have root keys whose forced command only says that
// another account is the right one.
func (l *lookup) restricts(options []option) bool {
	return slices.ContainsFunc(options, func(o option) bool {
		switch o.name {
		case "from":
			return !o.quoted || !l.includesElsewhere(o.value)
		case "expiry-time":
			return !o.quoted || !l.Now.Before(expiry(o.value))
		case "principals", "environment", "permitopen", "permitlisten", "tunnel":
			return !o.quoted
		case "restrict", "cert-authority", "touch-required", "verify-required", "port-forwarding",
			"agent-forwarding", "x11-forwarding", "pty", "user-rc", "no-touch-required", "no-verify-required",
			"no-port-forwarding", "no-agent-forwarding", "no-x11-forwarding", "no-pty", "no-user-rc":
			return false
		}
		return true // a forced command, or unknown to sshd
	})
}

// expiry reads YYYYMMDD[HHMM[SS]], in local time or with a Z in UTC. It returns the zero time
// for anything else, with which sshd refuses the key too.
func expiry(value string) time.Time {
	zone := time.Local
	if digits, ok := strings.CutSuffix(value, "Z"); ok {
		value, zone = digits, time.UTC
	}
	for _, layout := range []string{"20060102", "200601021504", "20060102150405"} {
		if t, err := time.ParseInLocation(layout, value, zone); err == nil {
			return t
		}
	}
	return time.Time{}
}

// usable reports whether sshd accepts a key: its algorithm is permitted, its size too, and
// RevokedKeys does not list it. A certificate does not count as a key.
func (l *lookup) usable(key ssh.PublicKey) bool {
	if _, isCertificate := key.(*ssh.Certificate); isCertificate {
		return false
	}
	least, err := strconv.Atoi(l.settings.Value("requiredrsasize"))
	if bits := sshkey.RSABits(key); err == nil && bits > 0 && bits < least {
		return false
	}
	accepted := l.acceptedKeys()
	return (accepted == nil || containsAny(accepted, signatureAlgorithms(key))) && !l.isRevoked(key)
}

// trusts reports whether certificates of a CA in a file can let the account in.
func (l *lookup) trusts(file string) bool {
	data, err := l.read(file)
	if err != nil || !l.hasPrincipals() {
		return false
	}
	keys, err := cafile.Parse(data)
	return err == nil && slices.ContainsFunc(keys, l.usableCA)
}

// usableCA reports whether sshd accepts certificates that a CA has signed.
func (l *lookup) usableCA(key ssh.PublicKey) bool {
	if _, isCertificate := key.(*ssh.Certificate); isCertificate {
		return false
	}
	isForCertificates := func(algorithm string) bool { return strings.Contains(algorithm, "-cert-v01@") }
	if accepted := l.acceptedKeys(); accepted != nil && !slices.ContainsFunc(accepted, isForCertificates) {
		return false
	}
	signed := l.settings.List("casignaturealgorithms")
	return (signed == nil || containsAny(signed, signatureAlgorithms(key))) && !l.isRevoked(key)
}

// hasPrincipals reports whether sshd may accept a certificate's principals: it reads those of
// the account from a file, if it is configured to. What a command prints is unknown.
func (l *lookup) hasPrincipals() bool {
	if l.settings.Optional("authorizedprincipalscommand") != "" {
		return false
	}
	pattern := l.settings.Optional("authorizedprincipalsfile")
	if pattern == "" {
		return true
	}
	file := l.expand(pattern)
	if !l.isReadable(file) || l.settings.Value("strictmodes") != "no" && !l.isSafe(file) {
		return false
	}
	data, err := l.read(file)
	return err == nil && slices.ContainsFunc(strings.Split(string(data), "\n"), func(line string) bool {
		text, _, _ := strings.Cut(line, "#")
		return strings.TrimSpace(text) != ""
	})
}

// acceptedKeys returns the algorithms that sshd accepts for keys, or nil if it does not say.
func (l *lookup) acceptedKeys() []string {
	if list := l.settings.List("pubkeyacceptedalgorithms"); list != nil {
		return list
	}
	return l.settings.List("pubkeyacceptedkeytypes") // before OpenSSH 8.5
}

func (l *lookup) isRevoked(key ssh.PublicKey) bool {
	file := l.settings.Optional("revokedkeys")
	if file == "" {
		return false
	}
	data, err := l.read(file)
	if err != nil {
		return true // then sshd refuses all keys
	}
	yes, err := findings.Revokes(data, key)
	return err != nil || yes
}

func signatureAlgorithms(key ssh.PublicKey) []string {
	if key.Type() == ssh.KeyAlgoRSA {
		return []string{ssh.KeyAlgoRSASHA512, ssh.KeyAlgoRSASHA256, ssh.KeyAlgoRSA}
	}
	return []string{key.Type()}
}

func containsAny(list, some []string) bool {
	return slices.ContainsFunc(some, func(s string) bool { return slices.Contains(list, s) })
}
