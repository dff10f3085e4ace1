package main

import (
	"context"
	"io"
	"net"
	"strconv"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	_ "google.golang.org/grpc/encoding/gzip" // registers the compressor
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

const largest = 64 << 20

func serve(port string, maxConnectionAge int) error {
	listener, err := net.Listen("tcp", net.JoinHostPort("::", port))
	if err != nil {
		return err
	}
	server := grpc.NewServer(
		grpc.ForceServerCodec(plain{}),
		grpc.MaxRecvMsgSize(largest),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: time.Millisecond, PermitWithoutStream: true}),
		grpc.KeepaliveParams(keepalive.ServerParameters{
			Time:             time.Second,
			MaxConnectionAge: time.Duration(maxConnectionAge) * time.Millisecond,
		}),
	)
	server.RegisterService(&service, nil)
	return server.Serve(listener)
}

var service = grpc.ServiceDesc{
	ServiceName: "mesh.Peer",
	HandlerType: (*any)(nil),
	Methods:     []grpc.MethodDesc{{MethodName: "Unary", Handler: unary}},
	Streams: []grpc.StreamDesc{
		{StreamName: "Collect", Handler: collect, ClientStreams: true},
		{StreamName: "Pour", Handler: pour, ServerStreams: true},
		{StreamName: "Talk", Handler: talk, ClientStreams: true, ServerStreams: true},
	},
}

func unary(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
	var request []byte
	if err := decode(&request); err != nil {
		return nil, err
	}
	wishes := wishesOf(ctx)
	if wishes.headersFirst {
		if err := grpc.SendHeader(ctx, nil); err != nil {
			return nil, err
		}
	}
	if wishes.churn != "" {
		if err := grpc.SetHeader(ctx, metadata.Pairs("churn-answer", wishes.churn)); err != nil {
			return nil, err
		}
		if err := grpc.SetTrailer(ctx, metadata.Pairs("churn-end", wishes.churn+"-end")); err != nil {
			return nil, err
		}
	}
	if err := wishes.end(); err != nil {
		return nil, err
	}
	return &request, nil
}

func collect(_ any, stream grpc.ServerStream) error {
	count := 0
	for {
		var message []byte
		err := stream.RecvMsg(&message)
		if err == io.EOF {
			answer := []byte(strconv.Itoa(count))
			return stream.SendMsg(&answer)
		}
		if err != nil {
			return err
		}
		count++
	}
}

func pour(_ any, stream grpc.ServerStream) error {
	var message []byte
	if err := stream.RecvMsg(&message); err != nil {
		return err
	}
	wishes := wishesOf(stream.Context())
	for sent := 0; sent < wishes.messages; sent++ {
		if err := stream.SendMsg(&message); err != nil {
			return err
		}
	}
	return wishes.end()
}

func talk(_ any, stream grpc.ServerStream) error {
	for {
		var message []byte
		err := stream.RecvMsg(&message)
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
		if err := stream.SendMsg(&message); err != nil {
			return err
		}
	}
}

// wishes are what the metadata of a call says of its answer.
type wishes struct {
	delay        time.Duration
	messages     int
	status       codes.Code
	headersFirst bool
	churn        string
}

func wishesOf(ctx context.Context) wishes {
	pairs, _ := metadata.FromIncomingContext(ctx)
	text := func(name string) string {
		if values := pairs.Get(name); len(values) > 0 {
			return values[0]
		}
		return ""
	}
	whole := func(name string) int {
		value, _ := strconv.Atoi(text(name))
		return value
	}
	return wishes{
		delay:        time.Duration(whole("delay-ms")) * time.Millisecond,
		messages:     whole("messages"),
		status:       codes.Code(whole("status")),
		headersFirst: text("headers-first") != "",
		churn:        text("churn"),
	}
}

// end waits as long as is wished, whether or not the caller still does, and returns the wished status.
func (w wishes) end() error {
	time.Sleep(w.delay)
	if w.status != codes.OK {
		return status.Error(w.status, "as wished")
	}
	return nil
}
