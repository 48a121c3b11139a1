package blocktest

import (
	"context"
	"testing"

	"nbd.example/nbd/block"
)

// through passes everything on, with what a test spoils.
type through struct {
	next *block.Device
	caps func(*block.Caps)
}

func (l *through) Caps() block.Caps {
	c := l.next.Caps()
	if l.caps != nil {
		l.caps(&c)
	}
	return c
}
func (l *through) Close() error { return l.next.Close() }
func (l *through) ReadAt(ctx context.Context, p []byte, off int64) error {
	return l.next.ReadAt(ctx, p, off)
}
func (l *through) WriteAt(ctx context.Context, p []byte, off int64, f block.Flags) error {
	return l.next.WriteAt(ctx, p, off, f)
}
func (l *through) Flush(ctx context.Context) error { return l.next.Flush(ctx) }
func (l *through) Trim(ctx context.Context, off, n int64, f block.Flags) error {
	return l.next.Trim(ctx, off, n, f)
}
func (l *through) WriteZeroes(ctx context.Context, off, n int64, f block.Flags) error {
	return l.next.WriteZeroes(ctx, off, n, f)
}
func (l *through) Extents(ctx context.Context, off, n int64, f block.Flags, add func(block.Extent) bool) error {
	return l.next.Extents(ctx, off, n, f, add)
}
func (l *through) Cache(ctx context.Context, off, n int64) error { return l.next.Cache(ctx, off, n) }

func TestLayer(t *testing.T) {
	RunLayer(t, LayerTarget{
		New: func(testing.TB) block.Layer {
			return func(next *block.Device) (block.Backend, error) { return &through{next: next}, nil }
		},
		Transparent: true,
	})
}
