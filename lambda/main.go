// Command bootstrap is Hallmark's signer on AWS Lambda. It is deployed as two functions;
// the handler setting selects which: "enroll", which instances call at its URL or through
// another entry, and "fleet", which then keeps Teleport in step with EC2. Neither does the
// other's work. So a flood of requests cannot stop off-boarding, and a caller who sends
// requests cannot have another's node deleted.
//
// The functions take their settings from the file that HALLMARK_DEPLOYMENT names, by
// default deployment.yaml beside the program, from HALLMARK_LEDGER_TABLE,
// HALLMARK_POLICY_PARAMETER, HALLMARK_AUDIENCE and HALLMARK_ENTRY, and from the usual
// variables of the AWS SDK.
package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"

	"github.com/aws/aws-lambda-go/lambda"

	"github.com/hallmark-ssh/hallmark/internal/signer/deployment"
)

func main() {
	ctx := context.Background()
	log := newLog()
	if os.Getenv("AWS_LAMBDA_RUNTIME_API") == "" {
		log.Error("bootstrap runs in AWS Lambda only; the operator's command is hallmark-signer")
		os.Exit(1)
	}
	h, err := newFunction(ctx, os.Getenv("_HANDLER"), log)
	if err != nil {
		// Lambda reports only the exit; this line gives the reason.
		log.Error("the signer cannot start", slog.Any("error", err))
		os.Exit(1)
	}
	lambda.Start(h)
}

// newFunction builds the function with that name.
func newFunction(ctx context.Context, name string, log *slog.Logger) (lambda.Handler, error) {
	switch name {
	case "enroll":
		s, from, err := deployment.NewSigner(ctx, log)
		if err != nil {
			return nil, err
		}
		return handler{from, s.Answer, log}, nil
	case "fleet":
		return newFleetHandler(ctx, log)
	}
	return nil, fmt.Errorf("_HANDLER is %q; the function's handler setting must be enroll or fleet (template.yaml has both)", name)
}

// newLog returns a JSON log whose field names Lambda can filter by level.
func newLog() *slog.Logger {
	return slog.New(slog.NewJSONHandler(os.Stdout, &slog.HandlerOptions{
		ReplaceAttr: func(groups []string, a slog.Attr) slog.Attr {
			if a.Key == slog.TimeKey && len(groups) == 0 {
				a.Key = "timestamp"
			}
			return a
		},
	}))
}
