package ledger

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
)

// This file decides, and no other: what was read goes in, and what is to be
// written or the refusal comes out. Each ledger only reads and writes.

// record is what is known of one instance. A record is never changed in place.
type record struct {
	// version counts the writes. It is 0 of an instance that is not known.
	version    uint64
	generation uint64
	// keys are the fingerprints of this life, sorted.
	keys []string
	// names are the names that it holds, former ones too, each with the time when the
	// last certificate that names it has ended.
	names             map[string]time.Time
	confirmedHostname string
	// image is the id of the image that imageOwner and imageTags are of.
	image, imageOwner string
	imageTags         map[string]string
	// signer is the audience of the signer that claims for the instance.
	signer string
	// lease is when the node's lease ends, of the last claim that was confirmed.
	lease time.Time
	// tagsVersion counts the notes that the instance's tags may have changed.
	tagsVersion uint64
	// permit is zero if there is none.
	permit Permit
	// rekeyedBy is who permitted the keys of this life. It stays until a claim is
	// confirmed: one who crashed in between claims again, and the audit line of that
	// attempt must say it too.
	rekeyedBy string
	ended     bool
	// endedBy is the operator who ended it, if one had to.
	endedBy string
	// expires is when the record may be forgotten; zero is never. Every write keeps
	// it, so that no late event makes a tombstone permanent.
	expires time.Time
}

func (r record) exported() Record {
	return Record{
		Version: r.version, Generation: r.generation, Fingerprints: slices.Clone(r.keys),
		ConfirmedHostname: r.confirmedHostname, Signer: r.signer, Ended: r.ended,
		Image: r.image, ImageOwner: r.imageOwner, ImageTags: maps.Clone(r.imageTags),
		End: r.names[r.confirmedHostname], Lease: r.lease, TagsVersion: r.tagsVersion,
		PermittedKey: r.permit.Fingerprint, EndedBy: r.endedBy, Expires: r.expires,
	}
}

// text says all of the record of an instance.
func (r record) text(i ec2ref.Instance) string {
	names := make([]string, 0, len(r.names))
	for name, end := range r.names {
		names = append(names, fmt.Sprintf("%s until %d", name, end.Unix()))
	}
	slices.Sort(names)
	return fmt.Sprintf("%s version %d.%d keys %q names %q confirmed %q lease %d signer %q tags %d "+
		"image %q %q %t%q permit %q %d %q re-keyed %q ended %t %q expires %d",
		instancePK(i), r.version, r.generation, r.keys, names, r.confirmedHostname, r.lease.Unix(), r.signer, r.tagsVersion,
		r.image, r.imageOwner, r.imageTags == nil, r.imageTags, r.permit.Fingerprint, r.permit.End.Unix(), r.permit.By, r.rekeyedBy,
		r.ended, r.endedBy, r.expires.Unix())
}

// isKnown reports whether the instance ever claimed anything or ended. A record that
// only notes a tag event says nothing of either.
func (r record) isKnown() bool { return r.generation > 0 }

// equal compares all but the version.
func (r record) equal(s record) bool {
	return r.generation == s.generation && slices.Equal(r.keys, s.keys) &&
		maps.EqualFunc(r.names, s.names, time.Time.Equal) &&
		r.confirmedHostname == s.confirmedHostname && r.signer == s.signer && r.lease.Equal(s.lease) &&
		r.image == s.image && r.imageOwner == s.imageOwner && sameTags(r.imageTags, s.imageTags) &&
		r.tagsVersion == s.tagsVersion &&
		r.permit.equal(s.permit) && r.rekeyedBy == s.rekeyedBy && r.ended == s.ended && r.endedBy == s.endedBy &&
		r.expires.Equal(s.expires)
}

func (p Permit) equal(q Permit) bool {
	return p.Fingerprint == q.Fingerprint && p.End.Equal(q.End) && p.By == q.By
}

// view is what a claim is decided on. Keys and names that nobody holds are not in
// the maps.
type view struct {
	record record // of the instance that claims
	keys   map[string]ec2ref.Instance
	names  map[string]tenure
}

// tenure is who holds a name, and how long yet.
type tenure struct {
	holder ec2ref.Instance
	// ended says that the holder is gone for good.
	ended bool
	// dropped says that the holder's record no longer lists the name.
	dropped bool
	// end is when the last certificate that names it has ended.
	end time.Time
	// version is that of the holder's record.
	version uint64
}

