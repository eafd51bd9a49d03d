// Package systemd holds the units that run hallmark on an instance.
package systemd

import _ "embed"

// Service and Timer are the content of hallmark.service and hallmark.timer.
var (
	//go:embed hallmark.service
	Service []byte
	//go:embed hallmark.timer
	Timer []byte
)
