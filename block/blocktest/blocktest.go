// Package blocktest is the one conformance suite that every back end and every
// layer passes.
//
// # Joining
//
// A back end says how it is opened, and what to expect of it:
//
//	func TestConformance(t *testing.T) {
//		blocktest.Run(t, blocktest.Target{
//			Open: func(t testing.TB, size int64) (block.Backend, error) {
//				return memory.New(memory.Config{Size: size})
//			},
//		})
//	}
//
// A layer is run by [RunLayer] over disks of many kinds, and over itself.
//
// # What is tested
//
// The suite holds a [*block.Device] and compares everything that it does with a
// model: a plain slice of bytes that also knows which bytes are undefined after a
// trim. It wants every ability that [block.Caps] promises to work, and every
// ability that it denies to be refused with nothing changed. Where a [Target] can
// be opened again it must hold what it held; where its power can be cut, all that
// was flushed must be there, and every other sector must be old or new.
//
// Random operations can be played again: a failure tells the seed and the last
// operations, and the environment variable BLOCKTEST_SEED sets it.
//
// # Disks
//
// [Disk] is a disk in memory for testing what stands over it. It can have any
// [block.Caps], loses unflushed writes when its power is cut, does all that
// the contracts of package block allow and nobody expects (trimmed sectors turn
// into junk, extents end early), and fails the test when a caller breaks its side
// of them.
package blocktest

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"testing"

	"nbd.example/nbd/block"
)

// Sector is the size in bytes of what is old or new, but never mixed, after a
// power cut.
const Sector = 512

// Target says how to open what is tested, and what to expect of it. The suite
// has one of its devices open at a time, except where it says so.
type Target struct {
	// Open opens a new one of size bytes, with new contents. It is the only
	// field that must be set.
	Open func(t testing.TB, size int64) (block.Backend, error)
	// Reopen opens once more what Open has opened last. It has been closed
	// meanwhile, or cut off and closed. Nil says that contents end with Close.
	Reopen func(t testing.TB) (block.Backend, error)
	// Cut cuts the power of the one that is open: what was not made stable may be
	// lost, and all later calls may fail. The suite then closes it, and calls
	// Reopen. Nil says that this cannot be simulated.
	Cut func(t testing.TB)
	// Initial fills p with what the one that Open has opened last held at off,
	// then. Nil says zeroes.
	Initial func(p []byte, off int64)
	// Forgets says that writes are accepted and have no effect.
	Forgets bool
	// Size in bytes of the devices to test with; 0 means about 1 MiB.
	Size int64
	// SizeUnit divides every size that Open is asked for; 0 means 1.
	SizeUnit int64
	// AnySize says that Open may make the device of another size.
	AnySize bool
	// Steps is the number of operations in a random test; 0 means 1500. Set it
	// for what is slow.
	Steps int
}

// Run runs the whole suite as subtests of t.
func Run(t *testing.T, x Target) {
	for _, c := range checks {
		t.Run(c.name, func(t *testing.T) { x.try(t, c) })
	}
}

// PowerCut runs that part of the suite alone which cuts the power, for what is too slow
// for all of it.
func PowerCut(t *testing.T, x Target) { x.try(t, check{"PowerCut", checkPowerCut}) }

func (x Target) try(t *testing.T, c check) {
	err := c.run(newRun(t, x))
	if reason := new(skip); errors.As(err, reason) {
		t.Skip(reason)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// check is one test. It returns what is wrong, so that the suite itself can be
// tested.
type check struct {
	name string
	run  func(*run) error
}

var checks = []check{
	{"Caps", checkCaps},
	{"Sizes", checkSizes},
	{"Ranges", checkRanges},
	{"ZeroLength", checkZeroLength},
	{"Levels", checkLevels},
	{"Random", checkRandom},
	{"Extents", checkExtents},
	{"Concurrent", checkConcurrent},
	{"Neighbours", checkNeighbours},
	{"Direct", checkDirect},
	{"Avoid", checkAvoid},
	{"Cancelled", checkCancelled},
	{"Close", checkClose},
	{"Instance", checkInstance},
	{"Reopen", checkReopen},
	{"PowerCut", checkPowerCut},
}

// skip is returned by a check that does not apply, with the reason.
type skip string

func (s skip) Error() string { return string(s) }

// run is what one check works with.
type run struct {
	x   Target
	t   testing.TB
	ctx context.Context
}

func newRun(t testing.TB, x Target) *run {
	if x.SizeUnit == 0 {
		x.SizeUnit = 1
	}
	if x.Size == 0 {
		// Not a multiple of anything, where that is possible.
		x.Size = 1<<20 + 4096
		if x.SizeUnit <= Sector {
			x.Size += x.SizeUnit
		}
	}
	x.Size = max(x.Size/x.SizeUnit, 1) * x.SizeUnit
	if x.Steps == 0 {
		x.Steps = 1500
	}
	if testing.Short() {
		x.Steps = min(x.Steps, 300)
	}
	x.Steps = max(x.Steps/slow, 1)
	return &run{x: x, t: t, ctx: context.Background()}
}

// open opens a new device, which is closed at the end of the test at the latest.
func (r *run) open(size int64) (*block.Device, error) {
	b, err := r.x.Open(r.t, size)
	if err != nil {
		return nil, fmt.Errorf("open with %d bytes: %w", size, err)
	}
	d, err := r.device(b)
	if err == nil && !r.x.AnySize && d.Size() != size {
		return nil, fmt.Errorf("opened with %d bytes, is of %d", size, d.Size())
	}
	return d, err
}

func (r *run) reopen() (*block.Device, error) {
	b, err := r.x.Reopen(r.t)
	if err != nil {
		return nil, fmt.Errorf("open again: %w", err)
	}
	return r.device(b)
}

func (r *run) device(b block.Backend) (*block.Device, error) {
	d, err := block.New(b)
	if err != nil {
		return nil, errors.Join(err, b.Close())
	}
	r.t.Cleanup(func() { d.Close() })
	return d, nil
}

// openModel opens a new device and a model of it.
func (r *run) openModel() (*block.Device, *model, error) {
	d, err := r.open(r.x.Size)
	if err != nil {
		return nil, nil, err
	}
	return d, newModel(r.x, d.Size()), nil
}

// seed returns the seed for a random test: that of BLOCKTEST_SEED, or a new one.
func seed() uint64 {
	if s, err := strconv.ParseUint(os.Getenv("BLOCKTEST_SEED"), 0, 64); err == nil {
		return s
	}
	return rand.Uint64()
}

func newRand(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 0)) }
