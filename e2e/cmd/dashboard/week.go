package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/identity"
	"github.com/hallmark-ssh/hallmark/internal/protocol"
	"github.com/hallmark-ssh/hallmark/internal/signer/enroll"
	"github.com/hallmark-ssh/hallmark/internal/signer/entry"
	"github.com/hallmark-ssh/hallmark/internal/signer/inventory"
	"github.com/hallmark-ssh/hallmark/internal/signer/ledger"
	"github.com/hallmark-ssh/hallmark/internal/signer/node"
	"github.com/hallmark-ssh/hallmark/internal/signer/policy"
	"github.com/hallmark-ssh/hallmark/internal/signer/policy/live"
	"github.com/hallmark-ssh/hallmark/internal/signer/stored"
	"github.com/hallmark-ssh/hallmark/internal/signer/upkeep"
)

const (
	account = "111122223333"
	region  = "us-west-2"
	days    = 7

	fleetSize = 240 // machines that always run
	stormSize = 300 // machines that boot on Wednesday at nine, and terminate at six

	// Teleport answers nothing on Thursday from one to four.
	outageStart, outageEnd = 3*24*time.Hour + 13*time.Hour, 3*24*time.Hour + 16*time.Hour
	stormStart, stormEnd   = 2*24*time.Hour + 9*time.Hour, 2*24*time.Hour + 18*time.Hour
	// Somebody breaks the policy on Sunday at ten, and nobody fixes it.
	broken = 6*24*time.Hour + 10*time.Hour
)

// monday is the first day in the picture. The fleet boots three days earlier.
func monday() time.Time { return time.Date(2026, time.March, 2, 0, 0, 0, 0, time.UTC) }

// week runs the product's own enrollment and upkeep through a week. Time is simulated, and
// AWS, Teleport and the machines are stand-ins.
type week struct {
	*services
	store   store
	signer  enroll.Signer
	fleet   upkeep.Fleet
	log     bytes.Buffer
	plan    []step // sorted by time
	machine int    // how many have booted
	calls   int
	random  *rand.Rand
	queue   []message
	failed  int // messages in the failed queue
}

// step is something that happens at some time.
type step struct {
	at time.Time
	do func(ctx context.Context) error
}

type message struct {
	upkeep.Message
	sent, visible time.Time
	received      int
}

func newWeek() (*week, error) {
	hostCA, err := key(1 << 40)
	if err != nil {
		return nil, err
	}
	w := &week{
		services: &services{
			load: 1, instances: make(map[ec2ref.InstanceID]*inventory.Instance), nodes: make(map[string]node.Node), hostCA: hostCA,
		},
		store: store{from: monday()}, random: rand.New(rand.NewPCG(7, 2026)),
	}
	limits := policy.Limits{Accounts: []ec2ref.Account{account}, Regions: []ec2ref.Region{region}, MaxLifetime: policy.LongestLifetime}
	w.policy = []byte("version: 1\nrules:\n  - name: default\n    match:\n      image_owners: [listed]\n      max_age: 24h\n")
	log := slog.New(slog.NewJSONHandler(&w.log, nil))
	rules := live.New(live.Config{
		Fetch: func(context.Context) ([]byte, error) { return w.policy, nil }, LastGood: new(lastGood), Limits: limits, Now: w.clock, Log: log,
	})
	records := &ledger.Memory{Now: w.clock}
	w.signer = enroll.Signer{
		Audience: audience, Accounts: limits.Accounts, Regions: limits.Regions,
		Documents: documents{w.services}, Callers: sts{w.services}, Inventory: ec2{w.services}, Policy: rules.Current, Ledger: records,
		Connect: func(context.Context) (enroll.Cluster, error) { return w.connect() }, Log: log, Now: w.clock,
	}
	w.fleet = upkeep.Fleet{
		Audience: audience, Accounts: limits.Accounts, Regions: limits.Regions, Inventory: ec2{w.services}, Ledger: records,
		Missing: new(stored.Memory), Policy: rules.Current,
		Connect: func(context.Context) (upkeep.Cluster, error) { return w.connect() }, Log: log, Now: w.clock,
	}
	return w, nil
}

