package file_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"nbd.example/nbd/backend/file"
	"nbd.example/nbd/block"
	"nbd.example/nbd/block/blocktest"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// image makes a file of size bytes in dir, all of it a hole.
func image(t testing.TB, dir string, size int64) string {
	t.Helper()
	f, err := os.CreateTemp(dir, "image")
	must(t, err)
	t.Cleanup(func() { os.Remove(f.Name()) })
	must(t, f.Truncate(size))
	must(t, f.Close())
	return f.Name()
}

// open opens c, and a device over it that the test closes.
func open(t testing.TB, c file.Config) (*file.File, *block.Device) {
	t.Helper()
	f, err := file.Open(c)
	must(t, err)
	d, err := block.New(f)
	must(t, err)
	t.Cleanup(func() { d.Close() })
	return f, d
}

// target is a new file in dir for each device, opened as c says.
func target(dir string, c file.Config) blocktest.Target {
	reopen := func(testing.TB) (block.Backend, error) { return backend(file.Open(c)) }
	return blocktest.Target{
		Open: func(t testing.TB, size int64) (block.Backend, error) {
			c.Path = image(t, dir, size)
			return reopen(t)
		},
		Reopen: reopen,
	}
}

// backend keeps a nil *File from becoming a Backend.
func backend(f *file.File, err error) (block.Backend, error) {
	if err != nil {
		return nil, err
	}
	return f, nil
}

// readOnly is a file with contents that cannot be changed.
func readOnly(dir string, c file.Config) blocktest.Target {
	c.ReadOnly = true
	x := target(dir, c)
	x.Initial = func(p []byte, off int64) {
		for i := range p {
			if at := off + int64(i); at>>16&1 == 0 { // half of it holes
				p[i] = byte(at>>8) ^ byte(at)
			}
		}
	}
	x.Open = func(t testing.TB, size int64) (block.Backend, error) {
		c.Path = image(t, dir, size)
		p := make([]byte, size)
		x.Initial(p, 0)
		f, err := os.OpenFile(c.Path, os.O_WRONLY, 0)
		must(t, err)
		for off := int64(0); off < size; off += 2 << 16 {
			_, err := f.WriteAt(p[off:min(off+1<<16, size)], off)
			must(t, err)
		}
		must(t, f.Close())
		return backend(file.Open(c))
	}
	x.Reopen = func(testing.TB) (block.Backend, error) { return backend(file.Open(c)) }
	return x
}

func TestConformance(t *testing.T) {
	for name, c := range map[string]file.Config{"Plain": {}, "Sync": {Sync: true}} {
		t.Run(name, func(t *testing.T) {
			x := target(t.TempDir(), c)
			if c.Sync {
				x.Steps = 100
			}
			blocktest.Run(t, x)
		})
	}
	t.Run("ReadOnly", func(t *testing.T) { blocktest.Run(t, readOnly(t.TempDir(), file.Config{})) })
}

// TestSize opens files that are smaller and larger than what is wanted.
func TestSize(t *testing.T) {
	for _, x := range []struct {
		has, wants int64
		readOnly   bool
		size       int64
		err        string
	}{
		{0, 0, false, 0, ""},
		{5000, 0, false, 5000, ""},
		{5000, 4096, false, 4096, ""},
		{5000, 5000, true, 5000, ""},
		{0, 1, false, 1, ""},
		{5000, 1 << 43, false, 1 << 43, ""},
		{5000, 5001, true, 0, "it has 5000 bytes, fewer than the wanted 5001"},
		{5000, -1, false, 0, "the wanted size of -1 bytes is negative"},
	} {
		t.Run(fmt.Sprint(x.has, "as", x.wants), func(t *testing.T) {
			path := image(t, t.TempDir(), x.has)
			f, err := file.Open(file.Config{Path: path, Size: x.wants, ReadOnly: x.readOnly})
			if x.err != "" {
				if err == nil || err.Error() != "open "+path+": "+x.err {
					t.Fatalf("error %v, want %q", err, x.err)
				}
				return
			}
			must(t, err)
			defer f.Close()
			if got := f.Caps().Size; got != x.size {
				t.Errorf("%d bytes, want %d", got, x.size)
			}
			info, err := os.Stat(path)
			must(t, err)
			if want := max(x.has, x.wants); info.Size() != want {
				t.Errorf("the file has %d bytes, want %d", info.Size(), want)
			}
		})
	}
}

