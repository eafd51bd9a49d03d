package teleport

import (
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/credentials"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"

	"github.com/hallmark-ssh/hallmark/internal/signer/teleport/joinv1"
)

// A strange or hostile answer from a join service is refused at once, before our proof if it
// comes before that, and the server learns why.
func TestHostileJoinService(t *testing.T) {
	long := strings.Repeat("a", maxChallenge+1)
	for name, tt := range map[string]struct {
		says   []*joinv1.JoinResponse
		want   string
		reason joinv1.GivingUp_Reason
	}{
		"nothing":                {nil, "ended before its result", 0},
		"an empty message":       {[]*joinv1.JoinResponse{{}}, "want init", joinv1.GivingUp_REASON_UNSUPPORTED_MESSAGE_TYPE},
		"a challenge first":      {[]*joinv1.JoinResponse{challengeOf("c")}, "want init", joinv1.GivingUp_REASON_UNSUPPORTED_MESSAGE_TYPE},
		"a result first":         {[]*joinv1.JoinResponse{resultOf(nil, nil)}, "want init", joinv1.GivingUp_REASON_UNSUPPORTED_MESSAGE_TYPE},
		"another method":         {[]*joinv1.JoinResponse{initOf("token")}, "join_method: iam", joinv1.GivingUp_REASON_UNSUPPORTED_JOIN_METHOD},
		"a method of many words": {[]*joinv1.JoinResponse{initOf(long)}, `aaa"`, joinv1.GivingUp_REASON_UNSUPPORTED_JOIN_METHOD},
		"init again":             {[]*joinv1.JoinResponse{initOf("iam"), initOf("iam")}, "want an IAM challenge", joinv1.GivingUp_REASON_UNSUPPORTED_MESSAGE_TYPE},
		"another challenge":      {[]*joinv1.JoinResponse{initOf("iam"), {Payload: &joinv1.JoinResponse_Challenge{}}}, "want an IAM challenge", joinv1.GivingUp_REASON_UNSUPPORTED_MESSAGE_TYPE},
		"an empty challenge":     {[]*joinv1.JoinResponse{initOf("iam"), challengeOf("")}, "has 0 bytes", joinv1.GivingUp_REASON_CHALLENGE_SOLUTION_FAILED},
		"a long challenge":       {[]*joinv1.JoinResponse{initOf("iam"), challengeOf(long)}, "has 1025 bytes", joinv1.GivingUp_REASON_CHALLENGE_SOLUTION_FAILED},
		"a header more":          {[]*joinv1.JoinResponse{initOf("iam"), challengeOf("c\r\nHost: x")}, "byte 0xd", joinv1.GivingUp_REASON_CHALLENGE_SOLUTION_FAILED},
		"a second challenge":     {[]*joinv1.JoinResponse{initOf("iam"), challengeOf("c"), challengeOf("c")}, "want a bot's certificates", joinv1.GivingUp_REASON_UNSUPPORTED_MESSAGE_TYPE},
		"a host's result":        {[]*joinv1.JoinResponse{initOf("iam"), challengeOf("c"), {Payload: &joinv1.JoinResponse_Result{}}}, "want a bot's certificates", joinv1.GivingUp_REASON_UNSUPPORTED_MESSAGE_TYPE},
		"no result":              {[]*joinv1.JoinResponse{initOf("iam"), challengeOf("c")}, "ended before its result", 0},
		"no CA":                  {[]*joinv1.JoinResponse{initOf("iam"), challengeOf("c"), resultOf(nil, []byte("junk"))}, "TLS CA in the answer", 0},
		"no certificate":         {[]*joinv1.JoinResponse{initOf("iam"), challengeOf("c"), resultOf([]byte("junk"), nil)}, "TLS certificate: ", 0},
		"megabytes":              {[]*joinv1.JoinResponse{initOf(strings.Repeat("a", maxJoinMessage))}, "larger than max", 0},
	} {
		t.Run(name, func(t *testing.T) {
			sent := make(chan joinv1.GivingUp_Reason, 1)
			err := joinAt(t, func(stream joinv1.ServerStream) error { return say(stream, tt.says, sent) })
			if err == nil || !strings.Contains(err.Error(), tt.want) || len(err.Error()) > 300 {
				t.Errorf("got %v, want %q in it", err, tt.want)
			}
			if tt.reason == 0 {
				return
			}
			if got := <-sent; got != tt.reason {
				t.Errorf("the server was told %s, want %s", got, tt.reason)
			}
		})
	}
}

