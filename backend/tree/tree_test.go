package tree_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"nbd.example/nbd/backend/tree"
	"nbd.example/nbd/block"
	"nbd.example/nbd/block/blocktest"
	"nbd.example/nbd/internal/testgate"
)

func TestConformance(t *testing.T) {
	for _, x := range []struct {
		name string
		size int64
		c    tree.Config
	}{
		{"NoFolders", 1<<20 + 4097, tree.Config{}},
		{"OneLevel", 4<<20 + 5000, tree.Config{}},
		{"FewOpen", 1<<20 + 5, tree.Config{MaxOpen: 2}},
		{"Sync", 40_000, tree.Config{Sync: true}},
	} {
		t.Run(x.name, func(t *testing.T) {
			c := x.c
			again := func(testing.TB) (block.Backend, error) { return tree.Open(c) }
			blocktest.Run(t, blocktest.Target{
				Open: func(t testing.TB, size int64) (block.Backend, error) {
					c.Path, c.Size = filepath.Join(t.TempDir(), "tree"), max(size, 1)
					return again(t)
				},
				Reopen:  again,
				Size:    x.size,
				AnySize: true,
				Steps:   80,
			})
		})
	}
}

// open opens a tree, and closes it with the test.
func open(t testing.TB, c tree.Config) *block.Device {
	t.Helper()
	b, err := tree.Open(c)
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

// files returns the paths of the files in a folder, relative to it, sorted.
func files(t testing.TB, dir string) (list []string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		if info, err := e.Info(); err != nil || info.Size() != tree.BlockSize {
			t.Errorf("%s has %d bytes, %v; want %d", path, info.Size(), err, tree.BlockSize)
		}
		name, err := filepath.Rel(dir, path)
		list = append(list, filepath.ToSlash(name))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(list)
	return list
}

// TestNames wants the files where the reference has them.
func TestNames(t *testing.T) {
	for _, x := range []struct {
		size int64
		offs []int64
		want []string
	}{
		{1_000_000, []int64{999_999, 0}, []string{"FILE0000", "FILE00F4"}},
		{4<<20 - 1, []int64{4<<20 - 2}, []string{"FILE03FF"}},
		{4 << 20, []int64{4<<20 - 1}, []string{"TREE0000/FILE03FF"}},
		{32 << 20, []int64{0, 5 << 20, 9 << 20}, []string{"TREE0000/FILE0000", "TREE0001/FILE0100", "TREE0002/FILE0100"}},
		{4<<30 - 1, []int64{4<<30 - 2}, []string{"TREE03FF/FILE03FF"}},
		{4 << 30, []int64{4<<30 - 1}, []string{"TREE0000/TREE03FF/FILE03FF"}},
		{8 << 40, []int64{8<<40 - 1, 4 << 40}, []string{"TREE0001/TREE0000/TREE0000/FILE0000", "TREE0001/TREE03FF/TREE03FF/FILE03FF"}},
		{1<<63 - 1, []int64{1<<63 - 2}, []string{"TREE0001/TREE03FF/TREE03FF/TREE03FF/TREE03FF/FILE03FF"}},
	} {
		dir := filepath.Join(t.TempDir(), "tree")
		d := open(t, tree.Config{Path: dir, Size: x.size})
		for _, off := range x.offs {
			if err := d.WriteAt(t.Context(), []byte{1}, off, 0); err != nil {
				t.Fatal(err)
			}
		}
		if got := files(t, dir); !slices.Equal(got, x.want) {
			t.Errorf("%d bytes, writes at %v: %q, want %q", x.size, x.offs, got, x.want)
		}
		for _, off := range x.offs { // whole blocks of a huge device, found and removed
			if err := d.WriteZeroes(t.Context(), off/4096*4096, min(4096, x.size-off/4096*4096), 0); err != nil {
				t.Fatal(err)
			}
		}
		if got := files(t, dir); len(got) > 0 {
			t.Errorf("%d bytes: after zeroing: %q", x.size, got)
		}
	}
}

// TestSparse zeroes, trims and looks through a device of which nearly nothing is
// there. To look at each block would take for ever.
func TestSparse(t *testing.T) {
	const size, there = 1 << 60, 1<<59 + 8192
	dir := filepath.Join(t.TempDir(), "tree")
	d := open(t, tree.Config{Path: dir, Size: size})
	if err := d.WriteAt(t.Context(), []byte("x"), there, 0); err != nil {
		t.Fatal(err)
	}
	var got []block.Extent
	if err := d.Extents(t.Context(), 0, size, 0, func(x block.Extent) bool { got = append(got, x); return true }); err != nil {
		t.Fatal(err)
	}
	hole := block.Hole | block.Zero
	want := []block.Extent{{Length: there, State: hole}, {Length: 4096, Depth: 1}, {Length: size - there - 4096, State: hole}}
	if !slices.Equal(got, want) {
		t.Errorf("extents %+v, want %+v", got, want)
	}
	if err := d.Trim(t.Context(), 100, size-200, 0); err != nil {
		t.Fatal(err)
	}
	if got := files(t, dir); len(got) > 0 {
		t.Errorf("after trimming: %q", got)
	}
}

// TestStrangers has names in the folders that are not the tree's, files that are too
// short or too long, and a folder in the place of a file.
func TestStrangers(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "tree")
	for _, name := range []string{"TREE0000/FILE0400", "TREE0000/FILE00g0", "TREE0000/file0001", "TREE0000/FILE00000", "TREE0000/FILE00fe", "TREE03FF/x", "FILE0000",
		"TREE0000/FILE0005/x"} {
		name = filepath.Join(dir, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, bytes.Repeat([]byte("x"), 4096), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	short, long := filepath.Join(dir, "TREE0001", "FILE0000"), filepath.Join(dir, "TREE0001", "FILE0001")
	if err := os.Mkdir(filepath.Dir(short), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.WriteFile(short, []byte("short"), 0o600), os.WriteFile(long, bytes.Repeat([]byte("l"), 5000), 0o600)); err != nil {
		t.Fatal(err)
	}
	d := open(t, tree.Config{Path: dir, Size: 16 << 20})
	p := make([]byte, 4<<20)
	if err := d.ReadAt(t.Context(), p[:5*4096], 0); err != nil || bytes.Count(p[:5*4096], []byte{0}) != 5*4096 {
		t.Errorf("the first blocks are not zeroes: %v", err)
	}
	if err := d.ReadAt(t.Context(), p[:4096], 5*4096); err == nil {
		t.Error("a folder was read as a block")
	}
	want := append(append([]byte("short"), make([]byte, 4091)...), bytes.Repeat([]byte("l"), 4096)...)
	if err := d.ReadAt(t.Context(), p[:3*4096], 4<<20); err != nil || !bytes.Equal(p[:3*4096], append(want, make([]byte, 4096)...)) {
		t.Errorf("short and long files: % x, %v", p[:8], err)
	}
	if err := d.WriteAt(t.Context(), []byte("S"), 4<<20, 0); err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(short); err != nil || len(got) != 4096 || string(got[:6]) != "Short\x00" {
		t.Errorf("the short file has %d bytes after a write, %v", len(got), err)
	}
}

func TestMistakes(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct {
		c    tree.Config
		want string
	}{
		{tree.Config{Path: dir}, "size must be named"},
		{tree.Config{Path: file, Size: 1}, "file"},
		{tree.Config{Path: filepath.Join(dir, "no", "tree"), Size: 1}, "no"},
		{tree.Config{Path: filepath.Join(dir, "none"), Size: 1, ReadOnly: true}, "none"},
	} {
		if _, err := tree.Open(x.c); err == nil || !strings.Contains(err.Error(), x.want) {
			t.Errorf("%+v: %v; want something with %q", x.c, err, x.want)
		}
	}
}

// TestLock refuses a tree that is in use.
func TestLock(t *testing.T) {
	testgate.Requires(t, testgate.Linux())
	c := tree.Config{Path: filepath.Join(t.TempDir(), "tree"), Size: 1 << 20}
	b, err := tree.Open(c)
	if err != nil {
		t.Fatal(err)
	}
	// A server that reloads looks for EBUSY.
	if _, err := tree.Open(c); !errors.Is(err, syscall.EBUSY) || !strings.Contains(err.Error(), "in use") {
		t.Errorf("a second time: %v", err)
	}
	c.Force = true
	forced, err := tree.Open(c)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(forced.Close(), b.Close()); err != nil {
		t.Error(err)
	}
	c.Force, c.ReadOnly = false, true
	for range 2 {
		b, err := tree.Open(c)
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
	}
}

// TestManyOpen writes more files than are kept open, from many goroutines, while
// others remove them and flush.
func TestManyOpen(t *testing.T) {
	d := open(t, tree.Config{Path: filepath.Join(t.TempDir(), "tree"), Size: 64 << 20, MaxOpen: 8})
	ctx := context.Background()
	const each = 100
	place := func(g, i int) int64 { return int64(i*8+g) * 4096 * 3 }
	var all sync.WaitGroup
	for g := range 8 {
		all.Go(func() {
			for i := range each {
				if err := d.WriteAt(ctx, fmt.Appendf(nil, "%d/%d", g, i), place(g, i)+5, 0); err != nil {
					t.Error(err)
				}
				if i%3 == 0 {
					if err := d.Trim(ctx, place(g, i), 4096, 0); err != nil {
						t.Error(err)
					}
				}
				if i%40 == g {
					if err := d.Flush(ctx); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	all.Wait()
	for g := range 8 {
		for i := range each {
			want := fmt.Sprintf("%d/%d", g, i)
			if i%3 == 0 {
				want = strings.Repeat("\x00", len(want))
			}
			p := make([]byte, len(want))
			if err := d.ReadAt(ctx, p, place(g, i)+5); err != nil || string(p) != want {
				t.Fatalf("block %d of %d: %q, %v; want %q", i, g, p, err, want)
			}
		}
	}
}

func Example() {
	dir, err := os.MkdirTemp("", "tree")
	if err != nil {
		fmt.Println(err)
		return
	}
	defer os.RemoveAll(dir)
	b, err := tree.Open(tree.Config{Path: dir, Size: 32 << 20})
	if err != nil {
		fmt.Println(err)
		return
	}
	defer b.Close()
	if err := b.WriteAt(context.Background(), []byte("hello"), 9<<20, 0); err != nil {
		fmt.Println(err)
		return
	}
	p, err := os.ReadFile(filepath.Join(dir, "TREE0002", "FILE0100"))
	fmt.Println(len(p), string(p[:5]), err)
	// Output: 4096 hello <nil>
}
