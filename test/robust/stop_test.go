package robust

import (
	"bytes"
	"errors"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"nbd.example/nbd/internal/testgate"
	"nbd.example/nbd/proto"
	"nbd.example/nbd/test/harness"
)

// TestTermination sends SIGTERM amid many writes. What was answered is in the image,
// the answers end at a border, and the server leaves with success.
func TestTermination(t *testing.T) {
	t.Parallel()
	testgate.Requires(t, testgate.Linux())
	const (
		writes = 2000
		length = 16 << 10
	)
	s := serve(t, make([]byte, writes*length))
	want := harness.Random(30, writes*length)
	c := open(t, s, "disk")
	go func() {
		for i := range uint64(writes) {
			off := i * length
			if _, err := c.Write(request(proto.CmdWrite, i, off, length, want[off:off+length])); err != nil {
				return // the server has closed
			}
		}
	}()
	answered := map[uint64]bool{}
	for {
		e, i, err := c.reply()
		if errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET) {
			break
		}
		if err != nil || e != 0 {
			t.Fatalf("reply %v, cookie %d: %v", e, i, err)
		}
		if answered[i] = true; len(answered) == 10 {
			s.Signal(syscall.SIGTERM)
		}
	}
	if err := s.Wait(); err != nil {
		t.Errorf("the server after SIGTERM: %v", err)
	}
	got, err := os.ReadFile(filepath.Join(s.Dir, "disk.img"))
	if err != nil {
		t.Fatal(err)
	}
	for i := range answered {
		off := i * length
		if !bytes.Equal(got[off:off+length], want[off:off+length]) {
			t.Fatalf("write %d was answered, and is not in the image", i)
		}
	}
	t.Logf("%d of %d writes were answered", len(answered), writes)
}
