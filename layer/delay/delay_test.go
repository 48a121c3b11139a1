package delay_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"nbd.example/nbd/backend/memory"
	"nbd.example/nbd/block"
	"nbd.example/nbd/layer/delay"
)

func open(t testing.TB, c delay.Config) *block.Device {
	t.Helper()
	m, err := memory.New(memory.Config{Size: 64 << 10})
	if err != nil {
		t.Fatal(err)
	}
	d, err := block.Stack(m, delay.Layer(c))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// ops are all kinds of operations.
var ops = map[delay.Kind]func(ctx context.Context, d *block.Device) error{
	delay.Read:  func(ctx context.Context, d *block.Device) error { return d.ReadAt(ctx, make([]byte, 8), 16) },
	delay.Write: func(ctx context.Context, d *block.Device) error { return d.WriteAt(ctx, make([]byte, 8), 16, 0) },
	delay.Flush: func(ctx context.Context, d *block.Device) error { return d.Flush(ctx) },
	delay.Trim:  func(ctx context.Context, d *block.Device) error { return d.Trim(ctx, 16, 8, 0) },
	delay.Zero:  func(ctx context.Context, d *block.Device) error { return d.WriteZeroes(ctx, 16, 8, 0) },
	delay.Extents: func(ctx context.Context, d *block.Device) error {
		return d.Extents(ctx, 16, 8, 0, func(block.Extent) bool { return true })
	},
	delay.Cache: func(ctx context.Context, d *block.Device) error { return d.Cache(ctx, 16, 8) },
}

// TestTimes gives each kind its own time. The clock is that of a synctest
// bubble: it shows exactly what was waited for, and nothing else.
func TestTimes(t *testing.T) {
	c := delay.Config{
		Read: 1 * time.Hour, Write: 2 * time.Hour, Flush: 3 * time.Hour, Trim: 4 * time.Hour,
		Zero: 5 * time.Hour, Extents: 6 * time.Hour, All: 7 * time.Hour,
	}
	want := map[delay.Kind]time.Duration{
		delay.Read: c.Read, delay.Write: c.Write, delay.Flush: c.Flush, delay.Trim: c.Trim,
		delay.Zero: c.Zero, delay.Extents: c.Extents, delay.Cache: c.All,
	}
	for kind, do := range ops {
		synctest.Test(t, func(t *testing.T) {
			d := open(t, c)
			start := time.Now()
			if err := do(context.Background(), d); err != nil {
				t.Errorf("%v: %v", kind, err)
			}
			if got := time.Since(start); got != want[kind] {
				t.Errorf("%v waited %v, want %v", kind, got, want[kind])
			}
		})
	}
}

func TestFunc(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := open(t, delay.Config{All: time.Hour, Func: func(o delay.Op) time.Duration { return time.Duration(o.Off) * time.Second }})
		start := time.Now()
		if err := d.ReadAt(context.Background(), make([]byte, 1), 5); err != nil {
			t.Error(err)
		}
		if got := time.Since(start); got != 5*time.Second {
			t.Errorf("waited %v, want 5s", got)
		}
	})
}

// TestCancel ends each kind of operation while it waits.
func TestCancel(t *testing.T) {
	for kind, do := range ops {
		synctest.Test(t, func(t *testing.T) {
			d := open(t, delay.Config{All: time.Hour})
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			start := time.Now()
			if err := do(ctx, d); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("%v: %v", kind, err)
			}
			if got := time.Since(start); got != time.Minute {
				t.Errorf("%v ended after %v", kind, got)
			}
		})
	}
}

func TestGate(t *testing.T) {
	ctx := t.Context()
	for kind, do := range ops {
		gate := delay.NewGate(func(o delay.Op) bool { return o.Kind == kind })
		d := open(t, delay.Config{Gate: gate})
		for other, pass := range ops {
			if other == kind {
				continue
			}
			if err := pass(ctx, d); err != nil {
				t.Errorf("gate for %v: %v: %v", kind, other, err)
			}
		}
		if n := gate.Waiting(); n != 0 {
			t.Errorf("gate for %v: %d of another kind wait", kind, n)
		}
		done := make(chan error, 1)
		go func() { done <- do(ctx, d) }()
		h, err := gate.Arrived(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if h.Op.Kind != kind || kind != delay.Flush && (h.Op.Off != 16 || h.Op.Len != 8) {
			t.Errorf("%v arrived, want %v of 8 bytes at 16", h.Op, kind)
		}
		select {
		case err := <-done:
			t.Errorf("%v went through a closed gate: %v", kind, err)
		default:
		}
		h.Release()
		if err := <-done; err != nil {
			t.Errorf("%v: %v", kind, err)
		}
	}
}

func TestGateOrderAndFail(t *testing.T) {
	ctx := t.Context()
	gate := delay.NewGate(nil)
	d := open(t, delay.Config{Gate: gate})
	done := make(chan error, 1)
	write := func(b byte) *delay.Held {
		go func() { done <- d.WriteAt(ctx, []byte{b}, int64(b), 0) }()
		h, err := gate.Arrived(ctx)
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	one, two, three := write(1), write(2), write(3)
	for i, h := range []*delay.Held{one, two, three} {
		if h.Op.Off != int64(i+1) {
			t.Errorf("operation %d is %v", i+1, h.Op)
		}
	}
	if n := gate.Waiting(); n != 3 {
		t.Errorf("%d wait, want 3", n)
	}
	broken := errors.New("broken")
	two.Fail(broken)
	two.Release() // too late
	if err := <-done; !errors.Is(err, broken) {
		t.Errorf("failed operation: %v", err)
	}
	three.Release()
	if err := <-done; err != nil {
		t.Error(err)
	}
	gate.Open()
	if err := <-done; err != nil {
		t.Error(err)
	}
	p := make([]byte, 4) // the gate is open
	if err := d.ReadAt(ctx, p, 0); err != nil || string(p) != "\x00\x01\x00\x03" {
		t.Errorf("contents % x, %v", p, err)
	}
	gate.Close()
	four := write(4)
	four.Release()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestGateCancel(t *testing.T) {
	gate := delay.NewGate(nil)
	d := open(t, delay.Config{Gate: gate})
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- d.WriteAt(ctx, []byte{1}, 0, 0) }()
	if _, err := gate.Arrived(t.Context()); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("write: %v", err)
	}
	if n := gate.Waiting(); n != 0 {
		t.Errorf("%d still wait", n)
	}
	if _, err := gate.Arrived(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("Arrived: %v", err)
	}
	if err := d.Broken(); err != nil {
		t.Error(err)
	}
}

// A test that wants something to happen while a write is under way.
func ExampleGate() {
	gate := delay.NewGate(func(o delay.Op) bool { return o.Kind == delay.Write })
	disk, err := memory.New(memory.Config{Size: 1 << 20})
	if err != nil {
		fmt.Println(err)
		return
	}
	d, err := block.Stack(disk, delay.Layer(delay.Config{Gate: gate}))
	if err != nil {
		fmt.Println(err)
		return
	}
	defer d.Close()
	ctx := context.Background()

	done := make(chan error)
	go func() { done <- d.WriteAt(ctx, []byte("late"), 4096, 0) }()
	held, err := gate.Arrived(ctx) // an event, not a guess
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println("under way:", held.Op)

	p := make([]byte, 4)
	fmt.Println(d.ReadAt(ctx, p, 4096), p)
	held.Release()
	fmt.Println(<-done)
	fmt.Println(d.ReadAt(ctx, p, 4096), string(p))
	// Output:
	// under way: write of 4 bytes at 4096
	// <nil> [0 0 0 0]
	// <nil>
	// <nil> late
}
