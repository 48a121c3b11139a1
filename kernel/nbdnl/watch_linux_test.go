package nbdnl

import (
	"errors"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/mdlayher/genetlink"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"nbd.example/nbd/kernel"
)

// wire is a receiver that gets what the test sends.
type wire struct {
	in     chan error // what Receive returns, with a message of nbd7 if it is nil
	over   chan struct{}
	closed atomic.Int32
}

func newWire() *wire { return &wire{in: make(chan error), over: make(chan struct{})} }

func (w *wire) Receive() ([]genetlink.Message, []netlink.Message, error) {
	select {
	case err := <-w.in:
		if err != nil {
			return nil, nil, err
		}
		e := netlink.NewAttributeEncoder()
		e.Uint32(attrIndex, 7)
		data, err := e.Encode()
		return []genetlink.Message{{Header: genetlink.Header{Command: uint8(cmdLinkDead)}, Data: data}}, nil, err
	case <-w.over:
		return nil, nil, os.ErrDeadlineExceeded
	}
}

func (w *wire) SetReadDeadline(time.Time) error { close(w.over); return nil }
func (w *wire) Close() error                    { w.closed.Add(1); return nil }

// TestWatchBroken: when the socket breaks, another one takes its place, and what may have
// been missed is reported.
func TestWatchBroken(t *testing.T) {
	d := fake(t, failing(unix.EPERM), map[string]string{"nbd3/pid": "1\n", "nbd3/size": "8\n", "nbd4/size": "0\n"})
	d.pause = time.Millisecond
	first, second := newWire(), newWire()
	left := []*wire{first, nil, second} // nil: it cannot be opened
	d.subscribe = func(group uint32) (receiver, error) {
		if group != 9 || len(left) == 0 {
			t.Errorf("group %d, and %d sockets are left", group, len(left))
		}
		next := left[0]
		left = left[1:]
		if next == nil {
			return nil, errors.New("no memory")
		}
		return next, nil
	}
	reports := make(chan kernel.Index)
	if err := d.Watch(t.Context(), func(i kernel.Index) { reports <- i }); err != nil {
		t.Fatal(err)
	}
	want := func(what string, i kernel.Index) {
		t.Helper()
		select {
		case got := <-reports:
			if got != i {
				t.Errorf("%s: %v is reported, want %v", what, got, i)
			}
		case <-time.After(time.Minute):
			t.Fatalf("%s: nothing is reported", what)
		}
	}
	first.in <- nil
	want("a message", 7)
	first.in <- unix.ENOBUFS
	want("messages that were dropped", 3)
	first.in <- unix.EIO
	want("a socket that broke", 3)
	second.in <- nil
	want("a message to the next socket", 7)
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	if first.closed.Load() != 1 || second.closed.Load() != 1 {
		t.Errorf("closed %d and %d times", first.closed.Load(), second.closed.Load())
	}
}
