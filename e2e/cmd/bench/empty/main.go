// Command empty is a Lambda function that does nothing. It shows the least that a cold start
// costs, with AWS's runtime client and the events of a function URL.
package main

import (
	"context"
	"net/http"

	"github.com/aws/aws-lambda-go/events"
	"github.com/aws/aws-lambda-go/lambda"
)

func main() {
	lambda.Start(func(context.Context, events.LambdaFunctionURLRequest) (events.LambdaFunctionURLResponse, error) {
		return events.LambdaFunctionURLResponse{StatusCode: http.StatusBadRequest}, nil
	})
}
