// Package wait is a layer that keeps what is written in a file of its own, the
// diff, until it is told to merge it into the device below, the base, which goes
// on while clients are served. It is the waitfile of nbd-server: an image can be
// copied to a new server while the new server already takes the writes.
//
// # Concepts
//
// A device is first collecting: writes go to the diff, reads see them, and the
// base is only read. It need not even exist yet ([New]): then what was not
// written cannot be read, and that is an error. [Wait.Merge] makes it merge:
// stretch by stretch, what the diff has is copied to the base, made stable
// there, and forgotten in the diff. Writes go on meanwhile; those to the stretch
// that is on its way wait for it. When all is copied the device has merged: the
// diff is removed, and everything goes straight to the base, the fast path included.
//
// A [Group] has all such devices of a program, so that one signal can merge all:
// the reference's is SIGUSR1. A program that finds a [Status].Interrupted when it
// starts should merge at once.
//
// # Durability
//
// The diff is a file that outlives the program. A flush makes stable, in the
// diff, what was written before it; while merging, in the base too. After a crash,
// or a normal end before the merge, opening the same diff again continues with all
// that was flushed, and so with all that was written before a normal end. (The
// reference forgets it.) A merge that was cut short, by a crash or an error, has lost
// nothing: the diff still has what the base does not safely have.
// Opened again, the device collects, and can be merged again.
//
// So: as long as Merge has not begun, the base is untouched; when it has returned
// without error, the base has everything that was written before, and it is stable.
//
// # The diff
//
// The file has a header of 4096 bytes, a bitmap, and a copy of the device that has
// holes where nothing was written. All numbers are big-endian; offsets and
// lengths are in bytes.
//
//	 0  8  "NBDWAIT\n"
//	 8  4  version, 1
//	12  4  unit of the bitmap, 512
//	16  8  size of the device
//	24 16  name of the contents, any bytes
//	40  4  1 once a merge has begun, else 0
//	44  4  CRC-32C of the 44 bytes before
//
// The rest of the header is 0. The bitmap begins at 4096 and has one bit for each
// 512 bytes of the device, the highest bit of a byte first; 1 says that the
// bytes are in the diff. It is rounded up to a multiple of 4096, and what is past
// the end of the device is 0. Behind it follows the copy, as long as the device.
//
// A bit is written only when the bytes it stands for are stable, and cleared only
// when they are stable in the base. Thus any mix of old and new bits that a
// power cut leaves is right.
//
// # Memory
//
// One bit for each 512 bytes, for those stretches of 16 MiB that have something
// in the diff.
package wait

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"sync"
	"sync/atomic"

	"nbd.example/nbd/block"
)

// Config says where changes are kept.
type Config struct {
	// Diff is the path of the diff. If there is none it is made, and its
	// folder must exist. If there is one, it goes on. Only one device at a time can
	// have it open.
	Diff string
	// Name is what messages and [Status] call the device; "" means Diff.
	Name string
	// Group, if not nil, has the device as a member from the beginning until Close.
	Group *Group
	// Open opens files and folders, like os.OpenFile, which nil means.
	Open func(name string, flag int, perm fs.FileMode) (*os.File, error)
	// Remove removes the diff after the merge, like os.Remove, which nil means.
	Remove func(name string) error
	// Storage, if not nil, is used in place of a file.
	Storage Storage
}

// Layer returns a layer that keeps changes in a diff until they are merged. The
// back end that it makes is a [*Wait].
func Layer(c Config) block.Layer {
	return func(next *block.Device) (block.Backend, error) {
		w, err := open(c, next.Size(), next, nil)
		if err != nil {
			return nil, err
		}
		return w, nil
	}
}

// New returns a device of size bytes over a base that may not exist yet. Base
// opens it: it is called by New, and, as long as its errors are fs.ErrNotExist, once
// more by each Merge. Other errors fail New. The base must be at least as large,
// and belongs to the device, which closes it.
func New(ctx context.Context, c Config, size int64, base func(context.Context) (*block.Device, error)) (*Wait, error) {
	next, err := base(ctx)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		next = nil
	case err != nil:
		return nil, fmt.Errorf("wait: open the device below: %w", err)
	}
	if next != nil {
		if err := enough(next, size); err != nil {
			return nil, errors.Join(err, next.Close())
		}
	}
	w, err := open(c, size, next, base)
	if err != nil && next != nil {
		err = errors.Join(err, next.Close())
	}
	return w, err
}

// enough complains of a base that is too small.
func enough(next *block.Device, size int64) error {
	if next.Size() < size {
		return fmt.Errorf("wait: the device below has %d bytes, fewer than the %d that were promised to clients; make it larger", next.Size(), size)
	}
	return nil
}

