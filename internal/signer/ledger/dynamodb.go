package ledger

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
)

// DynamoDBClient is what the ledger calls. *dynamodb.Client is one; its role needs
// BatchGetItem, PutItem and ConditionCheckItem on the table, and Scan for Expired.
type DynamoDBClient interface {
	BatchGetItem(context.Context, *dynamodb.BatchGetItemInput, ...func(*dynamodb.Options)) (*dynamodb.BatchGetItemOutput, error)
	PutItem(context.Context, *dynamodb.PutItemInput, ...func(*dynamodb.Options)) (*dynamodb.PutItemOutput, error)
	Scan(context.Context, *dynamodb.ScanInput, ...func(*dynamodb.Options)) (*dynamodb.ScanOutput, error)
	TransactWriteItems(context.Context, *dynamodb.TransactWriteItemsInput, ...func(*dynamodb.Options)) (*dynamodb.TransactWriteItemsOutput, error)
}

// DynamoDB is a ledger that all signers of a cluster share. It may be used by
// several goroutines at once.
//
// Every operation reads (strongly consistent), decides, and makes at most one
// conditional write, which fails if what was decided on has changed; then it does
// all of it again. So a crash leaves an operation undone or done, and doing it again
// is right in either case.
type DynamoDB struct {
	client DynamoDBClient
	table  string
	now    func() time.Time
}

// NewDynamoDB returns the ledger in a table, whose form the comment in item.go
// tells. The clock says how long a tombstone is kept; what is decided depends on
// the times that callers pass.
func NewDynamoDB(client DynamoDBClient, table string, now func() time.Time) *DynamoDB {
	return &DynamoDB{client: client, table: table, now: now}
}

// Lookup returns what is known of an instance, and the zero Record if nothing is.
func (d *DynamoDB) Lookup(ctx context.Context, i ec2ref.Instance) (Record, error) {
	var found Record
	err := patiently(ctx, func(ctx context.Context) error {
		r, err := d.record(ctx, i)
		found = r.exported()
		return err
	})
	if err != nil {
		return Record{}, fmt.Errorf("look up %s: %w", i.ID, err)
	}
	return found, nil
}

// readBatch is how many items one BatchGetItem may ask for (Amazon DynamoDB API
// Reference).
const readBatch = 100

// LookupAll returns what is known of each of the instances, with one call for every
// hundred of them.
func (d *DynamoDB) LookupAll(ctx context.Context, instances []ec2ref.Instance) (map[ec2ref.Instance]Record, error) {
	all := make(map[ec2ref.Instance]Record, len(instances))
	for batch := range slices.Chunk(instances, readBatch) {
		err := patiently(ctx, func(ctx context.Context) error {
			records, err := d.records(ctx, batch)
			for i, r := range records {
				all[i] = r.exported()
			}
			return err
		})
		if err != nil {
			return nil, fmt.Errorf("look up %d instances: %w", len(batch), err)
		}
	}
	return all, nil
}

// scanPage is how many items of the table one step of the walk reads, of about a
// kilobyte at most: less than the megabyte at which DynamoDB ends a page itself.
const scanPage = 1000

// The walk asks for these attributes alone; its role may read no others by a scan.
const (
	expiredFilter = "begins_with(pk, :instance) AND generation > :zero AND attribute_not_exists(ended)" +
		" AND (attribute_not_exists(lease) OR lease < :now)"
	expiredProjection = attrPK
)

// Expired returns the records of instances that have not ended, although every
// certificate issued to them has, from a place that an earlier step named as Next. A
// step reads one page of the table and at most MaxExpired records, which it reads
// again, consistently: the page says only where to look.
func (d *DynamoDB) Expired(ctx context.Context, from string, now time.Time) (Expired, error) {
	var step Expired
	err := patiently(ctx, func(ctx context.Context) error {
		instances, next, err := d.scan(ctx, from, now)
		if err != nil {
			return err
		}
		records, err := d.records(ctx, instances)
		if err != nil {
			return err
		}
		step = Expired{Records: make(map[ec2ref.Instance]Record), Next: next}
		for i, r := range records {
			if r.hasExpired(now) {
				step.Records[i] = r.exported()
			}
		}
		return nil
	})
	if err != nil {
		return Expired{}, fmt.Errorf("walk the expired records: %w", err)
	}
	return step, nil
}

