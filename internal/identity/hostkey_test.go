package identity

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"encoding/pem"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/hiddeco/sshsig"
	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"github.com/hallmark-ssh/hallmark/internal/sshkey"
	"github.com/hallmark-ssh/hallmark/internal/sshkey/sshkeytest"
)

var testBinding = protocol.Bind([]byte("payload"))

func hostKeyKinds() []string {
	return []string{"ed25519", "ecdsa-256", "ecdsa-384", "ecdsa-521", "rsa-2048", "rsa-3072"}
}

func TestSignAndVerifyBinding(t *testing.T) {
	for _, kind := range hostKeyKinds() {
		t.Run(kind, func(t *testing.T) {
			signer := sshkeytest.NewSignerOf(t, kind)
			armored, err := SignBinding(signer, testBinding)
			if err != nil {
				t.Fatal(err)
			}
			keys, err := ParseHostKeys([]string{sshkey.Line(signer.PublicKey())})
			if err != nil {
				t.Fatal(err)
			}
			if err := VerifyBinding(keys[0], testBinding, armored); err != nil {
				t.Error(err)
			}
			if err := VerifyBinding(keys[0], protocol.Bind([]byte("other")), armored); err == nil {
				t.Error("the signature is accepted for another binding")
			}
		})
	}
}

// rawLine returns a public key in authorized_keys form that consists of name, then fields as
// SSH strings, then tail.
func rawLine(name string, tail []byte, fields ...[]byte) string {
	blob := ssh.Marshal(struct{ Name string }{name})
	for _, f := range fields {
		blob = append(blob, ssh.Marshal(struct{ F []byte }{f})...)
	}
	return name + " " + base64.StdEncoding.EncodeToString(append(blob, tail...))
}

