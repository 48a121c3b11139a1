package blocktest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"

	"nbd.example/nbd/block"
)

// sector is what one sector may hold after a power cut.
type sector struct {
	// versions are the contents since the last that is certainly stable, which is
	// the first; the last one is what is read now.
	versions [][]byte
	// parts says that a version came from writing only a part of the sector. Then
	// each byte for itself is old or new.
	parts bool
	// any says that an unstable trim lies among the versions; undefined, that it is
	// the last of them.
	any, undefined bool
}

func (s *sector) last() []byte { return s.versions[len(s.versions)-1] }

// write adds a version that has p at the place at.
func (s *sector) write(p []byte, at int) {
	v := bytes.Clone(s.last())
	copy(v[at:], p)
	s.versions = append(s.versions, v)
	if len(p) == len(v) {
		s.undefined = false
	} else {
		s.parts = true
	}
}

// writeStable puts p into every version.
func (s *sector) writeStable(p []byte, at int) {
	if len(p) == len(s.last()) {
		*s = sector{versions: [][]byte{bytes.Clone(p)}}
		return
	}
	for _, v := range s.versions {
		copy(v[at:], p)
	}
}

func (s *sector) trim() { s.any, s.undefined = true, true }

// flush leaves only the last version.
func (s *sector) flush() {
	s.versions = append(s.versions[:0], s.last())
	s.parts, s.any = false, s.undefined
}

// allows reports whether got may be there after a cut, and goes on from it.
func (s *sector) allows(got []byte) bool {
	ok := s.any
	for _, v := range s.versions {
		ok = ok || bytes.Equal(v, got)
	}
	if !ok && s.parts {
		ok = true
		for i, b := range got {
			ok = ok && s.allowsByte(i, b)
		}
	}
	*s = sector{versions: [][]byte{bytes.Clone(got)}, any: s.any, undefined: s.any}
	return ok
}

func (s *sector) allowsByte(i int, b byte) bool {
	for _, v := range s.versions {
		if v[i] == b {
			return true
		}
	}
	return false
}

// media is the model of what a device holds through power cuts.
type media struct {
	sectors []sector
	size    int64
}

func newMedia(m *model) *media {
	x := &media{size: int64(len(m.data))}
	for off := 0; off < len(m.data); off += Sector {
		v := bytes.Clone(m.data[off:min(off+Sector, len(m.data))])
		x.sectors = append(x.sectors, sector{versions: [][]byte{v}})
	}
	return x
}

// write notes that p was written at off.
func (x *media) write(p []byte, off int64, stable bool) {
	for len(p) > 0 {
		at := int(off % Sector)
		s := &x.sectors[off/Sector]
		n := min(len(p), len(s.last())-at)
		if stable {
			s.writeStable(p[:n], at)
		} else {
			s.write(p[:n], at)
		}
		p, off = p[n:], off+int64(n)
	}
}

func (x *media) trim(off, n int64) {
	for i := off / Sector; i*Sector < off+n; i++ {
		x.sectors[i].trim()
	}
}

func (x *media) flush() {
	for i := range x.sectors {
		x.sectors[i].flush()
	}
}

// check compares what is there after a cut with what may be there.
func (x *media) check(ctx context.Context, d *block.Device) error {
	for i := range x.sectors {
		s := &x.sectors[i]
		before := *s
		got := junk(int64(len(s.last())))
		if err := d.ReadAt(ctx, got, int64(i)*Sector); err != nil {
			return err
		}
		if !s.allows(got) {
			return fmt.Errorf("sector %d, at byte %d, begins with % x, and is none of its %d versions since the last that was made stable; the oldest begins with % x, the newest with % x",
				i, i*Sector, head(got), len(before.versions), head(before.versions[0]), head(before.last()))
		}
	}
	return nil
}

func head(p []byte) []byte { return p[:min(len(p), 8)] }

// checkPowerCut writes, cuts the power and looks, again and again.
func checkPowerCut(r *run) error {
	if r.x.Cut == nil || r.x.Reopen == nil {
		return skip("its power cannot be cut")
	}
	d, m, err := r.openModel()
	if err != nil {
		return err
	}
	if d.Caps().ReadOnly {
		return skip("the device is read-only")
	}
	s := seed()
	r.t.Logf("BLOCKTEST_SEED=%d", s)
	p := &powerPlayer{d: d, x: newMedia(m), rnd: newRand(s)}
	for round := range 12 {
		for range 1 + p.rnd.IntN(min(r.x.Steps, 60)) {
			if err := p.play(r.ctx); err != nil {
				return fmt.Errorf("round %d, BLOCKTEST_SEED=%d: %w", round, s, err)
			}
		}
		r.x.Cut(r.t)
		p.d.Close() // what it says of a disk without power is of no interest
		if p.d, err = r.reopen(); err != nil {
			return fmt.Errorf("round %d, BLOCKTEST_SEED=%d: after a power cut: %w", round, s, err)
		}
		if err := p.x.check(r.ctx, p.d); err != nil {
			return fmt.Errorf("round %d, BLOCKTEST_SEED=%d: after a power cut: %w\nthe last operations:\n%s", round, s, err, p.history())
		}
	}
	return nil
}

// powerPlayer plays operations that leave something unstable.
type powerPlayer struct {
	d     *block.Device
	x     *media
	rnd   *rand.Rand
	trace []step
}

func (p *powerPlayer) history() string { return (&player{trace: p.trace}).history() }

func (p *powerPlayer) play(ctx context.Context) error {
	s := p.next()
	p.trace = append(p.trace, s)
	if len(p.trace) > 60 {
		p.trace = p.trace[1:]
	}
	if err := p.do(ctx, s); err != nil {
		return fmt.Errorf("%v: %w", s, err)
	}
	return nil
}

func (p *powerPlayer) next() step {
	c := p.d.Caps()
	s := step{kind: kindWrite}
	s.off, s.n = pick(p.rnd, min(p.x.size, 256<<10))
	if p.rnd.IntN(3) > 0 { // most in whole sectors
		s.off -= s.off % Sector
		s.n = min((s.n+Sector-1)/Sector*Sector, p.x.size-s.off)
	}
	switch p.rnd.IntN(12) {
	case 0, 1:
		if c.Flush != block.None {
			s = step{kind: kindFlush}
		}
	case 2, 3:
		if c.Zero != block.None {
			s.kind = kindZero
			s.f = block.Flags(p.rnd.IntN(2)) * block.NoHole
		}
	case 4:
		if c.Trim != block.None {
			s.kind = kindTrim
		}
	}
	if c.FUA != block.None && s.kind != kindFlush && p.rnd.IntN(4) == 0 {
		s.f |= block.FUA
	}
	return s
}

func (p *powerPlayer) do(ctx context.Context, s step) error {
	stable := s.f&block.FUA != 0
	switch s.kind {
	case kindFlush:
		if err := p.d.Flush(ctx); err != nil {
			return err
		}
		p.x.flush()
	case kindTrim:
		if err := p.d.Trim(ctx, s.off, s.n, s.f); err != nil {
			return err
		}
		p.x.trim(s.off, s.n)
	case kindZero:
		if err := p.d.WriteZeroes(ctx, s.off, s.n, s.f); err != nil {
			return err
		}
		p.x.write(make([]byte, s.n), s.off, stable)
	case kindWrite:
		data := noise(p.rnd, s.n)
		if err := p.d.WriteAt(ctx, data, s.off, s.f); err != nil {
			return err
		}
		p.x.write(data, s.off, stable)
	default:
		return errors.New("no such operation")
	}
	return nil
}
