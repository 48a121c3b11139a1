package file_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"

	"nbd.example/nbd/backend/file"
	"nbd.example/nbd/block"
	"nbd.example/nbd/block/blocktest"
	"nbd.example/nbd/internal/testgate"
)

// loop makes block devices out of files.
type loop struct {
	dir    string
	sector uint32
	held   *os.File // keeps the last one attached
	path   string
}

func newLoop(t testing.TB, sector uint32) *loop {
	t.Helper()
	testgate.Requires(t, testgate.Root(), testgate.Loop())
	l := &loop{dir: onDisk(t), sector: sector}
	t.Cleanup(l.detach)
	return l
}

// detach gives up the last device; it goes when all others have closed it.
func (l *loop) detach() {
	if l.held != nil {
		l.held.Close()
		l.held = nil
	}
}

// attach makes a device of size bytes, and returns its path.
func (l *loop) attach(t testing.TB, size int64, flags uint32) string {
	t.Helper()
	l.detach()
	below, err := os.OpenFile(image(t, l.dir, size), os.O_RDWR, 0)
	must(t, err)
	defer below.Close()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	must(t, err)
	defer control.Close()
	for {
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		must(t, err)
		l.path = filepath.Join("/dev", fmt.Sprint("loop", n))
		l.held, err = os.OpenFile(l.path, os.O_RDWR, 0)
		must(t, err)
		c := &unix.LoopConfig{Fd: uint32(below.Fd()), Size: l.sector, Info: unix.LoopInfo64{Flags: unix.LO_FLAGS_AUTOCLEAR | flags}}
		err = unix.IoctlLoopConfigure(int(l.held.Fd()), c)
		if err == nil {
			rw := l.held
			defer rw.Close() // or it would count as another export that writes
			l.held, err = os.Open(l.path)
			must(t, err)
			return l.path
		}
		l.detach()
		if err != unix.EBUSY { // another process was faster
			t.Fatalf("LOOP_CONFIGURE: %v", err)
		}
	}
}

func (l *loop) target(c file.Config) blocktest.Target {
	reopen := func(testing.TB) (block.Backend, error) {
		c.Path = l.path
		return backend(file.Open(c))
	}
	return blocktest.Target{
		Open: func(t testing.TB, size int64) (block.Backend, error) {
			l.attach(t, size, 0)
			return reopen(t)
		},
		Reopen:   reopen,
		SizeUnit: int64(l.sector),
		Steps:    150,
	}
}

func TestConformanceDisk(t *testing.T) {
	for _, x := range []struct {
		name   string
		sector uint32
		c      file.Config
	}{
		{"Sector512", 512, file.Config{}},
		{"Sector4096", 4096, file.Config{}},
		{"Direct512", 512, file.Config{Direct: true}},
		{"Direct4096", 4096, file.Config{Direct: true}},
		{"ReadOnly", 512, file.Config{ReadOnly: true}},
	} {
		t.Run(x.name, func(t *testing.T) {
			blocktest.Run(t, newLoop(t, x.sector).target(x.c))
		})
	}
}

func TestDisk(t *testing.T) {
	for _, sector := range []uint32{512, 4096} {
		l := newLoop(t, sector)
		path := l.attach(t, 8<<20, 0)
		_, d := open(t, file.Config{Path: path})
		c := d.Caps()
		if c.Size != 8<<20 || c.BlockSize.Minimum != 1 || c.Trim != block.Native || c.Zero != block.Native || c.Extents != block.Emulated || c.FUA != block.Native {
			t.Errorf("sectors of %d bytes: %+v", sector, c)
		}
		want, err := os.ReadFile("/sys/block/" + filepath.Base(path) + "/queue/rotational")
		must(t, err)
		if got := c.Rotational; got != (strings.TrimSpace(string(want)) == "1") {
			t.Errorf("rotational: %t, the system says %q", got, want)
		}
		d.Close()
		_, d = open(t, file.Config{Path: path, Direct: true})
		if c := d.Caps(); c.BlockSize.Minimum != int64(sector) {
			t.Errorf("sectors of %d bytes: direct I/O in %+v", sector, c.BlockSize)
		}
		d.Close()
		l.detach()
	}
}

