package block_test

import (
	"errors"
	"sync"
	"sync/atomic"
	"testing"

	"nbd.example/nbd/block"
	"nbd.example/nbd/layer/delay"
	"nbd.example/nbd/layer/fault"
	"nbd.example/nbd/layer/offset"
	"nbd.example/nbd/layer/readonly"
)

// growing is a disk whose size others change.
type growing struct {
	writable
	size *atomic.Int64
	fail error
}

func (g growing) Remeasure() (int64, error) { return g.size.Load(), g.fail }

// newGrowing makes one of 8192 bytes, in blocks of 512.
func newGrowing() growing {
	caps := block.Caps{Size: 8192, BlockSize: block.BlockSize{Minimum: 512}}
	g := growing{writable: writable{bare{caps}}, size: new(atomic.Int64)}
	g.size.Store(8192)
	return g
}

// TestGrow makes what is below larger and smaller.
func TestGrow(t *testing.T) {
	b := newGrowing()
	d := device(t, b)
	for _, tt := range []struct{ there, unit, found, size int64 }{
		{8192, 1, 8192, 8192},
		{9000, 1, 8704, 8704},    // whole blocks
		{9800, 1024, 9216, 9216}, // and what the caller wants whole
		{4096, 1, 4096, 9216},    // it never shrinks
		{9216, 1, 9216, 9216},
		{1 << 40, 0, 1 << 40, 1 << 40},
	} {
		b.size.Store(tt.there)
		if found, err := d.Grow(tt.unit); found != tt.found || err != nil || d.Size() != tt.size || d.Caps().Size != tt.size {
			t.Errorf("with %d bytes there: found %d, %v; size %d and %d, want %d and %d", tt.there, found, err, d.Size(), d.Caps().Size, tt.found, tt.size)
		}
	}
	must(t, d.WriteAt(t.Context(), make([]byte, 512), 1<<40-512, 0))
	must(t, d.ReadAt(t.Context(), make([]byte, 512), 1<<40-512))
	if err := d.WriteAt(t.Context(), make([]byte, 512), 1<<40, 0); !errors.Is(err, block.ErrRange) {
		t.Errorf("a write behind the end: %v", err)
	}
}

// TestGrowNot: no growth without the means for it, and none by an error.
func TestGrowNot(t *testing.T) {
	fixed := device(t, bare{block.Caps{Size: 4096}})
	if found, err := fixed.Grow(1); found != 4096 || err != nil {
		t.Errorf("without the method: %d, %v", found, err)
	}
	b := newGrowing()
	b.size.Store(1 << 20)
	b.fail = errors.New("no answer")
	d := device(t, b)
	if _, err := d.Grow(1); !errors.Is(err, b.fail) || d.Size() != 8192 {
		t.Errorf("with an error: %v, size %d", err, d.Size())
	}
}

// TestGrowLayers: layers that change no sizes let it pass, others keep what they promised.
func TestGrowLayers(t *testing.T) {
	for name, tt := range map[string]struct {
		layer block.Layer
		size  int64
	}{
		"readonly": {readonly.Layer(), 16384},
		"delay":    {delay.Layer(delay.Config{}), 16384},
		"fault":    {fault.Layer(nil), 16384},
		"offset":   {offset.Layer(offset.Config{Offset: 1024}), 7168},
	} {
		b := newGrowing()
		d, err := block.Stack(b, tt.layer)
		must(t, err)
		b.size.Store(16384)
		if _, err := d.Grow(1); err != nil || d.Size() != tt.size {
			t.Errorf("%s: size %d, %v, want %d", name, d.Size(), err, tt.size)
		}
		must(t, d.ReadAt(t.Context(), make([]byte, 512), tt.size-512))
		must(t, d.Close())
	}
}

// TestGrowTogether grows a device from many sides while it is in use.
func TestGrowTogether(t *testing.T) {
	b := newGrowing()
	d := device(t, b)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for n := range 200 {
				b.size.Store(8192 + int64(i*200+n)*512)
				if _, err := d.Grow(1); err != nil {
					t.Error(err)
				}
				if err := d.ReadAt(t.Context(), make([]byte, 512), d.Size()-512); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
}
