//go:build linux

package file_test

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"nbd.example/nbd/backend/file"
	"nbd.example/nbd/block"
	"nbd.example/nbd/block/blocktest"
	"nbd.example/nbd/internal/testgate"
)

// The places that differ.
var (
	tmpfs  = testgate.MemoryDir
	onDisk = testgate.DiskDir // can do everything
	poor   = func(t testing.TB) string { return testgate.Mounted(t, "ramfs", "") }
)

func TestConformanceLinux(t *testing.T) {
	for _, x := range []struct {
		name  string
		dir   func(testing.TB) string
		c     file.Config
		steps int
	}{
		{"Tmpfs", tmpfs, file.Config{}, 500},
		{"TmpfsDirect", tmpfs, file.Config{Direct: true}, 300},
		{"Disk", onDisk, file.Config{}, 500},
		{"DiskDirect", onDisk, file.Config{Direct: true}, 200},
		{"DiskDirectSync", onDisk, file.Config{Direct: true, Sync: true}, 50},
		{"Poor", poor, file.Config{}, 300},
	} {
		t.Run(x.name, func(t *testing.T) {
			dir := x.dir(t)
			y := target(dir, x.c)
			y.Steps = x.steps
			y.SizeUnit = unit(t, dir, x.c)
			blocktest.Run(t, y)
		})
	}
	t.Run("ReadOnlyDirect", func(t *testing.T) {
		dir := onDisk(t)
		y := readOnly(dir, file.Config{Direct: true})
		y.SizeUnit = unit(t, dir, file.Config{Direct: true})
		blocktest.Run(t, y)
	})
	t.Run("ReadOnlyTmpfs", func(t *testing.T) { blocktest.Run(t, readOnly(tmpfs(t), file.Config{})) })
}

// unit returns the block size that files in dir have with c.
func unit(t *testing.T, dir string, c file.Config) int64 {
	t.Helper()
	c.Path = image(t, dir, 1<<20)
	f, err := file.Open(c)
	must(t, err)
	defer f.Close()
	return max(f.Caps().BlockSize.Minimum, 1)
}

// TestCaps wants the abilities to be those that the place really has.
func TestCaps(t *testing.T) {
	type levels struct{ fua, trim, zero, fastZero, extents, cache block.Level }
	const native, emulated, none = block.Native, block.Emulated, block.None
	for _, x := range []struct {
		name string
		dir  func(testing.TB) string
		c    file.Config
		want levels
	}{
		{"disk", onDisk, file.Config{}, levels{native, native, native, native, native, native}},
		{"disk direct", onDisk, file.Config{Direct: true}, levels{native, native, native, native, native, none}},
		{"disk read-only", onDisk, file.Config{ReadOnly: true}, levels{none, none, none, none, native, native}},
		{"tmpfs", tmpfs, file.Config{}, levels{native, native, native, native, native, native}},
		{"poor", poor, file.Config{}, levels{native, none, emulated, emulated, native, native}},
	} {
		t.Run(x.name, func(t *testing.T) {
			x.c.Path = image(t, x.dir(t), 1<<20)
			_, d := open(t, x.c)
			c := d.Caps()
			if got := (levels{c.FUA, c.Trim, c.Zero, c.FastZero, c.Extents, c.Cache}); got != x.want {
				t.Errorf("%+v, want %+v", got, x.want)
			}
			if c.Flush != native || !c.MultiConn || c.Rotational || c.ReadOnly != x.c.ReadOnly {
				t.Errorf("%+v", c)
			}
		})
	}
}

// allocated returns how many bytes the file takes.
func allocated(t testing.TB, path string) int64 {
	t.Helper()
	var st unix.Stat_t
	must(t, unix.Stat(path, &st))
	return st.Blocks * 512
}

// holes returns the extents of d, as "d" and "h" for each 64 KiB.
func holes(t testing.TB, d *block.Device) string {
	t.Helper()
	var s []byte
	must(t, d.Extents(context.Background(), 0, d.Size(), 0, func(x block.Extent) bool {
		kind := byte('d')
		if x.State&block.Hole != 0 {
			kind = 'h'
		}
		s = append(s, bytes.Repeat([]byte{kind}, int(x.Length>>16))...)
		return true
	}))
	return string(s)
}