// mode is what a device is doing.
type mode uint32

const (
	collecting mode = iota
	merging
	merged
)

// Wait is a device that can be merged. Its methods may be called concurrently.
type Wait struct {
	config Config
	size   int64
	late   func(context.Context) (*block.Device, error) // opens the base; nil if it was there
	diff   *diff
	caps   block.Caps

	// Every operation holds life for reading from its beginning to its end, and
	// the mode changes under it, so that no operation lasts from one mode into the
	// next. next is set before the mode is merging.
	life sync.RWMutex
	mode atomic.Uint32
	next *block.Device // nil: it does not exist yet

	edges   stripes // writers of the same sectors, one after the other
	regions regions // writers, against the stretch that is being merged
	marks   marks   // what is in the diff

	flushing sync.Mutex // one flush of the diff at a time
	broken   error      // of a flush of the diff; under flushing

	merge   sync.Mutex            // one Merge at a time
	closing chan struct{}         // closed by Close, which ends a Merge
	failed  atomic.Pointer[error] // why the last Merge failed; nil, or a nil error, if it did not
}

var (
	_ block.Backend    = (*Wait)(nil)
	_ block.Writer     = (*Wait)(nil)
	_ block.Flusher    = (*Wait)(nil)
	_ block.Trimmer    = (*Wait)(nil)
	_ block.ZeroWriter = (*Wait)(nil)
	_ block.Extenter   = (*Wait)(nil)
	_ block.Cacher     = (*Wait)(nil)
	_ block.Direct     = (*Wait)(nil)
)

// open makes the device. If it fails, next is still the caller's.
func open(c Config, size int64, next *block.Device, late func(context.Context) (*block.Device, error)) (*Wait, error) {
	if c.Name == "" {
		c.Name = c.Diff
	}
	if err := c.Group.reserve(c.Diff); err != nil {
		return nil, fmt.Errorf("wait: open the diff %s: %w", c.Diff, err)
	}
	w := &Wait{config: c, size: size, next: next, late: late, closing: make(chan struct{})}
	if err := w.openDiff(); err != nil {
		c.Group.release(c.Diff)
		return nil, err
	}
	w.caps = w.abilities()
	c.Group.add(w)
	return w, nil
}

func (w *Wait) openDiff() error {
	c := &w.config
	s, err := c.storage()
	if err != nil {
		return fmt.Errorf("wait: open the diff %s: %w", c.Diff, err)
	}
	if w.diff, err = openDiff(s, w.size, contents(w.next), &w.marks); err != nil {
		return errors.Join(fmt.Errorf("wait: the diff %s: %w", c.Diff, err), s.Close())
	}
	return nil
}

// contents returns the name for the contents of a new diff over next. It is the
// same before the diff is made, while it goes on, and after it was merged, but not
// that of the base, which differs meanwhile.
func contents(next *block.Device) (name [16]byte) {
	if next == nil {
		rand.Read(name[:])
		return name
	}
	sum := sha256.Sum256([]byte("wait/" + next.Caps().Instance))
	return [16]byte(sum[:16])
}

func (w *Wait) abilities() block.Caps {
	c := block.Caps{
		Size: w.size, BlockSize: block.BlockSize{Preferred: 4096}, MultiConn: true, Depth: true,
		Flush: block.Native, Trim: block.Native, Zero: block.Native, FastZero: block.Native,
		Extents: block.Native, Cache: block.Emulated, Instance: w.diff.instance(),
	}
	if w.next == nil {
		return c
	}
	below := w.next.Caps()
	c.BlockSize.Preferred = max(c.BlockSize.Preferred, below.BlockSize.Preferred)
	c.Rotational = below.Rotational
	if below.Flush == block.None && !below.ReadOnly {
		// After the merge there would be nothing behind the promise.
		c.Flush = block.None
	}
	if below.Cache == block.Native {
		c.Cache = block.Native
	}
	return c
}

// Caps implements block.Backend.
func (w *Wait) Caps() block.Caps { return w.caps }

// now returns the mode. It stays while the caller holds life.
func (w *Wait) now() mode { return mode(w.mode.Load()) }

// Close implements block.Backend. What was written is kept in the diff, unless it
// has been merged. A merge that is under way ends early.
func (w *Wait) Close() error {
	w.config.Group.remove(w)
	close(w.closing)
	w.merge.Lock()
	defer w.merge.Unlock()
	var err error
	if w.now() != merged {
		err = errors.Join(w.flushDiff(), w.diff.close())
	}
	w.config.Group.release(w.config.Diff)
	if w.next != nil {
		err = errors.Join(err, w.next.Close())
	}
	return err
}
