package organization

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/arn"
	"golang.org/x/sync/errgroup"

	"github.com/hallmark-ssh/hallmark/internal/backoff"
	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/signer/awscall"
)

const (
	// attempts bounds how often Organizations is asked one question: it throttles early.
	attempts = 6
	// concurrent bounds the questions at a time.
	concurrent = 4
	// maxAnswerBytes bounds an answer with up to 20 units or accounts.
	maxAnswerBytes = 1 << 20
	// maxPages bounds the pages of one question. Some may be empty.
	maxPages = 4 * maxAccounts / 20
)

// Reader reads an organization through AWS's API (AWS Organizations API Reference). All
// fields but Wait are required. The credentials need ListRoots,
// ListOrganizationalUnitsForParent and ListAccountsForParent.
type Reader struct {
	Client      awscall.Client
	Credentials aws.CredentialsProvider
	// Endpoint is the URL of Organizations, and Region the region that signatures name.
	Endpoint string
	Region   ec2ref.Region
	// ID is the organization's id. Answers of another organization are refused.
	ID string
	// Scope limits what is read: not the units below denied ones, nor the accounts of units
	// that are not allowed.
	Scope Scope
	// Wait replaces the wait before another attempt, for tests.
	Wait func(context.Context, time.Duration) error
}

var (
	// errBusy marks what Organizations may answer better in a moment.
	errBusy = errors.New("AWS Organizations is busy or did not answer")
	// errForeign marks an answer that is not about this organization, or not in its form.
	errForeign = errors.New("unexpected answer from AWS Organizations")
)

// walk is a reading in progress.
type walk struct {
	Reader
	mu       sync.Mutex
	accounts map[ec2ref.Account]Account
}

// Read returns the active accounts of the units in the scope. It fails if it cannot read all
// of them: half a list would refuse accounts.
func (r Reader) Read(ctx context.Context) (List, error) {
	l, err := r.read(ctx)
	if err != nil {
		return List{}, fmt.Errorf("read organization %s: %w", r.ID, err)
	}
	return l, nil
}

func (r Reader) read(ctx context.Context) (List, error) {
	root, err := r.root(ctx)
	if err != nil {
		return List{}, err
	}
	w := &walk{Reader: r, accounts: make(map[ec2ref.Account]Account)}
	l := List{ID: r.ID, Units: []Unit{root}}
	standings := []standing{ofRoot(r.Scope)}
	for level, depth := 0, 0; level < len(l.Units); depth++ {
		if depth > maxDepth {
			return List{}, fmt.Errorf("%w: units nest deeper than %d levels", errForeign, maxDepth)
		}
		children, err := w.level(ctx, l.Units, standings, level)
		if err != nil {
			return List{}, err
		}
		level = len(l.Units)
		for _, u := range children {
			l.Units = append(l.Units, u)
			standings = append(standings, standings[u.Parent].below(u, r.Scope))
		}
		if len(l.Units) > maxUnits {
			return List{}, fmt.Errorf("%w: more than %d units", errForeign, maxUnits)
		}
	}
	for _, a := range w.accounts {
		l.Accounts = append(l.Accounts, a)
	}
	slices.SortFunc(l.Accounts, func(a, b Account) int { return cmp.Compare(a.ID, b.ID) })
	return l, nil
}

// level reads what is below the units from the index first on, and returns the units.
func (w *walk) level(ctx context.Context, units []Unit, standings []standing, first int) ([]Unit, error) {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(concurrent)
	found := make([][]Unit, len(units))
	for i := first; i < len(units); i++ {
		if standings[i].denied {
			continue
		}
		group.Go(func() (err error) {
			found[i], err = w.units(ctx, units[i].ID, i)
			return err
		})
		if standings[i].allowed {
			group.Go(func() error { return w.addAccounts(ctx, units[i].ID, i) })
		}
	}
	err := group.Wait()
	return slices.Concat(found...), err
}

// root returns the organization's root, whose ARN names the organization: a role in another
// organization would list the wrong accounts.
func (r Reader) root(ctx context.Context) (Unit, error) {
	var roots []Unit
	err := r.each(ctx, "ListRoots", "", "Roots", func(item map[string]json.RawMessage) error {
		name, err := arn.Parse(awscall.Text(item["Arn"]))
		if err != nil || name.Service != "organizations" || !strings.HasPrefix(name.Resource, "root/"+r.ID+"/") {
			return fmt.Errorf("%w: the credentials are for another organization: root %.128q; check reader_role", errForeign, awscall.Text(item["Arn"]))
		}
		roots = append(roots, Unit{ID: awscall.Text(item["Id"]), Name: "Root"})
		return nil
	})
	if err == nil && (len(roots) != 1 || roots[0].ID == "") {
		err = fmt.Errorf("%w: %d roots", errForeign, len(roots))
	}
	if err != nil {
		return Unit{}, err
	}
	return roots[0], nil
}

// units returns the units directly below a unit with that index.
func (r Reader) units(ctx context.Context, id string, parent int) ([]Unit, error) {
	var units []Unit
	err := r.each(ctx, "ListOrganizationalUnitsForParent", id, "OrganizationalUnits", func(item map[string]json.RawMessage) error {
		u := Unit{ID: awscall.Text(item["Id"]), Name: awscall.Text(item["Name"]), Parent: parent}
		if u.ID == "" || u.Name == "" || len(units) >= maxUnits {
			return fmt.Errorf("%w: a unit without id or name, or too many below %s", errForeign, id)
		}
		units = append(units, u)
		return nil
	})
	return units, err
}