type lastGood struct{ text []byte }

func (l *lastGood) Load(context.Context) ([]byte, error) { return l.text, nil }
func (l *lastGood) Save(_ context.Context, text []byte) error {
	l.text = text
	return nil
}

// key returns a host key that depends on the machine's number alone.
func key(n int) (ssh.Signer, error) {
	seed := make([]byte, ed25519.SeedSize)
	binary.BigEndian.PutUint64(seed, uint64(n))
	return ssh.NewSignerFromKey(ed25519.NewKeyFromSeed(seed))
}

// at adds a step to the plan.
func (w *week) at(t time.Time, do func(context.Context) error) {
	i, _ := slices.BinarySearchFunc(w.plan, t, func(s step, t time.Time) int { return cmp.Or(s.at.Compare(t), -1) })
	w.plan = slices.Insert(w.plan, i, step{t, do})
}

// between returns a time in a span.
func (w *week) between(start time.Time, span time.Duration) time.Time {
	return start.Add(time.Duration(w.random.Int64N(int64(span)))).Truncate(time.Millisecond)
}

// run runs the week and returns what CloudWatch would know about it.
func (w *week) run(ctx context.Context) (*store, error) {
	start := monday().Add(-3 * 24 * time.Hour)
	end := monday().Add(days * 24 * time.Hour)
	for range fleetSize {
		w.at(w.between(start, 56*time.Hour), w.boot("app", end.Add(time.Hour)))
	}
	for range stormSize {
		w.at(w.between(monday().Add(stormStart), 4*time.Minute), w.boot("batch", w.between(monday().Add(stormEnd), 10*time.Minute)))
	}
	for day := range days {
		for range 5 { // machines that are replaced
			w.at(w.between(monday().Add(time.Duration(day)*24*time.Hour+7*time.Hour), 10*time.Hour), w.boot("app", end.Add(time.Hour)))
		}
		for range 40 { // scanners
			w.at(w.between(monday().Add(time.Duration(day)*24*time.Hour), 24*time.Hour), w.scan)
		}
		for range 6 { // people who change tags
			w.at(w.between(monday().Add(time.Duration(day)*24*time.Hour+8*time.Hour), 9*time.Hour), w.retag)
		}
		for n := range 3 {
			w.at(w.between(monday().Add(time.Duration(day)*24*time.Hour+7*time.Hour), 10*time.Hour), w.terminate(day*3+n))
		}
	}
	for t := start.Add(time.Hour); !t.After(end); t = t.Add(time.Hour) {
		w.at(t, w.sweep)
	}
	for t := monday(); t.Before(end); t = t.Add(5 * time.Minute) {
		w.at(t, w.receive)
	}
	for when, do := range map[time.Duration]func(){
		stormStart: func() { w.load = 2.2 }, stormStart + 10*time.Minute: func() { w.load = 1 },
		outageStart: func() { w.down = true }, outageEnd: func() { w.down = false },
		outageEnd + time.Hour: w.redrive,
		broken:                func() { w.policy = append(w.policy, "    hostnam: typo\n"...) },
	} {
		w.at(monday().Add(when), func(context.Context) error { do(); return nil })
	}
	for len(w.plan) > 0 && !w.plan[0].at.After(end) {
		next := w.plan[0]
		w.plan = w.plan[1:]
		w.now = next.at
		if err := next.do(ctx); err != nil {
			return nil, err
		}
		if err := w.store.read(w.log.Bytes(), next.at); err != nil {
			return nil, err
		}
		w.log.Reset()
	}
	return &w.store, nil
}