// scan reads one page of the table, and returns whose records may have expired.
func (d *DynamoDB) scan(ctx context.Context, from string, now time.Time) (found []ec2ref.Instance, next string, err error) {
	in := &dynamodb.ScanInput{
		TableName:            &d.table,
		Limit:                aws.Int32(scanPage),
		Select:               types.SelectSpecificAttributes,
		FilterExpression:     aws.String(expiredFilter),
		ProjectionExpression: aws.String(expiredProjection),
		ExpressionAttributeValues: item{
			":instance": text(instancePrefix), ":zero": number[uint64](0), ":now": number(now.Unix()),
		},
	}
	if from != "" {
		in.ExclusiveStartKey = item{attrPK: text(from)}
	}
	out, err := d.client.Scan(ctx, in)
	if err != nil {
		return nil, "", err
	}
	last := parser{item: out.LastEvaluatedKey}
	next = last.text(attrPK)
	for _, it := range out.Items {
		p := parser{item: it}
		pk := p.text(attrPK)
		if len(found) == MaxExpired {
			return found, instancePK(found[len(found)-1]), last.err // the next step goes on after the last one
		}
		i, err := ec2ref.ParseInstance(strings.TrimPrefix(pk, instancePrefix))
		if err := errors.Join(p.err, err); err != nil {
			return nil, "", fmt.Errorf("read the ledger's item %s: %w", pk, err)
		}
		found = append(found, i)
	}
	return found, next, last.err
}

// Claim records that the instance holds the keys and the names, if the rules of
// the package allow it, and changes nothing otherwise. Claiming again what one
// holds already is fine, at any time. It fails with ErrKeyConflict, ErrKeyInUse,
// a *NameInUseError, ErrTooManyNames or ErrEnded; any other error is a failure of
// DynamoDB or of the way there.
func (d *DynamoDB) Claim(ctx context.Context, c Claim, now time.Time) (Grant, error) {
	if err := c.check(); err != nil {
		return Grant{}, fmt.Errorf("claim for %s: %w", c.Instance.ID, err)
	}
	var granted Grant
	err := patiently(ctx, func(ctx context.Context) error {
		v, err := d.view(ctx, c)
		if err != nil {
			return err
		}
		change, grant, err := v.claim(c, now)
		if err != nil {
			return err
		}
		granted = grant
		return d.apply(ctx, c.Instance, v.record, change)
	})
	if err != nil {
		return Grant{}, fmt.Errorf("claim for %s: %w", c.Instance.ID, err)
	}
	return granted, nil
}

// Complete says that what was claimed has been issued, and returns the record as it
// is then. It fails with ErrEnded if the instance was off-boarded meanwhile, and with
// ErrUnclaimed if the claim no longer stands: it ran out, or the instance got other keys,
// names or another signer meanwhile. Then nothing may be handed out. If the
// record's version is more than one above the grant's, others have written meanwhile,
// and what was issued may be out of date.
//
// It begins with the record that the grant left, and reads only if that has changed:
// a write that is conditional on it says so for free.
func (d *DynamoDB) Complete(ctx context.Context, c Claim, g Grant, now time.Time) (Record, error) {
	claimed := g.claimed
	read := func(ctx context.Context) (record, error) {
		if r := claimed; r != nil && g.to == c.Instance {
			claimed = nil
			return *r, nil
		}
		return d.record(ctx, c.Instance)
	}
	r, err := d.amendFrom(ctx, "confirm claim of", c.Instance, read, func(r record) (record, error) { return r.confirm(c, g, now) })
	return r.exported(), err
}