// TestDiskEdges trims and zeroes parts of sectors: what is beside must stay.
func TestDiskEdges(t *testing.T) {
	l := newLoop(t, 4096)
	_, d := open(t, file.Config{Path: l.attach(t, 1<<20, 0)})
	ctx := context.Background()
	want := bytes.Repeat([]byte{7}, 1<<20)
	must(t, d.WriteAt(ctx, want, 0, 0))
	must(t, d.Trim(ctx, 100, 4096, block.FUA)) // no whole sector
	must(t, d.WriteZeroes(ctx, 10_000, 30_000, block.FUA))
	clear(want[10_000:40_000])
	must(t, d.WriteZeroes(ctx, 50_001, 30_000, block.NoHole))
	clear(want[50_001:80_001])
	must(t, d.WriteZeroes(ctx, 90_000, 100, 0)) // inside a sector
	clear(want[90_000:90_100])
	for _, x := range []struct {
		off, n int64
		f      block.Flags
	}{{100_001, 40_000, block.FastZero}, {200_000, 10, block.FastZero}, {204_800, 40_960, block.FastZero | block.NoHole}} {
		if err := d.WriteZeroes(ctx, x.off, x.n, x.f); !errors.Is(err, errors.ErrUnsupported) {
			t.Errorf("%+v: error %v, want %v", x, err, errors.ErrUnsupported)
		}
	}
	must(t, d.WriteZeroes(ctx, 409_600, 40_960, block.FastZero))
	clear(want[409_600:450_560])
	got := make([]byte, 1<<20)
	if must(t, d.ReadAt(ctx, got, 0)); !bytes.Equal(got, want) {
		for i := range got {
			if got[i] != want[i] {
				t.Fatalf("byte %d is %d, want %d", i, got[i], want[i])
			}
		}
	}
}

// TestDiskInUse opens a disk that is mounted, or written by another export.
func TestDiskInUse(t *testing.T) {
	testgate.Requires(t, testgate.Root(), testgate.Program("mkfs.ext4"))
	l := newLoop(t, 512)
	path := l.attach(t, 8<<20, 0)
	if out, err := exec.Command(testgate.Find("mkfs.ext4"), "-q", path).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4: %v\n%s", err, out)
	}
	refused := func(why, text string) {
		t.Helper()
		_, err := file.Open(file.Config{Path: path})
		want := "open " + path + ": device or resource busy: " + text + ", or override with the parameter force"
		if !errors.Is(err, syscall.EBUSY) || err.Error() != want {
			t.Errorf("%s: error %v\nwant %s", why, err, want)
		}
		f, err := file.Open(file.Config{Path: path, ReadOnly: true})
		must(t, err)
		must(t, f.Close())
	}
	dir := t.TempDir()
	must(t, unix.Mount(path, dir, "ext4", 0, ""))
	const elsewhere = "the disk is mounted or used by something else; unmount it, serve it read-only"
	reader, err := file.Open(file.Config{Path: path, ReadOnly: true})
	must(t, err)
	refused("mounted, and read here", elsewhere)
	must(t, reader.Close())
	refused("mounted", elsewhere)
	must(t, unix.Unmount(dir, 0))
	f, err := file.Open(file.Config{Path: path})
	must(t, err)
	refused("served", "another export of this server writes to the disk; serve one of them read-only")
	g, err := file.Open(file.Config{Path: path, Force: true})
	must(t, err)
	must(t, g.Close())
	must(t, f.Close())
}

// TestDiskErrors opens disks that cannot be served as wanted.
func TestDiskErrors(t *testing.T) {
	l := newLoop(t, 512)
	path := l.attach(t, 1<<20, unix.LO_FLAGS_READ_ONLY)
	if _, err := file.Open(file.Config{Path: path}); !errors.Is(err, syscall.EROFS) || err.Error() != "open "+path+": read-only file system: it cannot be opened for writing; serve it read-only, or change its permissions" {
		t.Errorf("a read-only disk: %v", err)
	}
	open(t, file.Config{Path: path, ReadOnly: true})
	path = l.attach(t, 1<<20, 0)
	for _, x := range []struct {
		size int64
		err  string
	}{
		{1<<20 + 1, "it has 1048576 bytes, fewer than the wanted 1048577"},
		{1000, ""},
	} {
		f, err := file.Open(file.Config{Path: path, Size: x.size})
		switch {
		case x.err != "" && (err == nil || err.Error() != "open "+path+": "+x.err):
			t.Errorf("error %v, want %s", err, x.err)
		case x.err == "":
			must(t, err)
			if f.Caps().Size != x.size {
				t.Errorf("%d bytes, want %d", f.Caps().Size, x.size)
			}
			f.Close()
		}
	}
	// Nothing is attached.
	must(t, unix.IoctlSetInt(int(l.held.Fd()), unix.LOOP_CLR_FD, 0))
	l.detach()
	_, err := file.Open(file.Config{Path: path})
	if err == nil || !strings.HasSuffix(err.Error(), ": the disk has 0 bytes: it has no medium, or nothing is attached to it") {
		t.Errorf("an empty disk: %v", err)
	}
}