func TestParseHostKeysRefuses(t *testing.T) {
	ed := sshkeytest.NewSignerOf(t, "ed25519")
	line := sshkey.Line(ed.PublicKey())
	edBlob := ed.PublicKey().Marshal()
	point := edBlob[len(edBlob)-ed25519.PublicKeySize:]

	certificate := &ssh.Certificate{Key: ed.PublicKey(), CertType: ssh.HostCert, ValidBefore: ssh.CertTimeInfinity}
	if err := certificate.SignCert(rand.Reader, ed); err != nil {
		t.Fatal(err)
	}
	// The check only looks at the size of the modulus.
	modulus := func(bits int) []byte {
		n := bytes.Repeat([]byte{0xff}, bits/8)
		return append([]byte{0}, n...)
	}
	exponent := []byte{1, 0, 1}

	many := make([]string, protocol.MaxHostKeys+1)
	for i := range many {
		many[i] = sshkey.Line(sshkeytest.NewSignerOf(t, "ed25519").PublicKey())
	}
	if _, err := ParseHostKeys(many[1:]); err != nil {
		t.Errorf("%d keys: %v", len(many)-1, err)
	}

	for name, row := range map[string]struct {
		lines []string
		want  string
	}{
		"none":                  {nil, "no host keys"},
		"too many":              {many, "6 host keys, more than 5"},
		"twice":                 {[]string{line, many[0], line}, "host key 3: given twice"},
		"empty line":            {[]string{line, ""}, "host key 2: not a public key"},
		"garbage":               {[]string{"ssh-ed25519 AAAA"}, "not a public key"},
		"comment line":          {[]string{"# " + line}, "not a public key"},
		"over-long":             {[]string{line + strings.Repeat(" ", maxHostKeyLine)}, "more than 2048"},
		"comment":               {[]string{line + " root@host"}, "more than key type and key"},
		"options":               {[]string{`cert-authority ` + line}, `option "cert-authority"`},
		"known_hosts line":      {[]string{"host.example " + line}, `option "host.example"`},
		"two lines":             {[]string{line + "\n" + many[0]}, "more than one line"},
		"line end":              {[]string{line + "\n"}, "more than key type and key"},
		"leading space":         {[]string{" " + line}, "more than key type and key"},
		"tab":                   {[]string{strings.Replace(line, " ", "\t", 1)}, "more than key type and key"},
		"line break in base64":  {[]string{line[:40] + "\r" + line[40:]}, ""},
		"bytes after the key":   {[]string{rawLine(ssh.KeyAlgoED25519, []byte("x"), point)}, ""},
		"name of another type":  {[]string{strings.Replace(line, "ssh-ed25519", "ssh-rsa", 1)}, ""},
		"certificate":           {[]string{sshkey.Line(certificate)}, `key type "ssh-ed25519-cert-v01@openssh.com" is not accepted`},
		"security key":          {[]string{rawLine(ssh.KeyAlgoSKED25519, nil, point, []byte("ssh:"))}, `key type "sk-ssh-ed25519@openssh.com" is not accepted`},
		"DSA":                   {[]string{rawLine("ssh-dss", nil, modulus(1024), append([]byte{0}, bytes.Repeat([]byte{0xff}, 20)...), []byte{2}, []byte{3})}, `key type "ssh-dss" is not accepted`},
		"RSA too small":         {[]string{rawLine(ssh.KeyAlgoRSA, nil, exponent, modulus(2040))}, "RSA key has 2040 bits"},
		"RSA too large":         {[]string{rawLine(ssh.KeyAlgoRSA, nil, exponent, modulus(8200))}, "RSA key has 8200 bits"},
		"RSA exponent of one":   {[]string{rawLine(ssh.KeyAlgoRSA, nil, []byte{1}, modulus(2048))}, "not a public key"},
		"RSA modulus padded":    {[]string{rawLine(ssh.KeyAlgoRSA, nil, exponent, append([]byte{0, 0}, modulus(2048)...))}, "canonical"},
		"RSA signature's name":  {[]string{rawLine(ssh.KeyAlgoRSASHA512, nil, exponent, modulus(2048))}, ""},
		"ECDSA off the curve":   {[]string{rawLine(ssh.KeyAlgoECDSA256, nil, []byte("nistp256"), append([]byte{4}, make([]byte, 64)...))}, "not a public key"},
		"Ed25519 of wrong size": {[]string{rawLine(ssh.KeyAlgoED25519, nil, point[1:])}, "not a public key"},
	} {
		t.Run(name, func(t *testing.T) {
			keys, err := ParseHostKeys(row.lines)
			if err == nil {
				t.Fatalf("ParseHostKeys = %v, want an error", keys)
			}
			if !strings.Contains(err.Error(), row.want) {
				t.Errorf("error = %v, want it to hold %q", err, row.want)
			}
		})
	}
}

