// Package ledger remembers which host keys and which host name each instance
// holds, so that nobody is certified for what another instance has.
//
// The rules, which package ledgertest checks of every implementation:
//
//   - A fingerprint never moves to another instance.
//   - An instance keeps its keys. A request may bring some of them, or bring new
//     ones beside at least one that is recorded: all keys of a request sign it,
//     so whoever adds a key holds an old one.
//   - An operator may permit other keys, once. They are exactly the instance's then.
//   - A name stays with its holder until every certificate that names it has ended
//     and the holder has ended too, or claims other names, or an operator releases the
//     name. Host names and the further names of a certificate are in one space.
//   - An instance that ended stays ended.
//   - Whoever crashed may do the same again: every operation is one write, and
//     finds its own work done.
package ledger

import (
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
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
	// ErrTooManyNames says that the instance would hold more than MaxNames.
	ErrTooManyNames = errors.New("the instance would hold too many names")
	// ErrEnded says that the instance was off-boarded.
	ErrEnded = errors.New("the instance was off-boarded")
	// ErrOtherSigner says that another signer enrolled the instance, and that
	// certificates of that enrollment may still be valid.
	ErrOtherSigner = errors.New("another signer enrolled the instance")
	// ErrSeen says that a change of tags was noted for an instance that never enrolled:
	// there is no node whose labels could follow.
	ErrSeen = errors.New("the instance never enrolled")
	// ErrUnclaimed says that there is no claim to confirm.
	ErrUnclaimed = errors.New("the instance holds no such claim")
	// ErrNotHeld says that no instance holds the name.
	ErrNotHeld = errors.New("no instance holds the name")
	// ErrCertified says that a certificate that names the name may still be good.
	ErrCertified = errors.New("a certificate still names it")
)

// Bounds, so that an instance's root, or whoever may set its tags, cannot make its
// record grow without end.
const (
	// MaxKeys bounds the host keys that are recorded of one life of an instance.
	MaxKeys = 20
	// MaxNames bounds the names that an instance holds, former ones too. Its own id is
	// not counted, so that it can always have that name.
	MaxNames = 32
)

// Claim asks for host keys and a host name on behalf of an instance.
type Claim struct {
	Instance ec2ref.Instance
	// Fingerprints are the SHA-256 fingerprints of the host keys, at least one.
	Fingerprints []string
	Hostname     string
	// Names are the further principals of the certificates, addresses for example.
	// They are held as host names are, and in one space with them.
	Names []string
	// Image is the id of the instance's image, ImageOwner the account that owns it, and
	// ImageTags its tags, nil if they are not known. They are recorded together, and only
	// with an owner: without one, what is recorded stays.
	Image      string
	ImageOwner string
	ImageTags  map[string]string
	// Signer is the audience of the signer that claims. Empty skips the check that
	// another signer has not enrolled the instance.
	Signer string
	// End is no earlier than the end of any certificate that will be issued on
	// this claim.
	End time.Time
	// Lease is when the lease of the node ends that is written on this claim. Zero
	// means End.
	Lease time.Time
}

// Record is what the ledger knows of an instance. The zero value is an instance
// that it does not know.
type Record struct {
	// Version counts the writes of the record. Whoever wrote a node reads it again
	// afterwards: if it has changed, what was written may be out of date.
	Version uint64
	// Generation names this life of the record; a permitted re-key begins a new one.
	Generation uint64
	// Fingerprints are the host keys of this life, sorted.
	Fingerprints []string
	// ConfirmedHostname is the host name of the last claim that was confirmed. It is
	// empty until an enrollment went through, and a re-key leaves it: the instance is
	// no newer for it.
	ConfirmedHostname string
	// Image is the id of the image that the next two were recorded of. It is empty in
	// records from before it was kept.
	Image string
	// ImageOwner is the account that owns the image, empty if it was never known.
	ImageOwner string
	// ImageTags are the image's tags, nil if they were never known.
	ImageTags map[string]string
	// Signer is the audience of the signer that claimed last. It is empty in records
	// from before it was kept.
	Signer string
	// End is when the claim of ConfirmedHostname ends, and with it the certificates.
	End time.Time
	// Lease is when the node's lease ends, of the last claim that was confirmed. It is
	// zero in records from before it was kept.
	Lease time.Time
	// TagsVersion counts the notes that the instance's tags may have changed.
	TagsVersion uint64
	Ended       bool
	// Expires is when the record may be forgotten. Zero is never.
	Expires time.Time
	// PermittedKey is the key of a permit to re-key that is not used yet, or empty. The
	// permit may have ended.
	PermittedKey string
	// EndedBy is the operator who ended it, and empty if nobody had to.
	EndedBy string
}

