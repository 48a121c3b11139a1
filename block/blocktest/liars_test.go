package blocktest

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"testing"

	"nbd.example/nbd/block"
)

// The suite is worth what it catches: each of these back ends breaks one promise.

type losesTail struct{ *openDisk }

func (l losesTail) WriteAt(ctx context.Context, p []byte, off int64, f block.Flags) error {
	if n := len(p); n > 8192 { // and some other bytes stay
		return l.openDisk.WriteAt(ctx, p[:n-1], off, f)
	}
	return l.openDisk.WriteAt(ctx, p, off, f)
}

type changesBuffer struct{ *openDisk }

func (l changesBuffer) WriteAt(ctx context.Context, p []byte, off int64, f block.Flags) error {
	err := l.openDisk.WriteAt(ctx, p, off, f)
	p[0]++
	return err
}

type readsShort struct{ *openDisk }

func (l readsShort) ReadAt(ctx context.Context, p []byte, off int64) error {
	return l.openDisk.ReadAt(ctx, p[:(len(p)+1)/2], off)
}

type trimsTooMuch struct{ *openDisk }

func (l trimsTooMuch) Trim(ctx context.Context, off, n int64, f block.Flags) error {
	end := min((off+n+4095)&^4095, l.d.caps.Size)
	return l.openDisk.WriteZeroes(ctx, off&^4095, end-off&^4095, f)
}

type zeroesLess struct{ *openDisk }

func (l zeroesLess) WriteZeroes(ctx context.Context, off, n int64, f block.Flags) error {
	return l.openDisk.WriteZeroes(ctx, off, min(n, 64<<10), f)
}

type refusesHalfWay struct{ *openDisk }

func (l refusesHalfWay) WriteZeroes(ctx context.Context, off, n int64, f block.Flags) error {
	if err := l.openDisk.WriteZeroes(ctx, off, n, f); err != nil || f&block.FastZero == 0 {
		return err
	}
	return fmt.Errorf("too slow: %w", errors.ErrUnsupported)
}

type saysZero struct{ *openDisk }

func (l saysZero) Extents(_ context.Context, off, n int64, _ block.Flags, add func(block.Extent) bool) error {
	add(block.Extent{Length: n, State: block.Hole | block.Zero})
	return nil
}

type saysNothing struct{ *openDisk }

func (saysNothing) Extents(context.Context, int64, int64, block.Flags, func(block.Extent) bool) error {
	return nil
}

type splitsBlocks struct{ *openDisk }

func (l splitsBlocks) Extents(_ context.Context, _, n int64, _ block.Flags, add func(block.Extent) bool) error {
	if add(block.Extent{Length: 100}) {
		add(block.Extent{Length: n})
	}
	return nil
}

func (l splitsBlocks) Caps() block.Caps {
	c := l.openDisk.Caps()
	c.BlockSize.Minimum = 512
	c.Size &^= 511
	return c
}

type neverFlushes struct{ *openDisk }

func (neverFlushes) Flush(context.Context) error { return nil }

type ignoresFUA struct{ *openDisk }

func (l ignoresFUA) WriteAt(ctx context.Context, p []byte, off int64, f block.Flags) error {
	return l.openDisk.WriteAt(ctx, p, off, f&^block.FUA)
}

type ignoresFUAOfZeroes struct{ *openDisk }

func (l ignoresFUAOfZeroes) WriteZeroes(ctx context.Context, off, n int64, f block.Flags) error {
	return l.openDisk.WriteZeroes(ctx, off, n, f&^block.FUA)
}

type oneName struct{ *openDisk }

func (l oneName) Caps() block.Caps {
	c := l.openDisk.Caps()
	c.Instance = "disk"
	return c
}

type manyNames struct{ *openDisk }

func (l manyNames) Caps() block.Caps {
	c := l.openDisk.Caps()
	c.Instance = block.NewInstance()
	return c
}

type guesses struct{ *openDisk }

func (guesses) TryRead(p []byte, _ int64) bool { return true }

type forgetsFast struct{ *openDisk }

func (forgetsFast) TryWrite(p []byte, _ int64) bool { return true }

// hidesAlignment does by itself, without a lock, what Device would do.
type hidesAlignment struct{ *openDisk }

func (l hidesAlignment) WriteAt(ctx context.Context, p []byte, off int64, f block.Flags) error {
	lo, hi := off&^511, min((off+int64(len(p))+511)&^511, l.d.caps.Size)
	b := make([]byte, hi-lo)
	if err := l.openDisk.ReadAt(ctx, b, lo); err != nil {
		return err
	}
	copy(b[off-lo:], p)
	runtime.Gosched()
	return l.openDisk.WriteAt(ctx, b, lo, f)
}

type cannotCancel struct{ *openDisk }

func (l cannotCancel) Flush(ctx context.Context) error {
	if ctx.Err() != nil {
		return errors.New("device gone")
	}
	return l.openDisk.Flush(ctx)
}

type neverCloses struct{ *openDisk }

func (l neverCloses) Close() error { return errors.Join(l.openDisk.Close(), errors.New("busy")) }

type wrongSize struct{ *openDisk }

func (l wrongSize) Caps() block.Caps {
	c := l.openDisk.Caps()
	c.Size &^= 511
	return c
}

type forgetsAtClose struct{ *openDisk }

func (l forgetsAtClose) Close() error {
	l.d.Load(make([]byte, 1000), 0)
	return l.openDisk.Close()
}

