// Package moto starts moto, the third-party emulator of AWS's APIs
// (https://github.com/getmoto/moto), with a made-up region.
package moto

import (
	"context"
	_ "embed"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"time"

	"github.com/hallmark-ssh/hallmark/e2e/fake/loopback"
)

// Account is the account that moto creates everything in.
const Account = "123456789012"

//go:embed serve.py
var program string

// Server is a running moto.
type Server struct {
	// URL is the endpoint of every service.
	URL    string
	cancel context.CancelFunc
	exited chan struct{}
}

// Installed returns nil if moto is installed, and otherwise an error that says what to do.
func Installed(ctx context.Context) error {
	const find = "import importlib.util, sys; sys.exit(importlib.util.find_spec('moto.server') is None)"
	if err := exec.CommandContext(ctx, "python3", "-c", find).Run(); err != nil {
		return fmt.Errorf("python3 does not find moto (%w): run 'make setup'", err)
	}
	return nil
}

// Start starts moto on a free port of the loopback interface, and returns when it answers.
// moto stops with the context. Its log goes to w.
func Start(ctx context.Context, region string, w io.Writer) (*Server, error) {
	if err := Installed(ctx); err != nil {
		return nil, err
	}
	free, err := loopback.Free(ctx, 1)
	if err != nil {
		return nil, err
	}
	address := free[0]
	ctx, cancel := context.WithCancel(ctx)
	cmd := exec.CommandContext(ctx, "python3", "-c", program, address.Addr().String(), strconv.Itoa(int(address.Port())), region)
	cmd.Env = append(os.Environ(), "MOTO_ALLOW_NONEXISTENT_REGION=true", "PYTHONUNBUFFERED=1",
		"VALIDATE_LAMBDA_S3=false") // a stack's functions need no package
	cmd.Stdout, cmd.Stderr = w, w
	if err := cmd.Start(); err != nil {
		cancel()
		return nil, fmt.Errorf("start moto: %w", err)
	}
	s := &Server{URL: "http://" + address.String(), cancel: cancel, exited: make(chan struct{})}
	go func() {
		_ = cmd.Wait() // Close kills it
		close(s.exited)
	}()
	if err := s.waitUntilServing(ctx); err != nil {
		s.Close()
		return nil, err
	}
	return s, nil
}

// Close stops moto.
func (s *Server) Close() {
	s.cancel()
	<-s.exited
}

func (s *Server) waitUntilServing(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := probe(ctx, s.URL+"/moto-api/")
		if err == nil {
			return nil
		}
		select {
		case <-s.exited:
			return errors.New("moto exited while starting, see its log")
		case <-ctx.Done():
			return fmt.Errorf("moto does not answer: %w", err)
		case <-tick.C:
		}
	}
}

func probe(ctx context.Context, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	return res.Body.Close()
}