// TestVerifyBindingRefuses changes one thing about a good signature in each row.
func TestVerifyBindingRefuses(t *testing.T) {
	ed, rsaKey := sshkeytest.NewSignerOf(t, "ed25519"), sshkeytest.NewSignerOf(t, "rsa-2048")
	sign := func(signer ssh.Signer, message []byte, hash sshsig.HashAlgorithm, namespace string) string {
		sig, err := sshsig.Sign(bytes.NewReader(message), signer, hash, namespace)
		if err != nil {
			t.Fatal(err)
		}
		return string(sshsig.Armor(sig))
	}
	signBinding := func(signer ssh.Signer) string {
		return sign(signer, testBinding.Message(), sshsig.HashSHA512, protocol.SignatureNamespace)
	}
	good := signBinding(ed)
	block, _ := pem.Decode([]byte(good))
	armor := func(b []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: sshsig.PEMType, Bytes: b}))
	}
	// rsaAs signs the same data in another of RSA's signature formats.
	rsaAs := func(format string) string {
		sig, err := sshsig.Sign(bytes.NewReader(testBinding.Message()), formatSigner{rsaKey.(ssh.AlgorithmSigner), format},
			sshsig.HashSHA512, protocol.SignatureNamespace)
		if err != nil {
			t.Fatal(err)
		}
		return string(sshsig.Armor(sig))
	}
	relabeled := func(change func(*sshsig.Signature)) string {
		sig, err := sshsig.Unarmor([]byte(good))
		if err != nil {
			t.Fatal(err)
		}
		change(sig)
		return string(sshsig.Armor(sig))
	}
	certificate := &ssh.Certificate{Key: ed.PublicKey(), CertType: ssh.HostCert, ValidBefore: ssh.CertTimeInfinity}
	if err := certificate.SignCert(rand.Reader, ed); err != nil {
		t.Fatal(err)
	}
	_, weakKey := newWeakRSA(t)

	for name, row := range map[string]struct {
		key     ssh.PublicKey
		armored string
		want    string
	}{
		"by another key":        {sshkeytest.NewSignerOf(t, "ed25519").PublicKey(), good, "by another key"},
		"key swapped inside":    {ed.PublicKey(), relabeled(func(s *sshsig.Signature) { s.PublicKey = rsaKey.PublicKey() }), "SSH signature"},
		"over other text":       {ed.PublicKey(), sign(ed, []byte("other"), sshsig.HashSHA512, protocol.SignatureNamespace), "SSH signature"},
		"over the raw hash":     {ed.PublicKey(), sign(ed, testBinding[:], sshsig.HashSHA512, protocol.SignatureNamespace), "SSH signature"},
		"SHA-256":               {ed.PublicKey(), sign(ed, testBinding.Message(), sshsig.HashSHA256, protocol.SignatureNamespace), `hashes with "sha256"`},
		"SHA-256 called 512":    {ed.PublicKey(), relabeledHash(t, ed), "SSH signature"},
		"namespace of git":      {ed.PublicKey(), sign(ed, testBinding.Message(), sshsig.HashSHA512, "git"), "namespace does not match"},
		"namespace longer":      {ed.PublicKey(), sign(ed, testBinding.Message(), sshsig.HashSHA512, protocol.SignatureNamespace+"\x00"), "namespace does not match"},
		"namespace relabeled":   {ed.PublicKey(), relabeledNamespace(t, ed), "SSH signature"},
		"bytes after signature": {ed.PublicKey(), relabeled(func(s *sshsig.Signature) { s.Signature.Rest = []byte("x") }), "canonical"},
		"format of another key": {ed.PublicKey(), relabeled(func(s *sshsig.Signature) { s.Signature.Format = ssh.KeyAlgoECDSA256 }), "SSH signature"},
		"reserved field used":   {ed.PublicKey(), armor(withReserved(block.Bytes)), "canonical"},
		"bytes after the blob":  {ed.PublicKey(), armor(append(bytes.Clone(block.Bytes), 0)), "SSH signature"},
		"version 2":             {ed.PublicKey(), armor(bytes.Replace(block.Bytes, []byte("SSHSIG\x00\x00\x00\x01"), []byte("SSHSIG\x00\x00\x00\x02"), 1)), "version"},
		"other magic":           {ed.PublicKey(), armor(bytes.Replace(block.Bytes, []byte("SSHSIG"), []byte("SSHXIG"), 1)), "magic"},
		"cut off":               {ed.PublicKey(), armor(block.Bytes[:len(block.Bytes)-1]), "SSH signature"},
		"ssh-rsa (SHA-1)":       {rsaKey.PublicKey(), rsaAs(ssh.KeyAlgoRSA), "invalid signature format"},
		"rsa-sha2-256":          {rsaKey.PublicKey(), rsaAs(ssh.KeyAlgoRSASHA256), `format "rsa-sha2-256"`},
		"certificate":           {certificate, good, "is not accepted"},
		"weak RSA key":          {weakKey, good, "RSA key has 1024 bits"},

		"empty":            {ed.PublicKey(), "", "exactly one armored signature"},
		"not armored":      {ed.PublicKey(), base64.StdEncoding.EncodeToString(block.Bytes), "exactly one armored signature"},
		"text before":      {ed.PublicKey(), "x\n" + good, "exactly one armored signature"},
		"text after":       {ed.PublicKey(), good + "x", "exactly one armored signature"},
		"two signatures":   {ed.PublicKey(), good + good, "exactly one armored signature"},
		"PEM header":       {ed.PublicKey(), strings.Replace(good, "-----\n", "-----\nA: b\n\n", 1), "exactly one armored signature"},
		"other PEM type":   {ed.PublicKey(), strings.ReplaceAll(good, "SSH SIGNATURE", "PGP SIGNATURE"), "exactly one armored signature"},
		"over-long":        {ed.PublicKey(), good + strings.Repeat("\n", maxHostKeySSHSIG), "more than 4096"},
		"changed in place": {ed.PublicKey(), armor(flipLast(block.Bytes)), "SSH signature"},
	} {
		t.Run(name, func(t *testing.T) {
			err := VerifyBinding(row.key, testBinding, row.armored)
			if err == nil {
				t.Fatal("the signature is accepted")
			}
			if !strings.Contains(err.Error(), row.want) {
				t.Errorf("error = %v, want it to hold %q", err, row.want)
			}
		})
	}
}