// TestZeroOut zeroes more than is done at once, and gives up in between.
func TestZeroOut(t *testing.T) {
	const size = 150 << 20
	l := newLoop(t, 512)
	f, d := open(t, file.Config{Path: l.attach(t, size, 0)})
	ctx := context.Background()
	spots := []int64{0, 64<<20 - 1, 64 << 20, 130 << 20, size - 1}
	fill := func() {
		for _, off := range spots {
			must(t, d.WriteAt(ctx, []byte{7}, off, 0))
		}
	}
	left := func() (n int) {
		for _, off := range spots {
			p := make([]byte, 1)
			must(t, d.ReadAt(ctx, p, off))
			n += int(p[0] / 7)
		}
		return n
	}
	fill()
	must(t, f.WriteZeroes(ctx, 0, size, block.NoHole))
	if n := left(); n != 0 {
		t.Errorf("%d bytes are left after zeroing", n)
	}
	fill()
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if err := f.WriteZeroes(ended, 0, size, block.NoHole); err != context.Canceled {
		t.Errorf("error %v, want %v", err, context.Canceled)
	}
	if n := left(); n != 3 {
		t.Errorf("%d bytes are left after giving up, want 3", n)
	}
}

// TestPartition looks at parts of a disk, which have a disk's properties and
// names of their own.
func TestPartition(t *testing.T) {
	l := newLoop(t, 512)
	path := l.attach(t, 8<<20, unix.LO_FLAGS_PARTSCAN)
	for i, first := range []int64{1 << 20, 4 << 20} {
		part := unix.BlkpgPartition{Start: first, Length: 2 << 20, Pno: int32(i + 1)}
		arg := unix.BlkpgIoctlArg{Op: unix.BLKPG_ADD_PARTITION, Datalen: int32(unsafe.Sizeof(part)), Data: (*byte)(unsafe.Pointer(&part))}
		if _, _, err := unix.Syscall(unix.SYS_IOCTL, l.held.Fd(), unix.BLKPG, uintptr(unsafe.Pointer(&arg))); err != 0 {
			t.Skipf("needs partitions on loop devices: %v", err)
		}
	}
	whole, d := open(t, file.Config{Path: path, ReadOnly: true})
	must(t, d.Close())
	names := map[string]string{whole.Caps().Instance: "the whole"}
	for _, part := range []string{path + "p1", path + "p2"} {
		if _, err := os.Stat(part); err != nil {
			t.Skipf("needs a system that names partitions: %v", err)
		}
		f, d := open(t, file.Config{Path: part})
		c := d.Caps()
		if c.Size != 2<<20 || c.Rotational != whole.Caps().Rotational || c.Trim != block.Native {
			t.Errorf("%s: %+v", part, c)
		}
		if other, found := names[c.Instance]; found {
			t.Errorf("%s has the instance of %s", part, other)
		}
		names[c.Instance] = part
		must(t, f.WriteAt(context.Background(), []byte{7}, 0, 0))
		must(t, d.Close())
	}
}

// TestDiskStable: a trim, and zeroes, with FUA make stable what was written before, or say
// that it is not. The disk has no room for that.
func TestDiskStable(t *testing.T) {
	for name, change := range map[string]func(*block.Device) error{
		"Trim":        func(d *block.Device) error { return d.Trim(t.Context(), 6<<20, 64<<10, block.FUA) },
		"WriteZeroes": func(d *block.Device) error { return d.WriteZeroes(t.Context(), 6<<20, 64<<10, block.FUA) },
	} {
		t.Run(name, func(t *testing.T) {
			l := newLoop(t, 512)
			l.dir = t.TempDir()
			if err := unix.Mount("tmpfs", l.dir, "tmpfs", 0, "size=1M"); err != nil {
				t.Skip("needs the right to mount: ", err)
			}
			t.Cleanup(func() {
				l.detach()
				unix.Unmount(l.dir, unix.MNT_DETACH)
			})
			_, d := open(t, file.Config{Path: l.attach(t, 8<<20, 0)})
			must(t, d.WriteAt(t.Context(), bytes.Repeat([]byte{7}, 4<<20), 0, 0))
			if err := change(d); !errors.Is(err, block.ErrNotStable) || d.Broken() == nil {
				t.Errorf("%v, want that nothing is stable", err)
			}
			d.Close()
		})
	}
}
