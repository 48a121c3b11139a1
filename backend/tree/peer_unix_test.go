//go:build unix

package tree_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"nbd.example/nbd/backend/tree"
	"nbd.example/nbd/block"
	"nbd.example/nbd/internal/refserver"
	"nbd.example/nbd/internal/testgate"
)

// image returns size bytes of which most are zeroes: stretches of data of odd
// lengths in odd places.
func image(rnd *rand.Rand, size int64) []byte {
	p := make([]byte, size)
	for range 60 {
		off := rnd.Int64N(size)
		n := min(1+rnd.Int64N(20_000), size-off)
		for i := range p[off : off+n] {
			p[off+int64(i)] = byte(rnd.Uint32())
		}
	}
	p[size-1] = 'E'
	return p
}

// peerSizes need no folders, one level of them, and two.
var peerSizes = map[string]int64{"No folders": 1_000_000, "One level": 4<<20 + 70_000, "Two levels": 4<<30 + 8192}

// parts returns the stretches of a device that are written: between them is too much.
func parts(size int64) [][2]int64 {
	if size < 16<<20 {
		return [][2]int64{{0, size}}
	}
	return [][2]int64{{0, 100_000}, {3 << 20, 2 << 20}, {size - 1<<20, 1 << 20}}
}

func reference(t *testing.T, dir string, size int64, more string) string {
	t.Helper()
	return refserver.Start(t, fmt.Sprintf("[tree]\nexportname = %s\ntreefiles = true\nflush = true\ntrim = true\nfilesize = %d\n%s\n", dir, size, more)).URI("tree")
}

// TestReferenceReads writes trees, and has the reference serve them to a client. Run by an
// ordinary user, 3.24 ends the connection when it reads of a tree whose files it may all
// read.
func TestReferenceReads(t *testing.T) {
	testgate.Requires(t, append(refserver.Needs(), testgate.Root())...)
	for name, size := range peerSizes {
		t.Run(name, func(t *testing.T) {
			dir, file := filepath.Join(t.TempDir(), "tree"), filepath.Join(t.TempDir(), "out")
			d := open(t, tree.Config{Path: dir, Size: size})
			uri := reference(t, dir, size, "readonly = true")
			rnd := rand.New(rand.NewPCG(uint64(size), 1))
			for _, part := range parts(size) {
				off, want := part[0], image(rnd, part[1])
				if err := d.WriteAt(t.Context(), want, off, 0); err != nil {
					t.Fatal(err)
				}
				if err := d.WriteZeroes(t.Context(), off+9000, 8192, 0); err != nil {
					t.Fatal(err)
				}
				clear(want[9000:][:8192])
				refserver.Download(t, uri, file, off, part[1])
				if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, want) {
					t.Errorf("the reference reads something else in the %d bytes at %d, %v", part[1], off, err)
				}
			}
			files(t, dir) // all have their full length
		})
	}
}

// TestReferenceWrites has the reference write trees, and reads and goes on writing them.
func TestReferenceWrites(t *testing.T) {
	testgate.Requires(t, refserver.Needs()...)
	for name, size := range peerSizes {
		t.Run(name, func(t *testing.T) {
			dir, file := filepath.Join(t.TempDir(), "tree"), filepath.Join(t.TempDir(), "in")
			uri := reference(t, dir, size, "")
			rnd := rand.New(rand.NewPCG(uint64(size), 2))
			want := map[int64][]byte{}
			for _, part := range parts(size) {
				p := image(rnd, part[1])
				want[part[0]] = p
				if err := os.WriteFile(file, p, 0o600); err != nil {
					t.Fatal(err)
				}
				refserver.Upload(t, uri, file, part[0], part[1])
			}
			d := open(t, tree.Config{Path: dir, Size: size})
			check := func(when string) {
				for off, p := range want {
					got := make([]byte, len(p))
					if err := d.ReadAt(t.Context(), got, off); err != nil || !bytes.Equal(got, p) {
						t.Errorf("%s the %d bytes at %d are others, %v", when, len(p), off, err)
					}
				}
			}
			check("as the reference wrote them,")
			for off, p := range want {
				copy(p[3000:], "across a border, in a block that was there")
				if err := d.WriteAt(t.Context(), p[3000:3042], off+3000, block.FUA); err != nil {
					t.Fatal(err)
				}
			}
			check("after one more write,")
		})
	}
}
