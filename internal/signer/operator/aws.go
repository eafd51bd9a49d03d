package operator

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"regexp"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/arn"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	"github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/smithy-go"
	"github.com/aws/smithy-go/logging"
	"github.com/spf13/cobra"

	"github.com/hallmark-ssh/hallmark/internal/cli"
	"github.com/hallmark-ssh/hallmark/internal/ec2ref"
	"github.com/hallmark-ssh/hallmark/internal/signer/deployment"
)

// loadAWS reads the AWS configuration and credentials at hand, for the table's region.
func loadAWS(ctx context.Context, cmd *cobra.Command, table string) (aws.Config, error) {
	cfg, err := loadConfiguration(ctx)
	if err != nil {
		return cfg, err
	}
	if cfg.Region = deployment.RegionOf(table, cfg.Region); cfg.Region == "" {
		return cfg, &cli.Error{Err: fmt.Errorf("%s: the table's region is not known", cmd.Name()), Code: cli.Usage,
			Hint: "set AWS_REGION, or pass the table's ARN"}
	}
	return cfg, withCredentials(ctx, cfg)
}

// loadAnyAWS is loadAWS without a table. The region may be empty.
func loadAnyAWS(ctx context.Context) (aws.Config, error) {
	cfg, err := loadConfiguration(ctx)
	if err != nil {
		return cfg, err
	}
	return cfg, withCredentials(ctx, cfg)
}

// loadConfiguration reads environment variables and profiles. The SDK's own warnings say
// nothing that an operator could act on.
func loadConfiguration(ctx context.Context) (aws.Config, error) {
	cfg, err := config.LoadDefaultConfig(ctx, config.WithHTTPClient(awshttp.NewBuildableClient()), config.WithLogger(logging.Nop{}))
	if missing, ok := errors.AsType[config.SharedConfigProfileNotExistError](err); ok {
		return cfg, &cli.Error{Err: fmt.Errorf("there is no AWS profile %.100q", missing.Profile), Code: cli.Failed,
			Hint: "set AWS_PROFILE to one that 'aws configure list-profiles' shows"}
	}
	if err != nil {
		return cfg, &cli.Error{Err: fmt.Errorf("load the AWS configuration: %w", err), Code: cli.Failed,
			Hint: "check ~/.aws/config and the variables that begin with AWS_"}
	}
	if cfg.Region == "" {
		return cfg, nil
	}
	if _, err := ec2ref.ParseRegion(cfg.Region); err != nil {
		return cfg, &cli.Error{Err: fmt.Errorf("AWS_REGION or the profile: %w", err), Code: cli.Usage, Hint: "set AWS_REGION to the table's region"}
	}
	return cfg, nil
}

// withCredentials fails if there are no credentials. Otherwise the first call would say so
// after a list of all places where the SDK looked.
func withCredentials(ctx context.Context, cfg aws.Config) error {
	_, err := cfg.Credentials.Retrieve(ctx)
	if err == nil {
		return nil
	}
	e := &cli.Error{Err: fmt.Errorf("get AWS credentials: %w", err), Code: cli.Failed, Hint: "set AWS_PROFILE, or log in, for example with 'aws sso login'"}
	if strings.Contains(err.Error(), "no EC2 IMDS role found") { // the last place in the list
		e.Err = errors.New("no AWS credentials found")
	}
	return e
}

// DynamoDB API Reference, CreateTable: TableName.
var regexpTable = regexp.MustCompile(`^[a-zA-Z0-9_.-]{3,255}$`)

// checkTable checks the flag that names the ledger.
func checkTable(cmd *cobra.Command, table string) error {
	if table == "" {
		return cli.Usagef(cmd, "--table is missing")
	}
	name := table
	if strings.HasPrefix(table, "arn:") {
		parsed, err := arn.Parse(table)
		resource, ok := strings.CutPrefix(parsed.Resource, "table/")
		if _, region := ec2ref.ParseRegion(parsed.Region); err != nil || !ok || parsed.Service != "dynamodb" || region != nil {
			return cli.Usagef(cmd, "--table: %.200q is not the ARN of a table, such as arn:aws:dynamodb:us-west-2:111122223333:table/NAME", table)
		}
		name = resource
	}
	if !regexpTable.MatchString(name) {
		return cli.Usagef(cmd, "--table: %.200q is not the name of a table: 3 to 255 letters, digits, _, - and .", name)
	}
	return nil
}

