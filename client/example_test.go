package client_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net"
	"os"
	"path/filepath"

	"nbd.example/nbd/block"
	"nbd.example/nbd/client"
	"nbd.example/nbd/handshake"
	"nbd.example/nbd/proto"
)

// A remote disk is read and written like any other, through a block.Device.
func ExampleDial() {
	uri, stop := exampleServer()
	defer stop()
	ctx := context.Background()

	conn, err := client.Dial(ctx, uri, nil)
	if err != nil {
		log.Fatal(err)
	}
	disk, err := block.New(conn)
	if err != nil {
		log.Fatal(err)
	}
	defer disk.Close()

	if err := disk.WriteAt(ctx, []byte("hello"), 1000, 0); err != nil {
		log.Fatal(err)
	}
	if err := disk.Flush(ctx); err != nil { // now it is stable
		log.Fatal(err)
	}
	p := make([]byte, 5)
	if err := disk.ReadAt(ctx, p, 1000); err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s, on a disk of %d bytes\n", p, disk.Size())
	// Output: hello, on a disk of 1048576 bytes
}

// What a server has not offered is not sent, and errors say so.
func ExampleConn_Trim() {
	uri, stop := exampleServer()
	defer stop()
	ctx := context.Background()

	conn, err := client.Dial(ctx, uri, nil)
	if err != nil {
		log.Fatal(err)
	}
	defer conn.Close()
	err = conn.Trim(ctx, 0, 4096, 0)
	fmt.Println(errors.Is(err, errors.ErrUnsupported), err)
	// Output: true NBD_CMD_TRIM: unsupported operation: the server does not offer it
}

// exampleServer serves a megabyte of memory to one client.
func exampleServer() (uri string, stop func()) {
	dir, err := os.MkdirTemp("", "nbd")
	if err != nil {
		log.Fatal(err)
	}
	l, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		log.Fatal(err)
	}
	s := &handshake.Server{Open: func(context.Context, handshake.Peer, string) (*handshake.Export, error) {
		return &handshake.Export{Size: 1 << 20, Flags: proto.FlagHasFlags | proto.FlagSendFlush}, nil
	}}
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		if r, err := s.Negotiate(context.Background(), c); err == nil {
			serveDisk(make([]byte, 1<<20))(&fake{structured: r.Structured, extended: r.Extended}, r.Conn)
		}
	}()
	return "nbd+unix:///?socket=" + l.Addr().String(), func() { l.Close(); os.RemoveAll(dir) }
}