// boot starts an instance that terminates at some time.
func (w *week) boot(name string, end time.Time) func(context.Context) error {
	return func(ctx context.Context) error {
		w.machine++
		n := w.machine
		id := ec2ref.InstanceID(fmt.Sprintf("i-%017x", n))
		w.instances[id] = &inventory.Instance{
			ID: id, OwnerID: account, State: inventory.StateRunning, Region: region, AvailabilityZone: region + "a", VPC: "vpc-0123456789abcdef0",
			PrivateIP: fmt.Sprintf("10.0.%d.%d", n/256, n%256), ImageID: "ami-0123456789abcdef0", ImageOwner: account,
			LaunchTime: w.now, Tags: map[string]string{"Name": name},
		}
		w.at(end, func(context.Context) error { w.end(id); return nil })
		return w.enroll(ctx, id, n, 0)
	}
}

// end terminates an instance. EC2 forgets it after an hour.
func (w *week) end(id ec2ref.InstanceID) {
	i, ok := w.instances[id]
	if !ok || i.State != inventory.StateRunning {
		return
	}
	i.State = inventory.StateTerminated
	w.send("aws.ec2", "EC2 Instance State-change Notification", id, map[string]any{"instance-id": id, "state": "terminated"})
	w.at(w.now.Add(time.Hour), func(context.Context) error { delete(w.instances, id); return nil })
}

func (w *week) terminate(n int) func(context.Context) error {
	return func(context.Context) error {
		w.end(ec2ref.InstanceID(fmt.Sprintf("i-%017x", n+1)))
		return nil
	}
}

func (w *week) retag(context.Context) error {
	w.calls++
	id := ec2ref.InstanceID(fmt.Sprintf("i-%017x", 50+w.calls%100))
	if i, ok := w.instances[id]; ok {
		i.Tags["team"] = fmt.Sprintf("team-%d", w.calls)
		w.send("aws.tag", "Tag Change on Resource", id, map[string]any{
			"service": "ec2", "resource-type": "instance", "changed-tag-keys": []string{"team"}, "tags": i.Tags, "version": w.calls,
		})
	}
	return nil
}

// send puts an event into the queue.
func (w *week) send(source, detailType string, id ec2ref.InstanceID, detail map[string]any) {
	w.calls++
	arn := "arn:aws:ec2:" + region + ":" + account + ":instance/" + string(id)
	text, err := json.Marshal(map[string]any{
		"source": source, "detail-type": detailType, "account": account, "region": region, "resources": []string{arn}, "detail": detail,
	})
	if err != nil {
		panic(err) // maps of text
	}
	m := upkeep.Message{ID: fmt.Sprint("message-", w.calls), Source: "aws:sqs", Body: string(text)}
	w.queue = append(w.queue, message{Message: m, sent: w.now, visible: w.now})
}

// receive hands waiting events to the function, and measures the queues. An event that
// fails is hidden for six minutes, and moves to the failed queue after the fifth time.
func (w *week) receive(ctx context.Context) error {
	w.request = fmt.Sprint("batch", w.now.Unix())
	at := w.now
	var batch upkeep.Batch
	for i := range w.queue {
		if m := &w.queue[i]; !m.visible.After(at) && len(batch.Records) < 100 {
			m.received++
			m.visible = at.Add(6 * time.Minute)
			batch.Records = append(batch.Records, m.Message)
		}
	}
	if len(batch.Records) > 0 {
		w.invoked("${FleetFunction}", at)
		failures := w.fleet.Handle(ctx, batch).Failures
		w.queue = slices.DeleteFunc(w.queue, func(m message) bool {
			handed := slices.ContainsFunc(batch.Records, func(r upkeep.Message) bool { return r.ID == m.ID })
			again := slices.ContainsFunc(failures, func(f upkeep.Failure) bool { return f.ID == m.ID })
			if handed && again && m.received == 5 {
				w.failed++
				return true
			}
			return handed && !again
		})
	}
	oldest := time.Duration(0)
	for _, m := range w.queue {
		oldest = max(oldest, at.Sub(m.sent))
	}
	const queues, visible = "AWS/SQS", "ApproximateNumberOfMessagesVisible"
	w.store.add(metricKey(queues, visible, "QueueName", "${EventQueue.QueueName}"), at, float64(len(w.queue)))
	w.store.add(metricKey(queues, visible, "QueueName", "${FailedQueue.QueueName}"), at, float64(w.failed))
	w.store.add(metricKey(queues, "ApproximateAgeOfOldestMessage", "QueueName", "${EventQueue.QueueName}"), at, oldest.Seconds())
	return nil
}

