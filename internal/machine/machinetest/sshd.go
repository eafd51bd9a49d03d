// Package machinetest runs a real sshd for tests of the machine's side.
package machinetest

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/e2e/fake/loopback"
	"github.com/hallmark-ssh/hallmark/internal/machine/cafile"
	"github.com/hallmark-ssh/hallmark/internal/machine/fault"
	"github.com/hallmark-ssh/hallmark/internal/machine/handshake"
	"github.com/hallmark-ssh/hallmark/internal/machine/sshd"
	"github.com/hallmark-ssh/hallmark/internal/machine/sshdconf"
	"github.com/hallmark-ssh/hallmark/internal/sshkey/sshkeytest"
	"golang.org/x/crypto/ssh"
)

// HostName is what clients call the machine.
const HostName = "web-i-0123456789abcdef0"

// SSHD is a real sshd that counts its reloads.
type SSHD struct {
	sshd.Server
	t       testing.TB
	Dir     string
	CAFile  string
	Address netip.AddrPort
	Process *exec.Cmd
	Exited  chan struct{}
	Reloads int
	Starts  int
	// OnReload replaces Reload, if set.
	OnReload func(ctx context.Context) error
	Login    ssh.Signer
	// Arguments are additional arguments for sshd's command line.
	Arguments []string
	// blind says that this test cannot connect to sshd.
	blind bool
	// Sites makes the configuration include files named NN-….conf.
	Sites bool
	// Listen replaces the configuration's ListenAddress line, if set.
	Listen *string
}

// KeyPath returns the path of the host key of a kind: rsa, ecdsa or ed25519.
func (s *SSHD) KeyPath(kind string) string {
	return filepath.Join(s.Dir, "ssh_host_"+kind+"_key")
}

// HallmarkLines returns the lines that hallmark install writes.
func (s *SSHD) HallmarkLines() string {
	return string(sshdconf.Options{
		TrustedUserCAKeys: s.CAFile,
		HostCertificates: []string{
			s.KeyPath("rsa") + "-cert.pub", s.KeyPath("ecdsa") + "-cert.pub", s.KeyPath("ed25519") + "-cert.pub",
		},
		MaxStartups: sshdconf.DefaultMaxStartups,
	}.Render())
}

// Configure writes sshd's configuration: lines, with Hallmark's own lines in a drop-in. It
// does not touch a file whose content stays the same.
func (s *SSHD) Configure(lines string) {
	others, own, found := strings.Cut(lines, s.HallmarkLines())
	if found {
		lines = others + "Include " + s.DropIn() + "\n" + own
		own = s.HallmarkLines()
	} else {
		lines += "Include " + s.DropIn() + "\n"
	}
	if s.Sites {
		lines = "Include " + s.Dir + "/[1-9]*.conf\n" + lines
	}
	s.Update(filepath.Base(s.DropIn()), own)
	listen := "ListenAddress " + s.Address.String()
	if s.Listen != nil {
		listen = *s.Listen
	}
	s.Update("sshd_config", lines+fmt.Sprintf(`
%s
HostKey %s
HostKey %s
HostKey %s
PidFile %s/sshd.pid
AuthorizedKeysFile %s/authorized_keys
StrictModes no
UsePAM no
PermitRootLogin yes
Subsystem sftp internal-sftp
LogLevel ERROR
`, listen, s.KeyPath("rsa"), s.KeyPath("ecdsa"), s.KeyPath("ed25519"), s.Dir, s.Dir))
}

// DropIn is where hallmark's own lines are.
func (s *SSHD) DropIn() string { return filepath.Join(s.Dir, filepath.Base(sshdconf.DropIn)) }

// Update writes a file unless it already has the content.
func (s *SSHD) Update(name, content string) {
	s.t.Helper()
	if old, err := os.ReadFile(filepath.Join(s.Dir, name)); err != nil || string(old) != content {
		s.Write(name, content)
	}
}

