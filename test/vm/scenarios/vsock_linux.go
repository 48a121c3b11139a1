package scenarios

import (
	"bytes"
	"context"
	"fmt"
	"sync"
	"time"

	"nbd.example/nbd/client"
	"nbd.example/nbd/test/harness"
	"nbd.example/nbd/test/vm/guest"
)

// vsocks is served over vsock, to the machine itself: short and long requests, many at
// once, a server that ends, and one file for each machine.
func vsocks(t *guest.T) {
	dir := t.TempDir()
	data := harness.Random(31, 8*mib)
	image := harness.Image(t, dir, "disk-vsock-1", data)
	harness.Image(t, dir, "disk-unix", data[:mib])
	s := harness.StartIn(t, dir, harness.Config{
		Generic: "listen = vsock:10809, vsock:1:10810",
		Exports: fmt.Sprintf("[disk]\nexportname = %s/disk-%%s\n", dir),
	})
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	var conns []*client.Conn
	for _, port := range []int{10809, 10810} {
		c, err := client.Dial(ctx, fmt.Sprintf("nbd+vsock://1:%d/disk", port), nil)
		if err != nil {
			t.Fatalf("port %d: %v", port, err)
		}
		conns = append(conns, c)
		if c.Size() != 8*mib {
			t.Errorf("port %d: %d bytes", port, c.Size())
		}
	}
	if c, err := client.Dial(ctx, s.URI("disk"), nil); err != nil || c.Size() != mib {
		t.Errorf("by the unix socket: %v", err)
	} else {
		c.Close()
	}
	got := make([]byte, 8*mib)
	if err := conns[0].ReadAt(ctx, got, 0); err != nil || !bytes.Equal(got, data) {
		t.Errorf("the whole: %v", err)
	}
	crossWrites(ctx, t, conns)
	if err := conns[0].Flush(ctx); err != nil {
		t.Errorf("flush: %v", err)
	}
	if err := conns[0].ReadAt(ctx, got, 0); err != nil {
		t.Errorf("the whole again: %v", err)
	}
	harness.Same(t, image, got)
	if err := conns[1].Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	s.Stop()
	if err := conns[0].ReadAt(ctx, got[:512], 0); err == nil {
		t.Error("a read succeeded when the server had gone")
	}
	conns[0].Close()
	if _, err := client.Dial(ctx, "nbd+vsock://1:10809/disk", nil); err == nil {
		t.Error("connected to a server that has gone")
	}
}

// crossWrites writes on each of two connections, many requests at once, and reads on
// the other one.
func crossWrites(ctx context.Context, t *guest.T, conns []*client.Conn) {
	var all sync.WaitGroup
	for i := range 16 {
		all.Go(func() {
			c, off := conns[i%2], int64(i)*512<<10
			for n := range 32 {
				p := bytes.Repeat([]byte{byte(i), byte(n)}, 2048)
				if err := c.WriteAt(ctx, p, off+int64(n)*4096, 0); err != nil {
					t.Errorf("write: %v", err)
					return
				}
				back := make([]byte, len(p))
				if err := conns[(i+1)%2].ReadAt(ctx, back, off+int64(n)*4096); err != nil || !bytes.Equal(back, p) {
					t.Errorf("read on the other connection: %v", err)
					return
				}
			}
		})
	}
	all.Wait()
}
