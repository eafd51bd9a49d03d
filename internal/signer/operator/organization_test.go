package operator

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/signer/organization"
)

// texts is a table in memory.
type texts map[string]string

type text struct {
	texts
	name string
}

func (x text) Load(context.Context) ([]byte, error) { return []byte(x.texts[x.name]), nil }

func (x text) SaveUntil(_ context.Context, content []byte, _ time.Time) error {
	x.texts[x.name] = string(content)
	return nil
}

func (x text) Update(_ context.Context, change func([]byte) ([]byte, error)) error {
	content, err := change([]byte(x.texts[x.name]))
	if err == nil {
		x.texts[x.name] = string(content)
	}
	return err
}

// accounts is an organization with so many accounts.
type accounts int

func (n accounts) Read(context.Context) (organization.List, error) {
	l := organization.List{ID: "o-a1b2c3d4e5", Units: []organization.Unit{{ID: "r-ab12", Name: "Root"}}}
	for i := range int(n) {
		l.Accounts = append(l.Accounts, organization.Account{ID: ec2ref.Account(fmt.Sprintf("%012d", i)), Name: fmt.Sprint("team ", i)})
	}
	return l, nil
}

// organizationItems is what the signer hallmark.example.com has stored: of 30 accounts, five
// would leave. Nothing waits for the signer quiet.example.com.
func organizationItems(ctx context.Context, t *testing.T) map[string]string {
	t.Helper()
	items := make(texts)
	for signer, readings := range map[string][]accounts{"hallmark.example.com": {30, 25}, "quiet.example.com": {30}} {
		store := organization.Store{Name: organization.Item + signer, Text: func(name string) organization.Text { return text{items, name} }}
		for _, reading := range readings {
			r := organization.Refresher{
				Organization: reading, Store: store, Audience: signer, Log: slog.New(slog.DiscardHandler),
				Now: func() time.Time { return time.Date(2026, 7, 1, 12, 0, 0, 0, time.UTC) },
			}
			if _, err := r.Refresh(ctx); err != nil {
				t.Error(err)
			}
		}
	}
	return items
}
