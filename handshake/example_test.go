package handshake_test

import (
	"context"
	"errors"
	"fmt"
	"net"

	"nbd.example/nbd/handshake"
	"nbd.example/nbd/proto"
)

// A server with one export, and a client that takes the usual way to it.
func ExampleServer_Negotiate() {
	clientEnd, serverEnd := net.Pipe()
	defer clientEnd.Close()
	defer serverEnd.Close()
	server := &handshake.Server{
		Open: func(_ context.Context, _ handshake.Peer, name string) (*handshake.Export, error) {
			if name != "disk" {
				return nil, fmt.Errorf("%w: %q", handshake.ErrUnknown, name)
			}
			return &handshake.Export{Name: "disk", Size: 1 << 30, Contexts: []string{proto.ContextBaseAllocation}}, nil
		},
	}
	ctx := context.Background()
	done := make(chan *handshake.Result)
	go func() {
		result, err := server.Negotiate(ctx, serverEnd)
		if err != nil {
			serverEnd.Close() // Negotiate leaves that to us
		}
		done <- result
	}()

	client, err := handshake.NewClient(ctx, clientEnd)
	if err != nil {
		fmt.Println(err)
		return
	}
	agreement, err := client.Negotiate(ctx, handshake.ClientConfig{Export: "disk", Contexts: []string{proto.ContextBaseAllocation}})
	if err != nil {
		fmt.Println(err)
		return
	}
	result := <-done
	fmt.Println("client:", agreement.Export.Size, "bytes, extended headers", agreement.Extended, agreement.Contexts)
	fmt.Println("server:", result.Flags)
	// Output:
	// client: 1073741824 bytes, extended headers true [{1 base:allocation}]
	// server: NBD_FLAG_HAS_FLAGS|NBD_FLAG_SEND_DF|NBD_FLAG_BLOCK_STATUS_PAYLOAD
}

// Haggling step by step, and watched: a refusal leaves the next step possible.
func ExampleClient() {
	clientEnd, serverEnd := net.Pipe()
	defer serverEnd.Close()
	server := &handshake.Server{
		Open: func(context.Context, handshake.Peer, string) (*handshake.Export, error) {
			return nil, handshake.ErrUnknown
		},
	}
	ctx := context.Background()
	done := make(chan error)
	go func() {
		_, err := server.Negotiate(ctx, serverEnd)
		serverEnd.Close()
		done <- err
	}()

	setup := handshake.Setup{Trace: func(e handshake.Event) { fmt.Println(e) }}
	client, err := setup.Client(ctx, clientEnd)
	if err != nil {
		fmt.Println(err)
		return
	}
	if _, err := client.List(ctx); errors.Is(err, handshake.ErrPolicy) {
		fmt.Println("the server does not list its exports")
	}
	_, err = client.Info(ctx, "disk", proto.InfoBlockSize)
	fmt.Println(err)
	client.Abort(ctx)
	fmt.Println(<-done)
	// Output:
	// S: greeting, flags NBD_FLAG_FIXED_NEWSTYLE|NBD_FLAG_NO_ZEROES
	// C: client flags NBD_FLAG_C_FIXED_NEWSTYLE|NBD_FLAG_C_NO_ZEROES
	// C: NBD_OPT_LIST
	// S: NBD_REP_ERR_POLICY to NBD_OPT_LIST: "this server does not list its exports"
	// the server does not list its exports
	// C: NBD_OPT_INFO "disk" asking [NBD_INFO_BLOCK_SIZE]
	// S: NBD_REP_ERR_UNKNOWN to NBD_OPT_INFO: "no such export"
	// server refused NBD_OPT_INFO: NBD_REP_ERR_UNKNOWN: "no such export"
	// C: NBD_OPT_ABORT
	// S: NBD_REP_ACK to NBD_OPT_ABORT
	// handshake: the client aborted
}
