package crash

import (
	"context"

	"nbd.example/nbd/block"
)

// Disk opens the disk called name. One that is not there yet is made, and reads as
// zeroes; size is in bytes, and the same each time. A disk may be open several times.
func (w *World) Disk(name string, size int64) block.Backend {
	w.mu.Lock()
	defer w.mu.Unlock()
	i, ok := w.disks[name]
	if !ok {
		i = w.newStore()
		w.stores[i].size = size
		w.disks[name] = i
	}
	return &disk{w: w, i: i, size: size, name: name}
}

type disk struct {
	w    *World
	i    int
	size int64
	name string
}

var (
	_ block.Writer     = (*disk)(nil)
	_ block.Flusher    = (*disk)(nil)
	_ block.Trimmer    = (*disk)(nil)
	_ block.ZeroWriter = (*disk)(nil)
)

// Caps implements block.Backend.
func (d *disk) Caps() block.Caps {
	return block.Caps{Size: d.size, MultiConn: true, FUA: block.Native, Instance: d.w.id + "-" + d.name}
}

// ReadAt implements block.Backend.
func (d *disk) ReadAt(_ context.Context, p []byte, off int64) error {
	d.w.read(d.i, p, off)
	return nil
}

// WriteAt implements block.Writer.
func (d *disk) WriteAt(_ context.Context, p []byte, off int64, f block.Flags) error {
	d.w.write(d.i, p, off, f&block.FUA != 0)
	return nil
}

// Flush implements block.Flusher.
func (d *disk) Flush(context.Context) error {
	d.w.sync(d.i)
	return nil
}

// Trim implements block.Trimmer.
func (d *disk) Trim(_ context.Context, off, n int64, f block.Flags) error {
	d.w.zero(d.i, off, n, f&block.FUA != 0)
	return nil
}

// WriteZeroes implements block.ZeroWriter.
func (d *disk) WriteZeroes(_ context.Context, off, n int64, f block.Flags) error {
	d.w.zero(d.i, off, n, f&block.FUA != 0)
	return nil
}

// Close implements block.Backend.
func (d *disk) Close() error { return nil }
