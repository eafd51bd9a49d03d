package ledger

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
)

// The table. Its partition key is "pk", a string; it has no sort key and no index,
// and is billed on demand. Time to live is on for the attribute "expires", epoch
// seconds. It must not be a global table: two regions could each let an instance
// have the same name, and the last writer would win.
//
// An instance is one item:
//
//	pk         S     instance#<account>/<region>/<instance id>
//	version    N     counts the writes; every write requires the version that was read
//	generation N     counts the sets of host keys and the leaves; claims of an earlier one are void
//	keys       SS    fingerprints of the host keys of this generation
//	names      M     names that it holds, each with its last certificate's expiry (N)
//	confirmed  S     host name of the last confirmed claim
//	owner      S     account that owns the image
//	image      S     id of that image
//	image_tags M     tags of that image (S), if known
//	permit     M     fingerprint (S), end (N), by (S): a permitted re-key
//	signer     S     audience of the signer that claimed last
//	lease      N     when the node's lease expires, according to the last confirmed claim
//	renewed    N     when that claim was confirmed
//	rule       S     rule of the policy that admitted it
//	program    S     version that the machine says its program has
//	tags       N     counts the events about changes of the instance's tags
//	rekeyed_by S     operator who permitted the keys of this generation, until confirmed
//	left       BOOL  true if the instance left and has not enrolled again
//	left_at    N     when the instance made its latest request to leave
//	asked_at   N     when it made its latest request to enroll
//	ended      BOOL  true once the record is retired
//	ended_by   S     operator who retired it, if one did
//	health     S     what the machine last said about itself
//	health_at  N     when it said so
//	unreachable BOOL true while upkeep cannot connect to the machine
//	expires    N     only if it is retired, or never claimed anything
//
// Each key and each name has an item that only names its holder. The holder's item says
// how long it holds a name, so a renewal writes one item. A name is free if its holder's
// item does not list it: the holder dropped it, or an operator released it.

//	pk          S     key#<fingerprint>, or name#<name>
//	holder      S     <account>/<region>/<instance id>
//	released_by S     operator who released the name, until an instance claims it again
//	expires     N     only for a name whose holder is retired or no longer lists it
//
// The item of a retired instance is its tombstone. It stays for a week after the last
// certificate expires, and at least for a week, so that neither an old request nor an
// outdated answer from EC2 brings the instance back. DynamoDB deletes expired items some
// days late; no decision depends on that. A key's item never expires. The item of an
// instance that never claimed anything only notes an event about its tags; it has
// generation 0 and stays for an hour.
//
// The latest refused request of an instance that proved its identity is an item of its own,
// so that it neither changes the record's version nor needs a record:
//
//	pk         S     refused#<account>/<region>/<instance id>
//	refused_at N     when
//	code       S     the error code in the answer
//	reason     S     why, for operators
//	expires    N
//
// Package stored keeps its own items in the table, under other partition keys.
const (
	attrPK         = "pk"
	attrVersion    = "version"
	attrGeneration = "generation"
	attrKeys       = "keys"
	attrNames      = "names"
	attrConfirmed  = "confirmed"
	attrOwner      = "owner"
	attrImage      = "image"
	attrImageTags  = "image_tags"
	attrPermit     = "permit"
	attrSigner     = "signer"
	attrLease      = "lease"
	attrRenewed    = "renewed"
	attrRule       = "rule"
	attrProgram    = "program"
	attrTags       = "tags"
	attrRekeyedBy  = "rekeyed_by"
	attrLeft       = "left"
	attrLeftAt     = "left_at"
	attrAskedAt    = "asked_at"
	attrRetired    = "ended"
	attrRetiredBy  = "ended_by"
	attrReleasedBy = "released_by"
	attrExpires    = "expires"
	attrHolder     = "holder"

	attrHealth      = "health"
	attrHealthAt    = "health_at"
	attrUnreachable = "unreachable"

	attrRefusedAt     = "refused_at"
	attrRefusalCode   = "code"
	attrRefusalReason = "reason"

	attrPermitKey        = "fingerprint"
	attrPermitValidUntil = "end"
	attrPermitBy         = "by"
)