func TestLiars(t *testing.T) {
	for _, x := range []struct {
		check string
		spoil func(*openDisk) block.Backend
	}{
		{"Random", func(o *openDisk) block.Backend { return losesTail{o} }},
		{"Random", func(o *openDisk) block.Backend { return changesBuffer{o} }},
		{"Random", func(o *openDisk) block.Backend { return readsShort{o} }},
		{"Random", func(o *openDisk) block.Backend { return trimsTooMuch{o} }},
		{"Random", func(o *openDisk) block.Backend { return zeroesLess{o} }},
		{"Random", func(o *openDisk) block.Backend { return refusesHalfWay{o} }},
		{"Random", func(o *openDisk) block.Backend { return saysZero{o} }},
		{"Extents", func(o *openDisk) block.Backend { return saysZero{o} }},
		{"Extents", func(o *openDisk) block.Backend { return saysNothing{o} }},
		{"Extents", func(o *openDisk) block.Backend { return splitsBlocks{o} }},
		{"Levels", func(o *openDisk) block.Backend { return refusesHalfWay{o} }},
		{"PowerCut", func(o *openDisk) block.Backend { return neverFlushes{o} }},
		{"PowerCut", func(o *openDisk) block.Backend { return ignoresFUA{o} }},
		{"PowerCut", func(o *openDisk) block.Backend { return ignoresFUAOfZeroes{o} }},
		{"Instance", func(o *openDisk) block.Backend { return oneName{o} }},
		{"Instance", func(o *openDisk) block.Backend { return manyNames{o} }},
		{"Caps", func(o *openDisk) block.Backend { return manyNames{o} }},
		{"Direct", func(o *openDisk) block.Backend { return guesses{o} }},
		{"Direct", func(o *openDisk) block.Backend { return forgetsFast{o} }},
		{"Neighbours", func(o *openDisk) block.Backend { return hidesAlignment{o} }},
		{"Cancelled", func(o *openDisk) block.Backend { return cannotCancel{o} }},
		{"Close", func(o *openDisk) block.Backend { return neverCloses{o} }},
		{"Sizes", func(o *openDisk) block.Backend { return wrongSize{o} }},
		{"Reopen", func(o *openDisk) block.Backend { return forgetsAtClose{o} }},
	} {
		t.Run(fmt.Sprintf("%s/%T", x.check, x.spoil(nil)), func(t *testing.T) {
			target := diskTarget(FullCaps, func(d *Disk) block.Backend { return x.spoil(d.open()) })
			target.AnySize = x.check != "Sizes"
			for _, c := range checks {
				if c.name != x.check {
					continue
				}
				// Chance may spare a liar once, but not for long.
				for range 20 {
					if err := c.run(newRun(t, target)); err != nil {
						if reason := new(skip); errors.As(err, reason) {
							t.Fatalf("skipped: %v", reason)
						}
						what, _, _ := strings.Cut(err.Error(), "\n")
						t.Logf("caught: %s", what)
						return
					}
				}
				t.Error("was not caught")
			}
		})
	}
}

// liarLayer breaks one promise of a layer.
type liarLayer struct {
	through
	flags block.Flags // dropped
	close bool
	cache bool
}

func (l *liarLayer) WriteAt(ctx context.Context, p []byte, off int64, f block.Flags) error {
	return l.next.WriteAt(ctx, p, off, f&^l.flags)
}

func (l *liarLayer) WriteZeroes(ctx context.Context, off, n int64, f block.Flags) error {
	return l.next.WriteZeroes(ctx, off, n, f&^l.flags)
}

func (l *liarLayer) Close() error {
	if l.close {
		return nil
	}
	return l.next.Close()
}

func (l *liarLayer) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := l.next.ReadAt(ctx, p, off); err != nil && !l.cache {
		return err
	}
	return nil
}

func TestLiarLayers(t *testing.T) {
	for _, x := range []struct {
		check, name string
		volatile    bool
		make        func(next *block.Device) block.Backend
	}{
		{"Forwards", "drops FUA", false, func(next *block.Device) block.Backend {
			return &liarLayer{through: through{next: next}, flags: block.FUA}
		}},
		{"Forwards", "drops NoHole", false, func(next *block.Device) block.Backend {
			return &liarLayer{through: through{next: next}, flags: block.NoHole}
		}},
		{"Forwards", "drops FastZero", false, func(next *block.Device) block.Backend {
			return &liarLayer{through: through{next: next}, flags: block.FastZero}
		}},
		{"ClosesNext", "does not close", false, func(next *block.Device) block.Backend {
			return &liarLayer{through: through{next: next}, close: true}
		}},
		{"Errors", "hides errors", false, func(next *block.Device) block.Backend {
			return &liarLayer{through: through{next: next}, cache: true}
		}},
		{"Keeps", "loses trim", false, func(next *block.Device) block.Backend {
			return &through{next: next, caps: func(c *block.Caps) { c.Trim = block.None }}
		}},
		{"Size", "shows other contents by the same name", true, func(next *block.Device) block.Backend {
			return &through{next: next}
		}},
		{"Base", "writes to its base", true, func(next *block.Device) block.Backend {
			return &through{next: next}
		}},
	} {
		t.Run(x.check+"/"+x.name, func(t *testing.T) {
			target := LayerTarget{Transparent: true, Volatile: x.volatile, New: func(testing.TB) block.Layer {
				return func(next *block.Device) (block.Backend, error) { return x.make(next), nil }
			}}
			for _, c := range layerChecks {
				if c.name != x.check {
					continue
				}
				err := c.run(t, target)
				if reason := new(skip); err == nil || errors.As(err, reason) {
					t.Errorf("was not caught: %v", err)
				}
			}
		})
	}
}
