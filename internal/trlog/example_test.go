package trlog_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"

	"nbd.example/nbd/internal/trlog"
	"nbd.example/nbd/proto"
)

// A log is told of requests by taps, and read again by Dump.
func Example() {
	dir, err := os.MkdirTemp("", "trlog")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	name := filepath.Join(dir, "log")
	log, err := trlog.Open(trlog.Config{
		Name: name,
		Open: func() (trlog.File, error) { return os.OpenFile(name, trlog.OpenFlags, trlog.OpenMode) },
		Data: true,
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	tap := log.Tap(true)
	tap.Answered(proto.Request{Command: proto.CmdWrite, Cookie: 1, Offset: 512, Length: 5}, []byte("hello"), proto.OK)
	tap.Begun(proto.Request{Command: proto.CmdFlush, Cookie: 2}, nil, nil)
	tap.Ended(2, proto.EIO)
	if err := log.Close(); err != nil {
		fmt.Println(err)
	}
	text, err := os.ReadFile(name)
	if err != nil {
		fmt.Println(err)
	}
	if err := trlog.Dump(os.Stdout, bytes.NewReader(text)); err != nil {
		fmt.Println(err)
	}
	// Output:
	// TRACE_OPTION C=0x00000001 (NBD_TRACELOG_SET_DATALOG) O=4a93ba39a54f31b6 L=00000001
	// TRACE_OPTION DATALOG set to 1.
	// > H=0000000000000001 C=0x00000001 (       NBD_CMD_WRITE+NONE) O=0000000000000200 L=00000005
	// < H=0000000000000001 E=0x00000000
	// > H=0000000000000002 C=0x00000003 (       NBD_CMD_FLUSH+NONE) O=0000000000000000 L=00000000
	// < H=0000000000000002 E=0x00000005
}
