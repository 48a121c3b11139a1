package configs

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"nbd.example/nbd/client"
	"nbd.example/nbd/handshake"
	"nbd.example/nbd/test/harness"
)

const (
	reloads = 100
	regions = 4 // connections to the file, each with a part of its own
	part    = 1 << 20
)

// TestReloads: a hundred reloads under load. Exports that stay lose no request and no
// byte; those that come and go are there or not, and never anything in between.
func TestReloads(t *testing.T) {
	unixOnly(t)
	t.Parallel()
	dir := harness.Dir(t)
	image := harness.Image(t, dir, "image", make([]byte, regions*part))
	exports := func(i int) string {
		text := fmt.Sprintf("[stays]\nexportname = %s\nmaxconnections = %d\n[each]\nexportname = memory:64k\nprerun = true\npostrun = true\n", image, 50+i%3)
		if i%2 == 1 {
			text += "[comes and goes]\nexportname = memory:64k\n"
		}
		return text + fmt.Sprintf("[grows]\nexportname = memory:%d\n", 4096*(1+i%5))
	}
	s := harness.StartIn(t, dir, harness.Config{Exports: exports(0)})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var load sync.WaitGroup
	var requests, visits atomic.Int64
	for i := range regions {
		load.Go(func() { write(ctx, t, dial(t, s.URI("stays"), nil), int64(i)*part, &requests) })
	}
	for _, name := range []string{"stays", "each", "comes and goes", "grows"} {
		load.Go(func() { visit(ctx, t, s.URI(name), name, &visits) })
	}
	for i := 1; i <= reloads; i++ {
		s.WriteConfig(t, "", exports(i))
		s.Signal(hangup)
		await(t, s.Process, "configuration taken over", i)
	}
	cancel()
	load.Wait()
	t.Logf("%d requests and %d visits during %d reloads", requests.Load(), visits.Load(), reloads)
	if requests.Load() < reloads || visits.Load() < reloads {
		t.Error("that is not a load")
	}
	s.Stop()
	data := read(t, filepath.Join(dir, "image"))
	for i := range regions {
		seen := 0
		for off := 0; off < part; off += 4096 {
			if block := data[i*part+off:][:4096]; !bytes.Equal(block, make([]byte, 4096)) {
				seen++
				if binary.BigEndian.Uint64(block) != uint64(i*part+off) {
					t.Errorf("block %d holds what belongs elsewhere", i*part+off)
				}
			}
		}
		if seen == 0 {
			t.Errorf("region %d holds nothing", i)
		}
	}
}

// write writes blocks into a region and reads them back, until ctx is done. No
// request may fail.
func write(ctx context.Context, t *testing.T, c *client.Conn, from int64, requests *atomic.Int64) {
	defer c.Close()
	bg := context.WithoutCancel(ctx)
	block, got := make([]byte, 4096), make([]byte, 4096)
	last := map[int64]uint64{}
	for n := uint64(1); ctx.Err() == nil; n++ {
		off := from + 4096*rand.Int64N(part/4096)
		binary.BigEndian.PutUint64(block, uint64(off))
		binary.BigEndian.PutUint64(block[8:], n)
		if err := c.WriteAt(bg, block, off, 0); err != nil {
			t.Errorf("write: %v", err)
			return
		}
		last[off] = n
		for off, n := range last { // any of them
			if err := c.ReadAt(bg, got, off); err != nil || binary.BigEndian.Uint64(got[8:]) != n {
				t.Errorf("read: %v, version %d, want %d", err, binary.BigEndian.Uint64(got[8:]), n)
				return
			}
			break
		}
		if n%64 == 0 {
			if err := c.Flush(bg); err != nil {
				t.Errorf("flush: %v", err)
				return
			}
		}
		requests.Add(2)
	}
}

// visit connects again and again. Only what the configuration changes may be refused.
func visit(ctx context.Context, t *testing.T, uri, name string, visits *atomic.Int64) {
	changes := name == "comes and goes" || name == "grows"
	for ctx.Err() == nil {
		c, err := client.Dial(context.WithoutCancel(ctx), uri, nil)
		switch {
		case err == nil:
			if err := c.ReadAt(context.WithoutCancel(ctx), make([]byte, 4096), 0); err != nil {
				t.Errorf("%s: read: %v", name, err)
			}
			if err := c.Close(); err != nil {
				t.Errorf("%s: close: %v", name, err)
			}
			visits.Add(1)
		case changes && (errors.Is(err, handshake.ErrUnknown) || errors.Is(err, handshake.ErrPolicy)):
		default:
			t.Errorf("%s: %v", name, err)
			return
		}
	}
}
