package kernel_test

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"nbd.example/nbd/kernel"
	"nbd.example/nbd/proto"
)

// story is a driver whose device goes through a story: each look is a step, and the last
// one lasts.
type story struct {
	kernel.Driver
	mu      sync.Mutex
	steps   []*kernel.Info // nil: there is no such device
	rescans int
}

func (s *story) Info(i kernel.Index) (*kernel.Info, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	info := s.steps[0]
	if len(s.steps) > 1 {
		s.steps = s.steps[1:]
	}
	if info == nil {
		return nil, kernel.ErrNoDevice
	}
	return info, nil
}

func (s *story) Rescan(context.Context, kernel.Index) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rescans++
	return nil
}

func TestAwaitReady(t *testing.T) {
	want := &kernel.Info{PID: 5, Size: 512, Node: true}
	s := &story{steps: []*kernel.Info{nil, {}, {PID: 5}, {PID: 5, Size: 512}, want}}
	if info, err := kernel.AwaitReady(t.Context(), s, 0); err != nil || info != want {
		t.Errorf("got %+v, %v", info, err)
	}
	for reason, last := range map[string]*kernel.Info{
		"wait for nbd0":                   nil,
		"not attached":                    {},
		"no size":                         {PID: 5},
		"no node /dev/nbd0: is devtmpfs ": {PID: 5, Size: 512},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
		_, err := kernel.AwaitReady(ctx, &story{steps: []*kernel.Info{last}}, 0)
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), reason) {
			t.Errorf("got %v, want %q in it", err, reason)
		}
	}
}

func TestAwaitGone(t *testing.T) {
	s := &story{steps: []*kernel.Info{
		{PID: 5, Size: 512, Partitions: []string{"nbd0p1"}},
		{Partitions: []string{"nbd0p1"}}, {},
	}}
	if info, err := kernel.AwaitGone(t.Context(), s, 0); err != nil || !info.Gone() || s.rescans != 1 {
		t.Errorf("got %+v, %v, %d rescans", info, err, s.rescans)
	}
	s = &story{steps: []*kernel.Info{{PID: 5}, nil}}
	if info, err := kernel.AwaitGone(t.Context(), s, 7); err != nil || info.Index != 7 {
		t.Errorf("removed: got %+v, %v", info, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
	defer cancel()
	s = &story{steps: []*kernel.Info{{PID: 5, Mounts: []string{"/mnt"}}}}
	info, err := kernel.AwaitGone(ctx, s, 0)
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "mounted on /mnt") || info.PID != 5 {
		t.Errorf("got %+v, %v", info, err)
	}
}

func TestSeconds(t *testing.T) {
	for d, want := range map[time.Duration]uint64{
		-time.Hour: 0, 0: 0, 1: 1, time.Second: 1, time.Second + 1: 2, 1<<63 - 1: 9223372037,
	} {
		if n := kernel.Seconds(d); n != want {
			t.Errorf("%v is %d s, want %d", d, n, want)
		}
	}
}

// TestCheck looks at reasons that no fake kernel gives.
func TestCheck(t *testing.T) {
	for want, a := range map[string]kernel.Attach{
		"beyond nbd1048575": {Index: 1 << 20, Size: 512},
		"timeout":           {Size: 512, Timeout: kernel.MaxTimeout + 1},
		"block size 131072": {Size: 512, BlockSize: 131072},
		"2049 bytes":        {Size: 512, Identifier: strings.Repeat("x", 2049)},
	} {
		a.Sockets, a.Flags = append(a.Sockets, nil, nil), proto.FlagCanMultiConn
		if err := a.Check(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	long := kernel.MaxTimeout + 1
	for want, c := range map[string]kernel.Change{
		"new size":   {Size: 100},
		"block size": {BlockSize: 513},
		"timeout":    {Timeout: &long},
		"identifier": {Identifier: "\x00"},
	} {
		if err := c.Check(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	if err := (&kernel.Change{}).Check(); err != nil {
		t.Errorf("a change of nothing: %v", err)
	}
}
