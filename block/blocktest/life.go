package blocktest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime"

	"nbd.example/nbd/block"
)

// checkCancelled lets the caller give up: what then fails must say so, and must
// break nothing for others.
func checkCancelled(r *run) error {
	d, m, err := r.openModel()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(r.ctx)
	cancel()
	n := min(d.Size(), 8192)
	for _, op := range rangedOps {
		err := op.do(&run{ctx: ctx}, d, 0, n)
		if err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, errors.ErrUnsupported) && !errors.Is(err, block.ErrReadOnly) {
			return fmt.Errorf("%s with an ended context: error %q, want nil or %q", op.name, err, context.Canceled)
		}
		if op.changes && !d.Caps().ReadOnly {
			m.forget(0, n)
		}
	}
	if err := d.Flush(ctx); err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, errors.ErrUnsupported) {
		return fmt.Errorf("flush with an ended context: error %q, want nil or %q", err, context.Canceled)
	}
	if err := d.Broken(); err != nil {
		return fmt.Errorf("a caller that gave up has broken the device: %w", err)
	}
	p := &player{d: d, m: m, rnd: newRand(3), size: d.Size()}
	for _, s := range []step{{kindWrite, 0, n, 0}, {kindFlush, 0, 0, 0}, {kindRead, 0, n, 0}} {
		if s.n == 0 && s.kind != kindFlush {
			continue
		}
		if err := p.do(r.ctx, s); err != nil {
			return fmt.Errorf("after a caller gave up: %v: %w", s, err)
		}
	}
	return m.checkAll(r.ctx, d)
}

// checkClose opens and closes many times, and counts what stays behind.
func checkClose(r *run) error {
	const rounds = 12
	before := openFiles()
	for range rounds {
		d, err := r.open(r.x.Size)
		if err != nil {
			return err
		}
		if err := d.ReadAt(r.ctx, make([]byte, min(d.Size(), 1)), 0); err != nil {
			return err
		}
		if err := d.Close(); err != nil {
			return fmt.Errorf("close: %w", err)
		}
	}
	if after := openFiles(); after >= before+rounds {
		return fmt.Errorf("%d files are open after %d devices were closed, %d before", after, rounds, before)
	}
	return nil
}

// openFiles counts the open files of the process where the system tells.
func openFiles() int {
	if runtime.GOOS != "linux" {
		return 0
	}
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return 0
	}
	return len(list)
}

// checkInstance wants equal names only for equal contents.
func checkInstance(r *run) error {
	a, err := r.open(r.x.Size)
	if err != nil {
		return err
	}
	first := a.Caps()
	if first.Instance == "" {
		return errors.New("no instance")
	}
	if err := a.Close(); err != nil {
		return err
	}
	if r.x.Reopen != nil {
		again, err := r.reopen()
		if err != nil {
			return err
		}
		if got := again.Caps().Instance; got != first.Instance {
			return fmt.Errorf("the instance is %q, and after opening again %q", first.Instance, got)
		}
		if err := again.Close(); err != nil {
			return err
		}
	}
	b, err := r.open(r.x.Size)
	if err != nil {
		return err
	}
	if got := b.Caps().Instance; got == first.Instance && !first.ReadOnly && !r.x.Forgets {
		return fmt.Errorf("two devices with contents of their own have the instance %q", got)
	}
	return nil
}

// checkReopen writes, flushes, closes and opens again.
func checkReopen(r *run) error {
	if r.x.Reopen == nil {
		return skip("its contents end with Close")
	}
	d, m, err := r.openModel()
	if err != nil {
		return err
	}
	s := seed()
	r.t.Logf("BLOCKTEST_SEED=%d", s)
	p := &player{d: d, m: m, rnd: newRand(s), size: d.Size()}
	for range 3 {
		for range min(r.x.Steps, 100) {
			if err := p.play(r.ctx); err != nil {
				return fmt.Errorf("BLOCKTEST_SEED=%d: %w", s, err)
			}
		}
		size := p.d.Size()
		if err := expect(p.d.Flush(r.ctx), refusal(p.d.Caps().Flush)); err != nil {
			return fmt.Errorf("flush: %w", err)
		}
		if err := p.d.Close(); err != nil {
			return fmt.Errorf("close: %w", err)
		}
		if p.d, err = r.reopen(); err != nil {
			return err
		}
		if p.d.Size() != size {
			return fmt.Errorf("opened again it has %d bytes, had %d", p.d.Size(), size)
		}
		if err := m.checkAll(r.ctx, p.d); err != nil {
			return fmt.Errorf("opened again, BLOCKTEST_SEED=%d: %w", s, err)
		}
	}
	return nil
}
