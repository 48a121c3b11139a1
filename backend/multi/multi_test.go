package multi_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"nbd.example/nbd/backend/memory"
	"nbd.example/nbd/backend/multi"
	"nbd.example/nbd/backend/null"
	"nbd.example/nbd/block"
	"nbd.example/nbd/block/blocktest"
)

// cutUp returns sizes of parts that are size together, with borders in odd places
// and empty parts. Where the parts have blocks they are multiples.
func cutUp(size, unit int64) []int64 {
	list := []int64{0}
	for _, n := range []int64{4096, 1, 5000, 0, 70_001, 512} {
		n = min((n+unit-1)/unit*unit, size)
		list, size = append(list, n), size-n
	}
	return append(list, size, 0)
}

// target runs the suite over disks.
func target(unit int64, open func(*blocktest.Disk) block.Backend, caps func(int64) block.Caps) blocktest.Target {
	var disks []*blocktest.Disk
	over := func(testing.TB) (block.Backend, error) {
		var parts []*block.Device
		for _, x := range disks {
			d, err := block.New(open(x))
			if err != nil {
				return nil, err
			}
			parts = append(parts, d)
		}
		return multi.New(parts)
	}
	x := blocktest.Target{
		Open: func(t testing.TB, size int64) (block.Backend, error) {
			disks = nil
			for _, n := range cutUp(size, unit) {
				disks = append(disks, blocktest.NewDisk(t, caps(n)))
			}
			return over(t)
		},
		Reopen:   over,
		SizeUnit: unit,
		Steps:    500,
	}
	if unit%blocktest.Sector == 0 { // else a sector of the device is in two parts
		x.Cut = func(testing.TB) {
			for _, d := range disks {
				d.Cut()
			}
		}
	}
	return x
}

func TestConformance(t *testing.T) {
	aligned := func(size int64) block.Caps {
		c := blocktest.FullCaps(size)
		c.BlockSize.Minimum = 4096
		return c
	}
	for _, x := range []struct {
		name string
		unit int64
		open func(*blocktest.Disk) block.Backend
		caps func(int64) block.Caps
	}{
		{"Odd", 1, (*blocktest.Disk).Open, blocktest.FullCaps},
		{"Sectors", 512, (*blocktest.Disk).Open, blocktest.FullCaps},
		{"Aligned", 4096, (*blocktest.Disk).Open, aligned},
		{"Plain", 1, (*blocktest.Disk).OpenPlain, blocktest.FullCaps},
		{"ReadOnly", 1, (*blocktest.Disk).OpenReadOnly, blocktest.FullCaps},
	} {
		t.Run(x.name, func(t *testing.T) {
			target := target(x.unit, x.open, x.caps)
			if x.name == "Plain" || x.name == "ReadOnly" {
				target.Cut = nil
			}
			blocktest.Run(t, target)
		})
	}
}

// TestConformanceFiles runs the suite over files, with all that they can do.
func TestConformanceFiles(t *testing.T) {
	var path string
	again := func(testing.TB) (block.Backend, error) { return multi.Open(multi.Config{Path: path}) }
	blocktest.Run(t, blocktest.Target{
		Open: func(t testing.TB, size int64) (block.Backend, error) {
			path = filepath.Join(t.TempDir(), "disk")
			makeFiles(t, path, cutUp(size, 1)...)
			return again(t)
		},
		Reopen: again,
		Steps:  400,
	})
}

func makeFiles(t testing.TB, path string, sizes ...int64) {
	for i, n := range sizes {
		f, err := os.Create(fmt.Sprintf("%s.%d", path, i))
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(f.Truncate(n), f.Close()); err != nil {
			t.Fatal(err)
		}
	}
}

// TestOpen has files with a gap in their numbers, and what is no file.
func TestOpen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	open := func(c multi.Config) (block.Backend, error) {
		c.Path = path
		return multi.Open(c)
	}
	if _, err := open(multi.Config{}); !errors.Is(err, os.ErrNotExist) || !strings.Contains(fmt.Sprint(err), "disk.0") {
		t.Errorf("no file at all: %v, want an error that names disk.0", err)
	}
	makeFiles(t, path, 100, 200, 300, 400, 500)
	if err := os.Remove(path + ".3"); err != nil {
		t.Fatal(err)
	}
	b, err := open(multi.Config{})
	if err != nil {
		t.Fatal(err)
	}
	if n := b.Caps().Size; n != 600 {
		t.Errorf("%d bytes, want the 600 before the gap", n)
	}
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	ro, err := open(multi.Config{ReadOnly: true})
	if err != nil {
		t.Fatal(err)
	}
	defer ro.Close()
	if !ro.Caps().ReadOnly {
		t.Error("opened for reading only, and can be written")
	}
	if err := os.Mkdir(path+".3", 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := open(multi.Config{}); err == nil || !strings.Contains(err.Error(), "a directory") {
		t.Errorf("one of the files is a folder: %v", err)
	}
}

