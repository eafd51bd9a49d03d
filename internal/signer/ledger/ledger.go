// Package ledger records which host keys and names each instance holds, so that no
// instance gets a certificate for another's keys or names.
//
// Package ledgertest checks these rules for every implementation:
//
//   - A fingerprint never moves to another instance.
//   - An instance keeps its keys. A request may bring some of them, or new keys
//     together with at least one recorded key. All keys of a request sign it, so
//     the sender of a new key also holds an old one.
//   - An operator may permit other keys, once. They replace all recorded keys.
//   - A name stays with its holder until every certificate with that name has expired
//     and the holder is retired, claims other names, or loses the name to an
//     operator's release. Host names and other principals share one namespace.
//   - A retired instance stays retired.
//   - An instance that leaves keeps its keys and names, and can enroll again with them. No
//     enrollment that claimed before it left can be confirmed. Of a request to enroll and a
//     request to leave, the one that was issued first never undoes the other.
//   - Every operation is safe to repeat after a crash: it makes one write, and
//     recognizes its own earlier write.
package ledger

import (
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
)

// The ledger's refusals. Callers compare with errors.Is.
var (
	// ErrKeyConflict says that the instance enrolled with other host keys.
	ErrKeyConflict = errors.New("the instance is known with other host keys")
	// ErrKeyInUse says that another instance holds one of the host keys, for example
	// because an image contains host keys.
	ErrKeyInUse = errors.New("another instance holds one of the host keys")
	// ErrNameInUse says that another instance holds the host name.
	ErrNameInUse = errors.New("another instance holds the host name")
	// ErrTooManyNames says that the instance would hold more than MaxNames.
	ErrTooManyNames = errors.New("the instance would hold too many names")
	// ErrRetired says that the instance's record is retired: it was off-boarded.
	ErrRetired = errors.New("the instance was off-boarded")
	// ErrLeft says that the instance left: it asked to have no node.
	ErrLeft = errors.New("the instance left")
	// ErrOldLeave says that the instance has enrolled again since it asked to leave.
	ErrOldLeave = errors.New("the instance has enrolled again since it asked to leave")
	// ErrOtherSigner says that another signer enrolled the instance, and that
	// certificates of that enrollment may still be valid.
	ErrOtherSigner = errors.New("another signer enrolled the instance")
	// ErrSeen says that the ledger noted a tag change of an instance that never enrolled:
	// it has no node to update.
	ErrSeen = errors.New("the instance never enrolled")
	// ErrUnclaimed says that there is no claim to confirm.
	ErrUnclaimed = errors.New("the instance no longer holds this claim")
	// ErrNotHeld says that no instance holds the name.
	ErrNotHeld = errors.New("no instance holds the name")
	// ErrCertified says that a certificate with this name may still be valid.
	ErrCertified = errors.New("a certificate with this name may still be valid")
)

// These bounds stop an instance's root user, and anyone who may set its tags, from
// growing its record without limit.
const (
	// MaxKeys bounds the host keys recorded in one generation of an instance.
	MaxKeys = 20
	// MaxNames bounds the names that an instance holds, including former ones. Its own
	// id does not count, so it can always hold that name.
	MaxNames = 32
)

// Claim asks for host keys and a host name on behalf of an instance.
type Claim struct {
	Instance ec2ref.Instance
	// Fingerprints are the SHA-256 fingerprints of the host keys, at least one.
	Fingerprints []string
	Hostname     string
	// Names are the other principals of the certificates, such as addresses. An instance
	// holds them the same way as host names, in the same namespace.
	Names []string
	// Image is the id of the instance's image, ImageOwner the account that owns it, and
	// ImageTags its tags, nil if unknown. The ledger records them together, and only if
	// the owner is known; otherwise it keeps the recorded values.
	Image      string
	ImageOwner ec2ref.Account
	ImageTags  map[string]string
	// Signer is the audience of the claiming signer. If it is empty, the ledger does
	// not check that another signer enrolled the instance.
	Signer string
	// IssuedAt is when the instance made the request, by its own clock. A request from before
	// the latest leave cannot bring the instance back. Zero if unknown.
	IssuedAt time.Time
	// ValidUntil is not before the expiry of any certificate issued on this claim.
	ValidUntil time.Time
	// Lease is when the lease of the node written on this claim ends. Zero means
	// ValidUntil.
	Lease time.Time
	// Rule is the rule of the policy that admitted the instance, and Program the version that
	// the machine says its program has. Both are for reports.
	Rule    string
	Program string
}