func (s *SSHD) Write(name, content string) {
	s.t.Helper()
	if err := os.WriteFile(filepath.Join(s.Dir, name), []byte(content), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

// Run starts sshd and returns when it answers.
func (s *SSHD) Run() {
	s.t.Helper()
	// Not -E: sshd's children would reopen the file while the test removes the folder.
	log, err := os.OpenFile(filepath.Join(s.Dir, "sshd.log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		s.t.Fatal(err)
	}
	defer log.Close()
	// sshd uses the last of two options of a kind, as with -f.
	arguments := []string{"-D", "-e"}
	if s.Config != "" {
		arguments = append(arguments, "-f", s.Config)
	}
	s.Process = exec.Command(s.Program, append(arguments, s.Arguments...)...)
	s.Process.Stderr = log
	if err := s.Process.Start(); err != nil {
		s.t.Fatal(err)
	}
	exited := make(chan struct{})
	s.Exited = exited
	process := s.Process
	go func() { _ = process.Wait(); close(exited) }()
	ctx, cancel := context.WithTimeout(s.t.Context(), time.Minute)
	defer cancel()
	err = waitFor(ctx, func(ctx context.Context) error {
		_, err := handshake.HostKey(ctx, s.Address, nil)
		if s.blind && !errors.Is(err, handshake.ErrRefused) {
			return nil
		}
		return err
	})
	if err != nil {
		s.t.Fatalf("sshd does not start: %v", err)
	}
}

// Stop stops sshd and returns when it has exited.
func (s *SSHD) Stop() {
	// An sshd that is restarting after a SIGHUP may miss the first one.
	again := time.NewTicker(time.Second)
	defer again.Stop()
	for {
		_ = s.Process.Process.Signal(syscall.SIGTERM) // it may have exited already
		select {
		case <-s.Exited:
			return
		case <-again.C:
		}
	}
}

// Reload counts a reload, and reloads sshd unless OnReload does something else.
func (s *SSHD) Reload(ctx context.Context, pidFile string) error {
	s.Reloads++
	if s.OnReload != nil {
		return s.OnReload(ctx)
	}
	return s.Server.Reload(ctx, pidFile)
}

// Start counts a restart, and restarts sshd.
func (s *SSHD) Start(context.Context) error {
	s.Starts++
	s.Stop()
	s.Run() //nolint:contextcheck // it outlives the enrollment
	return nil
}

// AcceptsLogins fails the test unless sshd accepts the plain key that it accepted before
// anything was enrolled.
func (s *SSHD) AcceptsLogins() {
	s.t.Helper()
	if err := s.TryLogin(s.Login, ssh.InsecureIgnoreHostKey()); err != nil {
		s.t.Errorf("sshd no longer accepts a login that it accepted before: %v", err)
	}
}

// TryLogin logs in as this user with a key or certificate.
func (s *SSHD) TryLogin(signer ssh.Signer, check ssh.HostKeyCallback) error {
	me, err := user.Current()
	if err != nil {
		return err
	}
	conn, err := net.DialTimeout("tcp", s.Address.String(), 5*time.Second)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil { // a safety net
		return err
	}
	c, channels, requests, err := ssh.NewClientConn(conn, HostName+":22", &ssh.ClientConfig{
		User: me.Username, Auth: []ssh.AuthMethod{ssh.PublicKeys(signer)}, HostKeyCallback: check,
	})
	if err != nil {
		return err
	}
	return ssh.NewClient(c, channels, requests).Close()
}

// FindSSHD returns a real sshd. Without one it skips the test, or fails it if
// HALLMARK_TEST_STRICT is set.
func FindSSHD(t testing.TB) string {
	t.Helper()
	server, err := sshd.Find("/")
	if err == nil {
		return server.Program
	}
	if os.Getenv("HALLMARK_TEST_STRICT") != "" {
		t.Fatalf("%v: install openssh-server", err)
	}
	t.Skipf("%v: install openssh-server to run this test", err)
	return ""
}

// NewSSHD starts a separate sshd on loopback, with its files in dir. It stops with the test.
func NewSSHD(t testing.TB, program, dir string, ca ssh.PublicKey) *SSHD {
	t.Helper()
	s := &SSHD{
		t: t, Dir: dir, CAFile: filepath.Join(dir, "hallmark", "openssh_ca.pub"),
		Server: sshd.Server{Program: program, Config: filepath.Join(dir, "sshd_config")},
		Login:  sshkeytest.NewSigner(t), blind: os.Getenv(WrappersVariable) != "",
	}
	makePrivilegeFolder(t)
	for _, kind := range []string{"rsa", "ecdsa", "ed25519"} {
		WriteHostKey(t, kind, s.KeyPath(kind))
	}
	s.Write("authorized_keys", string(ssh.MarshalAuthorizedKey(s.Login.PublicKey())))
	if err := os.Mkdir(filepath.Dir(s.CAFile), 0o755); err != nil {
		t.Fatal(err)
	}
	s.Write("hallmark/openssh_ca.pub", string(cafile.Render([]ssh.PublicKey{ca})))
	s.Address = FreeAddress(t)
	s.Configure(s.HallmarkLines())
	s.Run()
	t.Cleanup(s.Stop)
	return s
}

// makePrivilegeFolder creates the privilege separation folder, as sshd's unit or tmpfiles do.
func makePrivilegeFolder(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		return
	}
	if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
		t.Fatal(err)
	}
}

// UserCertificate returns a signer that logs in with a certificate of the CA.
func UserCertificate(t testing.TB, ca ssh.Signer) ssh.Signer {
	t.Helper()
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	key := sshkeytest.NewSigner(t)
	cert := &ssh.Certificate{
		Key: key.PublicKey(), CertType: ssh.UserCert, ValidPrincipals: []string{me.Username},
		ValidBefore: ssh.CertTimeInfinity,
	}
	if err := cert.SignCert(rand.Reader, ca); err != nil {
		t.Fatal(err)
	}
	signer, err := ssh.NewCertSigner(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	return signer
}

// FreeAddress returns a loopback address at which nothing listens.
func FreeAddress(t testing.TB) netip.AddrPort {
	t.Helper()
	free, err := loopback.Free(t.Context(), 1)
	if err != nil {
		t.Fatal(err)
	}
	return free[0]
}

// ReadFile returns a file's content.
func ReadFile(t testing.TB, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// WantError fails the test unless err is of the kind, with that message and hint.
func WantError(t testing.TB, err error, kind fault.Kind, message, hint string) {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
	e, ok := errors.AsType[*fault.Error](err)
	if !ok {
		t.Fatalf("error without a kind: %v", err)
	}
	if e.Kind != kind {
		t.Errorf("kind %d, want %d: %v", e.Kind, kind, err)
	}
	if !strings.Contains(err.Error(), message) || strings.Contains(err.Error(), "\n") {
		t.Errorf("error %q, want one line with %q", err, message)
	}
	if e.Hint == "" || !strings.Contains(e.Hint, hint) {
		t.Errorf("hint %q, want %q", e.Hint, hint)
	}
}

// Presents reports whether sshd has a plain host key of a type.
func (s *SSHD) Presents(algorithm string) bool {
	s.t.Helper()
	_, err := handshake.HostKey(s.t.Context(), s.Address, []string{algorithm})
	return err == nil
}

// SkipUnknown skips a test of settings that this sshd does not have.
func (s *SSHD) SkipUnknown(t testing.TB, lines string) {
	t.Helper()
	s.Configure(lines)
	if err := s.Check(t.Context()); err != nil && strings.Contains(err.Error(), "Bad configuration option") {
		t.Skip(err)
	}
}

// Setting is a setting with which no certificate can log in, and part of the error.
type Setting struct{ Lines, Want string }

// UselessSettings are settings with which no certificate can log in.
func UselessSettings() []Setting {
	return []Setting{
		{"PubkeyAuthentication no\n", "PubkeyAuthentication no"},
		{"PubkeyAcceptedAlgorithms ssh-ed25519,rsa-sha2-512,rsa-sha2-256\n", "PubkeyAccepted"},
		{"CASignatureAlgorithms ecdsa-sha2-nistp256\n", "CASignatureAlgorithms"}, // the CA of the tests is Ed25519
		{"AuthorizedPrincipalsFile /nonexistent/auth_principals/%u\n", "AuthorizedPrincipalsFile"},
		{"RevokedKeys /nonexistent/revoked\n", "RevokedKeys"},
		{"AuthenticationMethods publickey,password\n", "AuthenticationMethods"},
		{"DenyUsers *\n", "DenyUsers"},
		{"DenyGroups *\n", "DenyGroups"},
		{"AllowUsers daemon\n", "AllowUsers"},
		{"Match all\nPubkeyAuthentication no\nMatch all\n", "Match all"},
		{"Match Address *\nAuthenticationMethods publickey,password\nMatch all\n", "Match Address *"},
	}
}

// HandsOver reports whether sshd's listener hands certificates to its sessions, as versions
// since 9.8 do.
func HandsOver(t testing.TB, program string) bool {
	t.Helper()
	output, _ := exec.Command(program, "-V").CombinedOutput()
	_, version, _ := strings.Cut(string(output), "OpenSSH_")
	return len(version) > 3 && (version[1] != '.' || version[:3] >= "9.8")
}

// AppendTo appends a text to a file.
func AppendTo(t testing.TB, path, text string) {
	t.Helper()
	data := append(ReadFile(t, path), text...)
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
}

// Pins tries OpenSSH's client with each host key as the only one that it knows, and returns
// the files of those with which it can log in.
func (s *SSHD) Pins(files ...string) (work []string) {
	s.t.Helper()
	identity := filepath.Join(s.Dir, "identity")
	if _, err := os.Stat(identity); err != nil {
		s.writeIdentity(identity)
	}
	for _, file := range files {
		if err := s.trySSH(identity, string(ReadFile(s.t, file+".pub"))); err == nil {
			work = append(work, file)
		} else if !strings.Contains(err.Error(), "Host key verification failed") {
			s.t.Fatal(err)
		}
	}
	return work
}

// writeIdentity makes a key that sshd accepts.
func (s *SSHD) writeIdentity(path string) {
	s.t.Helper()
	_, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		s.t.Fatal(err)
	}
	block, err := ssh.MarshalPrivateKey(private, "")
	if err != nil {
		s.t.Fatal(err)
	}
	signer, err := ssh.NewSignerFromKey(private)
	if err != nil {
		s.t.Fatal(err)
	}
	s.Write(filepath.Base(path), string(pem.EncodeToMemory(block)))
	AppendTo(s.t, filepath.Join(s.Dir, "authorized_keys"), string(ssh.MarshalAuthorizedKey(signer.PublicKey())))
}

// trySSH starts no shell, because a developer's may take a second. SFTP ends at the end of its
// input.
func (s *SSHD) trySSH(identity, pinned string) error {
	s.t.Helper()
	me, err := user.Current()
	if err != nil {
		return err
	}
	s.Write("known_hosts", "pinned "+pinned)
	cmd := exec.CommandContext(s.t.Context(), "ssh", "-F", "none", "-o", "BatchMode=yes", "-o", "HostKeyAlias=pinned",
		"-o", "StrictHostKeyChecking=yes", "-o", "UpdateHostKeys=no", "-o", "GlobalKnownHostsFile=/dev/null",
		"-o", "UserKnownHostsFile="+filepath.Join(s.Dir, "known_hosts"),
		"-o", "IdentitiesOnly=yes", "-o", "IdentityAgent=none", "-i", identity,
		"-p", strconv.Itoa(int(s.Address.Port())), "-s", me.Username+"@"+s.Address.Addr().String(), "sftp")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("ssh: %w: %s", err, out)
	}
	return nil
}

// WrappersVariable tells the test's second process that it is the second.
const WrappersVariable = "HALLMARK_TEST_WRAPPERS"

// waitFor repeats a check until it succeeds. If the context ends first, it returns the check's
// last error.
func waitFor(ctx context.Context, check func(context.Context) error) error {
	pause := time.NewTicker(20 * time.Millisecond)
	defer pause.Stop()
	for {
		err := check(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return err
		case <-pause.C:
		}
	}
}