// Confirm is Complete for callers that do not look at the record.
func (d *DynamoDB) Confirm(ctx context.Context, c Claim, g Grant, now time.Time) error {
	_, err := d.Complete(ctx, c, g, now)
	return err
}

// Permit allows the instance to come with other host keys, once. It replaces a
// permit that is not used yet. It fails with ErrUnclaimed for an instance that is
// not known, and with ErrEnded.
func (d *DynamoDB) Permit(ctx context.Context, i ec2ref.Instance, p Permit) error {
	_, err := d.amend(ctx, "permit re-key of", i, func(r record) (record, error) { return r.withPermit(p) })
	return err
}

// Announce notes that the instance's tags may have changed or that its node is about to
// be written, and returns the record after the note, in one step: an enrollment that
// claimed before finds the note when it confirms, and one that claims later changes the
// version. The record of an instance that ended is returned as it is. One that never
// enrolled has no generation; it keeps the note for an hour.
func (d *DynamoDB) Announce(ctx context.Context, i ec2ref.Instance) (Record, error) {
	var found record
	r, err := d.amend(ctx, "announce a write about", i, func(r record) (record, error) {
		found = r
		return r.withNote(d.now())
	})
	if errors.Is(err, errUnchanged) {
		return found.exported(), nil
	}
	return r.exported(), err
}

// SeeTags is Announce for callers that do not look at the record. The event's version
// decides nothing: whoever can write to the queue chooses it. It fails with ErrEnded,
// and with ErrSeen after the note for an instance that never enrolled.
func (d *DynamoDB) SeeTags(ctx context.Context, i ec2ref.Instance, _ uint64) error {
	r, err := d.Announce(ctx, i)
	return seen(i, r, err)
}

func (d *DynamoDB) amend(ctx context.Context, doing string, i ec2ref.Instance, decide func(record) (record, error)) (record, error) {
	read := func(ctx context.Context) (record, error) { return d.record(ctx, i) }
	return d.amendFrom(ctx, doing, i, read, decide)
}

// amendFrom writes what is decided on what is read, and returns it. It writes even
// where nothing changes: the version says that somebody was there.
func (d *DynamoDB) amendFrom(ctx context.Context, doing string, i ec2ref.Instance,
	read func(context.Context) (record, error), decide func(record) (record, error),
) (record, error) {
	var written record
	err := patiently(ctx, func(ctx context.Context) error {
		r, err := read(ctx)
		if err != nil {
			return err
		}
		if written, err = decide(r); err != nil {
			return err
		}
		w := write{table: d.table}
		w.putRecord(i, written, r)
		written.version = r.version + 1
		return w.commit(ctx, d.client)
	})
	if err != nil {
		return record{}, fmt.Errorf("%s %s: %w", doing, i.ID, err)
	}
	return written, nil
}

// End records that the instance is gone for good. Nobody needs to have claimed
// anything for it: an event may come before the enrollment that it must stop.
func (d *DynamoDB) End(ctx context.Context, i ec2ref.Instance) error { return d.EndBy(ctx, i, "") }

// EndBy is End on the word of an operator, whom the record then names.
func (d *DynamoDB) EndBy(ctx context.Context, i ec2ref.Instance, by string) error {
	if err := patiently(ctx, func(ctx context.Context) error { return d.end(ctx, i, by) }); err != nil {
		return fmt.Errorf("end %s: %w", i.ID, err)
	}
	return nil
}

// Release frees a name that an instance holds, although the instance has not ended,
// and returns who held it. It fails with ErrNotHeld if nobody does, and with
// ErrCertified while a certificate may name it. By is who releases it, for the log.
func (d *DynamoDB) Release(ctx context.Context, name, by string, now time.Time) (ec2ref.Instance, error) {
	var holder ec2ref.Instance
	err := patiently(ctx, func(ctx context.Context) (err error) {
		holder, err = d.release(ctx, name, by, now)
		return err
	})
	if err != nil {
		return ec2ref.Instance{}, fmt.Errorf("release %s: %w", name, err)
	}
	return holder, nil
}