// formatSigner signs in one format, whatever format it is asked for.
type formatSigner struct {
	ssh.AlgorithmSigner
	format string
}

func (s formatSigner) SignWithAlgorithm(random io.Reader, data []byte, _ string) (*ssh.Signature, error) {
	return s.AlgorithmSigner.SignWithAlgorithm(random, data, s.format)
}

// relabeledHash is a signature over SHA-256 that says SHA-512.
func relabeledHash(t *testing.T, signer ssh.Signer) string {
	t.Helper()
	sig, err := sshsig.Sign(bytes.NewReader(testBinding.Message()), signer, sshsig.HashSHA256, protocol.SignatureNamespace)
	if err != nil {
		t.Fatal(err)
	}
	sig.HashAlgorithm = sshsig.HashSHA512
	return string(sshsig.Armor(sig))
}

// relabeledNamespace is a signature made for git, with Hallmark's namespace.
func relabeledNamespace(t *testing.T, signer ssh.Signer) string {
	t.Helper()
	sig, err := sshsig.Sign(bytes.NewReader(testBinding.Message()), signer, sshsig.HashSHA512, "git")
	if err != nil {
		t.Fatal(err)
	}
	sig.Namespace = protocol.SignatureNamespace
	return string(sshsig.Armor(sig))
}

// withReserved fills the reserved field, which follows the namespace and is empty in every
// real signature.
func withReserved(blob []byte) []byte {
	namespace := []byte(protocol.SignatureNamespace)
	return bytes.Replace(blob, append(namespace, 0, 0, 0, 0), append(namespace, 0, 0, 0, 1, 'x'), 1)
}

func flipLast(blob []byte) []byte {
	changed := bytes.Clone(blob)
	changed[len(changed)-1] ^= 1
	return changed
}

// newWeakRSA returns an RSA key of 1024 bits, which crypto/rsa does not generate.
func newWeakRSA(t *testing.T) (line string, key ssh.PublicKey) {
	t.Helper()
	modulus := append([]byte{0}, bytes.Repeat([]byte{0xff}, 1024/8)...)
	line = rawLine(ssh.KeyAlgoRSA, nil, []byte{1, 0, 1}, modulus)
	key, _, _, _, err := ssh.ParseAuthorizedKey([]byte(line))
	if err != nil {
		t.Fatal(err)
	}
	return line, key
}

func TestSignBindingRefuses(t *testing.T) {
	ed := sshkeytest.NewSignerOf(t, "ed25519")
	certificate := &ssh.Certificate{Key: ed.PublicKey(), CertType: ssh.HostCert, ValidBefore: ssh.CertTimeInfinity}
	if err := certificate.SignCert(rand.Reader, ed); err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewCertSigner(certificate, ed)
	if err != nil {
		t.Fatal(err)
	}
	if armored, err := SignBinding(signer, testBinding); err == nil {
		t.Errorf("SignBinding with a certificate = %s, want an error", armored)
	}
}

