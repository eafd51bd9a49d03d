package stored

import (
	"context"
	"sync"
)

// Memory is a text that lasts as long as its process, for tests and for a signer without a
// table. The zero value is empty.
type Memory struct {
	mu   sync.Mutex
	text []byte
}

// Update replaces the text with the result of change.
func (m *Memory) Update(ctx context.Context, change func(text []byte) ([]byte, error)) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	text, err := change(m.text)
	if err == nil {
		m.text = text
	}
	return err
}
