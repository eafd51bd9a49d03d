// Package ledger remembers which host keys and which host name each instance
// holds, so that nobody is certified for what another instance has.
//
// The rules, which package ledgertest checks of every implementation:
//
//   - A fingerprint never moves to another instance.
//   - An instance keeps its keys. A request may bring some of them, or bring new
//     ones beside at least one that is recorded: all keys of a request sign it,
//     so whoever adds a key holds an old one.
//   - A host name stays with its holder until the holder has ended and every
//     certificate that names it has ended too, also after a rename.
//   - An instance that ended stays ended.
package ledger

import (
	"errors"
	"time"
)

// What a ledger refuses. Callers compare with errors.Is.
var (
	// ErrKeyConflict says that the instance is known with other host keys.
	ErrKeyConflict = errors.New("the instance is known with other host keys")
	// ErrKeyInUse says that another instance holds one of the host keys, as it
	// happens when host keys were baked into an image.
	ErrKeyInUse = errors.New("another instance holds one of the host keys")
	// ErrNameInUse says that another instance holds the host name.
	ErrNameInUse = errors.New("another instance holds the host name")
	// ErrEnded says that the instance was off-boarded.
	ErrEnded = errors.New("the instance was off-boarded")
	// ErrUnclaimed says that there is no claim to confirm.
	ErrUnclaimed = errors.New("the instance holds no such claim")
)

// MaxKeys bounds the host keys that are ever recorded of one instance, so that
// its root cannot make the record grow without end.
const MaxKeys = 20

// Instance names an EC2 instance.
type Instance struct {
	Account, Region, ID string
}

// Claim asks for host keys and a host name on behalf of an instance.
type Claim struct {
	Instance Instance
	// Fingerprints are the SHA-256 fingerprints of the host keys, at least one.
	Fingerprints []string
	Hostname     string
	// End is no earlier than the end of any certificate that will be issued on
	// this claim.
	End time.Time
}

// Grant is a claim that was accepted.
type Grant struct {
	// Generation names this life of the instance's record; Confirm compares it.
	Generation uint64
	// ConfirmedHostname is the host name of the last claim that was confirmed, or
	// empty. Until a claim with this name is confirmed, nobody has checked that it
	// is free in Teleport.
	ConfirmedHostname string
}