// Expired is one step of a walk through the records of instances that have not ended,
// although every certificate issued to them has.
type Expired struct {
	// Records are those of the step, at most MaxExpired. There may be none and yet more to come.
	Records map[ec2ref.Instance]Record
	// Next is where the next step begins. It is empty after the last.
	Next string
}

// MaxExpired bounds the records of one step.
const MaxExpired = 100

// ImageOf returns what is known of an instance's image: what EC2 shows of it now, or else
// what the record remembers. It remembers nothing of another image than the recorded one:
// EC2 can replace the root volume of a running instance by one of any image
// (CreateReplaceRootVolumeTask), and an image may be deregistered or made private at will.
// A record from before image ids were kept counts for whatever image the instance has.
func (r Record) ImageOf(id, owner string, tags map[string]string) (knownOwner string, knownTags map[string]string) {
	remembers := r.ImageOwner != "" && (r.Image == id || r.Image == "")
	switch {
	case owner == "" && remembers:
		return r.ImageOwner, maps.Clone(r.ImageTags)
	case tags == nil && remembers && owner == r.ImageOwner:
		return owner, maps.Clone(r.ImageTags) // EC2 tells owners of images that it no longer shows
	}
	return owner, tags
}

// Permit allows an instance to come with other host keys, once.
type Permit struct {
	// Fingerprint is one of the new keys.
	Fingerprint string
	// End is when the permit ends unused. Fractions of a second are dropped.
	End time.Time
	// By is who gave it, for the log. It is not empty.
	By string
}

// NameInUseError says which of a claim's names other instances hold. It is an
// ErrNameInUse.
type NameInUseError struct {
	// Held are the names, in the claim's order.
	Held []HeldName
}

// HeldName is a name that an instance holds.
type HeldName struct {
	Name   string
	Holder ec2ref.Instance
	// End is when the last certificate that names it has ended. It may be in the past:
	// a stopped machine keeps its name.
	End time.Time
}

func (e *NameInUseError) Error() string {
	holders := make([]string, len(e.Held))
	for n, h := range e.Held {
		holders[n] = string(h.Holder.ID)
	}
	return fmt.Sprintf("%v: %q held by %q", ErrNameInUse, e.Names(), holders)
}

// Names are the names, as the claim has them.
func (e *NameInUseError) Names() []string {
	names := make([]string, len(e.Held))
	for n, h := range e.Held {
		names[n] = h.Name
	}
	return names
}

// Is makes the error an ErrNameInUse.
func (e *NameInUseError) Is(target error) bool { return target == ErrNameInUse }

// Grant is a claim that was accepted.
type Grant struct {
	// Version is that of the record after the claim.
	Version uint64
	// Generation names this life of the instance's record; Confirm compares it.
	Generation uint64
	// ConfirmedHostname is the host name of the last claim that was confirmed, or
	// empty. Until a claim with this name is confirmed, nobody has checked that it
	// is free in Teleport.
	ConfirmedHostname string
	// PermittedBy is who permitted the re-key that the claim used up, and empty if it
	// used none. Until the first claim with the new keys is confirmed, every claim of
	// them has it.
	PermittedBy string

	// to is the instance, and claimed its record after the claim, which a confirmation
	// starts from.
	to      ec2ref.Instance
	claimed *record
}
