package scenarios

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"

	"nbd.example/nbd/test/harness"
	"nbd.example/nbd/test/vm/guest"
)

// stuckStep is the distance of the writes in stuckWrites, in bytes.
const stuckStep = 256 << 10

// half is the size of each half of the disk in stuckWrites, in sectors.
const half = 16 * mib / 512

// stuckWrites makes the first half of a disk hold back what comes to it. Writes and
// flushes are then stuck for as long as we want, and reads of the second half, on the
// same connection, must go on: hot ones and cold ones, large ones and small ones.
func stuckWrites(t *guest.T) {
	back := harness.Image(t, t.TempDir(), "back.img", harness.Random(4, 32*mib))
	loop := guest.Loop(t, back, 512)
	gate := guest.Mapper(t, "gate", fmt.Sprintf("0 %d linear %s 0", half, loop))
	disk := guest.Mapper(t, "disk",
		fmt.Sprintf("0 %d linear %s 0", half, gate), fmt.Sprintf("%d %d linear %s %d", half, half, loop, half))
	s := serve(t, disk)
	k := guest.Attach{Server: s}.Do(t, 0)
	f := guest.Direct(t, k.Path)
	if _, err := f.ReadAt(guest.Buffer(512<<10), hot); err != nil {
		t.Fatal(err)
	}

	guest.Suspend(t, "gate")
	const stuck = 40
	var ended atomic.Int32
	var wg sync.WaitGroup
	durable := guest.Open(t, k.Path, os.O_RDWR|unix.O_DIRECT|unix.O_DSYNC)
	for i := range stuck {
		wg.Go(func() {
			if _, err := durable.WriteAt(guest.Filled(uint64(i), 64<<10), int64(i)*stuckStep); err != nil {
				t.Errorf("write that was held back: %v", err)
			}
			ended.Add(1)
		})
	}
	wg.Go(func() {
		if err := f.Sync(); err != nil {
			t.Errorf("flush that was held back: %v", err)
		}
		ended.Add(1)
	})
	t.Await("the writes are at the kernel's device", func() bool {
		_, writes := guest.InFlight(t, k.Name)
		return writes >= stuck
	})
	t.Await("a write is at the gate", func() bool {
		_, writes := guest.InFlight(t, filepath.Base(disk))
		return writes > 0
	})
	readElsewhere(t, f)
	if n := ended.Load(); n != 0 {
		t.Errorf("%d of the writes and flushes ended although the disk held them back", n)
	}
	guest.Resume(t, "gate")
	wg.Wait()
	for i := range stuck {
		guest.ReadBack(t, f, guest.Filled(uint64(i), 64<<10), int64(i)*stuckStep)
	}
	durable.Close()
	f.Close()
	k.Detach()
	s.Stop()
}

// hot and cold are stretches of the second half, in bytes from the beginning.
const (
	hot  = 20 * mib
	cold = 24 * mib
)

// readElsewhere reads what is not held back, each time the hot stretch and a new piece of
// the cold one.
func readElsewhere(t *guest.T, f *os.File) {
	read := guest.Buffer(512 << 10)
	for i := range 32 {
		n := []int{512, 4096, 64 << 10, 512 << 10}[i%4]
		if _, err := f.ReadAt(read[:n], hot+int64(i%2*4096)); err != nil {
			t.Fatalf("hot read: %v", err)
		}
		if _, err := f.ReadAt(read[:n], cold+int64(i)*(128<<10)); err != nil {
			t.Fatalf("cold read: %v", err)
		}
	}
}

// badDisk makes a disk of 32 MiB with one bad sector of 4096 bytes at 8 MiB, the rest
// of which holds data.
func badDisk(t *guest.T, data []byte) string {
	const bad = 8 * mib / 512
	const end = 32 * mib / 512
	loop := guest.Loop(t, harness.Image(t, t.TempDir(), "back.img", data), 512)
	return guest.Mapper(t, "disk",
		fmt.Sprintf("0 %d linear %s 0", bad, loop),
		fmt.Sprintf("%d 8 error", bad),
		fmt.Sprintf("%d %d linear %s %d", bad+8, end-bad-8, loop, bad+8))
}

// badSector reads a sector that cannot be read, in many ways: an error for each, and
// everything else goes on, on the same connection.
func badSector(t *guest.T) {
	data := harness.Random(6, 32*mib)
	s := serve(t, badDisk(t, data))
	k := guest.Attach{Server: s}.Do(t, 0)
	f := guest.Direct(t, k.Path)
	for round := range 3 {
		for _, n := range []int{512, 4096, 128 << 10, 1 * mib} {
			for _, off := range []int64{8 * mib, 8*mib + 4096 - int64(n)} {
				if _, err := f.ReadAt(guest.Buffer(n), off); !isEIO(err) {
					t.Errorf("round %d: read %d bytes at %d, at the bad sector: %v, want EIO", round, n, off, err)
				}
			}
		}
		for _, off := range []int64{8*mib - 4096, 8*mib + 4096, 0, 16 * mib} {
			guest.ReadBack(t, f, data[off:][:4096], off)
		}
		guest.ReadBack(t, f, data[16*mib:][:4*mib], 16*mib)
	}
	// The kernel's device is at rest: nobody tries again for ever.
	t.Await("nothing is left to do", func() bool {
		r, w := guest.InFlight(t, k.Name)
		return r == 0 && w == 0
	})
	f.Close()
	k.Detach()
	s.Stop()
	// No connection was lost on the way.
	if n := strings.Count(s.Log(), "client connected"); n != 1 {
		t.Errorf("the server's log shows %d connections, want 1", n)
	}
}

