package enroll

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"github.com/hallmark-ssh/hallmark/internal/signer/cached"
	"github.com/hallmark-ssh/hallmark/internal/signer/emf"
	"github.com/hallmark-ssh/hallmark/internal/signer/entry"
	"github.com/hallmark-ssh/hallmark/internal/signer/teleport"
	"github.com/hallmark-ssh/hallmark/internal/sshkey"
)

// casRule is how long the list of CAs serves. The list is public, and callers who ask for it
// prove nothing. So its cost must not depend on who asks or how often.
func casRule() cached.Rule {
	return cached.Rule{
		What:  "the cluster's CAs",
		Fresh: time.Minute,
		// A machine waits at least this long after an enrollment before it asks, so it never
		// gets a list older than the enrollment's.
		Kept:  5 * time.Minute,
		Pause: 10 * time.Second,
	}
}

// Answer answers an HTTP request: a GET with the cluster's CAs, and anything else as a
// request to enroll.
func (s *Signer) Answer(ctx context.Context, r entry.Request) entry.Answer {
	if r.Method == http.MethodGet {
		return s.CAs(ctx, r)
	}
	return s.Enroll(ctx, r)
}

// CAs answers with protocol.CAs, or with 304 if the caller already has them, and records
// the health report that came with the request. It logs only failures and changes: a fleet
// asks every hour.
func (s *Signer) CAs(ctx context.Context, r entry.Request) entry.Answer {
	ctx, cancel := withDeadline(ctx)
	defer cancel()
	body, err := s.caList(ctx, r)
	if r.Health != "" && err == nil {
		s.noteHealth(ctx, r, body)
	}
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

func (s *Signer) caList(ctx context.Context, r entry.Request) ([]byte, error) {
	if err := s.checkSender(r); err != nil {
		return nil, err
	}
	body, err := s.cas.Get(casRule(), s.now, func([]byte, bool) ([]byte, error) { return s.renewCAs(ctx) })
	if err != nil {
		// Even if Teleport refuses: this caller has proved nothing, so it learns no more.
		return nil, refuse(protocol.CodeUpstream, err)
	}
	return body, nil
}

func (s *Signer) readCAs(ctx context.Context) ([]byte, error) {
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
	return encodeCAs(cas)
}

// renewCAs reads the list and logs a failure, even while the last list still serves. It
// runs rarely, however many callers ask.
func (s *Signer) renewCAs(ctx context.Context) ([]byte, error) {
	body, err := s.readCAs(ctx)
	if err != nil {
		bySigner := emf.By("signer")
		bySigner.Happened("teleport_errors", true)
		line := []slog.Attr{slog.String("error", shorten(err.Error())), slog.String("signer", s.Audience)}
		s.Log.LogAttrs(ctx, slog.LevelWarn, "the cluster's CAs could not be read", append(line, emf.Attrs(s.now(), bySigner)...)...)
	}
	return body, err
}

// encodeCAs refuses an empty list: a machine that trusts no CA lets nobody in.
func encodeCAs(cas teleport.CAs) ([]byte, error) {
	if len(cas.OpenSSH) == 0 || len(cas.Host) == 0 {
		return nil, errors.New("the cluster has no OpenSSH CA or no Host CA")
	}
	return protocol.CAs{Version: protocol.CAsVersion, OpenSSHCAs: sshkey.Lines(cas.OpenSSH), HostCAs: sshkey.Lines(cas.Host)}.Encode()
}