// retention is how long a tombstone outlives certificates.
const retention = 7 * 24 * time.Hour

// noteRetention is how long the ledger keeps a tag note of an instance that never
// enrolled: longer than any enrollment takes.
const noteRetention = time.Hour

// item is one item of the table.
type item = map[string]types.AttributeValue

// instancePrefix begins the key of an instance's item.
const instancePrefix = "instance#"

// refusedPrefix begins the key of the item that notes a refused request.
const refusedPrefix = "refused#"

func instancePK(i ec2ref.Instance) string { return instancePrefix + i.String() }
func refusedPK(i ec2ref.Instance) string  { return refusedPrefix + i.String() }
func keyPK(fingerprint string) string     { return "key#" + fingerprint }
func namePK(name string) string           { return "name#" + name }
func text(s string) types.AttributeValue  { return &types.AttributeValueMemberS{Value: s} }

func number[N int64 | uint64](n N) types.AttributeValue {
	return &types.AttributeValueMemberN{Value: fmt.Sprint(n)}
}

func formatRecord(i ec2ref.Instance, r record) item {
	it := item{
		attrPK:         text(instancePK(i)),
		attrVersion:    number(r.version),
		attrGeneration: number(r.generation),
	}
	if len(r.keys) > 0 { // DynamoDB has no empty sets
		it[attrKeys] = &types.AttributeValueMemberSS{Value: r.keys}
	}
	it[attrNames] = formatNames(r.names)
	for name, value := range map[string]string{
		attrConfirmed: r.confirmedHostname, attrOwner: r.imageOwner.String(), attrImage: r.image, attrSigner: r.signer,
		attrRekeyedBy: r.rekeyedBy, attrRetiredBy: r.retiredBy, attrRule: r.rule, attrProgram: r.program,
		attrHealth: r.health.Reported,
	} {
		if value != "" {
			it[name] = text(value)
		}
	}
	if r.imageTags != nil {
		tags := make(item, len(r.imageTags))
		for key, value := range r.imageTags {
			tags[key] = text(value)
		}
		it[attrImageTags] = &types.AttributeValueMemberM{Value: tags}
	}
	if p := r.permit; p.Fingerprint != "" {
		it[attrPermit] = &types.AttributeValueMemberM{Value: item{
			attrPermitKey: text(p.Fingerprint), attrPermitValidUntil: number(p.ValidUntil.Unix()), attrPermitBy: text(p.By),
		}}
	}
	if r.tagsVersion > 0 {
		it[attrTags] = number(r.tagsVersion)
	}
	for name, value := range map[string]time.Time{
		attrLease: r.lease, attrLeftAt: r.leftAt, attrAskedAt: r.askedAt, attrExpires: r.expires, attrRenewed: r.renewed, attrHealthAt: r.health.ReportedAt,
	} {
		if !value.IsZero() {
			it[name] = number(value.Unix())
		}
	}
	if r.left {
		it[attrLeft] = &types.AttributeValueMemberBOOL{Value: true}
	}
	if r.health.Unreachable {
		it[attrUnreachable] = &types.AttributeValueMemberBOOL{Value: true}
	}
	if r.retired {
		it[attrRetired] = &types.AttributeValueMemberBOOL{Value: true}
	}
	return it
}

func formatNames(ends map[string]time.Time) types.AttributeValue {
	names := make(item, len(ends))
	for name, end := range ends {
		names[name] = number(end.Unix())
	}
	return &types.AttributeValueMemberM{Value: names}
}

