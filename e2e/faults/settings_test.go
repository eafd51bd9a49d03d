//go:build e2e && linux

package faults

import (
	"os"
	"strings"
	"testing"
)

// inSettings are sshd settings that break some or all logins with certificates.
func inSettings() []fault {
	var faults []fault
	for _, settings := range []string{
		"PubkeyAuthentication no",
		"PubkeyAcceptedAlgorithms ssh-ed25519",
		"CASignatureAlgorithms ecdsa-sha2-nistp521",
		"AuthorizedPrincipalsFile /etc/ssh/principals/%u",
		"AuthorizedPrincipalsCommand /bin/false; AuthorizedPrincipalsCommandUser nobody",
		"AuthenticationMethods publickey,password",
		"RevokedKeys /etc/ssh/hallmark/openssh_ca.pub",
		"AllowUsers somebody",
		"HostKeyAlgorithms ssh-ed25519",
		"KexAlgorithms sntrup761x25519-sha512@openssh.com",
		"Ciphers aes256-cbc",
		"Ciphers aes256-ctr; MACs umac-128@openssh.com",
		"MaxStartups 2:100:2",
		"PerSourceMaxStartups 1",
		"Match Address 10.83.0.0/24; PubkeyAuthentication no",
	} {
		faults = append(faults, fault{name: "`" + settings + "`", finds: "settings", begin: setting(settings)})
	}
	return faults
}

// setting puts settings where they take effect and restarts sshd, as an administrator does.
func setting(settings string) func(*testing.T, *instance) func() {
	return func(t *testing.T, m *instance) func() {
		path := "/etc/ssh/sshd_config.d/00-a-fault.conf"
		if strings.HasPrefix(settings, "MaxStartups") { // of this one the last value wins
			path = "/etc/ssh/sshd_config.d/99-fault.conf"
		}
		content := strings.ReplaceAll(settings, "; ", "\n") + "\n"
		if err := os.WriteFile(m.Path(path), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		m.sh(t, restart)
		return func() { m.sh(t, "rm "+path+"; "+restart) }
	}
}
