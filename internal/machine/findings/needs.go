package findings

import (
	"cmp"
	"fmt"
	"net/netip"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/hallmark-ssh/hallmark/internal/machine/sshd"
	"github.com/hallmark-ssh/hallmark/internal/machine/sshdconf"
	"golang.org/x/crypto/ssh"
)

// problems returns what keeps a login with a certificate from working.
func (f evidence) problems(login sshd.Login) (all []problem) {
	s := sshd.ParseSettings(login.Settings)
	for _, check := range []func(sshd.Login, sshd.Settings) []problem{
		f.publicKeys, f.certificateTypes, f.trustedCAs, f.revocation, f.principals, f.methods,
		f.admission, f.accounts, f.sessions, f.hostAlgorithms, f.transport, f.limits,
	} {
		all = append(all, check(login, s)...)
	}
	return all
}

func severe(keyword, value, consequence, remedy string) []problem {
	return []problem{{Finding: Finding{Keyword: keyword, Value: value, Consequence: consequence, Remedy: remedy}, severe: true}}
}

func risk(keyword, value, consequence, remedy string) []problem {
	return []problem{{Finding: Finding{Keyword: keyword, Value: value, Consequence: consequence, Remedy: remedy}}}
}

func (evidence) publicKeys(_ sshd.Login, s sshd.Settings) []problem {
	if value := s.Value("pubkeyauthentication"); value == "no" {
		return severe("PubkeyAuthentication", value, "sshd accepts no certificates", "write PubkeyAuthentication yes")
	}
	return nil
}

// userCertificates are the types of certificates that Teleport issues to people, with the key
// type of each. The cluster's signature algorithm suite decides which.
func userCertificates() []string {
	return []string{
		ssh.CertAlgoRSASHA512v01, ssh.CertAlgoRSASHA256v01, ssh.CertAlgoECDSA256v01, ssh.CertAlgoED25519v01,
	}
}

func (evidence) certificateTypes(_ sshd.Login, s sshd.Settings) (all []problem) {
	keyword, printed := "PubkeyAcceptedAlgorithms", "pubkeyacceptedalgorithms"
	if s.Value(printed) == "" { // before OpenSSH 8.5
		keyword, printed = "PubkeyAcceptedKeyTypes", "pubkeyacceptedkeytypes"
	}
	if accepted := s.List(printed); accepted != nil {
		missing := without(userCertificates(), accepted)
		remedy := "add " + strings.Join(userCertificates(), ",")
		switch {
		case len(missing) == len(userCertificates()):
			all = append(all, severe(keyword, s.Value(printed), "sshd accepts plain keys but no certificates", remedy)...)
		case !slices.Contains(accepted, ssh.CertAlgoED25519v01) || !slices.Contains(accepted, ssh.CertAlgoECDSA256v01) ||
			!slices.Contains(accepted, ssh.CertAlgoRSASHA512v01) && !slices.Contains(accepted, ssh.CertAlgoRSASHA256v01):
			all = append(all, risk(keyword, s.Value(printed),
				"which certificates work depends on the cluster's signature algorithm suite: sshd does not accept "+strings.Join(missing, ", "), remedy)...)
		}
	}
	const teleportRSA = 2048 // bits of the keys that Teleport generates
	if size, err := strconv.Atoi(s.Value("requiredrsasize")); err == nil && size > teleportRSA {
		all = append(all, risk("RequiredRSASize", s.Value("requiredrsasize"),
			"sshd refuses certificates for RSA keys of 2048 bits, which clusters with the signature algorithm suite legacy issue",
			"write RequiredRSASize 2048, or change the cluster's suite")...)
	}
	return all
}

// without returns all of the values that some does not contain.
func without(all, some []string) []string {
	return slices.DeleteFunc(slices.Clone(all), func(s string) bool { return slices.Contains(some, s) })
}

