package sshd

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/machine/rooted"
	"github.com/hallmark-ssh/hallmark/internal/machine/sshdconf"
	"golang.org/x/crypto/ssh"
	"golang.org/x/sys/unix"
)

// View is what sshd reads from its files when it starts or is reloaded, without the lines that
// hallmark install wrote.
type View struct {
	// Directives are in the order in which sshd reads them, each with its Match block.
	Directives []string `json:"directives"`
	// Keys has a digest of each host key and host certificate, by path. For a private key, it
	// is the digest of its public key.
	Keys map[string]string `json:"keys"`
	// Logins are the settings that sshd applies: for each login, an index into Settings.
	Logins   map[string]int `json:"logins"`
	Settings []string       `json:"settings"`
	// Own are Hallmark's settings, which do not count: keywords, and HostCertificate with its
	// path.
	Own []string `json:"own"`
}

// Changed says when a file or folder that sshd reads last changed.
type Changed struct {
	Path string
	At   time.Time
}

// ViewOf returns what sshd would read in a reload, and when its files changed. The logins are
// those that Logins has just returned.
func (s *Server) ViewOf(conf *Effective, logins []Login) (View, []Changed) {
	r := s.read()
	v := View{Keys: map[string]string{}, Logins: map[string]int{}}
	var others []string // files that have lines of others
	for _, l := range r.lines {
		switch {
		case l.Own && l.Keyword == "hostcertificate":
			v.Own = append(v.Own, certificateLine(strings.Join(l.Arguments, " ")))
		case l.Own:
			v.Own = append(v.Own, l.Keyword)
		default:
			v.Directives = append(v.Directives, l.directive())
		}
	}
	for _, file := range r.files {
		if filepath.Base(file) != filepath.Base(sshdconf.DropIn) {
			others = append(others, file)
		}
	}
	for _, login := range logins {
		v.add(login)
	}
	note := func(path, digest string) {
		if digest != "" {
			v.Keys[path] = digest
			others = append(others, path)
		}
	}
	for _, path := range conf.HostKeys {
		note(path, s.keyDigest(path))
	}
	for _, path := range conf.HostCertificates {
		if !slices.Contains(v.Own, certificateLine(path)) {
			note(path, s.fileDigest(path))
		}
	}
	return v, append(s.changes(others), s.folderChanges(r.folders, conf)...)
}

// matchMark begins a directive that is in a Match block.
const matchMark = "match "

// InMatch returns the directives that are in Match blocks.
func (v View) InMatch() (some []string) {
	for _, d := range v.Directives {
		if strings.HasPrefix(d, matchMark) {
			some = append(some, d)
		}
	}
	return some
}

// directive returns a line without its place, as sshd interprets it.
func (l Line) directive() string {
	var b strings.Builder
	if len(l.Match) > 0 {
		b.WriteString(matchMark + strings.Join(l.Match, " ") + ": ")
	}
	b.WriteString(l.Keyword)
	for _, argument := range l.Arguments {
		b.WriteString(" " + strconv.Quote(argument))
	}
	return b.String()
}

// certificateLine is how "sshd -T" prints a HostCertificate.
func certificateLine(path string) string { return "hostcertificate " + path }

// add records the settings of one login. Most logins share theirs.
func (v *View) add(login Login) {
	text := string(login.Settings)
	n := slices.Index(v.Settings, text)
	if n < 0 {
		n = len(v.Settings)
		v.Settings = append(v.Settings, text)
	}
	name := login.User + " from " + login.Address
	for again := 2; ; again++ {
		if _, taken := v.Logins[name]; !taken {
			break
		}
		name = fmt.Sprintf("%s from %s (%d)", login.User, login.Address, again)
	}
	v.Logins[name] = n
}

// folderChanges returns when the folders that an Include looks into changed: only a folder
// shows that a file was removed. It ignores folders into which Hallmark writes certificates,
// and the change that added Hallmark's own drop-in.
func (s *Server) folderChanges(folders []string, conf *Effective) (changed []Changed) {
	for _, folder := range folders {
		written := slices.ContainsFunc(conf.HostKeys, func(path string) bool { return filepath.Dir(path) == folder })
		if written || sshdconf.IsPattern(folder) {
			continue
		}
		own := s.changes([]string{filepath.Join(folder, filepath.Base(sshdconf.DropIn))})
		for _, c := range s.changes([]string{folder}) {
			if len(own) == 0 || own[0].At.Before(c.At) {
				changed = append(changed, c)
			}
		}
	}
	return changed
}

// changes returns when files last changed, by the kernel's time stamp (ctime), which no
// program can set. It leaves out files that do not exist.
func (s *Server) changes(files []string) (changed []Changed) {
	for _, file := range files {
		path, err := rooted.Resolve(filepath.Join("/", s.Root), file)
		if err != nil {
			continue
		}
		var stat unix.Stat_t
		if unix.Stat(filepath.Join("/", s.Root, path), &stat) == nil {
			changed = append(changed, Changed{file, time.Unix(stat.Ctim.Unix())})
		}
	}
	return changed
}

// keyDigest identifies a host key by its public half, or returns "" if there is no key.
func (s *Server) keyDigest(path string) string {
	data, err := readBounded(filepath.Join("/", s.Root, path))
	if errors.Is(err, fs.ErrNotExist) {
		return ""
	}
	defer clear(data)
	if signer, err := ssh.ParsePrivateKey(data); err == nil {
		return ssh.FingerprintSHA256(signer.PublicKey())
	}
	return "not readable, " + s.fileDigest(path+".pub") // with a passphrase, for example
}

// fileDigest is the SHA-256 of a public file, or "" if there is no file.
func (s *Server) fileDigest(path string) string {
	data, err := readBounded(filepath.Join("/", s.Root, path))
	if err != nil {
		return ""
	}
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}