func (d *DynamoDB) release(ctx context.Context, name, by string, now time.Time) (ec2ref.Instance, error) {
	items, err := d.read(ctx, []string{namePK(name)})
	if err != nil {
		return ec2ref.Instance{}, err
	}
	holders, err := parseHolders(items, namePK, []string{name})
	if err != nil {
		return ec2ref.Instance{}, err
	}
	holder, held := holders[name]
	if !held {
		return ec2ref.Instance{}, ErrNotHeld
	}
	r, err := d.record(ctx, holder)
	if err != nil {
		return ec2ref.Instance{}, err
	}
	next, err := r.release(name, holder, now)
	if err != nil {
		return ec2ref.Instance{}, err
	}
	w := write{table: d.table}
	w.putRecord(holder, next, r)
	w.releaseHolder(name, holder, by, d.now().Add(retention))
	return holder, w.commit(ctx, d.client)
}

// EndExpired is End for an instance whose certificates have all ended, and changes
// nothing if they have not. It reports whether the record ended.
func (d *DynamoDB) EndExpired(ctx context.Context, i ec2ref.Instance, now time.Time) (bool, error) {
	err := patiently(ctx, func(ctx context.Context) error {
		r, err := d.record(ctx, i)
		if err != nil {
			return err
		}
		next, err := r.endExpired(now, d.now())
		if err != nil {
			return err
		}
		return d.putEnded(ctx, i, r, next)
	})
	switch {
	case errors.Is(err, errUnchanged):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("end the expired record of %s: %w", i.ID, err)
	}
	return true, nil
}

func (d *DynamoDB) end(ctx context.Context, i ec2ref.Instance, by string) error {
	r, err := d.record(ctx, i)
	if err != nil || r.ended {
		return err
	}
	return d.putEnded(ctx, i, r, r.end(by, d.now()))
}

// putEnded writes the record of an instance that ends, and when its names may go.
func (d *DynamoDB) putEnded(ctx context.Context, i ec2ref.Instance, r, next record) error {
	names := slices.Sorted(maps.Keys(r.names))
	items, err := d.read(ctx, pks(namePK, names))
	if err != nil {
		return err
	}
	holders, err := parseHolders(items, namePK, names)
	if err != nil {
		return err
	}
	w := write{table: d.table, expires: next.expires}
	w.putRecord(i, next, r)
	for _, name := range names {
		if holders[name] == i { // unless somebody mended the table by hand
			w.putHolder(namePK(name), i, i)
		}
	}
	return w.commit(ctx, d.client)
}

// record reads one instance's record.
func (d *DynamoDB) record(ctx context.Context, i ec2ref.Instance) (record, error) {
	records, err := d.records(ctx, []ec2ref.Instance{i})
	return records[i], err
}

// records reads the records of instances; one that is not there is zero.
func (d *DynamoDB) records(ctx context.Context, instances []ec2ref.Instance) (map[ec2ref.Instance]record, error) {
	items, err := d.read(ctx, pks(instancePK, instances))
	if err != nil {
		return nil, err
	}
	records := make(map[ec2ref.Instance]record, len(instances))
	for _, i := range instances {
		if records[i], err = parseRecord(items[instancePK(i)]); err != nil {
			return nil, err
		}
	}
	return records, nil
}

// view reads what the claim is decided on. That takes one call, and a second one if
// others have held some of the names.
func (d *DynamoDB) view(ctx context.Context, c Claim) (view, error) {
	keys, names := union(nil, c.Fingerprints), c.allNames()
	items, err := d.read(ctx, slices.Concat([]string{instancePK(c.Instance)}, pks(keyPK, keys), pks(namePK, names)))
	if err != nil {
		return view{}, err
	}
	v := view{names: make(map[string]tenure)}
	if v.record, err = parseRecord(items[instancePK(c.Instance)]); err != nil {
		return view{}, err
	}
	if v.keys, err = parseHolders(items, keyPK, keys); err != nil {
		return view{}, err
	}
	holders, err := parseHolders(items, namePK, names)
	if err != nil {
		return view{}, err
	}
	records, err := d.records(ctx, others(holders, c.Instance))
	if err != nil {
		return view{}, err
	}
	records[c.Instance] = v.record
	for name, holder := range holders {
		v.names[name] = newTenure(name, holder, records[holder])
	}
	return v, nil
}