func newTenure(name string, holder ec2ref.Instance, r record) tenure {
	end, listed := r.names[name]
	// A holder without a record ended so long ago that its tombstone is gone.
	return tenure{holder: holder, ended: r.ended || !r.isKnown(), dropped: !listed, end: end, version: r.version}
}

// isFree compares times itself: a holder that is gone may still have
// certificates out that name it, and what has expired may still be stored.
func (t tenure) isFree(now time.Time) bool { return t.dropped || t.ended && now.After(t.end) }

// change is what a claim writes, all of it or nothing.
type change struct {
	record record
	// keys are fingerprints that the instance did not hold before.
	keys []string
	// names are names that it did not hold before, with who did: the zero tenure if
	// nobody did.
	names map[string]tenure
	// dropped are names that it held before, sorted.
	dropped []string
}

// formerHolders are those who gave up a name that the instance gets, each once.
func (c change) formerHolders(i ec2ref.Instance) []tenure {
	byHolder := make(map[ec2ref.Instance]tenure)
	for _, t := range c.names {
		byHolder[t.holder] = t
	}
	delete(byHolder, i)
	delete(byHolder, ec2ref.Instance{})
	return slices.Collect(maps.Values(byHolder))
}

// changes reports whether there is anything to write.
func (c change) changes(old record) bool {
	return len(c.keys) > 0 || len(c.names) > 0 || !c.record.equal(old)
}

// check refuses a claim that no ledger need read anything for.
func (c Claim) check() error {
	switch {
	case len(c.Fingerprints) == 0:
		return errors.New("the claim has no host keys")
	case len(c.Fingerprints) > MaxKeys:
		return tooManyKeys(len(c.Fingerprints))
	case len(c.allNames()) > MaxNames+1:
		return tooManyNames(len(c.allNames()))
	}
	return nil
}

// allNames are host name and further names, each once.
func (c Claim) allNames() []string { return union([]string{c.Hostname}, c.Names) }

// claim applies the rules of the package.
func (v view) claim(c Claim, now time.Time) (change, Grant, error) {
	if v.record.ended {
		return change{}, Grant{}, ErrEnded
	}
	if err := v.record.checkSigner(c.Signer, now); err != nil {
		return change{}, Grant{}, err
	}
	for _, fingerprint := range c.Fingerprints {
		if holder, held := v.keys[fingerprint]; held && holder != c.Instance {
			return change{}, Grant{}, fmt.Errorf("%w: %s is held by %s", ErrKeyInUse, fingerprint, holder.ID)
		}
	}
	next, err := v.record.withKeys(c.Fingerprints, now)
	if err != nil {
		return change{}, Grant{}, err
	}
	names, err := v.freeNames(c, now)
	if err != nil {
		return change{}, Grant{}, err
	}
	next = next.withoutFormer(c.allNames(), now)
	if next, err = next.withNames(c, c.End); err != nil {
		return change{}, Grant{}, err
	}
	next = next.withImage(c)
	if c.Signer != "" {
		next.signer = c.Signer
	}
	keys := slices.DeleteFunc(union(nil, c.Fingerprints), func(fingerprint string) bool {
		_, held := v.keys[fingerprint]
		return held
	})
	made := change{record: next, keys: keys, names: names, dropped: v.record.namesNotIn(next)}
	if made.changes(v.record) {
		next.version++
	}
	return made, next.grant(c.Instance), nil
}

// withImage returns the record with what the claim knows of the image, if that is more
// than is recorded.
func (r record) withImage(c Claim) record {
	switch {
	case c.ImageOwner == "":
		return r
	case c.Image == "" && r.imageOwner != "": // a claim that names no image
		return r
	case c.ImageTags == nil && c.Image == r.image && c.ImageOwner == r.imageOwner:
		return r
	}
	r.image, r.imageOwner, r.imageTags = c.Image, c.ImageOwner, maps.Clone(c.ImageTags)
	return r
}

// sameTags tells no tags from tags that are not known.
func sameTags(a, b map[string]string) bool {
	return (a == nil) == (b == nil) && maps.Equal(a, b)
}

func (r record) grant(to ec2ref.Instance) Grant {
	return Grant{
		Version: r.version, Generation: r.generation, ConfirmedHostname: r.confirmedHostname, PermittedBy: r.rekeyedBy,
		to: to, claimed: &r,
	}
}

// checkSigner leaves an instance to the signer that enrolled it, until the last
// certificate has ended. Two signers would write one node in turns, each as its own.
func (r record) checkSigner(signer string, now time.Time) error {
	if r.signer == "" || signer == "" || r.signer == signer || now.After(r.lastEnd()) {
		return nil
	}
	return fmt.Errorf("%w: %q", ErrOtherSigner, r.signer)
}

