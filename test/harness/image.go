package harness

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

// MiB is a mebibyte, in bytes.
const MiB = 1 << 20

// Random returns n bytes that depend only on the seed.
func Random(seed uint64, n int) []byte {
	var key [32]byte
	key[0], key[1] = byte(seed), byte(seed>>8)
	p := make([]byte, n)
	rand.NewChaCha8(key).Read(p)
	return p
}

// Sparse returns n bytes, a multiple of a MiB, of which every other MiB is zero.
func Sparse(seed uint64, n int) []byte {
	p := Random(seed, n)
	for i := MiB; i < n; i += 2 * MiB {
		clear(p[i:min(i+MiB, n)])
	}
	return p
}

// Image writes a file into dir and returns its path. Stretches of zeroes become
// holes.
func Image(t testing.TB, dir, name string, data []byte) string {
	t.Helper()
	path := filepath.Join(dir, name)
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := f.Truncate(int64(len(data))); err != nil {
		t.Fatal(err)
	}
	zeroes := make([]byte, 64<<10)
	for off := 0; off < len(data); off += len(zeroes) {
		p := data[off:min(off+len(zeroes), len(data))]
		if bytes.Equal(p, zeroes[:len(p)]) {
			continue
		}
		if _, err := f.WriteAt(p, int64(off)); err != nil {
			t.Fatal(err)
		}
	}
	return path
}

// Same fails the test if the file does not hold exactly want.
func Same(t testing.TB, path string, want []byte) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != len(want) {
		t.Fatalf("%s holds %d bytes, want %d", filepath.Base(path), len(got), len(want))
	}
	if i := differ(got, want); i >= 0 {
		t.Fatalf("%s differs from what it should hold at byte %d", filepath.Base(path), i)
	}
}

// differ returns where two slices of one length begin to differ, or -1.
func differ(a, b []byte) int {
	if bytes.Equal(a, b) {
		return -1
	}
	for i := range a {
		if a[i] != b[i] {
			return i
		}
	}
	return -1
}

// CopyFile copies a small file.
func CopyFile(t testing.TB, from, to string) {
	t.Helper()
	p, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, p, 0o600); err != nil {
		t.Fatal(err)
	}
}
