// Package joinv1 has the messages of Teleport's join service, teleport.join.v1, and its
// one method. join.proto names their source.
package joinv1

import (
	"context"

	"google.golang.org/grpc"
)

// protoc is Debian's protobuf-compiler; the plugin is of the module that go.mod names.
//go:generate go build -o ../../../../bin/protoc-gen-go google.golang.org/protobuf/cmd/protoc-gen-go
//go:generate protoc --plugin=../../../../bin/protoc-gen-go --go_out=. --go_opt=paths=source_relative join.proto

const (
	service = "teleport.join.v1.JoinService"
	method  = "Join"
)

type (
	// ClientStream is the client's end of a join.
	ClientStream = grpc.BidiStreamingClient[JoinRequest, JoinResponse]
	// ServerStream is the server's end of a join.
	ServerStream = grpc.BidiStreamingServer[JoinRequest, JoinResponse]
)

// Join opens the stream of one join. Teleport before 18 answers the first Recv with
// codes.Unimplemented.
func Join(ctx context.Context, conn grpc.ClientConnInterface, options ...grpc.CallOption) (ClientStream, error) {
	stream, err := conn.NewStream(ctx, &description(nil).Streams[0], "/"+service+"/"+method, options...)
	if err != nil {
		return nil, err
	}
	return &grpc.GenericClientStream[JoinRequest, JoinResponse]{ClientStream: stream}, nil
}

// Serve registers what answers a join. It is for stand-ins of Teleport.
func Serve(server grpc.ServiceRegistrar, join func(ServerStream) error) {
	server.RegisterService(description(join), nil)
}

func description(join func(ServerStream) error) *grpc.ServiceDesc {
	return &grpc.ServiceDesc{
		ServiceName: service,
		Streams: []grpc.StreamDesc{{
			StreamName: method,
			Handler: func(_ any, stream grpc.ServerStream) error {
				return join(&grpc.GenericServerStream[JoinRequest, JoinResponse]{ServerStream: stream})
			},
			ServerStreams: true,
			ClientStreams: true,
		}},
	}
}
