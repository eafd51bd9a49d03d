package teleport_test

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/signer/teleport"
	"github.com/hallmark-ssh/hallmark/internal/signer/teleport/teleporttest"
)

// The log says once that the next Teleport version will refuse this Hallmark, judging by what
// the proxy says about clients or, without a proxy, by the server's own version.
func TestOutdatedClientIsWarned(t *testing.T) {
	for name, tt := range map[string]struct {
		options  teleporttest.Options
		noProxy  bool // its certificate is not trusted
		warnings int
	}{
		"13":                             {teleporttest.Options{Generation: teleporttest.Generation13}, false, 0},
		"19":                             {teleporttest.Options{}, false, 1},
		"19 that takes older ones still": {teleporttest.Options{MinClientVersion: "17.0.0-aa"}, false, 0},
		"19 as it says itself":           {teleporttest.Options{MinClientVersion: "18.0.0-aa"}, false, 1},
		"19 without a proxy":             {teleporttest.Options{MinClientVersion: "17.0.0"}, true, 1},
	} {
		t.Run(name, func(t *testing.T) {
			j := newJoinable(t, tt.options)
			var log bytes.Buffer
			config := j.config()
			config.Log = slog.New(slog.NewJSONHandler(&log, nil))
			if tt.noProxy {
				config.RootsPEM = nil
				config.Login = teleport.IdentityFile(write(t, j.IdentityFile()))
			}
			client := dial(t, config)
			for range 3 {
				j.clock.advance(45 * time.Minute) // a new login for the bot
				if err := signOne(t, client); err != nil {
					t.Fatal(err)
				}
			}
			if n := strings.Count(log.String(), "update Hallmark before Teleport"); n != tt.warnings {
				t.Errorf("%d warnings, want %d; log: %s", n, tt.warnings, &log)
			}
			if n := j.Calls()["/webapi/find"]; n > 1 {
				t.Errorf("the proxy was asked %d times", n)
			}
		})
	}
}
