package teleport

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strconv"

	"github.com/gravitational/teleport/api"
)

// oldest is the first major version that Hallmark works with.
const oldest = 13

var majorVersion = regexp.MustCompile(`^v?(\d+)\.`)

// checkVersion refuses clusters that lack what Hallmark needs.
func checkVersion(version string) error {
	if major := majorOf(version); major != 0 && major < oldest {
		return fmt.Errorf("%w: the cluster runs Teleport %s, and Hallmark needs %d or later: update Teleport", ErrDenied, version, oldest)
	}
	return nil
}

// checkClientVersion asks a proxy which clients it takes, and returns an error if
// ours is too old. Teleport hangs up on such clients without a word; so this is
// for when it did. Where there is no proxy, there is no answer.
func checkClientVersion(ctx context.Context, config Config) error {
	transport := &http.Transport{
		DialTLSContext:    (&dialer{route: webRoute(ctx, config), protocols: []string{alpnHTTP1}}).DialContext,
		DisableKeepAlives: true,
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+config.Address+"/webapi/find", nil)
	if err != nil {
		return nil
	}
	response, err := transport.RoundTrip(request)
	if err != nil {
		return nil //nolint:nilerr // no answer, no opinion
	}
	defer func() { _ = response.Body.Close() }()
	var cluster struct {
		ServerVersion    string `json:"server_version"`
		MinClientVersion string `json:"min_client_version"`
	}
	if err := json.NewDecoder(io.LimitReader(response.Body, maxAnswer)).Decode(&cluster); err != nil {
		return nil //nolint:nilerr // no answer, no opinion
	}
	if majorOf(cluster.MinClientVersion) <= majorOf(api.Version) {
		return nil
	}
	return fmt.Errorf("%w: the cluster runs Teleport %s, which takes clients of %s or later, and this Hallmark speaks as %s: update Hallmark",
		ErrDenied, cluster.ServerVersion, cluster.MinClientVersion, api.Version)
}

// majorOf returns the major version, or 0 if the text is no version.
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