// TestOpenSSHAgrees signs with Hallmark and verifies with ssh-keygen, and the reverse.
func TestOpenSSHAgrees(t *testing.T) {
	keygen, err := exec.LookPath("ssh-keygen")
	if err != nil {
		t.Fatal("this test needs ssh-keygen, of Debian's package openssh-client: run 'make setup'")
	}
	for _, kind := range hostKeyKinds() {
		t.Run(kind, func(t *testing.T) {
			dir := t.TempDir()
			algorithm, bits, _ := strings.Cut(kind, "-")
			args := []string{"-q", "-t", algorithm, "-N", "", "-C", "", "-f", filepath.Join(dir, "key")}
			if bits != "" {
				args = append(args, "-b", bits)
			}
			openssh(t, dir, "", keygen, args...)
			signer, err := ssh.ParsePrivateKey(readFile(t, dir, "key"))
			if err != nil {
				t.Fatal(err)
			}
			message := testBinding.String()

			armored, err := SignBinding(signer, testBinding)
			if err != nil {
				t.Fatal(err)
			}
			writeFile(t, dir, "allowed", "host "+sshkey.Line(signer.PublicKey())+"\n")
			writeFile(t, dir, "ours.sig", armored)
			openssh(t, dir, message, keygen, "-Y", "verify", "-f", "allowed", "-I", "host", "-n", protocol.SignatureNamespace, "-s", "ours.sig")

			writeFile(t, dir, "message", message)
			openssh(t, dir, "", keygen, "-Y", "sign", "-q", "-f", "key", "-n", protocol.SignatureNamespace, "message")
			// The line of the .pub file is the host key as enrolled.
			keys, err := ParseHostKeys([]string{strings.TrimSpace(string(readFile(t, dir, "key.pub")))})
			if err != nil {
				t.Fatal(err)
			}
			if err := VerifyBinding(keys[0], testBinding, string(readFile(t, dir, "message.sig"))); err != nil {
				t.Error(err)
			}
		})
	}
}

func openssh(t *testing.T, dir, stdin, program string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), program, args...)
	cmd.Dir, cmd.Stdin = dir, strings.NewReader(stdin)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", cmd, err, out)
	}
}

func readFile(t *testing.T, dir, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func writeFile(t *testing.T, dir, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func FuzzParseHostKey(f *testing.F) {
	for _, kind := range []string{"ed25519", "ecdsa-256", "rsa-2048"} {
		f.Add(sshkey.Line(sshkeytest.NewSignerOf(f, kind).PublicKey()))
	}
	f.Fuzz(func(t *testing.T, line string) {
		key, err := parseHostKey(line)
		if err == nil && sshkey.Line(key) != line {
			t.Errorf("accepted %q, which is not the line of its key", line)
		}
	})
}

func FuzzVerifyBinding(f *testing.F) {
	// The same in every process, so that a fuzzer's workers agree on it.
	signer, err := ssh.NewSignerFromKey(ed25519.NewKeyFromSeed(make([]byte, ed25519.SeedSize)))
	if err != nil {
		f.Fatal(err)
	}
	armored, err := SignBinding(signer, testBinding)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(armored)
	want, _ := pem.Decode([]byte(armored))
	f.Fuzz(func(t *testing.T, changed string) {
		if VerifyBinding(signer.PublicKey(), testBinding, changed) != nil {
			return
		}
		// Ed25519 signatures are unique: nothing but line breaks may differ.
		if got, _ := pem.Decode([]byte(changed)); !bytes.Equal(got.Bytes, want.Bytes) {
			t.Errorf("accepted another signature: %q", changed)
		}
	})
}

func BenchmarkVerifyBinding(b *testing.B) {
	for _, kind := range hostKeyKinds() {
		b.Run(kind, func(b *testing.B) {
			signer := sshkeytest.NewSignerOf(b, kind)
			armored, err := SignBinding(signer, testBinding)
			if err != nil {
				b.Fatal(err)
			}
			for b.Loop() {
				if err := VerifyBinding(signer.PublicKey(), testBinding, armored); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