// TestFarEnd uses the last bytes of a file that is larger than 32 bits count.
func TestFarEnd(t *testing.T) {
	const size = 1<<42 + 12345
	_, d := open(t, file.Config{Path: image(t, t.TempDir(), 0), Size: size})
	ctx := context.Background()
	for i, f := range []block.Flags{0, block.FUA} {
		off := size - 100 + 10*int64(i)
		want := []byte{1, 2, 3}
		must(t, d.WriteAt(ctx, want, off, f))
		got := make([]byte, 3)
		must(t, d.ReadAt(ctx, got, off))
		if !bytes.Equal(got, want) {
			t.Errorf("at %d: % x", off, got)
		}
	}
	p := make([]byte, 3)
	if d.TryRead(p, size-100) && !bytes.Equal(p, []byte{1, 2, 3}) {
		t.Errorf("TryRead: % x", p)
	}
	if d.TryWrite([]byte{9, 9, 9}, 1<<41+1) {
		must(t, d.ReadAt(ctx, p, 1<<41+1))
		if !bytes.Equal(p, []byte{9, 9, 9}) {
			t.Errorf("TryWrite: % x", p)
		}
	}
	must(t, d.ReadAt(ctx, p, 1)) // what an offset cut to 32 bits would hit
	if !bytes.Equal(p, make([]byte, 3)) {
		t.Errorf("near the beginning: % x", p)
	}
}

// TestErrors wants exact texts.
func TestErrors(t *testing.T) {
	dir := t.TempDir()
	kind := func(mode fs.FileMode) func(string) (fs.FileInfo, error) {
		return func(string) (fs.FileInfo, error) { return info{mode}, nil }
	}
	for _, x := range []struct {
		name string
		c    file.Config
		err  string
	}{
		{"a directory", file.Config{Path: dir}, "it is a directory; an export is a regular file or a disk"},
		{"a pipe", file.Config{Path: "p", Stat: kind(fs.ModeNamedPipe)}, "it is a pipe; an export is a regular file or a disk"},
		{"a socket", file.Config{Path: "p", Stat: kind(fs.ModeSocket)}, "it is a socket; an export is a regular file or a disk"},
		{"something else", file.Config{Path: "p", Stat: kind(fs.ModeIrregular)}, "it is of the kind ?---------; an export is a regular file or a disk"},
		{"replaced by a directory", file.Config{Path: dir, ReadOnly: true, Stat: kind(0)}, "it is a directory; an export is a regular file or a disk"},
	} {
		_, err := file.Open(x.c)
		if want := "open " + x.c.Path + ": " + x.err; err == nil || err.Error() != want {
			t.Errorf("%s: error %v\nwant %s", x.name, err, want)
		}
	}
	path := filepath.Join(dir, "missing")
	_, err := file.Open(file.Config{Path: path})
	if !errors.Is(err, fs.ErrNotExist) || strings.Count(err.Error(), path) != 1 {
		t.Errorf("a missing file: %v", err)
	}
}

// info is a file of a kind.
type info struct{ mode fs.FileMode }

func (info) Name() string        { return "p" }
func (info) Size() int64         { return 0 }
func (i info) Mode() fs.FileMode { return i.mode }
func (i info) IsDir() bool       { return i.mode.IsDir() }
func (info) ModTime() time.Time  { return time.Time{} }
func (info) Sys() any            { return nil }

// TestShrunk reads from a file that has become smaller.
func TestShrunk(t *testing.T) {
	path := image(t, t.TempDir(), 1<<20)
	f, d := open(t, file.Config{Path: path})
	must(t, d.WriteAt(context.Background(), bytes.Repeat([]byte{7}, 1<<20), 0, 0))
	must(t, os.Truncate(path, 300_000))
	wantShrunk(t, f, path, 300_000)
}

// wantShrunk wants reads over the border at rest to say so, and extents to call
// nothing zero that cannot be read.
func wantShrunk(t *testing.T, f *file.File, path string, rest int64) {
	t.Helper()
	ctx := context.Background()
	must(t, f.ReadAt(ctx, make([]byte, 4096), rest/4096*4096-4096))
	for _, off := range []int64{rest / 4096 * 4096, 512 << 10} {
		err := f.ReadAt(ctx, make([]byte, 64<<10), off)
		at := max(off, rest)
		want := fmt.Sprintf("read %s: it has become smaller, %d of its %d bytes are left: unexpected EOF", path, at, f.Caps().Size)
		var where *block.OffsetError
		if !errors.As(err, &where) || where.Off != at || err.Error() != want || !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("read at %d: %v (%+v)\nwant %s", off, err, where, want)
		}
	}
	d, err := block.New(f)
	must(t, err)
	at := int64(0)
	must(t, d.Extents(ctx, 0, d.Size(), 0, func(x block.Extent) bool {
		if at += x.Length; x.State != 0 && at > rest {
			t.Errorf("an extent of %d bytes that ends at %d says zero, the file ends at %d", x.Length, at, rest)
		}
		return true
	}))
}