// withKeys returns the record with the keys that are asked for, if it may have
// them.
func (r record) withKeys(asked []string, now time.Time) (record, error) {
	known := func(fingerprint string) bool { return slices.Contains(r.keys, fingerprint) }
	switch {
	case !r.isKnown():
		r.generation, r.keys, r.expires = 1, union(nil, asked), time.Time{}
	case r.permits(asked, now):
		// From here on the old keys count for nothing, or else who stole one could
		// still add his own. They stay held, as every key does.
		r.generation, r.keys = r.generation+1, union(nil, asked)
		r.rekeyedBy, r.permit = r.permit.By, Permit{}
	case slices.ContainsFunc(asked, known):
		r.keys = union(r.keys, asked)
	default:
		return record{}, ErrKeyConflict
	}
	if len(r.keys) > MaxKeys {
		return record{}, tooManyKeys(len(r.keys))
	}
	slices.Sort(r.keys)
	return r, nil
}

func (r record) permits(asked []string, now time.Time) bool {
	return r.permit.Fingerprint != "" && now.Before(r.permit.End) && slices.Contains(asked, r.permit.Fingerprint)
}

// freeNames returns those of the claim's names that the instance does not hold,
// with who did, or says which others hold.
func (v view) freeNames(c Claim, now time.Time) (map[string]tenure, error) {
	free := make(map[string]tenure)
	var inUse NameInUseError
	for _, name := range c.allNames() {
		t, held := v.names[name]
		switch {
		case held && t.holder == c.Instance && !t.dropped:
		case !held || t.isFree(now):
			free[name] = t
		default:
			inUse.Held = append(inUse.Held, HeldName{Name: name, Holder: t.holder, End: t.end})
		}
	}
	if len(inUse.Held) > 0 {
		return nil, &inUse
	}
	return free, nil
}

// withoutFormer returns the record without the names that no certificate has any
// more, but for those that are wanted now and for the present host name. Without this,
// a machine that is renamed or readdressed often enough would be refused for good.
func (r record) withoutFormer(wanted []string, now time.Time) record {
	kept := maps.Clone(r.names)
	maps.DeleteFunc(kept, func(name string, end time.Time) bool {
		return now.After(end) && name != r.confirmedHostname && !slices.Contains(wanted, name)
	})
	r.names = kept
	return r
}

// namesNotIn returns the names that the next record no longer lists, sorted.
func (r record) namesNotIn(next record) []string {
	var dropped []string
	for name := range r.names {
		if _, kept := next.names[name]; !kept {
			dropped = append(dropped, name)
		}
	}
	slices.Sort(dropped)
	return dropped
}

// withNames returns the record with the claim's names, held until the end at least.
// What is recorded is never earlier: whole seconds are all that is stored.
func (r record) withNames(c Claim, end time.Time) (record, error) {
	names := c.allNames()
	held := make(map[string]time.Time, len(r.names)+len(names))
	maps.Copy(held, r.names)
	for _, name := range names {
		if rounded := roundUp(end); rounded.After(held[name]) {
			held[name] = rounded
		}
	}
	if n := counted(held, c.Instance); n > MaxNames {
		return record{}, tooManyNames(n)
	}
	r.names = held
	return r, nil
}

// counted is how many names count toward MaxNames: all but the instance's own id.
func counted(names map[string]time.Time, i ec2ref.Instance) int {
	if _, own := names[string(i.ID)]; own {
		return len(names) - 1
	}
	return len(names)
}

// confirm returns the record after what was claimed has been issued, if the claim still
// stands.
func (r record) confirm(c Claim, g Grant, now time.Time) (record, error) {
	if r.ended {
		return record{}, ErrEnded
	}
	if r.generation != g.Generation || !r.holds(c, now) {
		return record{}, ErrUnclaimed
	}
	r.confirmedHostname, r.rekeyedBy = c.Hostname, ""
	if r.lease = roundUp(c.Lease); c.Lease.IsZero() {
		r.lease = roundUp(c.End)
	}
	return r, nil
}

// holds reports whether a claim that was accepted still stands. A request may have been
// frozen since: meanwhile the claim may have run out, and another signer, or a new record
// of the instance, may have taken its place.
func (r record) holds(c Claim, now time.Time) bool {
	if !r.isKnown() || now.After(c.End) || c.Signer != "" && r.signer != c.Signer {
		return false
	}
	for _, fingerprint := range c.Fingerprints {
		if !slices.Contains(r.keys, fingerprint) {
			return false
		}
	}
	for _, name := range c.allNames() {
		if end, held := r.names[name]; !held || end.Before(roundUp(c.End)) {
			return false
		}
	}
	return true
}