// parseHolders reads who holds what; what nobody holds is not in the map.
func parseHolders(items map[string]item, pk func(string) string, held []string) (map[string]ec2ref.Instance, error) {
	holders := make(map[string]ec2ref.Instance)
	for _, s := range held {
		it, there := items[pk(s)]
		if !there {
			continue
		}
		holder, err := parseHolder(it)
		if err != nil {
			return nil, err
		}
		holders[s] = holder
	}
	return holders, nil
}

// others returns the instances in the map, each once, without the one and without
// the zero one.
func others(in map[string]ec2ref.Instance, one ec2ref.Instance) []ec2ref.Instance {
	set := make(map[ec2ref.Instance]bool)
	for _, i := range in {
		set[i] = true
	}
	delete(set, one)
	delete(set, ec2ref.Instance{})
	return slices.Collect(maps.Keys(set))
}

func pks[T any](pk func(T) string, of []T) []string {
	all := make([]string, len(of))
	for n := range of {
		all[n] = pk(of[n])
	}
	return all
}

// read returns the items that are there, by their key.
func (d *DynamoDB) read(ctx context.Context, pks []string) (map[string]item, error) {
	items := make(map[string]item, len(pks))
	if len(pks) == 0 {
		return items, nil
	}
	keys := make([]item, len(pks))
	for n, pk := range pks {
		keys[n] = item{attrPK: text(pk)}
	}
	out, err := d.client.BatchGetItem(ctx, &dynamodb.BatchGetItemInput{
		RequestItems: map[string]types.KeysAndAttributes{d.table: {Keys: keys, ConsistentRead: aws.Bool(true)}},
	})
	if err != nil {
		return nil, err
	}
	if len(out.UnprocessedKeys) > 0 {
		return nil, errBusy
	}
	for _, found := range out.Responses { // of the one table, by its name or its ARN
		for _, it := range found {
			p := parser{item: it}
			items[p.text(attrPK)] = it
		}
	}
	return items, nil
}

// apply writes what a claim changes, if it changes anything: a renewal within the
// same second does not.
func (d *DynamoDB) apply(ctx context.Context, i ec2ref.Instance, old record, c change) error {
	if !c.changes(old) {
		return nil
	}
	w := write{table: d.table}
	w.putRecord(i, c.record, old)
	for _, fingerprint := range c.keys {
		w.putHolder(keyPK(fingerprint), i, i)
	}
	for _, name := range slices.Sorted(maps.Keys(c.names)) {
		former := c.names[name].holder
		if former == (ec2ref.Instance{}) {
			former = i
		}
		w.putHolder(namePK(name), i, former)
	}
	for _, former := range c.formerHolders(i) {
		w.checkGivenUp(former)
	}
	if err := d.expireDropped(ctx, &w, i, c.dropped); err != nil {
		return err
	}
	return w.commit(ctx, d.client)
}

// expireDropped adds to a claim's transaction that the items of dropped names may be
// deleted. An item that does not fit stays, and the name is free all the same.
func (d *DynamoDB) expireDropped(ctx context.Context, w *write, i ec2ref.Instance, dropped []string) error {
	dropped = dropped[:min(len(dropped), maxActions-len(w.actions))]
	items, err := d.read(ctx, pks(namePK, dropped))
	if err != nil {
		return err
	}
	holders, err := parseHolders(items, namePK, dropped)
	if err != nil {
		return err
	}
	for _, name := range dropped {
		if holders[name] == i { // unless somebody edited the table by hand
			w.expireHolder(name, i, d.now().Add(retention))
		}
	}
	return nil
}
