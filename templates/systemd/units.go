// Package systemd holds the units that run hallmark on an instance.
package systemd

import _ "embed"

// The content of hallmark.service, hallmark.timer and hallmark-renew.timer.
var (
	//go:embed hallmark.service
	Service []byte
	//go:embed hallmark.timer
	Timer []byte
	//go:embed hallmark-renew.timer
	RenewTimer []byte
)
