//go:build linux

// Package dynamodb starts DynamoDB Local, AWS's own emulator, which is strict about
// transactions. It creates tables for the ledger in it or in another emulator.
package dynamodb

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb"
	"github.com/aws/aws-sdk-go-v2/service/dynamodb/types"

	"github.com/hallmark-ssh/hallmark/e2e/fake/loopback"
)

// folder is where setup.sh puts DynamoDB Local, in the user's cache folder.
const folder = "hallmark/dynamodb-local-2.9.30"

// Local is a running DynamoDB Local.
type Local struct {
	// URL is the endpoint.
	URL    string
	cancel context.CancelFunc
	exited chan struct{}
}

// Find returns the folder of DynamoDB Local, or an error that says what to do.
func Find() (string, error) {
	if _, err := exec.LookPath("java"); err != nil {
		return "", fmt.Errorf("find DynamoDB Local: %w: run 'make setup'", err)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		return "", fmt.Errorf("find DynamoDB Local: %w", err)
	}
	dir := filepath.Join(cache, folder)
	if _, err := os.Stat(filepath.Join(dir, "DynamoDBLocal.jar")); err != nil {
		return "", fmt.Errorf("find DynamoDB Local: %w: run 'make setup'", err)
	}
	return dir, nil
}

// Start starts DynamoDB Local on a free port, with its tables in memory, and returns when it
// answers. DynamoDB Local stops with the context, and when this program ends in any way. Its
// log goes to w.
//
// It listens on every address, and no option changes that: call Start in a separate network
// namespace.
func Start(ctx context.Context, w io.Writer) (*Local, error) {
	dir, err := Find()
	if err != nil {
		return nil, err
	}
	free, err := loopback.Free(ctx, 1)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	cmd := exec.CommandContext(ctx, "java", "-Djava.library.path=DynamoDBLocal_lib", "-jar", "DynamoDBLocal.jar",
		"-inMemory", "-disableTelemetry", "-port", strconv.Itoa(int(free[0].Port())))
	cmd.Dir, cmd.Stdout, cmd.Stderr = dir, w, w
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	l := &Local{URL: "http://" + free[0].String(), cancel: cancel, exited: make(chan struct{})}
	if err := l.run(cmd); err != nil {
		cancel()
		return nil, fmt.Errorf("start DynamoDB Local: %w", err)
	}
	if err := l.waitUntilServing(ctx, free[0].String()); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// run starts the command and waits for its end in the background. Both happen on one thread,
// because the kernel kills the command when the thread that started it ends.
func (l *Local) run(cmd *exec.Cmd) error {
	started := make(chan error)
	go func() {
		defer close(l.exited)
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait() // Close kills it
		}
	}()
	return <-started
}

// Close stops it.
func (l *Local) Close() {
	l.cancel()
	<-l.exited
}

func (l *Local) waitUntilServing(ctx context.Context, address string) error {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Minute)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp4", address)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-l.exited:
			return errors.New("DynamoDB Local exited while starting, see its log")
		case <-ctx.Done():
			return fmt.Errorf("DynamoDB Local does not answer: %w", err)
		case <-tick.C:
		}
	}
}

// Client returns a client for an emulator, which accepts any credentials.
func Client(url, region string) *dynamodb.Client {
	return dynamodb.New(dynamodb.Options{
		Region:       region,
		BaseEndpoint: aws.String(url),
		Credentials: aws.CredentialsProviderFunc(func(context.Context) (aws.Credentials, error) {
			return aws.Credentials{AccessKeyID: "test", SecretAccessKey: "test"}, nil
		}),
	})
}

// CreateTable creates a table for the ledger, as template.yaml does, and returns when it is
// ready. It leaves time-to-live off: a test's clock is not the emulator's.
func CreateTable(ctx context.Context, client *dynamodb.Client, name string) error {
	_, err := client.CreateTable(ctx, &dynamodb.CreateTableInput{
		TableName:            &name,
		BillingMode:          types.BillingModePayPerRequest,
		KeySchema:            []types.KeySchemaElement{{AttributeName: aws.String("pk"), KeyType: types.KeyTypeHash}},
		AttributeDefinitions: []types.AttributeDefinition{{AttributeName: aws.String("pk"), AttributeType: types.ScalarAttributeTypeS}},
	})
	if err != nil {
		return fmt.Errorf("create table %s: %w", name, err)
	}
	err = dynamodb.NewTableExistsWaiter(client).Wait(ctx, &dynamodb.DescribeTableInput{TableName: &name}, time.Minute)
	if err != nil {
		return fmt.Errorf("wait for table %s: %w", name, err)
	}
	return nil
}