// explainAWS returns a failed call of AWS in an operator's words, with what to do. It returns
// other errors, and those that have a hint, unchanged.
func explainAWS(err error) error {
	if _, explained := errors.AsType[*cli.Error](err); explained || err == nil {
		return err
	}
	if op, ok := errors.AsType[*smithy.OperationError](err); ok {
		text, hint := explainCall(op)
		return &cli.Error{Err: rephrased{err, strings.Replace(err.Error(), op.Error(), text, 1)}, Code: cli.Failed, Hint: hint}
	}
	if request, ok := errors.AsType[*url.Error](err); ok {
		return &cli.Error{Err: rephrased{err, strings.Replace(err.Error(), request.Error(), connection(request), 1)}, Code: cli.Failed, Hint: hintNetwork}
	}
	return err
}

// rephrased is an error with another text.
type rephrased struct {
	error
	text string
}

func (r rephrased) Error() string { return r.text }

func (r rephrased) Unwrap() error { return r.error }

const (
	hintNetwork = "check the network, HTTPS_PROXY and AWS_REGION"
	hintLogin   = "log in to AWS again, for example with 'aws sso login', and check AWS_PROFILE"
)

// explainCall says what became of a call.
func explainCall(op *smithy.OperationError) (text, hint string) {
	refused, ok := errors.AsType[smithy.APIError](op.Err)
	if !ok {
		return fmt.Sprintf("%s did not answer %s: %s", op.Service(), op.Operation(), connection(op.Err)), hintNetwork
	}
	code := refused.ErrorCode()
	text = fmt.Sprintf("%s refused %s: %s: %s", op.Service(), op.Operation(), code, refused.ErrorMessage())
	switch {
	case strings.HasPrefix(code, "AccessDenied") || code == "UnauthorizedOperation":
		hint = "docs/operations.md lists the permissions that your AWS credentials need"
	case strings.HasPrefix(code, "ExpiredToken"), code == "UnrecognizedClientException", code == "InvalidClientTokenId", code == "InvalidSignatureException",
		code == "SignatureDoesNotMatch", code == "AuthFailure":
		hint = hintLogin
	case strings.Contains(code, "Throttling"), strings.Contains(code, "LimitExceeded"), strings.Contains(code, "ThroughputExceeded"), code == "TooManyRequestsException":
		hint = "AWS limits how often it may be asked; try again in a minute"
	case code == "ResourceNotFoundException":
		hint = "check --table, AWS_REGION and the account of your credentials"
	}
	return text, hint
}

// connection says why there was no answer.
func connection(err error) string {
	if name, ok := errors.AsType[*net.DNSError](err); ok {
		return "cannot resolve " + name.Name
	}
	if dial, ok := errors.AsType[*net.OpError](err); ok && dial.Addr != nil {
		cause := dial.Err
		for inner := cause; inner != nil; inner = errors.Unwrap(inner) {
			cause = inner
		}
		return fmt.Sprintf("cannot connect to %s: %s", dial.Addr, cause)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return "it timed out"
	}
	if request, ok := errors.AsType[*url.Error](err); ok {
		err = request.Err
	}
	return err.Error()
}

// withPlainErrors makes each command explain the failed calls of AWS.
func withPlainErrors(cmd *cobra.Command) *cobra.Command {
	if run := cmd.RunE; run != nil {
		cmd.RunE = func(cmd *cobra.Command, args []string) error { return explainAWS(run(cmd, args)) }
	}
	for _, child := range cmd.Commands() {
		withPlainErrors(child)
	}
	return cmd
}
