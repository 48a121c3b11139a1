package transmission_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"net"

	"nbd.example/nbd/backend/pattern"
	"nbd.example/nbd/block"
	"nbd.example/nbd/proto"
	"nbd.example/nbd/transmission"
)

// Both ends of a connection whose handshake is done: one serves, the other
// reads 16 bytes and says good-bye.
func ExampleServe() {
	b, _ := pattern.New(pattern.Config{Size: 1 << 20})
	dev, err := block.New(b)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer dev.Close()

	here, there := net.Pipe()
	go func() {
		head := proto.AppendRequest(nil, &proto.Request{Command: proto.CmdRead, Cookie: 7, Offset: 4096, Length: 16})
		here.Write(head)
		reply := make([]byte, proto.SimpleReplySize+16)
		io.ReadFull(here, reply)
		var r proto.SimpleReply
		proto.ParseSimpleReply(reply, &r)
		fmt.Println("cookie", r.Cookie, r.Error, binary.BigEndian.Uint64(reply[proto.SimpleReplySize:]))
		here.Write(proto.AppendRequest(nil, &proto.Request{Command: proto.CmdDisc}))
	}()

	stats, err := transmission.Serve(context.Background(), there, &transmission.Session{
		Device: dev,
		Flags:  proto.FlagHasFlags | proto.FlagReadOnly,
	}, nil)
	fmt.Println(stats.BytesRead, "bytes read,", err)
	// Output:
	// cookie 7 OK 4096
	// 16 bytes read, <nil>
}