func (f evidence) trustedCAs(_ sshd.Login, s sshd.Settings) (all []problem) {
	value := s.Value("trustedusercakeys")
	switch {
	case value == "none" && f.CAFile != "":
		all = append(all, severe("TrustedUserCAKeys", value, "sshd trusts no CA there", "remove that line")...)
	case f.CAFile != "" && value != "" && value != f.CAFile:
		// Those may include the cluster's: that file belongs to somebody else.
		all = append(all, risk("TrustedUserCAKeys", value,
			"sshd trusts the CAs in this file, not hallmark's: the cluster's certificates do not work there", "remove that line")...)
	}
	accepted := s.List("casignaturealgorithms")
	if accepted == nil { // before OpenSSH 7.9
		return all
	}
	var refused, wanted []string
	for _, ca := range f.CAs {
		if a := signatureAlgorithm(ca); !slices.Contains(accepted, a) {
			refused = append(refused, fmt.Sprintf("%s, which signs with %s", ssh.FingerprintSHA256(ca), a))
			wanted = append(wanted, a)
		}
	}
	if len(refused) == 0 {
		return all
	}
	consequence := "sshd refuses certificates of the cluster's CA " + strings.Join(refused, " and ")
	remedy := "add " + strings.Join(slices.Compact(wanted), ",")
	if len(refused) == len(f.CAs) {
		return append(all, severe("CASignatureAlgorithms", s.Value("casignaturealgorithms"), consequence, remedy)...)
	}
	return append(all, risk("CASignatureAlgorithms", s.Value("casignaturealgorithms"), consequence, remedy)...)
}

// signatureAlgorithm returns how a CA signs. With RSA keys, Teleport uses SHA-512.
func signatureAlgorithm(ca ssh.PublicKey) string {
	if ca.Type() == ssh.KeyAlgoRSA {
		return ssh.KeyAlgoRSASHA512
	}
	return ca.Type()
}

func (f evidence) revocation(_ sshd.Login, s sshd.Settings) []problem {
	value := s.Optional("revokedkeys")
	if value == "" {
		return nil
	}
	content, ok := f.Files[value]
	if !ok {
		return severe("RevokedKeys", value, "the file cannot be read, so sshd refuses all keys and certificates",
			"create the file (it may be empty), or write RevokedKeys none")
	}
	var revoked []string
	for _, ca := range f.CAs {
		switch yes, err := Revokes(content, ca); {
		case err != nil:
			return severe("RevokedKeys", value, "in that file, "+err.Error()+", so sshd refuses all keys and certificates",
				"write one public key on each line, or create a list with ssh-keygen -k")
		case yes:
			revoked = append(revoked, ssh.FingerprintSHA256(ca))
		}
	}
	if len(revoked) == 0 {
		return nil
	}
	consequence := "the file revokes the cluster's CA " + strings.Join(revoked, " and ")
	if len(revoked) < len(f.CAs) {
		return risk("RevokedKeys", value, consequence, "remove it from the file")
	}
	return severe("RevokedKeys", value, consequence, "remove it from the file")
}

func (f evidence) principals(login sshd.Login, s sshd.Settings) []problem {
	const consequence = "a Teleport certificate has the login as its principal, but sshd looks for principals elsewhere"
	if value := s.Optional("authorizedprincipalscommand"); value != "" {
		return risk("AuthorizedPrincipalsCommand", value, consequence,
			"make the command print the login's own name, or write AuthorizedPrincipalsCommand none")
	}
	value := s.Optional("authorizedprincipalsfile")
	if value == "" {
		return nil
	}
	file, known := f.expand(value, login.User)
	content, exists := f.Files[file]
	if hidden := exists && content == nil; !known || hidden || permits(string(content), login.User) {
		return nil
	}
	p := severe("AuthorizedPrincipalsFile", value, consequence, "write AuthorizedPrincipalsFile none, or put each login's own name in its file")
	p[0].open = f.hasOther(value)
	return p
}

// hasOther reports whether there is a principals file for an account that is not local.
func (f evidence) hasOther(value string) bool {
	for file := range f.Files {
		user, ok := userOf(value, file)
		if ok && !slices.ContainsFunc(f.Accounts, func(a sshd.Account) bool { return a.Name == user }) {
			return true
		}
	}
	return false
}

