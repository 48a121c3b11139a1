package blocktest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"

	"nbd.example/nbd/block"
)

// step is one random operation.
type step struct {
	kind   kind
	off, n int64
	f      block.Flags
}

type kind string

const (
	kindRead    kind = "read"
	kindWrite   kind = "write"
	kindTrim    kind = "trim"
	kindZero    kind = "zero"
	kindFlush   kind = "flush"
	kindExtents kind = "extents"
	kindCache   kind = "cache"
)

// weights says how often each kind comes.
var weights = []struct {
	kind kind
	n    int
}{{kindRead, 30}, {kindWrite, 35}, {kindTrim, 8}, {kindZero, 12}, {kindFlush, 5}, {kindExtents, 6}, {kindCache, 4}}

func (s step) String() string {
	return fmt.Sprintf("%-7s %8d +%-7d%s", s.kind, s.off, s.n, flagNames(s.f))
}

func flagNames(f block.Flags) string {
	var b strings.Builder
	for _, x := range []struct {
		f    block.Flags
		name string
	}{{block.FUA, "FUA"}, {block.NoHole, "NoHole"}, {block.FastZero, "FastZero"}, {block.One, "One"}} {
		if f&x.f != 0 {
			b.WriteString(" " + x.name)
		}
	}
	return b.String()
}

// player plays random operations on a part of a device.
type player struct {
	d     *block.Device
	m     *model // of the whole device
	rnd   *rand.Rand
	lo    int64 // the part
	size  int64
	trace []step
}

// checkRandom plays many random operations against the model.
func checkRandom(r *run) error {
	s := seed()
	r.t.Logf("BLOCKTEST_SEED=%d", s)
	d, m, err := r.openModel()
	if err != nil {
		return err
	}
	p := &player{d: d, m: m, rnd: newRand(s), size: d.Size()}
	if err := m.checkAll(r.ctx, d); err != nil {
		return fmt.Errorf("fresh device: %w", err)
	}
	for i := range r.x.Steps {
		if err := p.play(r.ctx); err != nil {
			return fmt.Errorf("step %d with BLOCKTEST_SEED=%d: %w\nthe last operations:\n%s", i, s, err, p.history())
		}
	}
	if err := m.checkAll(r.ctx, d); err != nil {
		return fmt.Errorf("at the end, with BLOCKTEST_SEED=%d: %w\nthe last operations:\n%s", s, err, p.history())
	}
	return nil
}

func (p *player) history() string {
	var b strings.Builder
	for _, s := range p.trace {
		fmt.Fprintln(&b, "  ", s)
	}
	return b.String()
}

// play plays one random operation.
func (p *player) play(ctx context.Context) error { return p.playStep(ctx, p.next()) }

func (p *player) playStep(ctx context.Context, s step) error {
	if len(p.trace) == 40 {
		p.trace = p.trace[:copy(p.trace, p.trace[1:])]
	}
	p.trace = append(p.trace, s)
	if err := p.do(ctx, s); err != nil {
		return fmt.Errorf("%v: %w", s, err)
	}
	return nil
}

func (p *player) next() step {
	var s step
	x := p.rnd.IntN(100)
	for _, w := range weights {
		if x < w.n {
			s.kind = w.kind
			break
		}
		x -= w.n
	}
	s.off, s.n = pick(p.rnd, p.size)
	s.off += p.lo
	flag := func(f block.Flags, one int) {
		if p.rnd.IntN(one) == 0 {
			s.f |= f
		}
	}
	switch s.kind {
	case kindZero:
		flag(block.FUA, 6)
		flag(block.NoHole, 2)
		flag(block.FastZero, 2)
	case kindWrite, kindTrim:
		flag(block.FUA, 6)
	case kindExtents:
		flag(block.One, 3)
	}
	return s
}

func (p *player) do(ctx context.Context, s step) error {
	switch s.kind {
	case kindRead:
		return p.m.check(ctx, p.d, s.off, s.n)
	case kindWrite:
		return p.write(ctx, s)
	case kindTrim:
		return p.trim(ctx, s)
	case kindZero:
		return p.zero(ctx, s)
	case kindFlush:
		return expect(p.d.Flush(ctx), refusal(p.d.Caps().Flush))
	case kindExtents:
		_, err := extents(ctx, p.d, s.off, s.n, s.f)
		return expect(err, refusal(p.d.Caps().Extents))
	case kindCache:
		return expect(p.d.Cache(ctx, s.off, s.n), refusal(p.d.Caps().Cache))
	}
	panic("no such kind: " + s.kind)
}

func (p *player) write(ctx context.Context, s step) error {
	data := noise(p.rnd, s.n)
	kept := bytes.Clone(data)
	want := p.refusal(s, block.Native)
	err := p.d.WriteAt(ctx, data, s.off, s.f)
	if !bytes.Equal(data, kept) {
		return errors.New("the caller's buffer was changed")
	}
	if err := expect(err, want); err != nil {
		return err
	}
	if want == nil {
		p.m.write(data, s.off)
	}
	return p.m.check(ctx, p.d, s.off, s.n)
}

func (p *player) trim(ctx context.Context, s step) error {
	want := p.refusal(s, p.d.Caps().Trim)
	// What is not a whole block is left alone, and then FUA is not looked at.
	err := p.d.Trim(ctx, s.off, s.n, s.f)
	if err == nil && want != nil && want == errors.ErrUnsupported && p.d.Caps().Trim != block.None {
		return p.m.check(ctx, p.d, s.off, s.n)
	}
	if err := expect(err, want); err != nil {
		return err
	}
	if want == nil {
		p.m.forget(s.off, s.n)
	}
	return p.around(ctx, s)
}

// around checks a little more than the range of s: its neighbours.
func (p *player) around(ctx context.Context, s step) error {
	lo := max(p.lo, s.off-600)
	hi := min(p.lo+p.size, s.off+s.n+600)
	return p.m.check(ctx, p.d, lo, hi-lo)
}

func (p *player) zero(ctx context.Context, s step) error {
	want := p.refusal(s, p.d.Caps().Zero)
	if want == nil && s.f&block.FastZero != 0 && p.d.Caps().FastZero != block.Native {
		want = errors.ErrUnsupported
	}
	err := p.d.WriteZeroes(ctx, s.off, s.n, s.f)
	refused := err != nil && errors.Is(err, errors.ErrUnsupported)
	if want == nil && s.f&block.FastZero != 0 && refused {
		return p.around(ctx, s) // it may refuse each single one, and change nothing
	}
	if err := expect(err, want); err != nil {
		return err
	}
	if want == nil {
		p.m.zero(s.off, s.n)
	}
	return p.around(ctx, s)
}

// refusal returns the error that a change must get, where l is the level of the
// ability that it needs.
func (p *player) refusal(s step, l block.Level) error {
	switch c := p.d.Caps(); {
	case c.ReadOnly:
		return block.ErrReadOnly
	case s.f&block.FUA != 0 && c.FUA == block.None:
		return errors.ErrUnsupported
	default:
		return refusal(l)
	}
}

// refusal returns the error that an operation of level l must get.
func refusal(l block.Level) error {
	if l == block.None {
		return errors.ErrUnsupported
	}
	return nil
}

// expect returns nil if err is want, or both are nil.
func expect(err, want error) error {
	switch {
	case want == nil && err != nil:
		return err
	case want != nil && err == nil:
		return fmt.Errorf("succeeded, want the error %q", want)
	case want != nil && !errors.Is(err, want):
		return fmt.Errorf("error %q, want %q", err, want)
	}
	return nil
}