// badFile serves an image that lies on a disk with a bad sector. The file system gives
// its errors on to the server, on each of the ways by which it reads.
func badFile(t *guest.T) {
	const sectors = 64 * mib / 512
	loop := guest.Loop(t, guest.Empty(t, filepath.Join(t.TempDir(), "back.img"), 64*mib), 512)
	disk := guest.Mapper(t, "disk", fmt.Sprintf("0 %d linear %s 0", sectors, loop))
	guest.Mkfs(t, disk, "-b", "4096")
	m := guest.Mount(t, disk, "")
	data := harness.Random(8, 8*mib)
	image := harness.Image(t, m.Dir, "disk.img", data)
	m.Sync()
	const off = 3 * mib
	bad := guest.BlockOf(t, image, off/4096) * 8 // in sectors
	guest.Reload(t, "disk", fmt.Sprintf("0 %d linear %s 0", bad, loop),
		fmt.Sprintf("%d 8 error", bad), fmt.Sprintf("%d %d linear %s %d", bad+8, sectors-bad-8, loop, bad+8))
	guest.DropCaches(t)

	s := serve(t, image)
	k := guest.Attach{Server: s}.Do(t, 0)
	f := guest.Direct(t, k.Path)
	// The system reads ahead, into the bad sector. Nobody has asked for that, and nobody
	// hears of it.
	guest.ReadBack(t, f, data[off-512<<10:off], off-512<<10)
	for range 2 {
		for _, n := range []int{4 * mib, 512, 4096, 64 << 10, 1 * mib} {
			if _, err := f.ReadAt(guest.Buffer(n), off); !isEIO(err) {
				t.Errorf("read %d bytes at the bad sector: %v, want EIO", n, err)
			}
			// All of it, where some is in memory by now and some is not.
			if _, err := f.ReadAt(guest.Buffer(4*mib), 1*mib); !isEIO(err) {
				t.Errorf("read of 4 MiB around the bad sector: %v, want EIO", err)
			}
		}
		guest.ReadBack(t, f, data[:off], 0)
		guest.ReadBack(t, f, data[off+4096:], off+4096)
	}
	f.Close()
	k.Detach()
	s.Stop()
	if n := strings.Count(s.Log(), "client connected"); n != 1 {
		t.Errorf("the server's log shows %d connections, want 1", n)
	}
	m.Unmount()
}

// isEIO reports whether a read or write failed as one on a bad disk does.
func isEIO(err error) bool {
	pe, ok := err.(*os.PathError)
	return ok && pe.Err == syscall.EIO
}

// lostFlush writes to a bad sector. That write cannot become stable, so nothing that is
// acknowledged later may claim to be, until the server is started again.
func lostFlush(t *guest.T) {
	data := harness.Random(6, 32*mib)
	disk := badDisk(t, data)
	s := serve(t, disk)
	k := guest.Attach{Server: s}.Do(t, 0)
	other := guest.Attach{Server: s}.Do(t, 1)
	f, g := guest.Direct(t, k.Path), guest.Direct(t, other.Path)
	if _, err := f.WriteAt(guest.Filled(1, 4096), 8*mib); err == nil {
		err = f.Sync()
		if !isEIO(err) {
			t.Errorf("flush after a write to the bad sector: %v, want EIO", err)
		}
	} else if !isEIO(err) {
		t.Errorf("write to the bad sector: %v, want EIO", err)
	}
	for _, h := range []*os.File{f, g} {
		if _, err := h.WriteAt(guest.Filled(2, 4096), 0); !isEIO(err) {
			t.Errorf("write after the failed flush: %v, want EIO", err)
		}
		guest.ReadBack(t, h, data[16*mib:][:4096], 16*mib)
	}
	f.Close()
	g.Close()
	k.Detach()
	other.Detach()
	s.Stop() // From now on its log is whole.
	if !strings.Contains(s.Log(), "flush") {
		t.Errorf("the server's log does not tell of the failed flush:\n%s", s.Log())
	}

	s = serve(t, disk)
	k = guest.Attach{Server: s}.Do(t, 0)
	f = guest.Direct(t, k.Path)
	p := guest.Filled(3, 4096)
	guest.WriteAt(t, f, p, 0)
	t.Must(f.Sync(), "flush after a restart")
	guest.ReadBack(t, f, p, 0)
	f.Close()
	k.Detach()
	s.Stop()
}
