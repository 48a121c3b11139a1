package cow_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"

	"nbd.example/nbd/backend/null"
	"nbd.example/nbd/backend/pattern"
	"nbd.example/nbd/block"
	"nbd.example/nbd/block/blocktest"
	"nbd.example/nbd/layer/cow"
)

// stack puts a layer over a disk of junk, and returns the diff's file too.
func stack(t testing.TB, size int64, c cow.Config) (*block.Device, *os.File) {
	t.Helper()
	caps := blocktest.FullCaps(size)
	caps.ReadOnly = true // whatever reaches it fails the test
	disk := blocktest.NewDisk(t, caps)
	disk.Load(bytes.Repeat([]byte{0xaa}, int(size)), 0)
	return over(t, disk.Open(), c)
}

func over(t testing.TB, base block.Backend, c cow.Config) (*block.Device, *os.File) {
	t.Helper()
	var diff *os.File
	c.Dir = t.TempDir()
	c.CreateTemp = func(dir, pattern string) (*os.File, error) {
		f, err := os.CreateTemp(dir, pattern)
		diff = f
		return f, err
	}
	d, err := block.Stack(base, cow.Layer(c))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d, diff
}

func eachMode(t *testing.T, test func(t *testing.T, c cow.Config)) {
	for _, sparse := range []bool{false, true} {
		t.Run(fmt.Sprintf("Sparse=%v", sparse), func(t *testing.T) { test(t, cow.Config{Sparse: sparse}) })
	}
}

func extents(t testing.TB, d *block.Device, off, n int64, f block.Flags) []block.Extent {
	t.Helper()
	var list []block.Extent
	if err := d.Extents(t.Context(), off, n, f, func(x block.Extent) bool {
		list = append(list, x)
		return true
	}); err != nil {
		t.Fatal(err)
	}
	return list
}

// TestDepth writes, zeroes and trims, and stacks two layers.
func TestDepth(t *testing.T) {
	eachMode(t, func(t *testing.T, c cow.Config) {
		const k = cow.BlockSize
		ctx := t.Context()
		disk := blocktest.NewDisk(t, blocktest.FullCaps(16*k))
		disk.Load(bytes.Repeat([]byte{1}, 8*k), 0) // the rest is a hole
		base, _ := over(t, disk.Open(), c)
		if err := base.WriteAt(ctx, []byte{2}, 2*k, 0); err != nil {
			t.Fatal(err)
		}
		top, err := cow.Layer(cow.Config{Dir: t.TempDir(), Sparse: c.Sparse})(base)
		if err != nil {
			t.Fatal(err)
		}
		d, err := block.New(top)
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		// Blocks 3, 5, 4: they lie scattered in a packed diff.
		for _, b := range []int64{3, 5, 4} {
			if err := d.WriteAt(ctx, []byte{3}, b*k+100, 0); err != nil {
				t.Fatal(err)
			}
		}
		if err := d.WriteZeroes(ctx, 6*k, k, block.FastZero); err != nil {
			t.Fatal(err)
		}
		if err := d.Trim(ctx, 12*k, k, 0); err != nil {
			t.Fatal(err)
		}
		hole := block.Hole | block.Zero
		want := []block.Extent{
			{Length: 2 * k, Depth: 3}, {Length: k, Depth: 2}, {Length: 3 * k, Depth: 1},
			{Length: k, State: hole, Depth: 1}, {Length: k, Depth: 3}, {Length: 4 * k, State: hole, Depth: 0},
			{Length: k, State: hole, Depth: 1}, {Length: 3 * k, State: hole, Depth: 0},
		}
		// The lowest device knows no depth: what it holds counts as one layer.
		if got := extents(t, d, 0, 16*k, 0); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("extents\n%v, want\n%v", got, want)
		}
		if got := extents(t, d, 3*k, 5*k, block.One); len(got) != 1 || got[0].Depth != 1 {
			t.Errorf("one extent: %v", got)
		}
	})
}

