package nbd_test

import (
	"context"
	"fmt"
	"log"
	"net"

	"nbd.example/nbd/block"
	"nbd.example/nbd/chain/core"
	"nbd.example/nbd/client"
	"nbd.example/nbd/layer/cow"
	"nbd.example/nbd/server"
)

// serve serves exports on a port of this machine, and returns what URIs begin with, and what
// ends the server when its clients have gone.
func serve(exports ...*server.Export) (base string, stop func()) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	s, err := server.New(server.Config{Exports: exports})
	if err != nil {
		log.Fatal(err)
	}
	go s.Serve(l)
	return "nbd://" + l.Addr().String() + "/", func() {
		if err := s.Shutdown(context.Background()); err != nil {
			log.Fatal(err)
		}
	}
}

// described returns what opens the disk that a text describes, as nbd-server understands it.
func described(text string) func(context.Context, server.Client) (*block.Device, error) {
	spec, err := core.Registry(core.Files{}).Parse(text)
	if err != nil {
		log.Fatal(err)
	}
	return func(ctx context.Context, _ server.Client) (*block.Device, error) { return spec.Open(ctx) }
}

// open opens an export as a disk of this program.
func open(ctx context.Context, uri string) *block.Device {
	conn, err := client.Dial(ctx, uri, nil)
	if err != nil {
		log.Fatal(err)
	}
	disk, err := block.New(conn)
	if err != nil {
		log.Fatal(err)
	}
	return disk
}

// A server serves what a text describes, and a client uses it: here a stretch of a disk in
// memory.
func Example() {
	ctx := context.Background()
	base, stop := serve(&server.Export{Name: "stretch", Open: described("memory:1M | offset:4096,size=64k")})
	defer stop()

	disk := open(ctx, base+"stretch")
	defer disk.Close()
	if err := disk.WriteAt(ctx, []byte("hello"), 0, block.FUA); err != nil { // stable when it returns
		log.Fatal(err)
	}
	p := make([]byte, 5)
	if err := disk.ReadAt(ctx, p, 0); err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s, on a disk of %d bytes\n", p, disk.Size())
	// Output: hello, on a disk of 65536 bytes
}

// squares is a back end: at offset n stands the last byte of n².
type squares struct{}

func (squares) Caps() block.Caps { return block.Caps{Size: 1 << 20} }
func (squares) Close() error     { return nil }
func (squares) ReadAt(_ context.Context, p []byte, off int64) error {
	for i := range p {
		n := off + int64(i)
		p[i] = byte(n * n)
	}
	return nil
}

// loud is a layer that says which reads pass.
type loud struct{ next *block.Device }

func (l loud) Caps() block.Caps {
	c := l.next.Caps()
	return block.Caps{Size: c.Size, ReadOnly: true, BlockSize: c.BlockSize, Instance: c.Instance}
}
func (l loud) Close() error { return l.next.Close() }
func (l loud) ReadAt(ctx context.Context, p []byte, off int64) error {
	fmt.Printf("%d bytes at %d\n", len(p), off)
	return l.next.ReadAt(ctx, p, off)
}

// Bytes of one's own, and a layer of one's own on top of them, are served like any others.
func Example_backend() {
	ctx := context.Background()
	base, stop := serve(&server.Export{
		Name: "squares",
		Open: func(context.Context, server.Client) (*block.Device, error) {
			return block.Stack(squares{}, func(next *block.Device) (block.Backend, error) { return loud{next}, nil })
		},
	})
	defer stop()

	disk := open(ctx, base+"squares")
	defer disk.Close()
	p := make([]byte, 4)
	if err := disk.ReadAt(ctx, p, 10); err != nil {
		log.Fatal(err)
	}
	fmt.Println(p)
	// Output:
	// 4 bytes at 10
	// [100 121 144 169]
}

// A connection is a back end, too: what one server has, another one serves, and its clients
// write into a diff of their own, which is dropped when they leave.
func Example_proxy() {
	ctx := context.Background()
	origin, stop := serve(&server.Export{Name: "disk", Open: described("memory:1M")})
	defer stop()
	base, stopProxy := serve(&server.Export{Name: "copy", Private: true, Open: func(ctx context.Context, _ server.Client) (*block.Device, error) {
		conn, err := client.Dial(ctx, origin+"disk", nil)
		if err != nil {
			return nil, err
		}
		return block.Stack(conn, cow.Layer(cow.Config{}))
	}})
	defer stopProxy()

	for range 2 {
		disk := open(ctx, base+"copy")
		p := make([]byte, 3)
		if err := disk.ReadAt(ctx, p, 0); err != nil {
			log.Fatal(err)
		}
		fmt.Println(p)
		if err := disk.WriteAt(ctx, []byte("new"), 0, 0); err != nil {
			log.Fatal(err)
		}
		disk.Close()
	}
	// Output:
	// [0 0 0]
	// [0 0 0]
}