// userOf reverses expand for a value that contains only %u.
func userOf(value, file string) (user string, ok bool) {
	before, after, found := strings.Cut(value, "%u")
	user, ok = strings.CutPrefix(file, before)
	if !found || !ok {
		return "", false
	}
	user, ok = strings.CutSuffix(user, after)
	return user, ok && user != "" && !strings.Contains(user, "/")
}

// expand replaces the tokens of AuthorizedPrincipalsFile (TOKENS in sshd_config(5)). The home
// directory of an unknown account is unknown.
func (f evidence) expand(value, user string) (file string, known bool) {
	home, uid := "", ""
	for _, a := range f.Accounts {
		if a.Name == user {
			home, uid = a.Home, strconv.Itoa(a.UID)
		}
	}
	if home == "" {
		return "", false
	}
	file = strings.NewReplacer("%%", "%", "%h", home, "%u", user, "%U", uid).Replace(value)
	if !path.IsAbs(file) {
		file = path.Join(home, file)
	}
	return file, true
}

// permits reports whether an AuthorizedPrincipalsFile lists the user: one principal per line,
// after options. sshd skips a line with anything else before the principal, such as a second one.
func permits(content, user string) bool {
	for line := range strings.Lines(content) {
		text, _, _ := strings.Cut(line, "#")
		text = strings.TrimSpace(text)
		end := strings.LastIndexAny(text, " \t") + 1
		if text[end:] == user && user != "" && (end == 0 || areKeyOptions(strings.TrimSpace(text[:end]))) {
			return true
		}
	}
	return false
}

// areKeyOptions reports whether a text has the form of the options of an authorized key (sshd(8)).
func areKeyOptions(text string) bool {
	const option = `(?:restrict|cert-authority|verify-required|(?:no-)?(?:agent-forwarding|port-forwarding|pty|user-rc|x11-forwarding|touch-required)|` +
		`(?:command|environment|expiry-time|from|permitlisten|permitopen|principals|tunnel)="(?:[^"\\]|\\.)*")`
	return regexp.MustCompile(`^(?i:` + option + `(?:,` + option + `)*)$`).MatchString(text)
}

// filesOf returns the files that affect logins, in addition to the configuration. Some are
// patterns.
func (f evidence) filesOf() (files []string) {
	for _, login := range f.Logins {
		s := sshd.ParseSettings(login.Settings)
		if s.Value("usepam") == "no" {
			files = append(append(files, shadowFile), cloudInitFiles()...)
		}
		if value := s.Optional("revokedkeys"); value != "" {
			files = append(files, value)
		}
		if value := s.Optional("authorizedprincipalsfile"); value != "" {
			if file, known := f.expand(value, login.User); known {
				files = append(files, file)
			}
			if path.IsAbs(value) && strings.Count(value, "%") == 1 {
				files = append(files, strings.Replace(value, "%u", "*", 1)) // also those of other users
			}
		}
	}
	slices.Sort(files)
	return slices.Compact(files)
}

func (evidence) methods(_ sshd.Login, s sshd.Settings) []problem {
	value := s.Value("authenticationmethods")
	lists := strings.Fields(value)
	if len(lists) == 0 || slices.Contains(lists, "any") || slices.Contains(lists, "publickey") {
		return nil
	}
	return severe("AuthenticationMethods", value, "a certificate alone is not enough, and Teleport's proxy has nothing else to offer",
		"add publickey as a list of its own: AuthenticationMethods publickey "+value)
}