// TestPlaces wants bytes in the file, and at the place, where they belong.
func TestPlaces(t *testing.T) {
	path := filepath.Join(t.TempDir(), "disk")
	makeFiles(t, path, 5, 0, 3, 4)
	b, err := multi.Open(multi.Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	d, err := block.New(b)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.WriteAt(t.Context(), []byte("efghij"), 4, block.FUA); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{".0": "\x00\x00\x00\x00e", ".1": "", ".2": "fgh", ".3": "ij\x00\x00"} {
		if got, err := os.ReadFile(path + name); err != nil || string(got) != want {
			t.Errorf("%s has %q, %v; want %q", name, got, err, want)
		}
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
}

// TestErrorPlace wants the place of an error as one of the whole device.
func TestErrorPlace(t *testing.T) {
	first, second := blocktest.NewDisk(t, blocktest.FullCaps(1000)), blocktest.NewDisk(t, blocktest.FullCaps(1000))
	bad := errors.New("bad sector")
	second.Hook = func(c blocktest.Call) error {
		if c.Method == "ReadAt" {
			return &block.OffsetError{Off: c.Off + 7, Err: bad}
		}
		return nil
	}
	d := device(t, first.Open(), second.Open())
	err := d.ReadAt(t.Context(), make([]byte, 100), 950)
	var at *block.OffsetError
	if !errors.As(err, &at) || at.Off != 1007 || !errors.Is(err, bad) {
		t.Errorf("%v, want one at 1007", err)
	}
}

func device(t *testing.T, list ...block.Backend) *block.Device {
	var parts []*block.Device
	for _, b := range list {
		d, err := block.New(b)
		if err != nil {
			t.Fatal(err)
		}
		parts = append(parts, d)
	}
	b, err := multi.New(parts)
	if err != nil {
		t.Fatal(err)
	}
	d, err := block.New(b)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// TestFlush wants every part flushed, also behind one that fails.
func TestFlush(t *testing.T) {
	bad := errors.New("no medium")
	flushed := make([]bool, 3)
	var parts []block.Backend
	for i := range flushed {
		x := blocktest.NewDisk(t, blocktest.FullCaps(1000))
		x.Hook = func(c blocktest.Call) error {
			if c.Method != "Flush" {
				return nil
			}
			flushed[i] = true
			if i == 1 {
				return bad
			}
			return nil
		}
		parts = append(parts, x.Open())
	}
	if err := device(t, parts...).Flush(context.Background()); !errors.Is(err, bad) {
		t.Errorf("%v, want the error of the second part", err)
	}
	if flushed[0] != true || flushed[1] != true || flushed[2] != true {
		t.Errorf("flushed: %v", flushed)
	}
}

// TestFlushPanics: a panic in a part ends no more than the flush.
func TestFlushPanics(t *testing.T) {
	var parts []block.Backend
	for i := range 2 {
		x := blocktest.NewDisk(t, blocktest.FullCaps(1000))
		x.Hook = func(c blocktest.Call) error {
			if c.Method == "Flush" && i == 1 {
				panic("no medium")
			}
			return nil
		}
		parts = append(parts, x.Open())
	}
	if err := device(t, parts...).Flush(t.Context()); !errors.Is(err, block.ErrNotStable) || !strings.Contains(err.Error(), "no medium") {
		t.Errorf("%v, want that nothing is stable", err)
	}
}

// TestTooLarge adds up more than there can be.
func TestTooLarge(t *testing.T) {
	var parts []*block.Device
	for range 3 {
		b, err := null.New(null.Config{Size: math.MaxInt64 / 2})
		if err != nil {
			t.Fatal(err)
		}
		d, err := block.New(b)
		if err != nil {
			t.Fatal(err)
		}
		parts = append(parts, d)
	}
	if _, err := multi.New(parts); err == nil {
		t.Error("no error")
	}
}

func Example() {
	var parts []*block.Device
	for range 2 {
		b, err := memory.New(memory.Config{Size: 1000})
		if err != nil {
			fmt.Println(err)
			return
		}
		d, err := block.New(b)
		if err != nil {
			fmt.Println(err)
			return
		}
		parts = append(parts, d)
	}
	b, err := multi.New(parts)
	if err != nil {
		fmt.Println(err)
		return
	}
	dev, err := block.New(b)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer dev.Close()
	ctx := context.Background()
	if err := dev.WriteAt(ctx, []byte("across"), 997, 0); err != nil {
		fmt.Println(err)
		return
	}
	p := make([]byte, 3)
	if err := parts[1].ReadAt(ctx, p, 0); err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(dev.Size(), string(bytes.TrimRight(p, "\x00")))
	// Output: 2000 oss
}