// parseRecord reads an instance's item; nil means that there is none.
func parseRecord(it item) (record, error) {
	if it == nil {
		return record{}, nil
	}
	p := parser{item: it}
	r := record{
		version:           p.count(attrVersion),
		generation:        p.count(attrGeneration),
		keys:              p.set(attrKeys),
		names:             make(map[string]time.Time),
		confirmedHostname: p.text(attrConfirmed),
		image:             p.text(attrImage),
		imageOwner:        p.account(attrOwner),
		signer:            p.text(attrSigner),
		lease:             p.time(attrLease),
		renewed:           p.time(attrRenewed),
		rule:              p.text(attrRule),
		program:           p.text(attrProgram),
		tagsVersion:       p.count(attrTags),
		rekeyedBy:         p.text(attrRekeyedBy),
		left:              p.bool(attrLeft),
		leftAt:            p.time(attrLeftAt),
		askedAt:           p.time(attrAskedAt),
		retired:           p.bool(attrRetired),
		retiredBy:         p.text(attrRetiredBy),
		expires:           p.time(attrExpires),
		health:            Health{Reported: p.text(attrHealth), ReportedAt: p.time(attrHealthAt), Unreachable: p.bool(attrUnreachable)},
	}
	names := p.nested(attrNames)
	for name := range names.item {
		r.names[name] = names.time(name)
	}
	tags := p.nested(attrImageTags)
	if tags.item != nil {
		r.imageTags = make(map[string]string, len(tags.item))
		for key := range tags.item {
			r.imageTags[key] = tags.text(key)
		}
	}
	permit := p.nested(attrPermit)
	if permit.item != nil {
		r.permit = Permit{
			Fingerprint: permit.text(attrPermitKey), ValidUntil: permit.time(attrPermitValidUntil), By: permit.text(attrPermitBy),
		}
	}
	if err := errors.Join(p.err, names.err, tags.err, permit.err); err != nil {
		return record{}, fmt.Errorf("read the ledger's item %s: %w", p.text(attrPK), err)
	}
	if r.version == 0 { // it would count as missing
		return record{}, fmt.Errorf("the ledger's item %s has no version", p.text(attrPK))
	}
	return r, nil
}

// parseHolder reads the item of a key or a name.
func parseHolder(it item) (ec2ref.Instance, error) {
	p := parser{item: it}
	holder, err := ec2ref.ParseInstance(p.text(attrHolder))
	if err := errors.Join(p.err, err); err != nil {
		return ec2ref.Instance{}, fmt.Errorf("read the ledger's item %s: %w", p.text(attrPK), err)
	}
	return holder, nil
}

// parser reads attributes and keeps the first error. A missing attribute is zero. One of
// another type is an error: read as zero, it would give away what somebody holds.
type parser struct {
	item item
	err  error
}

func (p *parser) text(name string) string {
	if v := attribute[*types.AttributeValueMemberS](p, name); v != nil {
		return v.Value
	}
	return ""
}

// account reads an account number, which may be absent.
func (p *parser) account(name string) ec2ref.Account {
	value := p.text(name)
	if value == "" {
		return ""
	}
	account, err := ec2ref.ParseAccount(value)
	p.check(name, err)
	return account
}

func (p *parser) count(name string) uint64 {
	v := attribute[*types.AttributeValueMemberN](p, name)
	if v == nil {
		return 0
	}
	n, err := strconv.ParseUint(v.Value, 10, 64)
	p.check(name, err)
	return n
}

func (p *parser) time(name string) time.Time {
	v := attribute[*types.AttributeValueMemberN](p, name)
	if v == nil {
		return time.Time{}
	}
	seconds, err := strconv.ParseInt(v.Value, 10, 64)
	p.check(name, err)
	return time.Unix(seconds, 0).UTC()
}

func (p *parser) set(name string) []string {
	if v := attribute[*types.AttributeValueMemberSS](p, name); v != nil {
		return slices.Sorted(slices.Values(v.Value))
	}
	return nil
}

func (p *parser) bool(name string) bool {
	v := attribute[*types.AttributeValueMemberBOOL](p, name)
	return v != nil && v.Value
}

func (p *parser) nested(name string) *parser {
	if v := attribute[*types.AttributeValueMemberM](p, name); v != nil {
		return &parser{item: v.Value}
	}
	return new(parser)
}

func (p *parser) check(name string, err error) {
	if err != nil && p.err == nil {
		p.err = fmt.Errorf("attribute %s: %w", name, err)
	}
}

func attribute[V types.AttributeValue](p *parser, name string) V {
	value, there := p.item[name]
	v, ok := value.(V)
	if there && !ok {
		p.check(name, fmt.Errorf("it is a %T", value))
	}
	return v
}
