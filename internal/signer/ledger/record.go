package ledger

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
)

// This file makes all decisions, with pure functions: the records read go in, and the
// records to write, or a refusal, come out. The ledgers only read and write.

// record is the record of one instance. It is never changed in place.
type record struct {
	// version counts the writes. It is 0 for an unknown instance.
	version    uint64
	generation uint64
	// keys are the fingerprints of this generation, sorted.
	keys []string
	// names are the names that it holds, including former ones, each with the expiry of
	// the last certificate with that name.
	names             map[string]time.Time
	confirmedHostname string
	// image is the id of the image that imageOwner and imageTags belong to.
	image      string
	imageOwner ec2ref.Account
	imageTags  map[string]string
	// signer is the audience of the signer that claims for the instance.
	signer string
	// lease is when the node's lease expires, according to the last confirmed claim.
	lease time.Time
	// renewed is when the last claim was confirmed, rule the rule that admitted it, and program
	// the version of the machine's program. They are for reports only.
	renewed time.Time
	rule    string
	program string
	// tagsVersion counts the notes that the instance's tags may have changed.
	tagsVersion uint64
	// permit is zero if there is none.
	permit Permit
	// rekeyedBy is the operator who permitted the keys of this generation. It stays until
	// a claim is confirmed: after a crash the machine claims again, and the audit line of
	// that attempt must name the operator, too.
	rekeyedBy string
	retired   bool
	// left says that the instance left, and has not enrolled again.
	left bool
	// leftAt is when the instance made its latest request to leave, and askedAt its latest
	// request to enroll that was accepted.
	leftAt, askedAt time.Time
	// retiredBy is the operator who retired it, empty if an event did.
	retiredBy string
	// health is for display only.
	health Health
	// expires is when the ledger may forget the record; zero means never. Every write
	// keeps it, so a late event cannot make a tombstone permanent.
	expires time.Time
}

func (r record) exported() Record {
	return Record{
		Version: r.version, Generation: r.generation, Fingerprints: slices.Clone(r.keys),
		ConfirmedHostname: r.confirmedHostname, Signer: r.signer, Retired: r.retired, Left: r.left, LeftAt: r.leftAt,
		Image: r.image, ImageOwner: r.imageOwner, ImageTags: maps.Clone(r.imageTags),
		ValidUntil: r.names[r.confirmedHostname], Lease: r.lease, Renewed: r.renewed, Rule: r.rule, Program: r.program, TagsVersion: r.tagsVersion,
		PermittedKey: r.permit.Fingerprint, RetiredBy: r.retiredBy, Expires: r.expires, Health: r.health,
	}
}

// text returns the whole record of an instance as text.
func (r record) text(i ec2ref.Instance) string {
	names := make([]string, 0, len(r.names))
	for name, end := range r.names {
		names = append(names, fmt.Sprintf("%s until %d", name, end.Unix()))
	}
	slices.Sort(names)
	return fmt.Sprintf("%s version %d.%d keys %q names %q confirmed %q lease %d signer %q tags %d "+
		"image %q %q %t%q permit %q %d %q re-keyed %q ended %t %q expires %d renewed %d rule %q program %q health %q %d %t left %t %d asked %d",
		instancePK(i), r.version, r.generation, r.keys, names, r.confirmedHostname, r.lease.Unix(), r.signer, r.tagsVersion,
		r.image, r.imageOwner, r.imageTags == nil, r.imageTags, r.permit.Fingerprint, r.permit.ValidUntil.Unix(), r.permit.By, r.rekeyedBy,
		r.retired, r.retiredBy, r.expires.Unix(), r.renewed.Unix(), r.rule, r.program,
		r.health.Reported, r.health.ReportedAt.Unix(), r.health.Unreachable, r.left, r.leftAt.Unix(), r.askedAt.Unix())
}

// isKnown reports whether the instance ever claimed anything or was retired. A record
// that only notes a tag event does not count.
func (r record) isKnown() bool { return r.generation > 0 }

// equal compares everything except the version.
func (r record) equal(s record) bool {
	return r.generation == s.generation && slices.Equal(r.keys, s.keys) &&
		maps.EqualFunc(r.names, s.names, time.Time.Equal) &&
		r.confirmedHostname == s.confirmedHostname && r.signer == s.signer && r.lease.Equal(s.lease) &&
		r.image == s.image && r.imageOwner == s.imageOwner && sameTags(r.imageTags, s.imageTags) &&
		r.tagsVersion == s.tagsVersion &&
		r.permit.equal(s.permit) && r.rekeyedBy == s.rekeyedBy && r.retired == s.retired && r.retiredBy == s.retiredBy &&
		r.left == s.left && r.leftAt.Equal(s.leftAt) && r.askedAt.Equal(s.askedAt) && r.expires.Equal(s.expires) && r.renewed.Equal(s.renewed) && r.rule == s.rule && r.program == s.program && r.health.equal(s.health)
}

