//go:build linux

package teleportd

import (
	"context"
	"fmt"
	"os/exec"
	"regexp"
	"strconv"
)

// Behavior is what differs between versions of Teleport, as far as a test or a comparison
// depends on it. Only this file depends on versions: everything else asks for a Behavior.
type Behavior struct {
	// Environment is what auth service and tctl need to accept "second_factor: off".
	Environment []string
	// BotResource reports whether `tctl create` takes a bot. Otherwise `tctl bots add`
	// makes one.
	BotResource bool
	// RotationRestarts reports whether the phases of a rotation of the Host CA after the
	// first restart the services, which ends every connection. Otherwise connections
	// survive. Nothing waits for a restart; the number of logins depends on it.
	RotationRestarts bool
	// RefusedLogin is what OpenSSH's client prints when the proxy refuses the login name root.
	// tsh prints "access denied to root" in all versions.
	RefusedLogin string
	// RecordsCommands reports whether a command without a terminal leaves a recording to play.
	// A command with a terminal always does.
	RecordsCommands bool
	// UsersService reports whether the service teleport.users.v1.UsersService manages users.
	// Otherwise the older calls of the auth service do, which servers with UsersService answer
	// with NotImplemented.
	UsersService bool
	// RequestsPerMinute and RequestBurst are a proxy's limits for one source address without a
	// login. 13 counts logins, 16 and later also the CA export. Tests keep to the stricter
	// rule on every version.
	RequestsPerMinute, RequestBurst int
	// ExportToFiles reports whether `tctl auth export` refuses to print more than one TLS
	// CA and writes them to files instead (--out).
	ExportToFiles bool
	// Roles are the roles that Hallmark asks for, and the name of each in the certificate. The
	// server does not issue roles that are missing here.
	Roles map[string]string
}

// behaviorOf returns the behavior of a major version: the nearest row that is not newer. Each
// row says what changed in that version.
//
// Run: 13.3.8, 18.3.0, 19.0.0-prealpha.2. Rows 16 and 17 contain what those versions
// announced; the rest is as in the row before.
func behaviorOf(major int) Behavior {
	b := Behavior{ // 13
		RotationRestarts:  true,
		RefusedLogin:      "access denied to root",
		RecordsCommands:   true,
		RequestsPerMinute: 20,
		RequestBurst:      40,
		Roles:             map[string]string{"ProvisionToken": "ProvisionToken", "Nop": "Nop", "Signup": "Password"},
	}
	if major >= 16 {
		b.Environment = []string{"TELEPORT_ALLOW_NO_SECOND_FACTOR=true"}
	}
	if major >= 17 {
		b.RecordsCommands = false
	}
	if major >= 18 {
		b.BotResource = true
		b.RotationRestarts = false
		b.RefusedLogin = "Permission denied (publickey)"
		b.UsersService = true
		b.Roles = map[string]string{"ProvisionToken": "ProvisionToken", "Nop": "Nop", "Signup": "Signup"}
	}
	if major >= 19 {
		b.ExportToFiles = true
		b.Roles = map[string]string{"ProvisionToken": "ProvisionToken", "Signup": "Signup"}
	}
	return b
}

// versionLine is what `tctl version` prints first, such as "Teleport v13.3.8 git: go1.26".
var versionLine = regexp.MustCompile(`^Teleport(?: Enterprise)? v(([0-9]{1,4})\.[0-9]+\.[0-9]+[-+.A-Za-z0-9]*)(?:\s|$)`)

// parseVersion reads what `tctl version` prints.
func parseVersion(printed string) (version string, major int, err error) {
	m := versionLine.FindStringSubmatch(printed)
	if m == nil {
		return "", 0, fmt.Errorf("no version of Teleport in %q", printed)
	}
	major, err = strconv.Atoi(m[2])
	return m[1], major, err
}

// oldest is the first major version that Hallmark works with, and so the table's.
const oldest = 13

// readVersion asks a folder's programs for their version.
func readVersion(ctx context.Context, tctl string) (version string, b Behavior, err error) {
	printed, err := run(exec.CommandContext(ctx, tctl, "version"))
	if err != nil {
		return "", Behavior{}, fmt.Errorf("ask Teleport's programs for their version: %w", err)
	}
	version, major, err := parseVersion(printed)
	if err != nil {
		return "", Behavior{}, fmt.Errorf("run %s version: %w", tctl, err)
	}
	if major < oldest {
		return "", Behavior{}, fmt.Errorf("%s is Teleport %s: the tests need %d or later", tctl, version, oldest)
	}
	return version, behaviorOf(major), nil
}