// TestHoles makes holes, and looks for them in the file system.
func TestHoles(t *testing.T) {
	for name, where := range map[string]func(testing.TB) string{"Tmpfs": tmpfs, "Disk": onDisk} {
		t.Run(name, func(t *testing.T) {
			const k64 = 64 << 10
			path := image(t, where(t), 16*k64)
			_, d := open(t, file.Config{Path: path})
			ctx := context.Background()
			must(t, d.WriteAt(ctx, bytes.Repeat([]byte{7}, 16*k64), 0, block.FUA))
			want := func(list string, bytes int64) {
				t.Helper()
				if got := holes(t, d); got != list {
					t.Errorf("extents %s, want %s", got, list)
				}
				// File systems keep a few blocks for themselves.
				if got := allocated(t, path); got < bytes || got >= bytes+k64 {
					t.Errorf("%d bytes are allocated, want %d", got, bytes)
				}
			}
			want("dddddddddddddddd", 16*k64)
			must(t, d.Trim(ctx, 2*k64, 2*k64, 0))
			want("ddhhdddddddddddd", 14*k64) // also right after all of it was found to be data
			must(t, d.WriteZeroes(ctx, 6*k64, k64, block.FUA))
			want("ddhhddhddddddddd", 13*k64)
			must(t, d.WriteZeroes(ctx, 8*k64, k64, block.FastZero))
			want("ddhhddhdhddddddd", 12*k64)
			must(t, d.Trim(ctx, 15*k64+1, k64-1, block.FUA)) // a byte is left
			must(t, d.Trim(ctx, 14*k64, k64, 0))
			p := make([]byte, 1)
			if must(t, d.ReadAt(ctx, p, 15*k64)); p[0] != 7 {
				t.Errorf("a byte beside a trimmed range is %d", p[0])
			}
			before := allocated(t, path)
			must(t, d.WriteZeroes(ctx, 10*k64, 2*k64, block.NoHole))
			if got := allocated(t, path); got < before {
				t.Errorf("zeroes without a hole gave back %d bytes", before-got)
			}
			must(t, d.WriteZeroes(ctx, 2*k64, k64, block.NoHole)) // into a hole
			if got := allocated(t, path); got < before+k64 {
				t.Errorf("zeroes without a hole in a hole took %d bytes", got-before)
			}
		})
	}
}

// TestFastZero wants fast zeroes to be refused with nothing changed where they
// are not fast.
func TestFastZero(t *testing.T) {
	_, d := open(t, file.Config{Path: image(t, tmpfs(t), 1<<20)})
	ctx := context.Background()
	want := bytes.Repeat([]byte{7}, 1<<20)
	must(t, d.WriteAt(ctx, want, 0, 0))
	// Memory that is to stay allocated must be written.
	err := d.WriteZeroes(ctx, 0, 1<<20, block.FastZero|block.NoHole)
	if !errors.Is(err, errors.ErrUnsupported) {
		t.Errorf("error %v, want %v", err, errors.ErrUnsupported)
	}
	got := make([]byte, 1<<20)
	if must(t, d.ReadAt(ctx, got, 0)); !bytes.Equal(got, want) {
		t.Error("the contents have changed")
	}
}

// TestKnownData has others make holes: those may be called data, and reading
// tells the truth.
func TestKnownData(t *testing.T) {
	path := image(t, onDisk(t), 1<<20)
	_, d := open(t, file.Config{Path: path})
	ctx := context.Background()
	must(t, d.WriteAt(ctx, bytes.Repeat([]byte{7}, 512<<10), 0, 0))
	if got := holes(t, d); got != "ddddddddhhhhhhhh" {
		t.Fatalf("extents %s", got)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	must(t, unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, 128<<10, 128<<10))
	p := make([]byte, 1<<20)
	must(t, d.ReadAt(ctx, p, 0))
	for _, x := range []struct{ off, n int64 }{{0, 1 << 20}, {0, 512 << 10}, {128 << 10, 64 << 10}} {
		at := x.off
		must(t, d.Extents(ctx, x.off, x.n, 0, func(e block.Extent) bool {
			if e.State&block.Hole != 0 && bytes.IndexByte(p[at:at+e.Length], 7) >= 0 {
				t.Errorf("%d bytes at %d: the extent of %d bytes at %d says hole and holds data", x.n, x.off, e.Length, at)
			}
			at += e.Length
			return true
		}))
	}
}