// TestPartialBlocks: what is written to a part of a block keeps the rest, also in
// a short last block, and a zero range inside blocks keeps its neighbours.
func TestPartialBlocks(t *testing.T) {
	eachMode(t, func(t *testing.T, c cow.Config) {
		const size = 3*cow.BlockSize + 100
		d, diff := stack(t, size, c)
		ctx := t.Context()
		want := bytes.Repeat([]byte{0xaa}, size)
		write := func(off, n int) {
			p := bytes.Repeat([]byte{byte(off)}, n)
			copy(want[off:], p)
			if err := d.WriteAt(ctx, p, int64(off), 0); err != nil {
				t.Fatal(err)
			}
		}
		zero := func(off, n int) {
			clear(want[off : off+n])
			if err := d.WriteZeroes(ctx, int64(off), int64(n), 0); err != nil {
				t.Fatal(err)
			}
		}
		write(10, 5)
		write(4090, 20)
		zero(8000, 300)
		write(size-1, 1)
		zero(size-50, 20)
		zero(0, 4)
		got := make([]byte, size)
		if err := d.ReadAt(ctx, got, 0); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(got, want) {
			t.Error("contents differ")
		}
		info, err := diff.Stat()
		if err != nil {
			t.Fatal(err)
		}
		if info.Size() > 4*cow.BlockSize {
			t.Errorf("four blocks take %d bytes", info.Size())
		}
	})
}

// TestFastZero: fast where there is a whole block, refused with nothing changed
// where zeroing is writing.
func TestFastZero(t *testing.T) {
	eachMode(t, func(t *testing.T, c cow.Config) {
		const k = cow.BlockSize
		d, _ := stack(t, 4*k+8, c)
		ctx := t.Context()
		for _, x := range []struct {
			off, n int64
			f      block.Flags
			fast   bool
		}{
			{1, 100, 0, false}, {1, k, 0, false}, {k - 1, 2, 0, false}, {4 * k, 7, 0, false}, {0, k, block.NoHole, false},
			{1, 2 * k, 0, true}, {k, k, 0, true}, {4 * k, 8, 0, true}, {4*k + 1, 7, 0, false},
		} {
			before := make([]byte, d.Size())
			if err := d.ReadAt(ctx, before, 0); err != nil {
				t.Fatal(err)
			}
			err := d.WriteZeroes(ctx, x.off, x.n, x.f|block.FastZero)
			if x.fast {
				clear(before[x.off : x.off+x.n])
			}
			if (err == nil) != x.fast || err != nil && !errors.Is(err, errors.ErrUnsupported) {
				t.Errorf("%d fast zeroes at %d: %v, want fast: %v", x.n, x.off, err, x.fast)
			}
			after := make([]byte, d.Size())
			if err := d.ReadAt(ctx, after, 0); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(after, before) {
				t.Errorf("%d fast zeroes at %d: contents differ", x.n, x.off)
			}
		}
	})
}

// TestNoHole: what must stay allocated takes room in the diff.
func TestNoHole(t *testing.T) {
	eachMode(t, func(t *testing.T, c cow.Config) {
		d, _ := stack(t, 8*cow.BlockSize, c)
		if err := d.WriteZeroes(t.Context(), 0, 2*cow.BlockSize, block.NoHole); err != nil {
			t.Fatal(err)
		}
		want := block.Extent{Length: 2 * cow.BlockSize, Depth: 1}
		if got := extents(t, d, 0, 2*cow.BlockSize, block.One); len(got) != 1 || got[0] != want {
			t.Errorf("extents %v, want %v", got, want)
		}
	})
}

