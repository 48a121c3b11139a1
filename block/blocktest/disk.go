package blocktest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"nbd.example/nbd/block"
)

// ErrCut is what a back end of a [Disk] returns once the power has been cut.
var ErrCut = errors.New("the power was cut")

// Call is one call of a method that a [Disk] sees.
type Call struct {
	Method string // "ReadAt", "Flush", …
	Off, N int64  // bytes
	Flags  block.Flags
}

func (c Call) String() string {
	return fmt.Sprintf("%s of %d bytes at %d%s", c.Method, c.N, c.Off, flagNames(c.Flags))
}

// Disk is a disk in memory, for testing what stands over it. What is written is
// lost when the power is cut, unless it was flushed or written with FUA. It
// keeps its contents when its back ends are closed; it may have several at a time.
// All methods may be called concurrently.
//
// It fails its test when a method is called that its Caps deny, with arguments
// that break the contracts of package block, or after Close.
type Disk struct {
	// Hook, if set, is called at the beginning of every call of a back end's
	// method but Caps, Close and those of block.Direct. If it returns an error the
	// call returns it and has no effect. Set it before the disk is used, or while
	// it is not.
	Hook func(Call) error

	t    testing.TB
	caps block.Caps
	live atomic.Int64 // back ends that are open

	mu    sync.RWMutex
	rnd   *rand.Rand
	power int // how often it was cut
	data  []byte
	state []block.State           // of each sector
	old   map[int64][]diskVersion // of each sector that is not stable: all it may be after a cut
}

type diskVersion struct {
	data  []byte
	state block.State
}

// FullCaps returns the abilities of a disk that can do everything.
func FullCaps(size int64) block.Caps {
	return block.Caps{
		Size: size, MultiConn: true,
		Flush: block.Native, FUA: block.Native, Trim: block.Native, Zero: block.Native,
		FastZero: block.Native, Extents: block.Native, Cache: block.Native,
	}
}

// NewDisk makes a disk that reads as zeroes. caps is taken as it is, but for an
// empty Instance; FUA is there only if it says Native.
func NewDisk(t testing.TB, caps block.Caps) *Disk {
	if caps.Instance == "" {
		caps.Instance = block.NewInstance()
	}
	d := &Disk{
		t: t, caps: caps, rnd: newRand(seed()), data: make([]byte, caps.Size), old: map[int64][]diskVersion{},
		state: make([]block.State, (caps.Size+Sector-1)/Sector),
	}
	for i := range d.state {
		d.state[i] = block.Hole | block.Zero
	}
	return d
}

// Open returns a back end of the disk with all the methods of package block.
func (d *Disk) Open() block.Backend { return d.open() }

// OpenPlain returns a back end that has only ReadAt and WriteAt.
func (d *Disk) OpenPlain() block.Backend { return plainDisk{d.open()} }

// OpenReadOnly returns a back end that has only ReadAt.
func (d *Disk) OpenReadOnly() block.Backend { return readOnlyDisk{d.open()} }

func (d *Disk) open() *openDisk {
	d.mu.RLock()
	defer d.mu.RUnlock()
	d.live.Add(1)
	return &openDisk{d: d, power: d.power}
}

// Live returns how many back ends are open.
func (d *Disk) Live() int { return int(d.live.Load()) }

// Contents returns a copy of what the disk holds now.
func (d *Disk) Contents() []byte {
	d.mu.RLock()
	defer d.mu.RUnlock()
	return append([]byte{}, d.data...)
}

// Load puts p at off, stable, and not through a back end.
func (d *Disk) Load(p []byte, off int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.change(off, int64(len(p)), true, func() {
		copy(d.data[off:], p)
		d.mark(off, int64(len(p)), 0)
	})
}

// Cut cuts the power: each sector that was not made stable becomes one of those
// that it has been since it was stable. All back ends that are open return ErrCut
// from then on. Open gives new ones.
func (d *Disk) Cut() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.power++
	mode := d.rnd.IntN(4)
	for i := range d.state {
		versions := d.old[int64(i)]
		if len(versions) == 0 {
			continue
		}
		v := versions[len(versions)-1]
		switch mode {
		case 0: // all lost
			v = versions[0]
		case 1: // nothing lost
		default:
			v = versions[d.rnd.IntN(len(versions))]
		}
		copy(d.data[i*Sector:], v.data)
		d.state[i] = v.state
	}
	clear(d.old)
}

// change does what touches the sectors of a range, and keeps what they may be
// after a cut. d.mu is held.
func (d *Disk) change(off, n int64, stable bool, do func()) {
	first, last := off/Sector, (off+n-1)/Sector
	for i := first; i <= last && !stable; i++ {
		if len(d.old[i]) == 0 {
			d.old[i] = append(d.old[i], d.version(i))
		}
	}
	do()
	for i := first; i <= last; i++ {
		if stable {
			delete(d.old, i)
			continue
		}
		if k := len(d.old[i]); k == 6 { // enough to choose from
			d.old[i][k-1] = d.version(i)
		} else {
			d.old[i] = append(d.old[i], d.version(i))
		}
	}
}

func (d *Disk) version(i int64) diskVersion {
	lo := i * Sector
	hi := min(lo+Sector, int64(len(d.data)))
	return diskVersion{append([]byte{}, d.data[lo:hi]...), d.state[i]}
}

// mark sets the state of all sectors that a range touches.
func (d *Disk) mark(off, n int64, s block.State) {
	for i := off / Sector; i*Sector < off+n; i++ {
		d.state[i] = s
	}
}

// whole returns the part of a range that is in whole sectors.
func (d *Disk) whole(off, n int64) (lo, hi int64) {
	lo = (off + Sector - 1) / Sector * Sector
	hi = off + n
	if hi != int64(len(d.data)) {
		hi -= hi % Sector
	}
	return lo, max(lo, hi)
}

// openDisk is a back end of a Disk.
type openDisk struct {
	d      *Disk
	power  int
	closed atomic.Bool
}

var (
	_ block.Writer     = (*openDisk)(nil)
	_ block.Flusher    = (*openDisk)(nil)
	_ block.Trimmer    = (*openDisk)(nil)
	_ block.ZeroWriter = (*openDisk)(nil)
	_ block.Extenter   = (*openDisk)(nil)
	_ block.Cacher     = (*openDisk)(nil)
	_ block.Direct     = (*openDisk)(nil)
)

// plainDisk and readOnlyDisk show fewer methods.
type plainDisk struct{ o *openDisk }

func (p plainDisk) Caps() block.Caps { return p.o.d.plainCaps() }
func (p plainDisk) Close() error     { return p.o.Close() }
func (p plainDisk) ReadAt(ctx context.Context, b []byte, off int64) error {
	return p.o.ReadAt(ctx, b, off)
}
func (p plainDisk) WriteAt(ctx context.Context, b []byte, off int64, f block.Flags) error {
	return p.o.WriteAt(ctx, b, off, f)
}

type readOnlyDisk struct{ o *openDisk }

func (p readOnlyDisk) Caps() block.Caps { return p.o.d.plainCaps() }
func (p readOnlyDisk) Close() error     { return p.o.Close() }
func (p readOnlyDisk) ReadAt(ctx context.Context, b []byte, off int64) error {
	return p.o.ReadAt(ctx, b, off)
}

func (d *Disk) plainCaps() block.Caps {
	return block.Caps{Size: d.caps.Size, BlockSize: d.caps.BlockSize, Instance: d.caps.Instance}
}
