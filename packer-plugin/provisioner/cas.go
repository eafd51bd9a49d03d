package provisioner

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/caexport"
)

// trustedCAs returns the keys of the OpenSSH CA that the image will trust, with the key that
// Teleport signs with first.
//
// Every key must have a pin. Dropping unpinned keys would also stop an attacker who adds one,
// but during a rotation it would make an image that refuses future logins, and nobody would
// know why.
func (c *Config) trustedCAs(ctx context.Context) ([]ssh.PublicKey, error) {
	// Prepare cannot tell an empty list from a list that is not known yet.
	if !c.SkipCAPin && len(c.OpenSSHCAPins) == 0 {
		return nil, errors.New("openssh_ca_pins: it is empty, so the CA is not pinned; list the fingerprint of each key of " +
			`"tctl auth export --type=openssh", as ssh-keygen -l prints it`)
	}
	keys, err := c.readCAs(ctx)
	if err != nil || c.SkipCAPin {
		return keys, err
	}
	if err := caexport.CheckPins(keys, c.OpenSSHCAPins); err != nil {
		return nil, fmt.Errorf(`openssh_ca_pins: %w; compare it with the output of "tctl auth export --type=openssh", `+
			"and add it only if it is there, as during a rotation", err)
	}
	return keys, nil
}

func (c *Config) readCAs(ctx context.Context) ([]ssh.PublicKey, error) {
	if c.OpenSSHCAFile == "" {
		return c.fetchCAs(ctx)
	}
	return c.readCAFile()
}

func (c *Config) readCAFile() ([]ssh.PublicKey, error) {
	data, err := readFile("openssh_ca_file", c.OpenSSHCAFile)
	if err != nil {
		return nil, err
	}
	keys, _, err := caexport.ParseOpenSSH(data)
	if err != nil {
		return nil, fmt.Errorf(`openssh_ca_file: %.300q: %w; give the output of "tctl auth export --type=openssh"`, c.OpenSSHCAFile, err)
	}
	return keys, nil
}

func (c *Config) fetchCAs(ctx context.Context) ([]ssh.PublicKey, error) {
	var roots []byte
	if c.ProxyCAFile != "" {
		var err error
		if roots, err = readFile("proxy_ca_file", c.ProxyCAFile); err != nil {
			return nil, err
		}
	}
	client, err := caexport.NewHTTPClient(roots)
	if err != nil {
		return nil, err
	}
	defer client.CloseIdleConnections()
	keys, err := caexport.Fetch(ctx, client, c.ProxyAddress, caexport.OpenSSH)
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return nil, fmt.Errorf("proxy_address: %w; check the address, or set proxy_ca_file if a private CA signed the proxy's certificate", err)
	}
	if err != nil {
		return nil, fmt.Errorf("proxy_address: %w; check the address and the network of the computer that Packer runs on, or set openssh_ca_file", err)
	}
	return keys, nil
}
