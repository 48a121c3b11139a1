//go:build unix

package kerneltest_test

import (
	"context"
	"fmt"
	"net"
	"os"

	"nbd.example/nbd/kernel"
	"nbd.example/nbd/kernel/kerneltest"
	"nbd.example/nbd/proto"
)

// A server that answers nothing, a device attached to it, and its end.
func Example() {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer l.Close()
	conn, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		fmt.Println(err)
		return
	}
	defer conn.Close()
	socket, err := conn.(*net.TCPConn).File()
	if err != nil {
		fmt.Println(err)
		return
	}
	defer socket.Close()

	k := kerneltest.New(kerneltest.Config{})
	defer k.Close()
	d := k.Open()
	i, err := d.Connect(context.Background(), &kernel.Attach{
		Any: true, Size: 1 << 20, Flags: proto.FlagHasFlags, Sockets: []*os.File{socket},
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	info, _ := kernel.AwaitReady(context.Background(), d, i)
	fmt.Println(i.Path(), info.Size)
	d.Disconnect(context.Background(), i)
	info, _ = kernel.AwaitGone(context.Background(), d, i)
	fmt.Println(info.Size)
	// Output:
	// /dev/nbd0 1048576
	// 0
}