// TestReuse writes and trims the same amount again and again, elsewhere each
// time: a packed diff does not grow.
func TestReuse(t *testing.T) {
	const k = cow.BlockSize
	d, diff := stack(t, 256*k, cow.Config{})
	ctx := t.Context()
	for i := range int64(64) {
		if err := d.WriteAt(ctx, bytes.Repeat([]byte{byte(i)}, 8*k), i*4%240*k, 0); err != nil {
			t.Fatal(err)
		}
		if err := d.Trim(ctx, i*4%240*k, 8*k, 0); err != nil {
			t.Fatal(err)
		}
	}
	info, err := diff.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if info.Size() > 8*k {
		t.Errorf("the diff has %d bytes, want at most %d", info.Size(), 8*k)
	}
}

// TestHuge uses both ends of the largest device there is.
func TestHuge(t *testing.T) {
	eachMode(t, func(t *testing.T, c cow.Config) {
		base, err := null.New(null.Config{Size: math.MaxInt64})
		if err != nil {
			t.Fatal(err)
		}
		d, _ := over(t, base, c)
		ctx := t.Context()
		if err := d.WriteAt(ctx, []byte("abc"), 4095, 0); err != nil {
			t.Fatal(err)
		}
		if !c.Sparse { // no file system has a file of that size
			if err := d.WriteAt(ctx, []byte("abc"), math.MaxInt64-3, 0); err != nil {
				t.Fatal(err)
			}
			p := make([]byte, 5)
			if err := d.ReadAt(ctx, p, math.MaxInt64-5); err != nil || string(p) != "\x00\x00abc" {
				t.Errorf("end: %q, %v", p, err)
			}
		}
		if err := d.WriteZeroes(ctx, 0, math.MaxInt64, block.FastZero); err != nil {
			t.Fatal(err)
		}
		if err := d.Trim(ctx, 1, math.MaxInt64-1, 0); err != nil {
			t.Fatal(err)
		}
		want := []block.Extent{{Length: math.MaxInt64, State: block.Hole | block.Zero, Depth: 1}}
		if got := extents(t, d, 0, math.MaxInt64, 0); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("extents %v, want %v", got, want)
		}
		p := []byte("xyz")
		if err := d.ReadAt(ctx, p, 4095); err != nil || string(p) != "\x00\x00\x00" {
			t.Errorf("start: %q, %v", p, err)
		}
	})
}

// TestWriteError makes the diff unwritable: the error comes through, and what
// was there can still be read.
func TestWriteError(t *testing.T) {
	eachMode(t, func(t *testing.T, c cow.Config) {
		path := filepath.Join(t.TempDir(), "diff")
		if err := os.WriteFile(path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		c.CreateTemp = func(string, string) (*os.File, error) { return os.Open(path) } // read-only
		base, err := pattern.New(pattern.Config{Size: 1 << 16})
		if err != nil {
			t.Fatal(err)
		}
		d, err := block.Stack(base, cow.Layer(c))
		if err != nil {
			t.Fatal(err)
		}
		defer d.Close()
		for _, n := range []int{10, 8192} {
			if err := d.WriteAt(t.Context(), make([]byte, n), 0, 0); err == nil {
				t.Error("a write to an unwritable diff succeeded")
			}
		}
		p := make([]byte, 8)
		if err := d.ReadAt(t.Context(), p, 4096); err != nil || p[6] != 0x10 {
			t.Errorf("after a failed write: % x, %v", p, err)
		}
		if err := d.ReadAt(t.Context(), p, 8); err != nil || p[7] != 8 {
			t.Errorf("after a failed write: % x, %v", p, err)
		}
	})
}

// TestFull fills the file system of the diff.
func TestFull(t *testing.T) {
	f, err := os.OpenFile("/dev/full", os.O_RDWR, 0)
	if err != nil {
		t.Skipf("there is no /dev/full here: %v", err)
	}
	base, err := pattern.New(pattern.Config{Size: 1 << 16})
	if err != nil {
		t.Fatal(err)
	}
	link := filepath.Join(t.TempDir(), "diff")
	if err := os.Symlink("/dev/full", link); err != nil {
		t.Fatal(err)
	}
	f.Close()
	d, err := block.Stack(base, cow.Layer(cow.Config{CreateTemp: func(string, string) (*os.File, error) {
		return os.OpenFile(link, os.O_RDWR, 0) // the link is what is removed
	}}))
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if err := d.WriteAt(t.Context(), make([]byte, 4096), 0, block.FUA); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("write: %v, want ENOSPC", err)
	}
	if err := d.Broken(); err != nil {
		t.Errorf("a full diff has broken the device: %v", err)
	}
}

