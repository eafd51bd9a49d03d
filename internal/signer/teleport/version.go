package teleport

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"regexp"
	"strconv"

	"github.com/gravitational/teleport/api"
)

// oldest is the oldest major version that Hallmark supports.
const oldest = 13

var majorVersion = regexp.MustCompile(`^v?(\d+)\.`)

// checkVersion refuses clusters that lack what Hallmark needs.
func checkVersion(version string) error {
	if major := majorOf(version); major != 0 && major < oldest {
		return fmt.Errorf("%w: the cluster runs Teleport %s, and Hallmark needs %d or later: update Teleport", ErrDenied, version, oldest)
	}
	return nil
}

// warnOutdated warns once per version if the server is the last major version that
// accepts this client library. A server accepts clients of the previous major version, so
// only servers newer than the library matter.
func warnOutdated(ctx context.Context, config Config, version string) {
	before := config.learned.version.Swap(&version)
	if majorOf(version) <= majorOf(api.Version) || before != nil && *before == version {
		return
	}
	oldestClient := ""
	if find, err := askProxy(ctx, config); err == nil {
		oldestClient = find.MinClientVersion
	}
	if oldestClient != "" && majorOf(oldestClient) < majorOf(api.Version) {
		return
	}
	config.Log.LogAttrs(ctx, slog.LevelWarn, "the next major version of Teleport will refuse this Hallmark: update Hallmark before Teleport",
		slog.String("teleport_version", version), slog.String("oldest_client", oldestClient), slog.String("client_version", api.Version))
}

// checkClientVersion asks a proxy which clients it accepts, and returns an error if this
// one is too old. Teleport hangs up on such clients without a message, so the client
// calls this afterwards. Without a proxy there is no answer.
func checkClientVersion(ctx context.Context, config Config) error {
	find, err := askProxy(ctx, config)
	if err != nil || majorOf(find.MinClientVersion) <= majorOf(api.Version) {
		return nil //nolint:nilerr // without an answer, assume it is accepted
	}
	return fmt.Errorf("%w: the cluster runs Teleport %s, which accepts clients of %s or later, and this Hallmark identifies as %s: update Hallmark",
		ErrDenied, find.ServerVersion, find.MinClientVersion, api.Version)
}

// versions is what a proxy tells every caller.
type versions struct {
	ServerVersion    string `json:"server_version"`
	MinClientVersion string `json:"min_client_version"`
}

func askProxy(ctx context.Context, config Config) (versions, error) {
	ctx, cancel := withDeadline(ctx)
	defer cancel()
	transport := &http.Transport{
		DialTLSContext:    (&dialer{route: webRoute(ctx, config), protocols: []string{alpnHTTP1}}).DialContext,
		DisableKeepAlives: true,
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+config.Address+"/webapi/find", nil)
	if err != nil {
		return versions{}, err
	}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return versions{}, err
	}
	defer func() { _ = response.Body.Close() }()
	var v versions
	if err := json.NewDecoder(io.LimitReader(response.Body, maxAnswer)).Decode(&v); err != nil {
		return versions{}, fmt.Errorf("read %s: %w", request.URL, err)
	}
	return v, nil
}

// majorOf returns the major version, or 0 if the text is not a version.
func majorOf(version string) int {
	match := majorVersion.FindStringSubmatch(version)
	if match == nil {
		return 0
	}
	major, err := strconv.Atoi(match[1])
	if err != nil {
		return 0
	}
	return major
}
