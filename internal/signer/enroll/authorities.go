package enroll

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"github.com/hallmark-ssh/hallmark/internal/signer/emf"
	"github.com/hallmark-ssh/hallmark/internal/signer/entry"
	"github.com/hallmark-ssh/hallmark/internal/signer/teleport"
)

// The list of authorities is public, and whoever asks for it proves nothing. So what
// it costs does not depend on who asks or how often.
const (
	// authoritiesFresh is how long the list is handed out before Teleport is asked again.
	authoritiesFresh = time.Minute
	// authoritiesPause is how long Teleport is left alone after it did not answer.
	authoritiesPause = 10 * time.Second
	// authoritiesKept is how long the last list serves while Teleport does not answer. A
	// machine asks no sooner than this after an enrollment, so that it never gets a list
	// older than the one that the enrollment brought.
	authoritiesKept = 5 * time.Minute
)

// Answer answers an HTTP request: a GET with the cluster's authorities, and anything
// else as a request to enroll.
func (s *Signer) Answer(ctx context.Context, r entry.Request) entry.Answer {
	if r.Method == http.MethodGet {
		return s.Authorities(ctx, r)
	}
	return s.Enroll(ctx, r)
}

// Authorities answers with protocol.CAs, or with 304 to a caller who has them. It
// writes a line only if it fails: a fleet asks every hour.
func (s *Signer) Authorities(ctx context.Context, r entry.Request) entry.Answer {
	ctx, cancel := withDeadline(ctx)
	defer cancel()
	body, err := s.authorityList(ctx, r)
	if err != nil {
		answer := refusalAnswer(err, r.ID, s.now())
		s.Log.LogAttrs(ctx, slog.LevelWarn, "authorities",
			slog.String("request_id", r.ID), slog.String("code", string(codeOf(err))), slog.Int("status", answer.Status),
			slog.String("source", r.Source), slog.String("error", shorten(err.Error())))
		return answer
	}
	etag := protocol.ETag(body)
	if r.IfNoneMatch == etag {
		return entry.Answer{Status: http.StatusNotModified, Header: map[string]string{"ETag": etag}}
	}
	return entry.Answer{
		Status: http.StatusOK,
		Header: map[string]string{"Content-Type": "application/json", "Cache-Control": "no-cache", "ETag": etag},
		Body:   body,
	}
}

func (s *Signer) authorityList(ctx context.Context, r entry.Request) ([]byte, error) {
	if err := s.checkDoor(r); err != nil {
		return nil, err
	}
	body, err := s.authorities.get(ctx, s.now, s.renewAuthorities)
	if err != nil {
		// Also if Teleport refuses: this caller has proved nothing, and learns no more.
		return nil, refuse(protocol.CodeUpstream, err)
	}
	return body, nil
}

func (s *Signer) readAuthorities(ctx context.Context) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, teleportTimeout)
	defer cancel()
	cluster, err := s.Connect(ctx)
	if err != nil {
		return nil, err
	}
	cas, err := cluster.CAs(ctx)
	if err != nil {
		return nil, fmt.Errorf("read the cluster's CAs: %w", err)
	}
	return encodeAuthorities(cas)
}

// renewAuthorities reads the list, and tells if that fails, whether or not the last one
// still serves: at most once in authoritiesPause, however many ask.
func (s *Signer) renewAuthorities(ctx context.Context) ([]byte, error) {
	body, err := s.readAuthorities(ctx)
	if err != nil {
		bySigner := emf.By("signer")
		bySigner.Happened("teleport_errors", true)
		line := []slog.Attr{slog.String("error", shorten(err.Error())), slog.String("signer", s.Audience)}
		s.Log.LogAttrs(ctx, slog.LevelWarn, "the cluster's authorities could not be read", append(line, emf.Attrs(s.now(), bySigner)...)...)
	}
	return body, err
}

// encodeAuthorities refuses to say that there are none: a machine that believed it
// would let nobody in.
func encodeAuthorities(cas teleport.CAs) ([]byte, error) {
	if len(cas.OpenSSH) == 0 || len(cas.Host) == 0 {
		return nil, errors.New("the cluster names no authorities")
	}
	return protocol.CAs{Version: protocol.CAsVersion, OpenSSHCAs: lines(cas.OpenSSH), HostCAs: lines(cas.Host)}.Encode()
}

// errResting says that the cluster did not answer a moment ago.
var errResting = errors.New("the cluster did not answer a moment ago")

// authorities keeps the encoded list. The zero value is ready for use.
type authorities struct {
	mu    sync.Mutex
	body  []byte
	read  time.Time // when reading body was begun
	tried time.Time // when reading was last begun
}

// get returns the list, and reads it again if it is old. One caller reads for all: the others
// have the list that there is, or nothing.
func (a *authorities) get(ctx context.Context, now func() time.Time, read func(context.Context) ([]byte, error)) ([]byte, error) {
	if body, due := a.kept(now()); !due {
		if body == nil {
			return nil, errResting
		}
		return body, nil
	}
	begun := now()
	body, err := read(ctx)
	if err != nil {
		if old, _ := a.kept(now()); old != nil {
			return old, nil
		}
		return nil, err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.body, a.read = body, begun
	return body, nil
}

// kept returns the list if it may still be handed out, and whether the caller is to
// read it again.
func (a *authorities) kept(now time.Time) (body []byte, due bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.body != nil && isYoung(a.read, authoritiesKept, now) {
		body = a.body
	}
	fresh := body != nil && isYoung(a.read, authoritiesFresh, now)
	if due = !fresh && !isYoung(a.tried, authoritiesPause, now); due {
		a.tried = now
	}
	return body, due
}
