//go:build linux || freebsd

package file

import (
	"context"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"nbd.example/nbd/block"
)

var _ block.Extenter = (*File)(nil)

// knownData remembers one stretch that holds data all through. Reading asks for
// extents often, and looking for the end of a long stretch is slow. Where others
// punch holes it becomes wrong, which does no harm: a hole may be called data.
type knownData struct {
	mu       sync.Mutex
	off, end int64
	holes    uint64 // how often holes were made here
}

func (k *knownData) covers(off, n int64) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.off <= off && off+n <= k.end
}

// asking is called before the file system is asked. Its result is for set.
func (k *knownData) asking() uint64 {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.holes
}

// set remembers an answer, unless holes were made meanwhile.
func (k *knownData) set(off, end int64, asked uint64) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.holes == asked {
		k.off, k.end = off, end
	}
}

// forget is called after holes were made.
func (k *knownData) forget() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.holes++
	k.off, k.end = 0, 0
}

// Extents asks the file system.
func (f *File) Extents(ctx context.Context, off, n int64, flags block.Flags, add func(block.Extent) bool) error {
	if f.sys.known.covers(off, n) {
		add(block.Extent{Length: n, Depth: 1})
		return nil
	}
	for at := off; at < off+n; {
		x, err := f.extentAt(at)
		if err != nil {
			return err
		}
		if !add(x) || flags&block.One != 0 {
			return nil
		}
		at += x.Length
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	return nil
}

// findsHoles reports whether the file system tells its holes, which a disk does
// not.
func (f *File) findsHoles() bool {
	if f.device {
		return false
	}
	_, err := unix.Seek(int(f.fd), 0, unix.SEEK_DATA)
	return err == nil || err == unix.ENXIO // there is nothing
}

func (f *File) extentAt(off int64) (block.Extent, error) {
	asked := f.sys.known.asking()
	data, err := unix.Seek(int(f.fd), off, unix.SEEK_DATA)
	switch {
	case err == unix.ENXIO: // nothing but a hole, or not even that
		if data, err = unix.Seek(int(f.fd), 0, unix.SEEK_END); err != nil {
			return block.Extent{}, os.NewSyscallError("lseek", err)
		}
	case err != nil:
		return block.Extent{}, os.NewSyscallError("lseek", err)
	}
	if data = f.borderAt(data); data > off {
		return block.Extent{Length: data - off, State: block.Hole | block.Zero}, nil
	}
	hole, err := unix.Seek(int(f.fd), off, unix.SEEK_HOLE)
	switch {
	case err == unix.ENXIO:
		// The file has become smaller. To call the rest data makes the reader
		// ask for it, and get the error.
		return block.Extent{Length: f.size.Load() - off, Depth: 1}, nil
	case err != nil:
		return block.Extent{}, os.NewSyscallError("lseek", err)
	}
	size := f.size.Load()
	if hole = min(roundUp(hole, f.align), size); hole <= off { // punched in between: to say "data" is always right
		return block.Extent{Length: min(max(4096, f.align), size-off), Depth: 1}, nil
	}
	f.sys.known.set(off, hole, asked)
	return block.Extent{Length: hole - off, Depth: 1}, nil
}

// borderAt returns where data begins that the file system finds at off: at the
// beginning of its block, and not behind the end.
func (f *File) borderAt(off int64) int64 {
	return min(roundDown(off, f.align), f.size.Load())
}
