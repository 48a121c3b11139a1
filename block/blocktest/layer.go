package blocktest

import (
	"bytes"
	"errors"
	"fmt"
	"testing"

	"nbd.example/nbd/block"
)

// LayerTarget says how a layer is made, and what it does.
type LayerTarget struct {
	// New returns the layer. It is called for each device that is opened, and is
	// the only field that must be set.
	New func(t testing.TB) block.Layer
	// View returns what the layer shows of a device that holds base; nil says base.
	View func(base []byte) []byte
	// Below returns the size in bytes that the device below must have for the
	// layer to have about size bytes; nil says size.
	Below func(size int64) int64
	// Volatile says that what is written is not in the device below, and is gone
	// with Close.
	Volatile bool
	// Transparent says that the layer passes everything on: it must have the same
	// Caps as the device below, and each call with its range and flags must arrive
	// there.
	Transparent bool
	// Except names the fields of [block.Caps] that a Transparent layer changes: an
	// ability that it does not have, "ReadOnly", "BlockSize", "MultiConn", ….
	Except []string
	// Steps is as in Target.
	Steps int
}

// RunLayer runs the whole suite with the layer over disks of many kinds and over
// itself, and then looks at how the layer treats the device below.
func RunLayer(t *testing.T, x LayerTarget) {
	for _, k := range diskKinds {
		t.Run("Over/"+k.name, func(t *testing.T) {
			s := &layered{x: x, kind: k, depth: 1}
			Run(t, s.target())
		})
	}
	t.Run("Over/Itself", func(t *testing.T) {
		s := &layered{x: x, kind: diskKinds[0], depth: 2}
		Run(t, s.target())
	})
	for _, c := range layerChecks {
		t.Run(c.name, func(t *testing.T) {
			err := c.run(t, x)
			if reason := new(skip); errors.As(err, reason) {
				t.Skip(reason)
			}
			if err != nil {
				t.Fatal(err)
			}
		})
	}
}

// diskKind is a kind of disk for a layer to stand on.
type diskKind struct {
	name string
	caps func(size int64) block.Caps
	open func(*Disk) block.Backend
}

var diskKinds = []diskKind{
	{"Full", FullCaps, (*Disk).Open},
	{"Plain", FullCaps, (*Disk).OpenPlain},
	{"ReadOnly", FullCaps, (*Disk).OpenReadOnly},
	{"Aligned", alignedCaps, (*Disk).Open},
	{"Bounded", boundedCaps, (*Disk).Open},
}

// alignedCaps wants blocks of 4096 bytes.
func alignedCaps(size int64) block.Caps {
	c := FullCaps(size)
	c.BlockSize.Minimum = 4096
	return c
}

// boundedCaps takes little at once, and can flush and little else.
func boundedCaps(size int64) block.Caps {
	return block.Caps{
		Size: size, BlockSize: block.BlockSize{Minimum: Sector, Maximum: 16 << 10},
		Trim: block.None, Zero: block.None, FastZero: block.None, Extents: block.None, Cache: block.None,
	}
}

// layered is a layer over a disk.
type layered struct {
	x     LayerTarget
	kind  diskKind
	depth int

	disk *Disk
	base []byte // what the disk held first
}

// target says how the suite opens it.
func (s *layered) target() Target {
	x := Target{
		Open: s.openNew,
		Initial: func(p []byte, off int64) {
			copy(p, s.view()[off:])
		},
		AnySize: true,
		Steps:   s.x.Steps,
	}
	if x.Steps == 0 {
		x.Steps = 600
	}
	if s.x.Volatile {
		return x
	}
	x.Reopen = s.over
	x.Cut = func(testing.TB) { s.disk.Cut() }
	return x
}

// view returns what the stack shows of the disk as it was first.
func (s *layered) view() []byte {
	v := s.base
	for i := 0; i < s.depth && s.x.View != nil; i++ {
		v = s.x.View(v)
	}
	return v
}

