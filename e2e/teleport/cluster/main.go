// Command cluster runs a Teleport cluster of one process, auth and proxy, for tests.
//
// Teleport as it comes out of the module proxy has no web interface to serve and its
// proxy does not start without one, so this starts it without.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net/http"
	"net/url"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/gravitational/teleport/lib/cloud"
	"github.com/gravitational/teleport/lib/config"
	"github.com/gravitational/teleport/lib/service"
	"github.com/gravitational/teleport/lib/service/servicecfg"
)

func main() {
	configFile := flag.String("config", "teleport.yaml", "Teleport's configuration")
	ready := flag.String("ready", "", "`file` to create when the cluster serves")
	stsURL := flag.String("sts-url", "", "`URL` that is asked in place of AWS STS when a bot joins by its AWS role")
	untilEOF := flag.Bool("until-eof", false, "end when standard input does, as when a test that holds it is killed")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if *untilEOF {
		go func() {
			_, _ = io.Copy(io.Discard, os.Stdin)
			os.Exit(0) // nobody is left to tell
		}()
	}
	if err := run(ctx, *configFile, *ready, *stsURL); err != nil {
		log.Fatal(err)
	}
}

func run(ctx context.Context, configFile, ready, stsURL string) error {
	if stsURL != "" {
		endpoint, err := url.Parse(stsURL)
		if err != nil {
			return err
		}
		// The iam join method has no setting for the endpoint, and uses this client.
		http.DefaultClient.Transport = redirectSTS{endpoint}
	}
	cfg := servicecfg.MakeDefaultConfig()
	if err := config.Configure(&config.CommandLineFlags{ConfigFile: configFile}, cfg, false); err != nil {
		return err
	}
	cfg.Proxy.DisableWebInterface = true
	// The services learn of a CA's new phase from an event. By default, one that misses the event
	// polls for it only every ten minutes, and a test would have to wait that long.
	cfg.PollingPeriod = 5 * time.Second
	// A test asks nothing outside its own machine, not even which cloud it runs in.
	cfg.InstanceMetadataClient = cloud.NewDisabledIMDSClient()
	err := service.Run(ctx, *cfg, func(cfg *servicecfg.Config) (service.Process, error) {
		process, err := service.NewTeleport(cfg)
		if err != nil {
			return nil, err
		}
		go announce(ctx, process, ready)
		return process, nil
	})
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

// announce creates the ready file once the process serves.
func announce(ctx context.Context, process service.Process, ready string) {
	if _, err := process.WaitForEvent(ctx, service.TeleportReadyEvent); err != nil {
		return
	}
	fmt.Println("ready")
	if ready == "" {
		return
	}
	if err := os.WriteFile(ready, nil, 0o600); err != nil && !errors.Is(err, fs.ErrNotExist) {
		log.Print(err)
	}
}

// redirectSTS sends requests for STS to another address, unchanged: their signature covers the
// original host's name.
type redirectSTS struct {
	endpoint *url.URL
}

func (r redirectSTS) RoundTrip(request *http.Request) (*http.Response, error) {
	labels := strings.Split(request.URL.Hostname(), ".")
	if labels[0] != "sts" || !slices.Contains(labels, "amazonaws") {
		return http.DefaultTransport.RoundTrip(request)
	}
	request = request.Clone(request.Context())
	request.Host = request.URL.Host
	request.URL.Scheme, request.URL.Host = r.endpoint.Scheme, r.endpoint.Host
	return http.DefaultTransport.RoundTrip(request)
}
