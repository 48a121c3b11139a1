package proto_test

import (
	"fmt"

	"nbd.example/nbd/proto"
)

// A request on its way over the wire and back.
func ExampleAppendRequest() {
	wire := proto.AppendRequest(nil, &proto.Request{
		Flags:   proto.CmdFlagFUA,
		Command: proto.CmdTrim,
		Cookie:  1,
		Offset:  1 << 20,
		Length:  4096,
	})
	fmt.Printf("%d bytes, magic %#x\n", len(wire), wire[:4])

	var r proto.Request
	fmt.Println(proto.ParseRequest(wire, &r), r.Command, r.Flags, r.Offset, r.Length)
	// Output:
	// 28 bytes, magic 0x25609513
	// true NBD_CMD_TRIM NBD_CMD_FLAG_FUA 1048576 4096
}

// What a server says that it cannot do, as a client reads it.
func ExampleParseOptionReplyHeader() {
	wire := proto.AppendOptionReply(nil, proto.OptGo, proto.RepErrUnknown, []byte("no such export"))
	h, err := proto.ParseOptionReplyHeader(wire)
	fmt.Println(h.Option, h.Reply, h.Reply.IsError(), string(wire[proto.OptionReplyHeaderSize:]), err)
	// Output:
	// NBD_OPT_GO NBD_REP_ERR_UNKNOWN true no such export <nil>
}