func (p Permit) equal(q Permit) bool {
	return p.Fingerprint == q.Fingerprint && p.ValidUntil.Equal(q.ValidUntil) && p.By == q.By
}

// view is the input of the decision on a claim. The maps lack keys and names that no
// instance holds.
type view struct {
	record record // of the claiming instance
	keys   map[string]ec2ref.Instance
	names  map[string]holding
}

// holding says which instance holds a name, and until when.
type holding struct {
	holder ec2ref.Instance
	// retired says that the holder is gone for good.
	retired bool
	// dropped says that the holder's record no longer lists the name.
	dropped bool
	// validUntil is when the last certificate with the name expires.
	validUntil time.Time
	// version is the version of the holder's record.
	version uint64
}

func newHolding(name string, holder ec2ref.Instance, r record) holding {
	end, listed := r.names[name]
	// A holder without a record was retired so long ago that its tombstone is gone.
	return holding{holder: holder, retired: r.retired || !r.isKnown(), dropped: !listed, validUntil: end, version: r.version}
}

// isFree compares times itself: a retired holder may still have valid certificates
// with the name, and DynamoDB may still store an expired item.
func (t holding) isFree(now time.Time) bool { return t.dropped || t.retired && now.After(t.validUntil) }

// change is everything that a claim writes, in one transaction.
type change struct {
	record record
	// keys are fingerprints that the instance did not hold before.
	keys []string
	// names are names that it did not hold before, with the former holding: zero if no
	// instance held the name.
	names map[string]holding
	// dropped are names that it held before, sorted.
	dropped []string
}

// formerHolders returns the instances that gave up a name to this one, each once.
func (c change) formerHolders(i ec2ref.Instance) []holding {
	byHolder := make(map[ec2ref.Instance]holding)
	for _, t := range c.names {
		byHolder[t.holder] = t
	}
	delete(byHolder, i)
	delete(byHolder, ec2ref.Instance{})
	return slices.Collect(maps.Values(byHolder))
}

// changes reports whether there is anything to write. A claim by an instance that left is
// always written, so that the process that deletes its node sees the new enrollment.
func (c change) changes(old record) bool {
	return old.left || len(c.keys) > 0 || len(c.names) > 0 || !c.record.equal(old)
}

// check refuses an invalid claim before the ledger reads anything.
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

// allNames returns the host name and the other names, each once.
func (c Claim) allNames() []string { return union([]string{c.Hostname}, c.Names) }