// openNew makes a disk with contents, and the layer over it.
func (s *layered) openNew(t testing.TB, size int64) (block.Backend, error) {
	for i := 0; i < s.depth && s.x.Below != nil; i++ {
		size = s.x.Below(size)
	}
	unit := max(s.kind.caps(0).BlockSize.Minimum, 1)
	size = (size + unit - 1) / unit * unit
	s.disk = NewDisk(t, s.kind.caps(size))
	rnd := newRand(uint64(size))
	for off := int64(0); off < size; off += 16 << 10 {
		if n := min(16<<10, size-off); off>>14%4 != 3 { // the rest stay holes
			s.disk.Load(noise(rnd, n), off)
		}
	}
	s.base = s.disk.Contents()
	return s.over(t)
}

// over puts the layer over the disk.
func (s *layered) over(t testing.TB) (block.Backend, error) {
	b := s.kind.open(s.disk)
	for range s.depth {
		d, err := block.New(b)
		if err != nil {
			return nil, errors.Join(err, b.Close())
		}
		if b, err = s.x.New(t)(d); err != nil {
			return nil, errors.Join(err, d.Close())
		}
	}
	return b, nil
}

// openFull opens the layer over a disk that can do everything.
func openFull(t testing.TB, x LayerTarget) (*layered, *block.Device, error) {
	s := &layered{x: x, kind: diskKinds[0], depth: 1}
	b, err := s.openNew(t, 1<<20)
	if err != nil {
		return nil, nil, err
	}
	d, err := block.New(b)
	if err != nil {
		return nil, nil, errors.Join(err, b.Close())
	}
	t.Cleanup(func() { d.Close() })
	return s, d, nil
}

type layerCheck struct {
	name string
	run  func(t testing.TB, x LayerTarget) error
}

var layerChecks = []layerCheck{
	{"Size", checkLayerSize},
	{"Keeps", checkKeeps},
	{"Forwards", checkForwards},
	{"Errors", checkLayerErrors},
	{"Base", checkBase},
	{"ClosesNext", checkClosesNext},
}

// checkLayerSize compares the size and the instance with what is below.
func checkLayerSize(t testing.TB, x LayerTarget) error {
	s, d, err := openFull(t, x)
	if err != nil {
		return err
	}
	view := s.view()
	if d.Size() != int64(len(view)) {
		return fmt.Errorf("the layer has %d bytes, and shows %d", d.Size(), len(view))
	}
	same := d.Caps().Instance == s.disk.caps.Instance
	if same && !bytes.Equal(view, s.base) {
		return errors.New("the layer has the instance of the device below, and shows other contents")
	}
	if same && x.Volatile {
		return errors.New("the layer has the instance of the device below, and can be written apart from it")
	}
	return nil
}

// checkClosesNext wants the device below closed, once: the disk sees a second time.
func checkClosesNext(t testing.TB, x LayerTarget) error {
	s, d, err := openFull(t, x)
	if err != nil {
		return err
	}
	if err := d.Close(); err != nil {
		return fmt.Errorf("close: %w", err)
	}
	if n := s.disk.Live(); n != 0 {
		return errors.New("the device below is still open after Close")
	}
	return nil
}

// checkBase wants nothing written to the device below a volatile layer.
func checkBase(t testing.TB, x LayerTarget) error {
	if !x.Volatile {
		return skip("the layer writes to the device below")
	}
	s, d, err := openFull(t, x)
	if err != nil {
		return err
	}
	s.disk.Hook = func(c Call) error {
		switch c.Method {
		case "WriteAt", "Trim", "WriteZeroes":
			return fmt.Errorf("%v reached the device below", c)
		}
		return nil
	}
	m := newModel(s.target(), d.Size())
	p := &player{d: d, m: m, rnd: newRand(5), size: d.Size()}
	for range 300 {
		if err := p.play(t.Context()); err != nil {
			return fmt.Errorf("%w\nthe last operations:\n%s", err, p.history())
		}
	}
	if !bytes.Equal(s.disk.Contents(), s.base) {
		return errors.New("the device below was changed")
	}
	return nil
}