// TestNameIsGone looks into the folder of the diff.
func TestNameIsGone(t *testing.T) {
	dir := t.TempDir()
	base, err := pattern.New(pattern.Config{Size: 1 << 16})
	if err != nil {
		t.Fatal(err)
	}
	d, err := block.Stack(base, cow.Layer(cow.Config{Dir: dir}))
	if err != nil {
		t.Fatal(err)
	}
	if err := d.WriteAt(t.Context(), make([]byte, 10000), 0, 0); err != nil {
		t.Fatal(err)
	}
	if list, _ := os.ReadDir(dir); len(list) != 0 && runtime.GOOS != "windows" {
		t.Errorf("while it is open: %v", list)
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	if list, _ := os.ReadDir(dir); len(list) != 0 {
		t.Errorf("after Close: %v", list)
	}
}

func TestBadDir(t *testing.T) {
	base, err := pattern.New(pattern.Config{Size: 8})
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(t.TempDir(), "no such folder")
	_, err = block.Stack(base, cow.Layer(cow.Config{Dir: dir}))
	if !errors.Is(err, os.ErrNotExist) || !strings.Contains(err.Error(), "folder that can be written") {
		t.Errorf("error %v", err)
	}
}

// TestReadersAndReuse: while a reader reads a block, its slot is given back and
// taken by others; the reader must see its own block's bytes or zeroes.
func TestReadersAndReuse(t *testing.T) {
	const k = cow.BlockSize
	d, _ := stack(t, 64*k, cow.Config{})
	var all sync.WaitGroup
	for w := range int64(4) {
		all.Go(func() { // each writer has its own blocks, all share the slots
			for i := range int64(300) {
				b := w*16 + i%16
				err := d.WriteAt(context.Background(), bytes.Repeat([]byte{byte(b)}, k), b*k, 0)
				if err == nil && i%3 != 0 {
					err = d.Trim(context.Background(), b*k, k, 0)
				}
				if err != nil {
					t.Error(err)
					return
				}
			}
		})
		all.Go(func() {
			p := make([]byte, k)
			for i := range int64(1000) {
				b := (i*7 + w) % 64
				if err := d.ReadAt(context.Background(), p, b*k); err != nil {
					t.Error(err)
					return
				}
				for _, v := range p {
					if v != 0 && v != 0xaa && v != byte(b) {
						t.Errorf("block %d holds %#x, which belongs to another block", b, v)
						return
					}
				}
			}
		})
	}
	all.Wait()
}

// Two clients change one image, and neither sees the other.
func Example() {
	ctx := context.Background()
	open := func() *block.Device {
		base, err := pattern.New(pattern.Config{Size: 1 << 20}) // read-only
		if err != nil {
			panic(err)
		}
		d, err := block.Stack(base, cow.Layer(cow.Config{}))
		if err != nil {
			panic(err)
		}
		return d
	}
	one, two := open(), open()
	defer one.Close()
	defer two.Close()
	if err := one.WriteAt(ctx, []byte{1, 2, 3}, 4096, 0); err != nil {
		panic(err)
	}
	p := make([]byte, 8)
	fmt.Println(one.ReadAt(ctx, p, 4096), p)
	fmt.Println(two.ReadAt(ctx, p, 4096), p)
	// Output:
	// <nil> [1 2 3 0 0 0 16 0]
	// <nil> [0 0 0 0 0 0 16 0]
}
