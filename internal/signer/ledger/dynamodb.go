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

// DynamoDBClient lists the calls that the ledger makes. *dynamodb.Client implements it;
// its role needs BatchGetItem, PutItem and ConditionCheckItem on the table, and Scan for
// Expired.
type DynamoDBClient interface {
	BatchGetItem(context.Context, *dynamodb.BatchGetItemInput, ...func(*dynamodb.Options)) (*dynamodb.BatchGetItemOutput, error)
	PutItem(context.Context, *dynamodb.PutItemInput, ...func(*dynamodb.Options)) (*dynamodb.PutItemOutput, error)
	Scan(context.Context, *dynamodb.ScanInput, ...func(*dynamodb.Options)) (*dynamodb.ScanOutput, error)
	TransactWriteItems(context.Context, *dynamodb.TransactWriteItemsInput, ...func(*dynamodb.Options)) (*dynamodb.TransactWriteItemsOutput, error)
}

// DynamoDB is a ledger that all signers of a cluster share. It is safe for concurrent
// use.
//
// Every operation reads (strongly consistent), decides, and makes at most one
// conditional write. The write fails if the items changed since the read; the operation
// then starts over. So a crash leaves an operation undone or done, and repeating it is
// safe either way.
type DynamoDB struct {
	client DynamoDBClient
	table  string
	now    func() time.Time
}

// NewDynamoDB returns the ledger in a table; item.go describes the table's items. The
// clock sets only when tombstones expire. Decisions use the times that callers pass.
func NewDynamoDB(client DynamoDBClient, table string, now func() time.Time) *DynamoDB {
	return &DynamoDB{client: client, table: table, now: now}
}