// If a server never ends the stream, the client leaves when its time is up.
func TestEndlessJoinService(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	err := joinWith(ctx, t, func(stream joinv1.ServerStream) error {
		<-stream.Context().Done()
		return stream.Context().Err()
	})
	if !errors.Is(kindOf(err), ErrUnavailable) {
		t.Errorf("got %v", err)
	}
}

// If a server does not end the stream when the client gives up, the client does not wait long.
func TestJoinServiceIgnoresGivingUp(t *testing.T) {
	err := joinAt(t, func(stream joinv1.ServerStream) error {
		if err := stream.Send(initOf("token")); err != nil {
			return err
		}
		<-stream.Context().Done()
		return nil
	})
	if !errors.Is(err, ErrDenied) {
		t.Errorf("got %v", err)
	}
}

func TestUnimplementedJoinService(t *testing.T) {
	if err := joinAt(t, nil); !isUnimplemented(err) {
		t.Errorf("got %v", err)
	}
}

// say answers each message with the next in a list, and records why the client gives up.
func say(stream joinv1.ServerStream, responses []*joinv1.JoinResponse, sent chan<- joinv1.GivingUp_Reason) error {
	for n := 0; ; n++ {
		request, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if g := request.GetGivingUp(); g != nil {
			sent <- g.Reason
			return status.Error(codes.Canceled, "the client gave up")
		}
		if n == len(responses) {
			return nil
		}
		if err := stream.Send(responses[n]); err != nil {
			return err
		}
	}
}

func joinAt(t *testing.T, serve func(joinv1.ServerStream) error) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	return joinWith(ctx, t, serve)
}

// joinWith joins at a server; nil means a server without the service.
func joinWith(ctx context.Context, t *testing.T, serve func(joinv1.ServerStream) error) error {
	t.Helper()
	listener := bufconn.Listen(1 << 20)
	server := grpc.NewServer()
	if serve != nil {
		joinv1.Serve(server, serve)
	}
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	conn, err := grpc.NewClient("passthrough:///join",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return listener.DialContext(ctx) }),
		grpc.WithTransportCredentials(insecure.NewCredentials()), joinOptions())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	key, err := newBotKey()
	if err != nil {
		t.Fatal(err)
	}
	b := Bot{Token: "t", Credentials: credentials.NewStaticCredentialsProvider("AKIA", "s", ""), Region: "us-west-2", STSHost: "sts.us-west-2.amazonaws.com"}
	answer, err := b.joinNew(ctx, conn, key, time.Now)
	if err != nil {
		return err
	}
	_, err = key.identity(answer, time.Now())
	return err
}

func initOf(method string) *joinv1.JoinResponse {
	return &joinv1.JoinResponse{Payload: &joinv1.JoinResponse_Init{Init: &joinv1.ServerInit{JoinMethod: method}}}
}

func challengeOf(challenge string) *joinv1.JoinResponse {
	return &joinv1.JoinResponse{Payload: &joinv1.JoinResponse_Challenge{Challenge: &joinv1.Challenge{
		Payload: &joinv1.Challenge_IamChallenge{IamChallenge: &joinv1.IAMChallenge{Challenge: challenge}},
	}}}
}

func resultOf(certificate, ca []byte) *joinv1.JoinResponse {
	certificates := &joinv1.Certificates{TlsCert: certificate}
	if ca != nil {
		certificates.TlsCaCerts = [][]byte{ca}
	}
	return &joinv1.JoinResponse{Payload: &joinv1.JoinResponse_Result{Result: &joinv1.Result{
		Payload: &joinv1.Result_BotResult{BotResult: &joinv1.BotResult{Certificates: certificates}},
	}}}
}
