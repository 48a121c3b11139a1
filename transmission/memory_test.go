package transmission

import (
	"sync"
	"testing"

	"nbd.example/nbd/block"
	"nbd.example/nbd/proto"
)

func TestMemoryIsShared(t *testing.T) {
	const unit = alwaysIn
	all := NewMemory(100 * unit)
	a := account{c: new(conn), limit: 60 * unit, all: all}
	b := account{c: new(conn), limit: 60 * unit, all: all}
	if !a.reserve(50 * unit) {
		t.Error("half of it is refused to who comes first")
	}
	if a.reserve(1) {
		t.Error("a connection got more than it leaves to others")
	}
	if !b.reserve(25*unit) || b.reserve(1) {
		t.Error("the second gets half of what is left, and no more")
	}
	a.take(-20 * unit)
	if !b.reserve(5 * unit) {
		t.Error("what was given back is refused")
	}
	a.take(-30 * unit)
	if !b.reserve(20*unit) || b.reserve(60*unit) {
		t.Error("a connection's own limit")
	}
	b.take(-50 * unit)
	if n := all.Used(); n != 0 {
		t.Errorf("%d bytes are still taken", n)
	}
}

// Who has nothing gets a little, whatever others have; and what is longer than
// everything gets in alone.
func TestMemoryAlwaysIn(t *testing.T) {
	all := NewMemory(10 * alwaysIn)
	all.take(20 * alwaysIn)
	a := account{c: new(conn), limit: 100 * alwaysIn, all: all}
	if !a.reserve(alwaysIn) {
		t.Error("a short request is refused to who has nothing")
	}
	if a.reserve(alwaysIn) {
		t.Error("a second one is let in")
	}
	a.take(-alwaysIn)
	if a.reserve(alwaysIn + 1) {
		t.Error("a long one is let in")
	}
	all.take(-20 * alwaysIn)
	if !a.reserve(50 * alwaysIn) {
		t.Error("a request that is longer than all memory is never let in")
	}
	b := account{c: new(conn), limit: 100 * alwaysIn, all: all}
	if b.reserve(50 * alwaysIn) {
		t.Error("two of them are")
	}
}

// TestMemoryOfMany has more connections than memory ask for long reads, and take
// nothing. When they take what they asked for, all are served.
func TestMemoryOfMany(t *testing.T) {
	const length, limit, count = mib, 4 * mib, 12
	forPaths(t, func() *ramDisk { return newRAM(2 * mib) }, func(t *testing.T, _ *ramDisk, dev *block.Device) {
		memory := NewMemory(limit)
		var rigs []*rig
		for range count {
			r := serve(t, dev, setup{transport: "pipe", cfg: Config{Memory: memory}})
			r.send(proto.Request{Command: proto.CmdRead, Length: length}, nil)
			r.send(proto.Request{Command: proto.CmdRead, Offset: 512, Length: length}, nil)
			rigs = append(rigs, r)
		}
		for _, r := range rigs {
			until(t, "both requests are read", func() bool { return r.c.pending.Load() == 2 })
		}
		if n := memory.Used(); n > limit {
			t.Errorf("%d bytes are taken, of %d", n, limit)
		}
		if memory.waiters.Load() == 0 {
			t.Error("nobody waits")
		}
		var wg sync.WaitGroup
		for _, r := range rigs {
			wg.Go(func() {
				for range 2 {
					if p, err := readReply(r.conn, r.style, r.waiting); err != nil || p.errno != proto.OK || len(p.data) != length {
						t.Errorf("%v: %v", p, err)
					}
				}
			})
		}
		wg.Wait()
		for _, r := range rigs {
			r.end()
		}
		if memory.Used() != 0 || memory.waiters.Load() != 0 {
			t.Errorf("%d bytes are left, %d wait", memory.Used(), memory.waiters.Load())
		}
	})
}

// TestMemoryOfTheDead: who waits for memory that others have, and is cut, or hangs
// up, ends.
func TestMemoryOfTheDead(t *testing.T) {
	memory := NewMemory(mib)
	memory.take(2 * mib)
	for _, how := range []string{"cut while reading", "cut while collecting a payload"} {
		r := serve(t, stack(t, newRAM(2*mib)), setup{transport: "pipe", cfg: Config{Memory: memory}, session: func(s *Session) { s.Live = new(Live) }})
		if how == "cut while reading" {
			r.send(proto.Request{Command: proto.CmdRead, Length: mib}, nil)
		} else {
			_, b := r.request(proto.Request{Command: proto.CmdWrite, Length: mib, Flags: proto.CmdFlagFUA}, full(1, mib))
			go r.conn.Write(b)
		}
		until(t, "it waits for memory", func() bool { return memory.waiters.Load() == 1 })
		r.c.s.Live.Cut()
		if err := r.wait(); err != ErrCut {
			t.Errorf("%s: %v", how, err)
		}
		if memory.waiters.Load() != 0 {
			t.Errorf("%s: it still waits", how)
		}
	}
	if memory.Used() != 2*mib {
		t.Errorf("%d bytes are taken", memory.Used())
	}
}