// Lookup returns the record of an instance, and the zero Record for an unknown one.
func (d *DynamoDB) Lookup(ctx context.Context, i ec2ref.Instance) (Record, error) {
	var found Record
	err := retry(ctx, func(ctx context.Context) error {
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

// LookupAll returns the record of each instance, with one call for every hundred of
// them.
func (d *DynamoDB) LookupAll(ctx context.Context, instances []ec2ref.Instance) (map[ec2ref.Instance]Record, error) {
	all := make(map[ec2ref.Instance]Record, len(instances))
	for batch := range slices.Chunk(instances, readBatch) {
		err := retry(ctx, func(ctx context.Context) error {
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

// scanPage is how many items of the table one step of the walk reads. An item has about
// a kilobyte at most, so a page stays below the megabyte at which DynamoDB cuts it.
const scanPage = 1000

// The walk reads only these attributes; its role allows a scan of no others.
const (
	expiredFilter = "begins_with(pk, :instance) AND generation > :zero AND attribute_not_exists(ended)" +
		" AND (attribute_not_exists(lease) OR lease < :now)"
	expiredProjection = attrPK
)

// Expired returns records that are not retired although all their certificates have
// expired. From is the Next of an earlier step. A step scans one page of the table and
// returns at most MaxExpired records. It reads these again, consistently: the page only
// says where to look.
func (d *DynamoDB) Expired(ctx context.Context, from string, now time.Time) (Expired, error) {
	var step Expired
	err := retry(ctx, func(ctx context.Context) error {
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

// scan reads one page of the table, and returns the instances whose records may have
// expired.
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
// the package allow it, and changes nothing otherwise. An instance may repeat a claim at
// any time. Claim fails with ErrKeyConflict, ErrKeyInUse, a *NameInUseError,
// ErrTooManyNames, ErrLeft or ErrRetired; any other error means that DynamoDB failed or could
// not be reached.
func (d *DynamoDB) Claim(ctx context.Context, c Claim, now time.Time) (Grant, error) {
	if err := c.check(); err != nil {
		return Grant{}, fmt.Errorf("claim for %s: %w", c.Instance.ID, err)
	}
	var granted Grant
	err := retry(ctx, func(ctx context.Context) error {
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

// Complete confirms a claim after its certificates were issued, and returns the new
// record. It fails with ErrRetired if the instance was off-boarded meanwhile, and with
// ErrUnclaimed if the claim no longer holds: it expired, or the instance got other keys,
// names or another signer meanwhile. The caller must then discard the certificates. If
// the record's version is more than one above the grant's, others have written since,
// and the node may be out of date.
//
// It starts from the record that the claim wrote, and reads only if that has changed:
// the conditional write detects a change at no cost.
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

// Confirm is Complete for callers that do not need the record.
func (d *DynamoDB) Confirm(ctx context.Context, c Claim, g Grant, now time.Time) error {
	_, err := d.Complete(ctx, c, g, now)
	return err
}

// Leave records that an instance left: it has no node until it enrolls again, and keeps its
// keys and names. The instance may leave again. Leave returns the new record, and fails with
// ErrRetired, ErrUnclaimed for an instance that never enrolled with the signer, ErrKeyConflict
// if no key is recorded, ErrOtherSigner, and ErrOldLeave.
func (d *DynamoDB) Leave(ctx context.Context, l Leave, now time.Time) (Record, error) {
	r, err := d.amend(ctx, "leave of", l.Instance, func(r record) (record, error) { return r.leave(l, now) })
	return r.exported(), err
}

// Permit allows the instance to bring other host keys, once. It replaces an unused
// permit. It fails with ErrUnclaimed for an unknown instance, and with ErrRetired.
func (d *DynamoDB) Permit(ctx context.Context, i ec2ref.Instance, p Permit) error {
	_, err := d.amend(ctx, "permit re-key of", i, func(r record) (record, error) { return r.withPermit(p) })
	return err
}

// Announce notes that the instance's tags may have changed or that its node is about to
// be written, and returns the record after the note, in one step: an enrollment that
// claimed before finds the note when it confirms, and one that claims later changes the
// version. A retired record is returned unchanged. The record of an instance that never
// enrolled has no generation, and keeps the note for an hour.
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

// SeeTags is Announce for callers that do not need the record. It ignores the event's
// version: anyone who can write to the queue chooses it. It fails with ErrRetired, and
// with ErrSeen after the note for an instance that never enrolled.
func (d *DynamoDB) SeeTags(ctx context.Context, i ec2ref.Instance, _ uint64) error {
	r, err := d.Announce(ctx, i)
	return seen(i, r, err)
}

func (d *DynamoDB) amend(ctx context.Context, doing string, i ec2ref.Instance, decide func(record) (record, error)) (record, error) {
	read := func(ctx context.Context) (record, error) { return d.record(ctx, i) }
	return d.amendFrom(ctx, doing, i, read, decide)
}

// amendFrom reads a record, decides, writes the result and returns it. It writes even an
// unchanged record: the new version tells others about this write.
func (d *DynamoDB) amendFrom(ctx context.Context, doing string, i ec2ref.Instance,
	read func(context.Context) (record, error), decide func(record) (record, error),
) (record, error) {
	var written record
	err := retry(ctx, func(ctx context.Context) error {
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

// Retire records that the instance is gone for good. It needs no earlier claim: an event
// may arrive before the enrollment that it must stop.
func (d *DynamoDB) Retire(ctx context.Context, i ec2ref.Instance) error {
	return d.RetireBy(ctx, i, "")
}

// RetireBy is Retire by an operator. The record names the operator.
func (d *DynamoDB) RetireBy(ctx context.Context, i ec2ref.Instance, by string) error {
	if err := retry(ctx, func(ctx context.Context) error { return d.retire(ctx, i, by) }); err != nil {
		return fmt.Errorf("retire %s: %w", i.ID, err)
	}
	return nil
}

// Release frees a name that an instance holds, even if the instance still exists, and
// returns the former holder. It fails with ErrNotHeld if no instance holds the name, and
// with ErrCertified while a certificate with the name may be valid. By is the operator,
// for the log.
func (d *DynamoDB) Release(ctx context.Context, name, by string, now time.Time) (ec2ref.Instance, error) {
	var holder ec2ref.Instance
	err := retry(ctx, func(ctx context.Context) (err error) {
		holder, err = d.release(ctx, name, by, now)
		return err
	})
	if err != nil {
		return ec2ref.Instance{}, fmt.Errorf("release %s: %w", name, err)
	}
	return holder, nil
}

func (d *DynamoDB) release(ctx context.Context, name, by string, now time.Time) (ec2ref.Instance, error) {
	holders, err := d.holders(ctx, []string{name})
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

// RetireExpired is Retire for an instance whose certificates have all expired; otherwise
// it changes nothing. It reports whether it retired the record.
func (d *DynamoDB) RetireExpired(ctx context.Context, i ec2ref.Instance, now time.Time) (bool, error) {
	err := retry(ctx, func(ctx context.Context) error {
		r, err := d.record(ctx, i)
		if err != nil {
			return err
		}
		next, err := r.retireExpired(now, d.now())
		if err != nil {
			return err
		}
		return d.putRetired(ctx, i, r, next)
	})
	switch {
	case errors.Is(err, errUnchanged):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("retire the expired record of %s: %w", i.ID, err)
	}
	return true, nil
}

func (d *DynamoDB) retire(ctx context.Context, i ec2ref.Instance, by string) error {
	r, err := d.record(ctx, i)
	if err != nil || r.retired {
		return err
	}
	return d.putRetired(ctx, i, r, r.retire(by, d.now()))
}

// putRetired writes a tombstone, and when the items of its names may be deleted.
func (d *DynamoDB) putRetired(ctx context.Context, i ec2ref.Instance, r, next record) error {
	names := slices.Sorted(maps.Keys(r.names))
	holders, err := d.holders(ctx, names)
	if err != nil {
		return err
	}
	w := write{table: d.table, expires: next.expires}
	w.putRecord(i, next, r)
	for _, name := range names {
		if holders[name] == i { // unless an operator edited the table
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

// records reads the records of instances; the zero record stands for a missing one.
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

// view reads the input of the decision on a claim. It takes one call, and a second one if
// other instances have held some of the names.
func (d *DynamoDB) view(ctx context.Context, c Claim) (view, error) {
	keys, names := union(nil, c.Fingerprints), c.allNames()
	items, err := d.read(ctx, slices.Concat([]string{instancePK(c.Instance)}, pks(keyPK, keys), pks(namePK, names)))
	if err != nil {
		return view{}, err
	}
	v := view{names: make(map[string]holding)}
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
		v.names[name] = newHolding(name, holder, records[holder])
	}
	return v, nil
}

// holders returns the holder of each name; the map lacks names without one.
func (d *DynamoDB) holders(ctx context.Context, names []string) (map[string]ec2ref.Instance, error) {
	items, err := d.read(ctx, pks(namePK, names))
	if err != nil {
		return nil, err
	}
	return parseHolders(items, namePK, names)
}

// parseHolders returns the holder of each key or name; the map lacks those without one.
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

// others returns the instances in the map, each once, except for the given one and the
// zero value.
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

// read returns the existing items by partition key.
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

// apply writes a claim's changes, if there are any: a renewal within the same second
// changes nothing.
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

// expireDropped adds an expiry for the items of dropped names to a claim's transaction.
// An item that does not fit stays; its name is free anyway.
func (d *DynamoDB) expireDropped(ctx context.Context, w *write, i ec2ref.Instance, dropped []string) error {
	dropped = dropped[:min(len(dropped), maxActions-len(w.actions))]
	holders, err := d.holders(ctx, dropped)
	if err != nil {
		return err
	}
	for _, name := range dropped {
		if holders[name] == i { // unless an operator edited the table
			w.expireHolder(name, i, d.now().Add(retention))
		}
	}
	return nil
}
