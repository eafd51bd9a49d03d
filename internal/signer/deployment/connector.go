package deployment

import (
	"context"
	"sync"

	"github.com/hallmark-ssh/hallmark/internal/signer/enroll"
	"github.com/hallmark-ssh/hallmark/internal/signer/teleport"
	"github.com/hallmark-ssh/hallmark/internal/signer/upkeep"
)

// connector logs in to Teleport at the first request that needs it, and keeps the client
// for the life of the process. After a failed login, the next request tries again.
type connector struct {
	config teleport.Config

	mu     sync.Mutex
	client *teleport.Client
}

func (c *connector) connect(ctx context.Context) (*teleport.Client, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.client != nil {
		return c.client, nil
	}
	client, err := teleport.Dial(ctx, c.config)
	if err != nil {
		return nil, err
	}
	c.client = client
	return client, nil
}

func (c *connector) signer(ctx context.Context) (enroll.Cluster, error) {
	client, err := c.connect(ctx)
	if err != nil {
		return nil, err // not client: a typed nil is not a nil interface
	}
	return client, nil
}

func (c *connector) fleet(ctx context.Context) (upkeep.Cluster, error) {
	client, err := c.connect(ctx)
	if err != nil {
		return nil, err
	}
	return client, nil
}
