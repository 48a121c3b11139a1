//go:build unix

package multi_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"nbd.example/nbd/backend/multi"
	"nbd.example/nbd/block"
	"nbd.example/nbd/internal/refserver"
	"nbd.example/nbd/internal/testgate"
)

// TestReference exchanges files with the reference in both directions: borders in odd
// places, and a file behind a gap. None is empty: the reference takes one for that which
// follows, and cannot read its first byte.
func TestReference(t *testing.T) {
	testgate.Requires(t, refserver.Needs()...)
	path, file := filepath.Join(t.TempDir(), "disk"), filepath.Join(t.TempDir(), "file")
	makeFiles(t, path, 1_000_000, 5000, 4096, 2_000_003, 512, 9999, 700)
	if err := os.Remove(path + ".5"); err != nil {
		t.Fatal(err)
	}
	const size = 1_000_000 + 5000 + 4096 + 2_000_003 + 512
	b, err := multi.Open(multi.Config{Path: path})
	if err != nil {
		t.Fatal(err)
	}
	d := deviceOf(t, b)
	if d.Size() != size {
		t.Fatalf("%d bytes, want %d", d.Size(), size)
	}
	uri := refserver.Start(t, fmt.Sprintf("[m]\nexportname = %s\nmultifile = true\nflush = true\n", path)).URI("m")
	want := make([]byte, size)
	noise := rand.NewChaCha8([32]byte{1})
	noise.Read(want)
	if err := d.WriteAt(t.Context(), want, 0, block.FUA); err != nil {
		t.Fatal(err)
	}
	refserver.Download(t, uri, file, 0, size) // fails if the reference has another size
	if got, err := os.ReadFile(file); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the reference reads something else, %v", err)
	}
	noise.Read(want)
	if err := os.WriteFile(file, want, 0o600); err != nil {
		t.Fatal(err)
	}
	refserver.Upload(t, uri, file, 0, size)
	got := make([]byte, size)
	if err := d.ReadAt(t.Context(), got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("what the reference wrote is read as something else, %v", err)
	}
}

func deviceOf(t *testing.T, b block.Backend) *block.Device {
	t.Helper()
	d, err := block.New(b)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}
