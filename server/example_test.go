package server_test

import (
	"context"
	"fmt"
	"net"
	"strings"

	"nbd.example/nbd/block"
	"nbd.example/nbd/handshake"
	"nbd.example/nbd/server"
)

// greeting is a back end of a few bytes that can only be read.
type greeting string

func (g greeting) Caps() block.Caps { return block.Caps{Size: int64(len(g))} }
func (g greeting) Close() error     { return nil }
func (g greeting) ReadAt(_ context.Context, p []byte, off int64) error {
	copy(p, g[off:])
	return nil
}

// A server of one export, and a client that asks what there is.
func Example() {
	srv, err := server.New(server.Config{
		AllowList: true,
		Exports: []*server.Export{{
			Name:        "hello",
			Description: "a friendly disk",
			Open: func(context.Context, server.Client) (*block.Device, error) {
				return block.New(greeting("Hello, world!"))
			},
		}},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	ctx := context.Background()
	defer srv.Shutdown(ctx)

	here, there := net.Pipe() // srv.Serve takes a net.Listener
	go srv.ServeConn(ctx, there)
	client, err := handshake.NewClient(ctx, here)
	if err != nil {
		fmt.Println(err)
		return
	}
	exports, err := client.List(ctx)
	fmt.Println(exports, err)
	info, err := client.Info(ctx, "hello")
	fmt.Println(info.Size, info.Flags, err)
	client.Abort(ctx)
	// Output:
	// [{hello a friendly disk}] <nil>
	// 13 NBD_FLAG_HAS_FLAGS|NBD_FLAG_READ_ONLY|NBD_FLAG_SEND_CACHE <nil>
}

// Only a network and one machine may use an export with these rules.
func ExampleParseRules() {
	rules, err := server.ParseRules(strings.NewReader("192.168.0.0/16 # the office\n10.0.0.1\n"), "allow")
	if err != nil {
		fmt.Println(err)
		return
	}
	for _, ip := range []string{"192.168.7.7", "10.0.0.1", "10.0.0.10"} {
		fmt.Println(ip, rules.Allows(&net.TCPAddr{IP: net.ParseIP(ip)}))
	}
	_, err = server.ParseRules(strings.NewReader("10.0.0.1\nthe office\n"), "allow")
	fmt.Println(err)
	// Output:
	// 192.168.7.7 true
	// 10.0.0.1 true
	// 10.0.0.10 false
	// allow:2: "the office" is not an IP address or CIDR prefix
}