// admission checks AllowUsers and similar keywords, in sshd's order.
func (f evidence) admission(login sshd.Login, s sshd.Settings) []problem {
	const consequence, remedy = "sshd lets nobody log in to this account", "allow the accounts that people log in to"
	var groups []string
	for _, a := range f.Accounts {
		if a.Name == login.User {
			groups = a.Groups
		}
	}
	// A "!" has no meaning here (groupaccess.c), unlike in Match blocks.
	inGroup := func(patterns []string) bool {
		return slices.ContainsFunc(groups, func(g string) bool {
			return slices.ContainsFunc(patterns, func(p string) bool { return sshdconf.MatchPattern(p, g) })
		})
	}
	anywhere := f
	anywhere.ProxySources = nil
	for _, c := range []struct {
		keyword string
		refuses func(f evidence, patterns []string) bool
	}{
		{"DenyUsers", func(f evidence, p []string) bool { return f.denies(p, login) }},
		{"AllowUsers", func(f evidence, p []string) bool { return !f.admits(p, login.User, login.IsLocal()) }},
		{"DenyGroups", func(_ evidence, p []string) bool { return inGroup(p) }},
		{"AllowGroups", func(_ evidence, p []string) bool { return !inGroup(p) }},
	} {
		patterns := s[strings.ToLower(c.keyword)]
		if len(patterns) == 0 || !c.refuses(f, patterns) {
			continue
		}
		if !c.refuses(anywhere, patterns) {
			p := severe(c.keyword, strings.Join(patterns, " "), "sshd lets nobody log in to this account from the addresses in proxy_sources", "allow these addresses, too, or correct proxy_sources")
			p[0].open = true // the proxies may have other addresses
			return p
		}
		p := severe(c.keyword, strings.Join(patterns, " "), consequence, remedy)
		// Somebody may come through a tunnel, from this machine itself.
		fromHere := c.keyword == "AllowUsers" && f.admits(patterns, login.User, true)
		p[0].open = fromHere || f.open(c.keyword, patterns)
		return p
	}
	return nil
}

// denies ignores most host conditions: a user who is denied from one host may come from another,
// unless all the proxies' addresses are denied.
func (f evidence) denies(patterns []string, login sshd.Login) bool {
	var hosts []string
	for _, p := range patterns {
		name, host, found := strings.Cut(p, "@")
		switch {
		case !sshdconf.MatchPattern(name, login.User):
		case !found, host == "*":
			return true
		default:
			hosts = append(hosts, host)
		}
	}
	isAllowed := func(source string) bool { return !sshdconf.Covers(strings.Join(hosts, ","), source) }
	return !login.IsLocal() && len(f.ProxySources) > 0 && !slices.ContainsFunc(f.ProxySources, isAllowed)
}

// admits reports whether a list lets the user in, from this machine itself or from elsewhere.
func (f evidence) admits(patterns []string, user string, local bool) bool {
	return slices.ContainsFunc(patterns, func(p string) bool {
		name, host, found := strings.Cut(p, "@")
		return sshdconf.MatchPattern(name, user) && (!found || local || f.comesFrom(host))
	})
}

// comesFrom reports whether a login from elsewhere may come from a host: from any one, unless the
// proxies' addresses are known.
func (f evidence) comesFrom(host string) bool {
	return !isThisMachine(host) &&
		(len(f.ProxySources) == 0 || slices.ContainsFunc(f.ProxySources, func(source string) bool { return sshdconf.MayBeFrom(host, source) }))
}

// isThisMachine reports whether a pattern matches only addresses of this machine itself.
func isThisMachine(host string) bool {
	if network, err := netip.ParsePrefix(host); err == nil {
		return network.Addr().IsLoopback()
	}
	address, err := netip.ParseAddr(host)
	return err == nil && address.IsLoopback() || host == "localhost" || strings.HasPrefix(host, "127.")
}

// open reports whether a list admits accounts that do not exist yet, from cloud-init or from a
// directory service.
func (f evidence) open(keyword string, patterns []string) bool {
	if strings.HasPrefix(keyword, "Deny") {
		return !slices.ContainsFunc(patterns, func(p string) bool { return p == "*" || p == "*@*" })
	}
	for _, p := range patterns {
		name, _, _ := strings.Cut(p, "@")
		exists := slices.ContainsFunc(f.Accounts, func(a sshd.Account) bool { return a.Name == name })
		switch {
		case slices.Contains(f.Absent, name):
		case keyword == "AllowGroups", sshdconf.IsPattern(name), !exists:
			return true
		}
	}
	return false
}