// claim applies the rules of the package.
func (v view) claim(c Claim, now time.Time) (change, Grant, error) {
	if v.record.retired {
		return change{}, Grant{}, ErrRetired
	}
	if err := v.record.checkSigner(c.Signer, now); err != nil {
		return change{}, Grant{}, err
	}
	// A request that was late or was captured must not bring back a machine that left since.
	if v.record.left && !c.IssuedAt.IsZero() && c.IssuedAt.Before(v.record.leftAt) {
		return change{}, Grant{}, ErrLeft
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
	if next, err = next.withNames(c, c.ValidUntil); err != nil {
		return change{}, Grant{}, err
	}
	next = next.withImage(c)
	if c.Signer != "" {
		next.signer = c.Signer
	}
	if c.IssuedAt.After(next.askedAt) {
		next.askedAt = c.IssuedAt.UTC().Truncate(time.Second)
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

// withImage returns the record with the claim's image, if the claim knows more than the
// record.
func (r record) withImage(c Claim) record {
	switch {
	case c.ImageOwner == "":
		return r
	case c.Image == "" && r.imageOwner != "": // a claim without an image id
		return r
	case c.ImageTags == nil && c.Image == r.image && c.ImageOwner == r.imageOwner:
		return r
	}
	r.image, r.imageOwner, r.imageTags = c.Image, c.ImageOwner, maps.Clone(c.ImageTags)
	return r
}

// sameTags distinguishes between no tags and unknown tags.
func sameTags(a, b map[string]string) bool {
	return (a == nil) == (b == nil) && maps.Equal(a, b)
}

func (r record) grant(to ec2ref.Instance) Grant {
	return Grant{
		Version: r.version, Generation: r.generation, ConfirmedHostname: r.confirmedHostname, PermittedBy: r.rekeyedBy,
		to: to, claimed: &r,
	}
}

// checkSigner leaves an instance to the signer that enrolled it until the last
// certificate has expired. Otherwise two signers would overwrite each other's node.
func (r record) checkSigner(signer string, now time.Time) error {
	if r.signer == "" || signer == "" || r.signer == signer || now.After(r.validUntil()) {
		return nil
	}
	return fmt.Errorf("%w: %q", ErrOtherSigner, r.signer)
}

// withKeys returns the record with the requested keys, if the rules allow them.
func (r record) withKeys(asked []string, now time.Time) (record, error) {
	known := func(fingerprint string) bool { return slices.Contains(r.keys, fingerprint) }
	switch {
	case !r.isKnown():
		r.generation, r.keys, r.expires = 1, union(nil, asked), time.Time{}
	case r.permits(asked, now):
		// From now on the old keys prove nothing. Otherwise a thief with an old key could
		// still add a new one. The instance still holds them, as it holds every key.
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
	return r.permit.Fingerprint != "" && now.Before(r.permit.ValidUntil) && slices.Contains(asked, r.permit.Fingerprint)
}

// freeNames returns the claim's names that the instance does not hold yet, with their
// former holding, or an error that lists the names held by other instances.
func (v view) freeNames(c Claim, now time.Time) (map[string]holding, error) {
	free := make(map[string]holding)
	var inUse NameInUseError
	for _, name := range c.allNames() {
		t, held := v.names[name]
		switch {
		case held && t.holder == c.Instance && !t.dropped:
		case !held || t.isFree(now):
			free[name] = t
		default:
			inUse.Held = append(inUse.Held, HeldName{Name: name, Holder: t.holder, ValidUntil: t.validUntil})
		}
	}
	if len(inUse.Held) > 0 {
		return nil, &inUse
	}
	return free, nil
}

// withoutFormer returns the record without the names whose certificates have all
// expired, except for the claimed names and the current host name. Without this, a
// machine whose name or address changes often would reach MaxNames and be refused forever.
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

// withNames returns the record with the claim's names, held at least until the given
// time. The ledger stores whole seconds, so it rounds up.
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

// counted returns how many names count toward MaxNames: all except the instance's id.
func counted(names map[string]time.Time, i ec2ref.Instance) int {
	if _, own := names[string(i.ID)]; own {
		return len(names) - 1
	}
	return len(names)
}

// confirm returns the record after certificates were issued on a claim, if the claim
// still holds.
func (r record) confirm(c Claim, g Grant, now time.Time) (record, error) {
	if r.retired {
		return record{}, ErrRetired
	}
	if r.generation != g.Generation || !r.holds(c, now) {
		return record{}, ErrUnclaimed
	}
	r.confirmedHostname, r.rekeyedBy, r.left = c.Hostname, "", false
	if r.lease = roundUp(c.Lease); c.Lease.IsZero() {
		r.lease = roundUp(c.ValidUntil)
	}
	r.renewed, r.rule, r.program = now.UTC().Truncate(time.Second), c.Rule, c.Program
	return r, nil
}

// holds reports whether an accepted claim still holds. Lambda may have frozen the request
// since: the claim may have expired, and another signer or a new record of the instance
// may have replaced it.
func (r record) holds(c Claim, now time.Time) bool {
	if !r.isKnown() || now.After(c.ValidUntil) || c.Signer != "" && r.signer != c.Signer {
		return false
	}
	for _, fingerprint := range c.Fingerprints {
		if !slices.Contains(r.keys, fingerprint) {
			return false
		}
	}
	for _, name := range c.allNames() {
		if end, held := r.names[name]; !held || end.Before(roundUp(c.ValidUntil)) {
			return false
		}
	}
	return true
}

// roundUp returns whole seconds, because the ledger stores nothing finer.
func roundUp(t time.Time) time.Time { return t.Add(time.Second - 1).Truncate(time.Second) }

// errUnchanged says that nothing needs to be written.
var errUnchanged = errors.New("nothing changes")

// retire returns the tombstone of an instance that is gone. There may be no record yet:
// an event may arrive before the enrollment that it must stop. By is the operator who
// retires it, or empty. Now is zero for a ledger that forgets nothing.
func (r record) retire(by string, now time.Time) record {
	if r.retired {
		return r
	}
	r.generation = max(r.generation, 1)
	r.retired, r.retiredBy = true, by
	if last := r.validUntil(); !now.IsZero() {
		if now.After(last) {
			last = now
		}
		r.expires = last.Add(retention)
	}
	return r
}

// leave returns the record after the instance left. It keeps keys and names. The new
// generation keeps a running enrollment from confirming its claim. The instance may leave
// again, in case the signer died before it deleted the node.
func (r record) leave(l Leave, now time.Time) (record, error) {
	switch {
	case r.retired:
		return record{}, ErrRetired
	case !r.isKnown():
		return record{}, ErrUnclaimed
	case !slices.ContainsFunc(l.Fingerprints, func(f string) bool { return slices.Contains(r.keys, f) }):
		return record{}, ErrKeyConflict
	}
	if err := r.checkSigner(l.Signer, now); err != nil {
		return record{}, err
	}
	if r.signer != "" && l.Signer != "" && r.signer != l.Signer {
		return record{}, ErrUnclaimed // with this signer
	}
	isRepeated := !r.left && !r.leftAt.IsZero() && !l.IssuedAt.After(r.leftAt)
	if isRepeated || l.IssuedAt.Before(r.askedAt) {
		return record{}, ErrOldLeave
	}
	r.generation++
	r.left = true
	r.health = Health{} // of a node that is gone
	if l.IssuedAt.After(r.leftAt) {
		r.leftAt = l.IssuedAt.Truncate(time.Second)
	}
	return r, nil
}

// hasExpired reports whether the instance is known and not retired, and all its
// certificates have expired.
func (r record) hasExpired(now time.Time) bool {
	return r.isKnown() && !r.retired && now.After(r.validUntil())
}

// retireExpired is retire for an expired record. It fails with errUnchanged for any
// other: the instance may have renewed since the signer asked EC2 about it.
func (r record) retireExpired(seen, now time.Time) (record, error) {
	if !r.hasExpired(seen) {
		return record{}, errUnchanged
	}
	return r.retire("", now), nil
}

// releasedMark follows a released name in confirmedHostname. No host name contains it, so
// the signer checks a later claim of the name against Teleport like a new one, and the
// instance still counts as enrolled.
const releasedMark = " (released)"

// release returns the record without the name, if all certificates with it have expired.
func (r record) release(name string, i ec2ref.Instance, now time.Time) (record, error) {
	end, held := r.names[name]
	switch {
	case !held:
		return record{}, ErrNotHeld
	case !now.After(end):
		return record{}, fmt.Errorf("%w: %s holds it until %s",
			ErrCertified, i.ID, end.UTC().Format(time.RFC3339))
	case r.retired:
		return record{}, ErrNotHeld // the name is free already
	}
	r.names = maps.Clone(r.names)
	delete(r.names, name)
	if r.confirmedHostname == name {
		r.confirmedHostname += releasedMark
	}
	return r, nil
}

// withPermit returns the record with the permit, which replaces an earlier one.
func (r record) withPermit(p Permit) (record, error) {
	switch {
	case r.retired:
		return record{}, ErrRetired
	case !r.isKnown():
		return record{}, ErrUnclaimed
	}
	p.ValidUntil = p.ValidUntil.Truncate(time.Second)
	r.permit = p
	return r, nil
}

// withNote returns the record with a note that a write of the node is coming or that the
// instance's tags may have changed. An unknown instance gets a record for an hour: an
// enrollment that has read the old tags, and has claimed nothing yet, must find the note
// when it confirms. Now is zero for a ledger that forgets nothing. It fails with
// errUnchanged for a retired record: a late event must not touch a tombstone.
func (r record) withNote(now time.Time) (record, error) {
	if r.retired {
		return record{}, errUnchanged
	}
	r.tagsVersion++
	if !r.isKnown() && !now.IsZero() {
		r.expires = now.Add(noteRetention)
	}
	return r, nil
}

// seen returns the error of SeeTags after the note.
func seen(i ec2ref.Instance, noted Record, err error) error {
	switch {
	case err != nil:
		return err
	case noted.Retired:
		err = ErrRetired
	case noted.Generation == 0:
		err = ErrSeen
	default:
		return nil
	}
	return fmt.Errorf("note the tags of %s: %w", i.ID, err)
}

// validUntil returns when the last certificate of the instance expires.
func (r record) validUntil() time.Time {
	var last time.Time
	for _, end := range r.names {
		if end.After(last) {
			last = end
		}
	}
	return last
}

func tooManyKeys(n int) error {
	return fmt.Errorf("%w: it would have %d keys, more than %d", ErrKeyConflict, n, MaxKeys)
}

func tooManyNames(n int) error {
	return fmt.Errorf("%w: it would hold %d names, more than %d", ErrTooManyNames, n, MaxNames)
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