// addAccounts adds the active accounts directly in a unit with that index.
func (w *walk) addAccounts(ctx context.Context, id string, unit int) error {
	return w.each(ctx, "ListAccountsForParent", id, "Accounts", func(item map[string]json.RawMessage) error {
		number, err := ec2ref.ParseAccount(awscall.Text(item["Id"]))
		if err != nil {
			return fmt.Errorf("%w: account %w", errForeign, err)
		}
		active, err := isActive(item)
		if err != nil || !active {
			return err
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		if len(w.accounts) >= maxAccounts {
			return fmt.Errorf("%w: more than %d accounts", errForeign, maxAccounts)
		}
		// An account that moves meanwhile may be in two units. The next reading settles it.
		w.accounts[number] = Account{ID: number, Name: awscall.Text(item["Name"]), Unit: unit}
		return nil
	})
}

// isActive reports whether an account is in use: not suspended, not being closed, not
// waiting for activation. Organizations replaced the member Status with State in 2026.
func isActive(item map[string]json.RawMessage) (bool, error) {
	state := cmp.Or(awscall.Text(item["State"]), awscall.Text(item["Status"]))
	if state == "" {
		return false, fmt.Errorf("%w: an account without a state", errForeign)
	}
	return state == "ACTIVE", nil
}

// each asks a question about a parent, page by page, and calls do for each item of the
// answers' list.
func (r Reader) each(ctx context.Context, action, parent, list string, do func(map[string]json.RawMessage) error) error {
	token := ""
	for range maxPages {
		answer, err := r.ask(ctx, action, parent, token)
		if err != nil {
			return fmt.Errorf("%s: %w", action, err)
		}
		var items []json.RawMessage
		if err := json.Unmarshal(answer[list], &items); err != nil || items == nil {
			return fmt.Errorf("%s: %w: no list %s", action, errForeign, list)
		}
		for _, data := range items {
			item, err := awscall.Members(data)
			if err != nil {
				return fmt.Errorf("%s: %w: %w", action, errForeign, err)
			}
			if err := do(item); err != nil {
				return fmt.Errorf("%s: %w", action, err)
			}
		}
		next, err := nextToken(answer)
		if err != nil {
			return fmt.Errorf("%s: %w", action, err)
		}
		if next == "" {
			return nil
		}
		if next == token {
			return fmt.Errorf("%s: %w: the same page twice", action, errForeign)
		}
		token = next
	}
	return fmt.Errorf("%s: %w: more than %d pages", action, errForeign, maxPages)
}

// nextToken returns the token of the next page, "" after the last. A token in another form
// must not end the list early.
func nextToken(answer map[string]json.RawMessage) (string, error) {
	var token *string
	if raw := answer["NextToken"]; raw != nil {
		if err := json.Unmarshal(raw, &token); err != nil {
			return "", fmt.Errorf("%w: NextToken: %w", errForeign, err)
		}
	}
	if token == nil {
		return "", nil
	}
	return *token, nil
}

// ask asks one question, again while Organizations is busy.
func (r Reader) ask(ctx context.Context, action, parent, token string) (map[string]json.RawMessage, error) {
	question := make(map[string]any)
	if parent != "" {
		question["ParentId"], question["MaxResults"] = parent, 20
	}
	if token != "" {
		question["NextToken"] = token
	}
	body, err := json.Marshal(question)
	if err != nil {
		return nil, err
	}
	var answer map[string]json.RawMessage
	policy := backoff.Policy{Growth: backoff.Growth{First: 500 * time.Millisecond, Longest: 8 * time.Second}, Random: rand.Float64, Wait: r.Wait}
	err = policy.Do(ctx, attempts, func(ctx context.Context) (again bool, after time.Duration, err error) {
		answer, err = r.send(ctx, action, body)
		return errors.Is(err, errBusy), 0, err
	})
	return answer, err
}

func (r Reader) send(ctx context.Context, action string, body []byte) (map[string]json.RawMessage, error) {
	status, data, err := r.Client.Send(ctx, r.Credentials, awscall.Request{
		Service: "organizations", Region: r.Region, Endpoint: r.Endpoint,
		ContentType: "application/x-amz-json-1.1", Target: "AWSOrganizationsV20161128." + action,
		Body: body, MaxBytes: maxAnswerBytes,
	})
	if errors.Is(err, awscall.ErrNoAnswer) {
		return nil, fmt.Errorf("%w: %w", errBusy, err)
	}
	if err != nil {
		return nil, err
	}
	answer, decodeErr := awscall.Members(data)
	kind, message := awscall.Text(answer["__type"]), cmp.Or(awscall.Text(answer["Message"]), awscall.Text(answer["message"]))
	switch {
	case status >= http.StatusInternalServerError || isThrottling(kind):
		return nil, fmt.Errorf("%w: HTTP status %d: %.100s: %.300s", errBusy, status, kind, message)
	case status != http.StatusOK || kind != "":
		return nil, fmt.Errorf("AWS Organizations: HTTP status %d: %.100s: %.300s", status, kind, message)
	case decodeErr != nil:
		return nil, fmt.Errorf("%w: %w", errForeign, decodeErr)
	}
	return answer, nil
}

func isThrottling(kind string) bool {
	return strings.HasSuffix(kind, "TooManyRequestsException") || strings.HasSuffix(kind, "ThrottlingException") ||
		strings.HasSuffix(kind, "ServiceException")
}
