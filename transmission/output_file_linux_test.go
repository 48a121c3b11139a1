package transmission

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"nbd.example/nbd/block"
)

// openFile gives r a file for spans.
func (r *outputRig) openFile(t *testing.T) {
	t.Helper()
	r.file = make([]byte, 200_000)
	rng := rand.New(rand.NewPCG(8, 8))
	for i := range r.file {
		r.file[i] = byte(rng.Uint32())
	}
	name := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(name, r.file, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	r.fd = f.Fd()
}

// TestOutputSpanEnds has a span that reaches beyond its file: the stream stops
// there, all else is thrown away, and the span is told to be avoided.
func TestOutputSpanEnds(t *testing.T) {
	for _, transport := range []string{"unix", "tcp", "copied"} {
		r := newOutputRig(t, transport)
		segs, _ := r.add(rand.New(rand.NewPCG(1, 1)), 0, nil)
		segs = append(segs, segment{span: block.Span{FD: r.fd, Off: int64(len(r.file)) - 10, Len: 20}, requests: 1})
		segs = append(segs, segment{buf: getBuffer(10), hi: 10, requests: 1})
		go func() { // takes what there is
			b := make([]byte, 4096)
			for {
				if _, err := r.peer.Read(b); err != nil {
					return
				}
			}
		}()
		held := int64(0)
		for _, s := range segs {
			held += int64(s.held)
		}
		r.out.send(segs)
		r.idle(t, 3, held)
		if err := r.out.failure(); !errors.Is(err, errSpan) {
			t.Errorf("failure: %v, want errSpan", err)
		}
		if r.avoided.Load() != 1 {
			t.Errorf("avoided %d times", r.avoided.Load())
		}
	}
}