// accounts checks what keeps an account out whatever it proves.
func (f evidence) accounts(login sshd.Login, s sshd.Settings) (all []problem) {
	const remedy = "make sure that there is another account to log in to"
	if value := s.Value("permitrootlogin"); login.User == "root" && (value == "no" || value == "forced-commands-only") {
		p := severe("PermitRootLogin", value, "sshd lets nobody log in as root", remedy)
		p[0].usual = true
		all = append(all, p...)
	}
	if s.Value("usepam") == "no" && f.isLocked(login.User) {
		p := severe("UsePAM", "no", "without PAM, sshd lets nobody log in to an account with a locked password", "write UsePAM yes, or give the account the password *, which is not locked: usermod -p '*' NAME")
		// Many accounts are locked for good reasons. cloud-init locks its default user as well, but
		// that one is for people with keys or certificates.
		p[0].usual = login.User != f.defaultUser()
		all = append(all, p...)
	}
	for n := range all {
		all[n].open = true
	}
	return all
}

// shadowFile has the accounts' passwords (shadow(5)).
const shadowFile = "/etc/shadow"

// isLocked reports whether sshd calls an account's password locked (LOCKED_PASSWD_PREFIX on
// Linux).
func (f evidence) isLocked(user string) bool {
	for line := range strings.Lines(string(f.Files[shadowFile])) {
		if password, ok := strings.CutPrefix(line, user+":"); ok {
			return strings.HasPrefix(password, "!")
		}
	}
	return false
}

// sessions checks whether a login leads to anything.
func (evidence) sessions(_ sshd.Login, s sshd.Settings) (all []problem) {
	if value := s.Value("maxauthtries"); value == "0" {
		all = append(all, severe("MaxAuthTries", value, "sshd ends every connection before anybody can log in", "write MaxAuthTries 6")...)
	}
	var usual []problem
	if value := s.Value("refuseconnection"); value == "yes" {
		usual = append(usual, severe("RefuseConnection", value, "sshd ends these connections", "write RefuseConnection no")...)
	}
	if value := s.Value("maxsessions"); value == "0" {
		usual = append(usual, severe("MaxSessions", value, "sshd starts no shell and no command", "write MaxSessions 10")...)
	}
	if value := s.Optional("forcecommand"); slices.Contains([]string{"false", "nologin"}, path.Base(value)) {
		usual = append(usual, severe("ForceCommand", value, "each session ends at once", "write ForceCommand none")...)
	}
	for n := range usual {
		usual[n].usual = true
	}
	return append(all, usual...)
}

func (evidence) hostAlgorithms(_ sshd.Login, s sshd.Settings) []problem {
	accepted := s.List("hostkeyalgorithms")
	if accepted == nil || len(without(hostCertificates(), accepted)) < len(hostCertificates()) {
		return nil
	}
	return severe("HostKeyAlgorithms", s.Value("hostkeyalgorithms"), "sshd presents plain host keys but no certificate, so Teleport's proxy refuses this host",
		"add "+strings.Join(hostCertificates(), ","))
}

// hostCertificates are the types that Teleport's proxy asks for.
func hostCertificates() []string {
	return []string{
		ssh.CertAlgoRSASHA512v01, ssh.CertAlgoRSASHA256v01,
		ssh.CertAlgoECDSA256v01, ssh.CertAlgoECDSA384v01, ssh.CertAlgoECDSA521v01, ssh.CertAlgoED25519v01,
	}
}

