package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strconv"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/encoding/gzip"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

const (
	patience = 60 * time.Second
	pause    = 100 * time.Millisecond
	deadline = 300 * time.Millisecond
)

// refusals are the statuses that every fourth of the paced calls ends with, in turn.
var refusals = []codes.Code{codes.NotFound, codes.Unavailable}

// client makes calls on one connection, and counts.
type client struct {
	connection *grpc.ClientConn
	message    []byte
	lock       sync.Mutex
	told       told
}

// told is what the client knows at the end.
type told struct {
	Calls    int            `json:"calls"`
	Statuses map[string]int `json:"statuses"`
	Sent     int            `json:"sent"`
	Received int            `json:"received"`
}

func call(address, scenario string, number, size int) error {
	connection, err := grpc.Dial(
		address,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDisableRetry(),
		grpc.WithDefaultCallOptions(grpc.ForceCodec(plain{}), grpc.MaxCallRecvMsgSize(largest), grpc.MaxCallSendMsgSize(largest)),
	)
	if err != nil {
		return err
	}
	defer connection.Close()
	c := &client{connection: connection, message: bytes.Repeat([]byte("m"), size), told: told{Statuses: map[string]int{}}}
	if err := c.run(scenario, number); err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(c.told)
}

func (c *client) run(scenario string, number int) error {
	switch scenario {
	case "unary":
		c.repeat(number, 0, nil)
	case "paced":
		c.repeat(number, pause, refusal)
	case "gzip":
		c.repeat(number, 0, nil, grpc.UseCompressor(gzip.Name))
	case "churn":
		c.repeat(number, 0, func(call int) []string { return []string{"churn", fmt.Sprintf("%08x-never-seen-before", call)} })
	case "concurrent":
		c.concurrent(number)
	case "collect":
		c.stream("Collect", number, false, 0)
	case "pour":
		c.pour(patience, "messages", strconv.Itoa(number))
	case "talk":
		c.stream("Talk", number, true, 0)
	case "statuses":
		for wished := 0; wished <= 16; wished++ {
			text := strconv.Itoa(wished)
			c.unary("Unary", patience, "status", text)
			c.unary("Unary", patience, "status", text, "headers-first", "yes")
			c.pour(patience, "messages", "3", "status", text)
		}
	case "unknown":
		c.unary("Missing", patience)
	case "deadline":
		for call := 0; call < number; call++ {
			c.unary("Unary", deadline, "delay-ms", "1000")
		}
	case "deadline-stream":
		c.pour(deadline, "messages", "1", "delay-ms", "1000")
	case "cancel":
		for call := 0; call < number; call++ {
			c.cancelled()
		}
	case "cancel-stream":
		c.interrupted(number)
	case "pings":
		c.stream("Talk", number, true, 1500*time.Millisecond)
	default:
		return fmt.Errorf("unknown scenario %q", scenario)
	}
	return nil
}

func (c *client) repeat(number int, pause time.Duration, pairs func(int) []string, options ...grpc.CallOption) {
	for call := 0; call < number; call++ {
		var with []string
		if pairs != nil {
			with = pairs(call)
		}
		ctx, cancel := outgoing(patience, with...)
		c.invoke(ctx, "Unary", options...)
		cancel()
		time.Sleep(pause)
	}
}

func refusal(call int) []string {
	if call%4 != 3 {
		return nil
	}
	return []string{"status", strconv.Itoa(int(refusals[call/4%len(refusals)]))}
}

func (c *client) concurrent(number int) {
	var group sync.WaitGroup
	for call := 0; call < number; call++ {
		group.Add(1)
		go func() {
			defer group.Done()
			c.unary("Unary", patience, "delay-ms", "300")
		}()
	}
	group.Wait()
}

func (c *client) unary(method string, limit time.Duration, pairs ...string) {
	ctx, cancel := outgoing(limit, pairs...)
	defer cancel()
	c.invoke(ctx, method)
}

func (c *client) cancelled() {
	ctx, cancel := outgoing(patience, "delay-ms", "1000")
	time.AfterFunc(deadline, cancel)
	c.invoke(ctx, "Unary")
}

func (c *client) invoke(ctx context.Context, method string, options ...grpc.CallOption) {
	var answer []byte
	err := c.connection.Invoke(ctx, "/mesh.Peer/"+method, &c.message, &answer, options...)
	received := 0
	if err == nil {
		received = 1
	}
	c.ended(err, 1, received)
}

func (c *client) pour(limit time.Duration, pairs ...string) {
	ctx, cancel := outgoing(limit, pairs...)
	defer cancel()
	stream := c.open(ctx, "Pour")
	err := stream.SendMsg(&c.message)
	if err == nil {
		err = stream.CloseSend()
	}
	received := 0
	for err == nil {
		var answer []byte
		if err = stream.RecvMsg(&answer); err == nil {
			received++
		}
	}
	c.ended(err, 1, received)
}

// stream sends so many messages, taking an answer to each or one to all.
func (c *client) stream(method string, number int, each bool, pause time.Duration) {
	ctx, cancel := outgoing(patience)
	defer cancel()
	stream := c.open(ctx, method)
	received := 0
	var err error
	receive := func() {
		var answer []byte
		if err = stream.RecvMsg(&answer); err == nil {
			received++
		}
	}
	sent := 0
	for ; sent < number && err == nil; sent++ {
		if err = stream.SendMsg(&c.message); err == nil && each {
			receive()
		}
		time.Sleep(pause)
	}
	if err == nil {
		err = stream.CloseSend()
	}
	for err == nil {
		receive()
	}
	c.ended(err, sent, received)
}

// interrupted talks for so many messages, then cancels.
func (c *client) interrupted(number int) {
	ctx, cancel := outgoing(patience)
	stream := c.open(ctx, "Talk")
	var answer []byte
	for talked := 0; talked < number; talked++ {
		must(stream.SendMsg(&c.message))
		must(stream.RecvMsg(&answer))
	}
	cancel()
	c.ended(stream.RecvMsg(&answer), number, number)
}

func (c *client) open(ctx context.Context, method string) grpc.ClientStream {
	description := &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}
	stream, err := c.connection.NewStream(ctx, description, "/mesh.Peer/"+method)
	must(err)
	return stream
}

func (c *client) ended(err error, sent, received int) {
	code := status.Code(err)
	if err == io.EOF {
		code = codes.OK
	}
	c.lock.Lock()
	defer c.lock.Unlock()
	c.told.Calls++
	c.told.Statuses[strconv.Itoa(int(code))]++
	c.told.Sent += sent
	c.told.Received += received
}

func outgoing(limit time.Duration, pairs ...string) (context.Context, context.CancelFunc) {
	return context.WithTimeout(metadata.AppendToOutgoingContext(context.Background(), pairs...), limit)
}

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "grpc-go:", err)
		os.Exit(1)
	}
}