// Record is the ledger's record of an instance. The zero value stands for an unknown
// instance.
type Record struct {
	// Version counts the writes of the record. A caller that writes a node reads the
	// version again afterwards: if it changed, the node may be out of date.
	Version uint64
	// Generation counts the sets of host keys; a permitted re-key starts a new one.
	Generation uint64
	// Fingerprints are the host keys of this generation, sorted.
	Fingerprints []string
	// ConfirmedHostname is the host name of the last confirmed claim. It is empty until
	// the first enrollment succeeds. A re-key keeps it.
	ConfirmedHostname string
	// Image is the id of the image that ImageOwner and ImageTags belong to. Old records
	// lack it.
	Image string
	// ImageOwner is the account that owns the image, empty if it was never known.
	ImageOwner ec2ref.Account
	// ImageTags are the image's tags, nil if they were never known.
	ImageTags map[string]string
	// Signer is the audience of the signer that claimed last. Old records lack it.
	Signer string
	// ValidUntil is when the claim of ConfirmedHostname expires, and its certificates
	// with it.
	ValidUntil time.Time
	// Lease is when the node's lease expires, according to the last confirmed claim. Old
	// records lack it.
	Lease time.Time
	// Renewed is when the last claim was confirmed, in whole seconds, Rule the rule of the
	// policy that admitted it, and Program the version of the machine's program. They are for
	// display only. Old records lack them.
	Renewed time.Time
	Rule    string
	Program string
	// TagsVersion counts the notes that the instance's tags may have changed.
	TagsVersion uint64
	// Retired says that the instance is gone for good. It can never enroll again.
	Retired bool
	// Left says that the instance left: it has no node until it enrolls again.
	Left bool
	// LeftAt is when the instance made its latest request to leave, by its own clock. Zero if it
	// never did.
	LeftAt time.Time
	// Expires is when the ledger may forget the record. Zero means never.
	Expires time.Time
	// PermittedKey is the key of an unused permit to re-key, or empty. The permit may
	// have expired.
	PermittedKey string
	// RetiredBy is the operator who retired the record, empty if an event did.
	RetiredBy string
	// Health is for display only. Old records lack it.
	Health Health
}

// IsOut reports whether the instance must have no node.
func (r Record) IsOut() bool { return r.Retired || r.Left }

// Leave asks to end an instance's enrollment, but not the instance.
type Leave struct {
	Instance ec2ref.Instance
	// Fingerprints are the SHA-256 fingerprints of the host keys that signed the request.
	// At least one must be recorded.
	Fingerprints []string
	// Signer is the audience of the signer that the instance leaves.
	Signer string
	// IssuedAt is when the instance made the request, by its own clock. A request from before
	// the latest request to enroll cannot end that enrollment.
	IssuedAt time.Time
}

// Expired is one step of a walk through the records that are not retired although all
// their certificates have expired.
type Expired struct {
	// Records are the records of the step, at most MaxExpired. A step may have none
	// although more follow.
	Records map[ec2ref.Instance]Record
	// Next is where the next step begins. It is empty after the last step.
	Next string
}

// MaxExpired bounds the records of one step.
const MaxExpired = 100

// ImageOf returns the owner and tags of an instance's image: those that EC2 shows now, or
// else the recorded ones. The recorded values count only for the recorded image: EC2 can
// replace the root volume of a running instance with one from any image
// (CreateReplaceRootVolumeTask), and an image can be deregistered or made private at any
// time. A record without an image id counts for any image.
func (r Record) ImageOf(id string, owner ec2ref.Account, tags map[string]string) (knownOwner ec2ref.Account, knownTags map[string]string) {
	remembers := r.ImageOwner != "" && (r.Image == id || r.Image == "")
	switch {
	case owner == "" && remembers:
		return r.ImageOwner, maps.Clone(r.ImageTags)
	case tags == nil && remembers && owner == r.ImageOwner:
		return owner, maps.Clone(r.ImageTags) // EC2 reports owners of images that it no longer shows
	}
	return owner, tags
}

// Permit allows an instance to bring other host keys, once.
type Permit struct {
	// Fingerprint is one of the new keys.
	Fingerprint string
	// ValidUntil is when an unused permit expires, in whole seconds.
	ValidUntil time.Time
	// By is the operator who gave it, for the log. It must not be empty.
	By string
}

// NameInUseError lists which of a claim's names other instances hold. It matches
// ErrNameInUse.
type NameInUseError struct {
	// Held lists the names in the claim's order.
	Held []HeldName
}

// HeldName is a name that an instance holds.
type HeldName struct {
	Name   string
	Holder ec2ref.Instance
	// ValidUntil is when the last certificate with the name expires. It may be in the
	// past: a stopped machine keeps its name.
	ValidUntil time.Time
}

func (e *NameInUseError) Error() string {
	holders := make([]string, len(e.Held))
	for n, h := range e.Held {
		holders[n] = string(h.Holder.ID)
	}
	return fmt.Sprintf("%v: %q held by %q", ErrNameInUse, e.Names(), holders)
}

// Names returns the names as written in the claim.
func (e *NameInUseError) Names() []string {
	names := make([]string, len(e.Held))
	for n, h := range e.Held {
		names[n] = h.Name
	}
	return names
}

// Is makes the error an ErrNameInUse.
func (e *NameInUseError) Is(target error) bool { return target == ErrNameInUse }

// Grant is an accepted claim.
type Grant struct {
	// Version is the record's version after the claim.
	Version uint64
	// Generation is the record's generation; Confirm compares it.
	Generation uint64
	// ConfirmedHostname is the host name of the last confirmed claim, or empty. The
	// signer has checked only a confirmed host name against Teleport's nodes.
	ConfirmedHostname string
	// PermittedBy is the operator whose permit the claim used, and empty if it used
	// none. Every claim of the new keys has it until one of them is confirmed.
	PermittedBy string

	// to is the instance. claimed is its record after the claim; a confirmation starts
	// from it.
	to      ec2ref.Instance
	claimed *record
}
