package blocktest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"sync"
	"testing"

	"nbd.example/nbd/block"
)

// checkKeeps compares the Caps of a transparent layer with those below.
func checkKeeps(t testing.TB, x LayerTarget) error {
	if !x.Transparent {
		return skip("the layer is not transparent")
	}
	s, d, err := openFull(t, x)
	if err != nil {
		return err
	}
	below, err := block.New(s.disk.Open())
	if err != nil {
		return err
	}
	defer below.Close()
	want, got := reflect.ValueOf(below.Caps()), reflect.ValueOf(d.Caps())
	for i := range want.NumField() {
		name := want.Type().Field(i).Name
		a, b := want.Field(i).Interface(), got.Field(i).Interface()
		if a != b && !slices.Contains(x.Except, name) {
			err = errors.Join(err, fmt.Errorf("Caps().%s is %v, the device below has %v", name, b, a))
		}
	}
	return err
}

// recorder keeps the calls that a disk sees.
type recorder struct {
	mu    sync.Mutex
	calls []Call
}

func (r *recorder) add(c Call) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls = append(r.calls, c)
	return nil
}

func (r *recorder) take() []Call {
	r.mu.Lock()
	defer r.mu.Unlock()
	calls := r.calls
	r.calls = nil
	return calls
}

// forwarded is a call of a Device and the call of the disk that it must become.
// want.Flags must be there, and of those in without none.
type forwarded struct {
	ability string
	changes bool
	want    Call
	without block.Flags
	do      func(ctx context.Context, d *block.Device) error
}

const (
	forwardOff = 64 << 10
	forwardLen = 8 << 10
)

func forwardedCalls() []forwarded {
	all := block.FUA | block.NoHole | block.FastZero
	call := func(method string, f block.Flags) Call { return Call{method, forwardOff, forwardLen, f} }
	list := []forwarded{
		{"Flush", false, Call{Method: "Flush"}, 0, func(ctx context.Context, d *block.Device) error { return d.Flush(ctx) }},
		{"Cache", false, call("Cache", 0), 0, func(ctx context.Context, d *block.Device) error {
			return d.Cache(ctx, forwardOff, forwardLen)
		}},
		{"Extents", false, call("Extents", 0), 0, func(ctx context.Context, d *block.Device) error {
			return d.Extents(ctx, forwardOff, forwardLen, 0, func(block.Extent) bool { return true })
		}},
	}
	for _, f := range []block.Flags{0, block.FUA} {
		list = append(list,
			forwarded{"FUA", true, call("WriteAt", f), all &^ f, func(ctx context.Context, d *block.Device) error {
				return d.WriteAt(ctx, make([]byte, forwardLen), forwardOff, f)
			}},
			forwarded{"Trim", true, call("Trim", f), all &^ f, func(ctx context.Context, d *block.Device) error {
				return d.Trim(ctx, forwardOff, forwardLen, f)
			}})
	}
	for _, f := range []block.Flags{0, block.NoHole, block.FUA, block.FUA | block.NoHole, block.FastZero} {
		ability := "Zero"
		if f&block.FastZero != 0 {
			ability = "FastZero"
		}
		list = append(list, forwarded{ability, true, call("WriteZeroes", f), all &^ f, func(ctx context.Context, d *block.Device) error {
			return d.WriteZeroes(ctx, forwardOff, forwardLen, f)
		}})
	}
	return list
}

// checkForwards wants the calls of a transparent layer to arrive as they are.
func checkForwards(t testing.TB, x LayerTarget) error {
	if !x.Transparent {
		return skip("the layer is not transparent")
	}
	s, d, err := openFull(t, x)
	if err != nil {
		return err
	}
	var r recorder
	s.disk.Hook = r.add
	for _, f := range forwardedCalls() {
		if slices.Contains(x.Except, f.ability) || f.changes && d.Caps().ReadOnly ||
			f.want.Flags&block.FUA != 0 && slices.Contains(x.Except, "FUA") {
			continue
		}
		r.take()
		if err := f.do(t.Context(), d); err != nil {
			return fmt.Errorf("%v: %w", f.want, err)
		}
		calls := r.take()
		arrived := slices.ContainsFunc(calls, func(c Call) bool {
			flags := c.Flags
			c.Flags = f.want.Flags
			return c == f.want && flags&f.want.Flags == f.want.Flags && flags&f.without == 0
		})
		if !arrived {
			return fmt.Errorf("%v did not arrive at the device below, which saw %v", f.want, calls)
		}
	}
	return nil
}

// checkLayerErrors wants the errors of the device below to come through, and no
// longer than they last.
func checkLayerErrors(t testing.TB, x LayerTarget) error {
	s, d, err := openFull(t, x)
	if err != nil {
		return err
	}
	ctx := t.Context()
	injected := errors.New("injected")
	fail := func(method string) {
		s.disk.Hook = func(c Call) error {
			if c.Method == method {
				return injected
			}
			return nil
		}
	}
	n := min(d.Size(), 64<<10)
	fail("ReadAt")
	if err := expect(d.ReadAt(ctx, make([]byte, n), 0), injected); err != nil {
		return fmt.Errorf("read while the device below fails: %w", err)
	}
	s.disk.Hook = nil
	p := junk(n)
	if err := d.ReadAt(ctx, p, 0); err != nil {
		return fmt.Errorf("read after the device below has failed: %w", err)
	}
	if !bytes.Equal(p, s.view()[:n]) {
		return errors.New("after the device below has failed to read, the contents are wrong")
	}
	if x.Volatile || d.Caps().ReadOnly {
		return nil
	}
	fail("WriteAt")
	if err := expect(d.WriteAt(ctx, p, 0, 0), injected); err != nil {
		return fmt.Errorf("write while the device below fails: %w", err)
	}
	if err := d.Broken(); err != nil {
		return fmt.Errorf("a failed write has broken the device: %w", err)
	}
	if d.Caps().Flush == block.None {
		return nil
	}
	fail("Flush")
	for _, want := range []error{injected, block.ErrNotStable} {
		if err := expect(d.Flush(ctx), want); err != nil {
			return fmt.Errorf("flush while the device below fails: %w", err)
		}
	}
	s.disk.Hook = nil
	if err := expect(d.WriteAt(ctx, p, 0, 0), block.ErrNotStable); err != nil {
		return fmt.Errorf("write after a failed flush: %w", err)
	}
	return d.ReadAt(ctx, p, 0)
}
