package organization

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"
	"unicode/utf8"
)

// A list can be larger than a DynamoDB item (400 KB), so it is stored in parts, under a name
// that contains its digest. A small item, the head, says which list is in force. It changes
// only after all parts of the new list are stored, so a reader never sees half a list: it
// checks the digest of what it read. Parts expire, because the functions delete no items.
const (
	maxPart = 300 << 10
	// maxParts bounds what a reader loads.
	maxParts = 64
	// partsLife is how long parts are kept, and partsRenewed how often those of the list in
	// force are written again.
	partsLife    = 90 * 24 * time.Hour
	partsRenewed = 30 * 24 * time.Hour
)

// Text is one text in the ledger's table. stored.Text implements it.
type Text interface {
	// Load returns nil if there is no text.
	Load(ctx context.Context) ([]byte, error)
	// SaveUntil replaces the text, which DynamoDB may delete after that time.
	SaveUntil(ctx context.Context, text []byte, until time.Time) error
	// Update replaces the text with the result of change, which it may call several times.
	Update(ctx context.Context, change func(text []byte) ([]byte, error)) error
}

// Store stores the lists of an organization.
type Store struct {
	// Text returns the text with that name.
	Text func(name string) Text
	// Name begins the names of all texts.
	Name string
}

// Item begins the name of a signer's items; its audience follows. Signers that share a ledger
// may serve different organizations.
const Item = "organization/"

// errIncomplete says that a stored list lacks a part, or that its parts do not fit together.
var errIncomplete = errors.New("the stored list of the organization's accounts is incomplete")

func (s Store) head() Text { return s.Text(s.Name) }

func (s Store) part(digest string, n int) Text {
	return s.Text(fmt.Sprintf("%s/%s/%d", s.Name, digest, n))
}

// loadState returns what is stored, the zero value if nothing is.
func (s Store) loadState(ctx context.Context) (state, error) {
	text, err := s.head().Load(ctx)
	if err != nil {
		return state{}, err
	}
	return parseState(text)
}

func parseState(text []byte) (state, error) {
	var st state
	if len(text) == 0 {
		return st, nil
	}
	if err := json.Unmarshal(text, &st); err != nil {
		return st, fmt.Errorf("read what is stored about the organization: %w", err)
	}
	for _, v := range []*version{st.Current, st.heldVersion()} {
		if v != nil && (v.Parts < 1 || v.Parts > maxParts || len(v.Digest) != 64) {
			return st, fmt.Errorf("read what is stored about the organization: a list of %d parts", v.Parts)
		}
	}
	return st, nil
}

func (s *state) heldVersion() *version {
	if s.Held == nil {
		return nil
	}
	return &s.Held.version
}

// update changes the state. If change fails, nothing is stored.
func (s Store) update(ctx context.Context, change func(*state) error) error {
	return s.head().Update(ctx, func(text []byte) ([]byte, error) {
		st, err := parseState(text)
		if err != nil {
			return nil, err
		}
		if err := change(&st); err != nil {
			return nil, err
		}
		return json.Marshal(st)
	})
}

// loadList returns a stored list.
func (s Store) loadList(ctx context.Context, v version) (List, error) {
	var text []byte
	for n := range v.Parts {
		part, err := s.part(v.Digest, n).Load(ctx)
		if err != nil {
			return List{}, err
		}
		if part == nil {
			return List{}, fmt.Errorf("%w: part %d of %d is missing", errIncomplete, n+1, v.Parts)
		}
		text = append(text, part...)
	}
	if digestOf(text) != v.Digest {
		return List{}, fmt.Errorf("%w: it does not have the digest %.16s", errIncomplete, v.Digest)
	}
	l, err := decode(text)
	if err != nil {
		return List{}, fmt.Errorf("the stored list of the organization's accounts: %w", err)
	}
	return l, nil
}

// saveList stores a list's parts. Nobody reads them until the state names them.
func (s Store) saveList(ctx context.Context, text []byte, digest string, now time.Time) (version, error) {
	parts := split(text, maxPart)
	if len(parts) > maxParts {
		return version{}, fmt.Errorf("the list of the organization's accounts has %d bytes, more than fit", len(text))
	}
	for n, part := range parts {
		if err := s.part(digest, n).SaveUntil(ctx, part, now.Add(partsLife)); err != nil {
			return version{}, err
		}
	}
	return version{Digest: digest, Parts: len(parts), Stored: now, Read: now}, nil
}

// split cuts text into parts of at most size bytes, between characters: DynamoDB stores
// valid UTF-8 only.
func split(text []byte, size int) [][]byte {
	var parts [][]byte
	for len(text) > size {
		end := size
		for end > size-utf8.UTFMax && !utf8.RuneStart(text[end]) {
			end--
		}
		parts = append(parts, bytes.Clone(text[:end]))
		text = text[end:]
	}
	return append(parts, text)
}