// TestInstance wants the name of a file's contents to outlive what does not
// change them, and nothing else.
func TestInstance(t *testing.T) {
	dir := t.TempDir()
	path := image(t, dir, 1<<20)
	instance := func(c file.Config) string {
		f, err := file.Open(c)
		must(t, err)
		defer f.Close()
		return f.Caps().Instance
	}
	first := instance(file.Config{Path: path})
	if first == "" {
		t.Skip("this system has no names for files")
	}
	if got := instance(file.Config{Path: path, ReadOnly: true, Size: 4096}); got != first {
		t.Errorf("opened again, the instance is %q, was %q", got, first)
	}
	moved := filepath.Join(dir, "moved")
	must(t, os.Rename(path, moved))
	if got := instance(file.Config{Path: moved}); got != first {
		t.Errorf("after renaming, the instance is %q, was %q", got, first)
	}
	must(t, os.WriteFile(path, make([]byte, 1<<20), 0o600))
	second := instance(file.Config{Path: path})
	if second == first {
		t.Error("a copy has the instance of the original")
	}
	must(t, os.Remove(path))
	must(t, os.WriteFile(path, make([]byte, 1<<20), 0o600))
	if got := instance(file.Config{Path: path}); got == first || got == second {
		t.Error("a new file has the instance of one that was removed")
	}
}

// TestOpener wants every file to come through the functions of the Config, with
// the flags.
func TestOpener(t *testing.T) {
	path := image(t, t.TempDir(), 4096)
	var flags []int
	f, err := file.Open(file.Config{
		Path: "elsewhere", ReadOnly: true,
		Open: func(name string, flag int, perm fs.FileMode) (*os.File, error) {
			if name != "elsewhere" {
				t.Errorf("opened %q", name)
			}
			flags = append(flags, flag)
			return os.OpenFile(path, flag, perm)
		},
		Stat: func(string) (fs.FileInfo, error) { return os.Stat(path) },
	})
	must(t, err)
	must(t, f.Close())
	if len(flags) != 1 || flags[0]&(os.O_WRONLY|os.O_RDWR|os.O_CREATE|os.O_TRUNC) != 0 {
		t.Errorf("opened with the flags %#x", flags)
	}
}

// TestReadOnlyFlush wants a flush of what cannot be changed to succeed.
func TestReadOnlyFlush(t *testing.T) {
	_, d := open(t, file.Config{Path: image(t, t.TempDir(), 4096), ReadOnly: true})
	must(t, d.Flush(context.Background()))
}

func TestAllocations(t *testing.T) {
	_, d := open(t, file.Config{Path: image(t, t.TempDir(), 1<<20)})
	ctx := context.Background()
	p := make([]byte, 64<<10)
	must(t, d.WriteAt(ctx, p, 0, 0))
	for name, do := range map[string]func(){
		"ReadAt":   func() { d.ReadAt(ctx, p, 100) },
		"WriteAt":  func() { d.WriteAt(ctx, p, 100, 0) },
		"TryRead":  func() { d.TryRead(p, 100) },
		"TryWrite": func() { d.TryWrite(p, 100) },
		"Range":    func() { d.Range(0, 64<<10, false) },
	} {
		if n := testing.AllocsPerRun(100, do); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func benchmark(b *testing.B, do func(d *block.Device, p []byte, off int64) bool) {
	for _, n := range []int64{4 << 10, 256 << 10} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			const size = 64 << 20
			_, d := open(b, file.Config{Path: image(b, b.TempDir(), size)})
			p := make([]byte, size)
			must(b, d.WriteAt(context.Background(), p, 0, 0))
			p = p[:n]
			b.SetBytes(n)
			b.ReportAllocs()
			missed := 0
			for off := int64(0); b.Loop(); off = (off*5 + 12345*4096) & (size - 1) &^ (n - 1) {
				if !do(d, p, off) {
					missed++
				}
			}
			b.ReportMetric(float64(missed)/float64(b.N), "missed/op")
		})
	}
}

func BenchmarkTryRead(b *testing.B) { benchmark(b, (*block.Device).TryRead) }

func BenchmarkTryWrite(b *testing.B) { benchmark(b, (*block.Device).TryWrite) }

func BenchmarkRange(b *testing.B) {
	benchmark(b, func(d *block.Device, p []byte, off int64) bool {
		_, ok := d.Range(off, int64(len(p)), false)
		return ok
	})
}

func BenchmarkReadAt(b *testing.B) {
	benchmark(b, func(d *block.Device, p []byte, off int64) bool {
		return d.ReadAt(context.Background(), p, off) == nil
	})
}

func ExampleOpen() {
	dir, err := os.MkdirTemp("", "example")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "disk.img")
	if err := os.WriteFile(path, []byte("hello"), 0o600); err != nil {
		panic(err)
	}
	f, err := file.Open(file.Config{Path: path, Size: 1 << 20})
	if err != nil {
		panic(err)
	}
	disk, err := block.New(f)
	if err != nil {
		panic(err)
	}
	defer disk.Close()
	ctx := context.Background()
	// FUA: when it returns, it is on the disk.
	if err := disk.WriteAt(ctx, []byte("j"), 0, block.FUA); err != nil {
		panic(err)
	}
	p := make([]byte, 5)
	if err := disk.ReadAt(ctx, p, 0); err != nil {
		panic(err)
	}
	fmt.Printf("%s, %d bytes\n", p, disk.Size())
	// Output: jello, 1048576 bytes
}
