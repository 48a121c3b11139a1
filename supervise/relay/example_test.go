//go:build linux

package relay_test

import (
	"fmt"
	"io"
	"net"

	"nbd.example/nbd/proto"
	"nbd.example/nbd/supervise/relay"
)

// The kernel disconnects a device. Its end of the socket is what Kernel returns.
func Example() {
	conn, server := net.Pipe() // in earnest a *tls.Conn
	r, err := relay.New(conn, nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer r.Close()

	kernel := r.Kernel() // goes to the driver, which takes a reference of its own
	kernel.Write(proto.AppendRequest(nil, &proto.Request{Command: proto.CmdDisc}))
	kernel.Close()

	got, err := io.ReadAll(server)
	fmt.Println("the server read", len(got), "bytes, then the end:", err)
	<-r.Done()
	fmt.Println("the relay ended:", r.Err())
	// Output:
	// the server read 28 bytes, then the end: <nil>
	// the relay ended: <nil>
}