func (evidence) transport(_ sshd.Login, s sshd.Settings) (all []problem) {
	// These are the algorithms that Teleport's proxy offers when it connects to a host: Go's
	// x/crypto/ssh without SHA-1. A cluster's configuration may list others (kex_algos,
	// ciphers, mac_algos).
	proxyKeyExchanges := []string{
		"curve25519-sha256", "curve25519-sha256@libssh.org",
		"ecdh-sha2-nistp256", "ecdh-sha2-nistp384", "ecdh-sha2-nistp521", "diffie-hellman-group14-sha256",
	}
	// Proxies built with Go 1.24 or later offer these; Teleport 13 does not.
	newKeyExchanges := []string{"mlkem768x25519-sha256"}
	authenticated := []string{"aes128-gcm@openssh.com", "aes256-gcm@openssh.com", "chacha20-poly1305@openssh.com"}
	counterMode := []string{"aes128-ctr", "aes192-ctr", "aes256-ctr"}
	proxyMACs := []string{
		"hmac-sha2-256-etm@openssh.com", "hmac-sha2-512-etm@openssh.com", "hmac-sha2-256", "hmac-sha2-512",
	}
	none := func(keyword string, offered ...string) []problem {
		value := s.Value(strings.ToLower(keyword))
		return severe(keyword, value, "Teleport's proxy offers none of these", "add one of "+strings.Join(offered, ","))
	}
	offers := func(keyword string, offered []string) bool {
		accepted := s.List(keyword)
		return accepted == nil || len(without(offered, accepted)) < len(offered)
	}
	if !offers("kexalgorithms", proxyKeyExchanges) {
		if !offers("kexalgorithms", newKeyExchanges) {
			all = append(all, none("KexAlgorithms", proxyKeyExchanges...)...)
		} else {
			all = append(all, risk("KexAlgorithms", s.Value("kexalgorithms"), "older proxies, such as Teleport 13's, offer none of these",
				"add one of "+strings.Join(proxyKeyExchanges, ","))...)
		}
	}
	if offers("ciphers", authenticated) {
		return all // these need no MAC
	}
	if !offers("ciphers", counterMode) {
		return append(all, none("Ciphers", slices.Concat(authenticated, counterMode)...)...)
	}
	if !offers("macs", proxyMACs) {
		all = append(all, none("MACs", proxyMACs...)...)
	}
	return all
}

func (f evidence) limits(_ sshd.Login, s sshd.Settings) (all []problem) {
	proxy := "to sshd, everybody has the address of Teleport's proxy"
	effective, wanted := s.Value("maxstartups"), f.MaxStartups
	if effective != "" && wanted != "" && startsBelow(effective, wanted) {
		all = append(all, risk("MaxStartups", effective, "sshd drops connections when the proxy opens many at once: the last line wins, not hallmark's "+wanted,
			"remove that line, or write MaxStartups "+wanted)...)
	}
	full, _, _ := strings.Cut(wanted, ":")
	if value := s.Optional("persourcemaxstartups"); value != "" && value != maxInt && below(value, cmp.Or(full, "100")) {
		all = append(all, risk("PerSourceMaxStartups", value, proxy+", and sshd drops connections from one address beyond this number",
			"write PerSourceMaxStartups none")...)
	}
	return append(all, f.penalties(s, proxy+", so one person's failed logins shut out the others")...)
}

// penalties compares the sources that sshd exempts with the proxies' sources.
func (f evidence) penalties(s sshd.Settings, consequence string) []problem {
	const remedy = "set proxy_sources to the addresses that the proxies connect from, and install again"
	penalties, exempt := s.Value("persourcepenalties"), s.Optional("persourcepenaltyexemptlist")
	missing := slices.DeleteFunc(slices.Clone(f.ProxySources), func(source string) bool { return sshdconf.Covers(exempt, source) })
	switch {
	case penalties == "", penalties == "no":
		return nil
	case len(f.ProxySources) == 0 && exempt == "":
		return risk("PerSourcePenalties", penalties, consequence, remedy)
	case len(f.ProxySources) == 0:
		return risk("PerSourcePenaltyExemptList", exempt, "unless the proxies are among these: "+consequence, remedy)
	case len(missing) > 0:
		return risk("PerSourcePenaltyExemptList", cmp.Or(exempt, "none"), "it lacks "+strings.Join(missing, " and ")+" of proxy_sources: "+consequence,
			"remove that line, and install again")
	}
	return nil
}

// maxInt is what some versions print for "none".
const maxInt = "2147483647"

// startsBelow compares the numbers of connections above which sshd starts to drop some.
func startsBelow(effective, wanted string) bool {
	have, _, _ := strings.Cut(effective, ":")
	want, _, _ := strings.Cut(wanted, ":")
	return below(have, want)
}

func below(a, b string) bool {
	x, err := strconv.Atoi(a)
	y, err2 := strconv.Atoi(b)
	return err == nil && err2 == nil && x < y
}
