package cow

import (
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os"
	"sync"
	"syscall"

	"nbd.example/nbd/internal/sparse"
)

// diff is the file that holds the changed blocks. Where a block is in it is told
// by its value in the map.
type diff struct {
	f      *os.File
	name   string // to be removed when it is closed, or ""
	sparse bool

	mu   sync.Mutex
	used int64  // slots that were ever taken
	free []span // slots that were given back, each span once
}

// span is a stretch of slots, named by values of the map.
type span struct {
	v uint32
	n int64
}

// newDiff makes the file. Its name goes at once, so that not even the end of
// the process leaves it behind; a system that cannot remove the name of an open
// file keeps it until close.
func newDiff(c Config) (*diff, error) {
	create := c.CreateTemp
	if create == nil {
		create = os.CreateTemp
	}
	f, err := create(c.Dir, "nbd-cow-*.diff")
	if err != nil {
		dir := c.Dir
		if dir == "" {
			dir = os.TempDir()
		}
		return nil, fmt.Errorf("cow: make a file for changes in %q (is it a folder that can be written?): %w", dir, err)
	}
	if c.Sparse {
		sparse.Prepare(f) // where it cannot have holes it only takes more room
	}
	d := &diff{f: f, sparse: c.Sparse}
	if err := os.Remove(f.Name()); err != nil && !errors.Is(err, fs.ErrNotExist) {
		d.name = f.Name()
	}
	return d, nil
}

// close drops the diff.
func (d *diff) close() error {
	err := d.f.Close()
	if d.name != "" {
		if e := os.Remove(d.name); err == nil {
			err = e
		}
	}
	if err != nil {
		return fmt.Errorf("cow: drop the changes: %w", err)
	}
	return nil
}

// place returns where in the file the byte at off of the device is, if its block
// has the value v.
func (d *diff) place(v uint32, off int64) int64 {
	if d.sparse {
		return off
	}
	return int64(v-firstSlot)<<blockBits + off&(BlockSize-1)
}

// read fills p from the bytes at off of the device, whose block has the value v.
func (d *diff) read(p []byte, v uint32, off int64) error {
	if _, err := d.f.ReadAt(p, d.place(v, off)); err != nil {
		return fmt.Errorf("cow: read %d changed bytes of %d: %w", len(p), off, err)
	}
	return nil
}

// write is like read.
func (d *diff) write(p []byte, v uint32, off int64) error {
	if _, err := d.f.WriteAt(p, d.place(v, off)); err != nil {
		return fmt.Errorf("cow: keep %d changed bytes of %d: %w", len(p), off, err)
	}
	return nil
}

// take returns the value for the first of up to n blocks that are new in the
// diff, and of how many it can have.
func (d *diff) take(n int64) (v uint32, taken int64, err error) {
	if d.sparse {
		return firstSlot, n, nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if last := len(d.free) - 1; last >= 0 {
		s := &d.free[last]
		v, taken = s.v, min(n, s.n)
		if taken == s.n {
			d.free = d.free[:last]
		} else {
			s.v, s.n = s.v+uint32(taken), s.n-taken
		}
		return v, taken, nil
	}
	const slots = math.MaxUint32 - firstSlot
	if d.used >= slots {
		return 0, 0, fmt.Errorf("cow: more than %d changed blocks: %w", int64(slots), syscall.ENOSPC)
	}
	v, taken = uint32(firstSlot+d.used), min(n, slots-d.used)
	d.used += taken
	return v, taken, nil
}

// give takes slots back from n blocks, the first of which had the value v. Nobody
// may use them any more.
func (d *diff) give(v uint32, n int64) {
	if d.sparse {
		return
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if last := len(d.free) - 1; last >= 0 && int64(d.free[last].v)+d.free[last].n == int64(v) {
		d.free[last].n += n
		return
	}
	d.free = append(d.free, span{v, n})
}

// punch gives the room of n whole blocks back to the file system, where that is
// possible. The first one is at off in the device, and has the value v.
func (d *diff) punch(v uint32, off, n int64) { punchHole(d.f, d.place(v, off), n<<blockBits) }

// stripes are the locks of blocks: a few, shared by many blocks.
type stripes [stripeCount]sync.RWMutex

const (
	stripeCount = 64
	stripeBits  = blockBits + 2 // neighbouring blocks that share a lock anyway
)

// each calls do for the stripes of a range, always in the same order.
func (s *stripes) each(off, end int64, do func(*sync.RWMutex)) {
	if off >= end {
		return
	}
	first, last := off>>stripeBits, (end-1)>>stripeBits
	if last-first >= stripeCount {
		first, last = 0, stripeCount-1
	}
	first, last = first%stripeCount, last%stripeCount
	for i := range int64(stripeCount) {
		inside := first <= i && i <= last
		if first > last { // wraps around
			inside = i >= first || i <= last
		}
		if inside {
			do(&s[i])
		}
	}
}

func (s *stripes) lock(off, end int64)    { s.each(off, end, (*sync.RWMutex).Lock) }
func (s *stripes) unlock(off, end int64)  { s.each(off, end, (*sync.RWMutex).Unlock) }
func (s *stripes) rlock(off, end int64)   { s.each(off, end, (*sync.RWMutex).RLock) }
func (s *stripes) runlock(off, end int64) { s.each(off, end, (*sync.RWMutex).RUnlock) }
