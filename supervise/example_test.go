package supervise_test

import (
	"context"
	"fmt"
	"log"
	"net"
	"os"
	"path/filepath"

	"nbd.example/nbd/backend/memory"
	"nbd.example/nbd/block"
	"nbd.example/nbd/kernel/kerneltest"
	"nbd.example/nbd/server"
	"nbd.example/nbd/supervise"
)

// A device is attached, used and detached. Programs open the kernel's driver by
// nbdnl.Open; this one has a kernel of its own.
func Example() {
	dir, err := os.MkdirTemp("", "nbd")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(dir)
	uri, stop := exampleServer(dir)
	defer stop()
	fake := kerneltest.New(kerneltest.Config{})
	defer fake.Close()
	ctx := context.Background()

	s, err := supervise.New(supervise.Config{Kernel: fake.Open(), Dir: dir})
	if err != nil {
		log.Fatal(err)
	}
	defer s.Close(ctx, true) // what is still attached stays so, for the next process

	d, err := s.Attach(ctx, &supervise.Spec{URIs: []string{uri}})
	if err != nil {
		log.Fatal(err)
	}
	st := d.Status()
	fmt.Println(st.Device, st.Phase, st.Size)

	again, err := s.Attach(ctx, &supervise.Spec{URIs: []string{uri}})
	fmt.Println(again == d, err)

	fmt.Println(d.Detach(ctx, false), d.Err())
	// Output:
	// /dev/nbd0 attached 1048576
	// true <nil>
	// <nil> the device is detached
}

// exampleServer serves a megabyte of memory.
func exampleServer(dir string) (uri string, stop func()) {
	s, err := server.New(server.Config{Exports: []*server.Export{{
		Name: "disk",
		Open: func(context.Context, server.Client) (*block.Device, error) {
			m, err := memory.New(memory.Config{Size: 1 << 20})
			if err != nil {
				return nil, err
			}
			return block.New(m)
		},
	}}})
	if err != nil {
		log.Fatal(err)
	}
	socket := filepath.Join(dir, "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		log.Fatal(err)
	}
	go s.Serve(l)
	return "nbd+unix:///disk?socket=" + socket, func() { s.Shutdown(context.Background()) }
}