// TestShrunkLinux has files become smaller where reads go other ways.
func TestShrunkLinux(t *testing.T) {
	for name, where := range map[string]func(testing.TB) string{"Tmpfs": tmpfs, "Disk": onDisk} {
		for _, direct := range []bool{false, true} {
			if direct {
				name += "Direct"
			}
			t.Run(name, func(t *testing.T) {
				path := image(t, where(t), 1<<20)
				f, d := open(t, file.Config{Path: path, Direct: direct})
				must(t, d.WriteAt(context.Background(), bytes.Repeat([]byte{7}, 1<<20), 0, 0))
				must(t, os.Truncate(path, 300_000))
				if d.TryRead(make([]byte, 64<<10), 512<<10) || d.TryRead(make([]byte, 64<<10), 294_912) {
					t.Error("TryRead read what is not there")
				}
				wantShrunk(t, f, path, 300_000)
			})
		}
	}
}

// TestErrorsLinux wants exact texts for what only Linux says.
func TestErrorsLinux(t *testing.T) {
	dir := t.TempDir()
	fifo := filepath.Join(dir, "fifo")
	must(t, unix.Mkfifo(fifo, 0o600))
	socket := filepath.Join(dir, "socket")
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	must(t, err)
	defer unix.Close(fd)
	must(t, unix.Bind(fd, &unix.SockaddrUnix{Name: socket}))
	odd := image(t, onDisk(t), 1000)
	for _, x := range []struct {
		c   file.Config
		err string
	}{
		{file.Config{Path: fifo}, "it is a pipe; an export is a regular file or a disk"},
		{file.Config{Path: fifo, ReadOnly: true}, "it is a pipe; an export is a regular file or a disk"},
		{file.Config{Path: socket}, "it is a socket; an export is a regular file or a disk"},
		{file.Config{Path: "/dev/null"}, "it is a character device; an export is a regular file or a disk"},
		{file.Config{Path: dir, ReadOnly: true}, "it is a directory; an export is a regular file or a disk"},
		{file.Config{Path: filepath.Join(dir, "none")}, "no such file or directory"},
		{file.Config{Path: filepath.Join(fifo, "below")}, "not a directory"},
		{file.Config{Path: "/proc/version", Direct: true, ReadOnly: true}, "invalid argument: the file system has no direct I/O"},
		{file.Config{Path: odd, Direct: true}, "its size of 1000 bytes is not a multiple of 512, the blocks that it is used in; name a smaller size, or do without direct I/O"},
	} {
		_, err := file.Open(x.c)
		if want := "open " + x.c.Path + ": " + x.err; err == nil || err.Error() != want {
			t.Errorf("error %v\nwant %s", err, want)
		}
	}
}

// TestImmutable wants the error for a file that nobody may change to say what to
// do.
func TestImmutable(t *testing.T) {
	testgate.Requires(t, testgate.Root())
	path := image(t, onDisk(t), 4096)
	f, err := os.Open(path)
	must(t, err)
	defer f.Close()
	const immutable = 0x10 // FS_IMMUTABLE_FL
	must(t, unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, immutable))
	defer unix.IoctlSetPointerInt(int(f.Fd()), unix.FS_IOC_SETFLAGS, 0)
	_, err = file.Open(file.Config{Path: path})
	if !errors.Is(err, syscall.EPERM) || err.Error() != "open "+path+": operation not permitted: it cannot be opened for writing; serve it read-only, or change its permissions" {
		t.Errorf("error %v", err)
	}
	open(t, file.Config{Path: path, ReadOnly: true})
}