// roundUp returns whole seconds: they are all that is stored.
func roundUp(t time.Time) time.Time { return t.Add(time.Second - 1).Truncate(time.Second) }

// errUnchanged says that there is nothing to write.
var errUnchanged = errors.New("nothing changes")

// end returns the record of the instance when it is gone. There may be none yet:
// an event may come before the enrollment that it must stop. By is the operator who
// says so, or empty. Now is zero for a ledger that forgets nothing.
func (r record) end(by string, now time.Time) record {
	if r.ended {
		return r
	}
	r.generation = max(r.generation, 1)
	r.ended, r.endedBy = true, by
	if last := r.lastEnd(); !now.IsZero() {
		if now.After(last) {
			last = now
		}
		r.expires = last.Add(retention)
	}
	return r
}

// hasExpired reports whether the instance claimed something, has not ended, and every
// certificate issued on its claims has.
func (r record) hasExpired(now time.Time) bool {
	return r.isKnown() && !r.ended && now.After(r.lastEnd())
}

// endExpired is end for a record that has expired. It fails with errUnchanged for any
// other: the instance may have renewed since EC2 was asked about it.
func (r record) endExpired(seen, now time.Time) (record, error) {
	if !r.hasExpired(seen) {
		return record{}, errUnchanged
	}
	return r.end("", now), nil
}

// releasedMark follows a released name in confirmedHostname. No host name has it, so a
// later claim of the name is checked against Teleport like any new one, and the
// instance still counts as enrolled.
const releasedMark = " (released)"

// release returns the record without the name, if no certificate names it any more.
func (r record) release(name string, i ec2ref.Instance, now time.Time) (record, error) {
	end, held := r.names[name]
	switch {
	case !held:
		return record{}, ErrNotHeld
	case !now.After(end):
		return record{}, fmt.Errorf("%w: %s holds it, and a certificate may name it until %s",
			ErrCertified, i.ID, end.UTC().Format(time.RFC3339))
	case r.ended:
		return record{}, ErrNotHeld // whoever claims it gets it
	}
	r.names = maps.Clone(r.names)
	delete(r.names, name)
	if r.confirmedHostname == name {
		r.confirmedHostname += releasedMark
	}
	return r, nil
}

// withPermit returns the record with the permit, in place of one that it has.
func (r record) withPermit(p Permit) (record, error) {
	switch {
	case r.ended:
		return record{}, ErrEnded
	case !r.isKnown():
		return record{}, ErrUnclaimed
	}
	p.End = p.End.Truncate(time.Second)
	r.permit = p
	return r, nil
}

// withNote returns the record with a note that somebody is about to write, or that the
// instance's tags may have changed. One that is not known gets a record for an hour: an
// enrollment that has read the old tags, and has claimed nothing yet, must find the note
// when it confirms. Now is zero for a ledger that forgets nothing. It fails with
// errUnchanged for an instance that ended: a late event must not touch a tombstone.
func (r record) withNote(now time.Time) (record, error) {
	if r.ended {
		return record{}, errUnchanged
	}
	r.tagsVersion++
	if !r.isKnown() && !now.IsZero() {
		r.expires = now.Add(noteRetention)
	}
	return r, nil
}

// seen is what SeeTags returns after the note was made.
func seen(i ec2ref.Instance, noted Record, err error) error {
	switch {
	case err != nil:
		return err
	case noted.Ended:
		err = ErrEnded
	case noted.Generation == 0:
		err = ErrSeen
	default:
		return nil
	}
	return fmt.Errorf("note the tags of %s: %w", i.ID, err)
}

// lastEnd is when the last certificate of the instance has ended.
func (r record) lastEnd() time.Time {
	var last time.Time
	for _, end := range r.names {
		if end.After(last) {
			last = end
		}
	}
	return last
}

func tooManyKeys(n int) error {
	return fmt.Errorf("%w: with these it would have %d, more than %d", ErrKeyConflict, n, MaxKeys)
}

func tooManyNames(n int) error {
	return fmt.Errorf("%w: with these it would hold %d, more than %d", ErrTooManyNames, n, MaxNames)
}

// union returns a new slice with each string of both once.
func union(a, b []string) []string {
	all := make([]string, 0, len(a)+len(b))
	for _, s := range slices.Concat(a, b) {
		if !slices.Contains(all, s) {
			all = append(all, s)
		}
	}
	return all
}