// redrive empties the failed queue, as an operator does after the outage. The sweep has
// acted on its events.
func (w *week) redrive() { w.failed = 0 }

// invoked counts an invocation of a function, without an error.
func (w *week) invoked(function string, at time.Time) {
	w.store.add(metricKey("AWS/Lambda", "Errors", "FunctionName", function), at, 0)
	w.store.add(metricKey("AWS/Lambda", "Throttles", "FunctionName", function), at, 0)
}

func (w *week) sweep(ctx context.Context) error {
	w.request = fmt.Sprint("sweep", w.now.Unix())
	w.invoked("${FleetFunction}", w.now)
	if _, err := w.fleet.Sweep(ctx, "", 0); err != nil && !w.down {
		return fmt.Errorf("sweep at %s: %w", w.now, err)
	}
	return nil
}

func (w *week) scan(ctx context.Context) error {
	w.calls++
	w.request = fmt.Sprint("scan", w.calls)
	w.invoked("${EnrollFunction}", w.now)
	w.signer.Enroll(ctx, entry.Request{ID: w.request, Method: http.MethodPost, ContentType: "application/json", Body: []byte("x"), Source: "203.0.113.9"})
	return nil
}

// enroll lets a machine enroll or renew. The machine comes back after a third of the
// certificate's life, or, after a failure, with growing pauses.
func (w *week) enroll(ctx context.Context, id ec2ref.InstanceID, n, failures int) error {
	if i, ok := w.instances[id]; !ok || i.State != inventory.StateRunning {
		return nil
	}
	start := w.now
	request, err := w.newRequest(id, n)
	if err != nil {
		return err
	}
	w.invoked("${EnrollFunction}", start)
	answer := w.signer.Enroll(ctx, request)
	pause := time.Duration(float64(policy.DefaultLifetime) / 3 * (0.9 + 0.2*w.random.Float64()))
	if answer.Status == http.StatusOK {
		failures = 0
	} else {
		failures++
		pause = time.Duration(float64(min(time.Hour, 5*time.Minute<<min(failures, 4))) * (0.5 + 0.5*w.random.Float64()))
	}
	w.at(start.Add(pause).Truncate(time.Second), func(ctx context.Context) error { return w.enroll(ctx, id, n, failures) })
	return nil
}

func (w *week) newRequest(id ec2ref.InstanceID, n int) (entry.Request, error) {
	w.calls++
	w.request = fmt.Sprint("request", w.calls)
	hostKey, err := key(n)
	if err != nil {
		return entry.Request{}, err
	}
	issued := w.now.UTC().Truncate(time.Second)
	payload, err := json.Marshal(protocol.Payload{
		Version: protocol.Version, Audience: audience, IssuedAt: issued, IdentityDocument: base64.StdEncoding.EncodeToString([]byte(id)),
		HostKeys: []string{strings.TrimSpace(string(ssh.MarshalAuthorizedKey(hostKey.PublicKey())))},
	})
	if err != nil {
		return entry.Request{}, err
	}
	signature, err := identity.SignBinding(hostKey, protocol.Bind(payload))
	if err != nil {
		return entry.Request{}, err
	}
	body, err := json.Marshal(protocol.Request{
		Payload: payload, Signatures: []string{signature},
		Caller: protocol.CallerProof{Authorization: "signed", Date: issued.Format("20060102T150405Z"), SecurityToken: "token"},
	})
	return entry.Request{
		ID: w.request, Method: http.MethodPost, ContentType: "application/json", Body: body,
		Source: "192.0.2.1",
	}, err
}
