package transmission

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"nbd.example/nbd/block"
	"nbd.example/nbd/layer/delay"
	"nbd.example/nbd/proto"
)

// heldMax notes the most that a connection holds.
type heldMax struct {
	c   atomic.Pointer[conn]
	max atomic.Int64
}

func (h *heldMax) look() {
	if c := h.c.Load(); c != nil {
		for n := c.held.used.Load(); ; {
			old := h.max.Load()
			if n <= old || h.max.CompareAndSwap(old, n) {
				return
			}
		}
	}
}

// TestManyReadsNoneTaken asks for 4,000 reads at once and takes none.
func TestManyReadsNoneTaken(t *testing.T) {
	const count = 4000
	for name, x := range map[string]struct {
		length, buffered int
		direct           bool
	}{
		"32 MiB, layered": {32 * mib, 0, false},
		"1 MiB, layered":  {mib, 4 * mib, false},
		"65 KiB, layered": {65 << 10, 4 * mib, false},
		"1 MiB, direct":   {mib, 4 * mib, true},
		"4 KiB, direct":   {4096, mib, true},
		"1 B, direct":     {1, mib, true},
	} {
		for _, transport := range []string{"unix", "tls"} {
			t.Run(name+", "+transport, func(t *testing.T) {
				d := newRAM(32 * mib)
				var most heldMax
				d.hook = func(string) { most.look() }
				dev := stack(t, d)
				if !x.direct {
					dev = stack(t, d, passThrough())
				}
				group := new(Group)
				r := serve(t, dev, setup{transport: transport, group: group, cfg: Config{MaxBuffered: x.buffered},
					tune: func(c *conn, _, _ net.Conn) { most.c.Store(c) }})
				var stream []byte
				for range count {
					_, b := r.request(proto.Request{Command: proto.CmdRead, Length: uint64(x.length)}, nil)
					stream = append(stream, b...)
				}
				r.write(stream)
				if x.length > 4096 { // of short ones some have gone to the socket
					until(t, "all requests have been read", func() bool { return r.c.pending.Load() > count-100 })
				}
				// Another client of the same device is served meanwhile.
				b := serve(t, dev, setup{group: group})
				b.alive()
				b.want(proto.OK, proto.Request{Command: proto.CmdWrite}, make([]byte, 100<<10))
				b.end()
				// One answer is let in when the bound is nearly reached, and one may be in the batch.
				if limit := int64(r.c.cfg.MaxBuffered + 2*answerSize(uint64(max(x.length, batchSize)))); most.max.Load() > limit {
					t.Errorf("%d bytes held, more than %d", most.max.Load(), limit)
				}
				if err := r.hangUp(); !errors.Is(err, ErrHungUp) {
					t.Errorf("Serve: %v", err)
				}
			})
		}
	}
}

// TestManyReadsTaken asks for much at once and takes it slowly: all must come.
func TestManyReadsTaken(t *testing.T) {
	forAll(t, mib, func(t *testing.T, s style, d *ramDisk, dev *block.Device) {
		d.fill(0, mib)
		r := serve(t, dev, setup{style: s, cfg: Config{MaxBuffered: 256 << 10, MaxRequests: 16}})
		rng := rand.New(rand.NewPCG(1, 1))
		var stream []byte
		const count = 400
		for range count {
			n := 1 + rng.Uint64N(100<<10)
			_, b := r.request(proto.Request{Command: proto.CmdRead, Offset: rng.Uint64N(mib - n), Length: n}, nil)
			stream = append(stream, b...)
		}
		go r.conn.Write(stream)
		for range count {
			q := len(r.waiting)
			p := r.receive()
			if p.errno != proto.OK || len(r.waiting) != q-1 {
				t.Fatalf("%v", p.errno)
			}
		}
		r.end()
	})
}

// TestDeepSender sends 64 reads and 64 writes of 1 MiB before it takes anything.
func TestDeepSender(t *testing.T) {
	const count = 64
	for _, x := range []struct {
		transport string
		style     style
		layered   bool
	}{
		{"unix", simple, false}, {"unix", structured, true}, {"pipe", extended, false}, {"tls", simple, true}, {"tls", structured, false},
	} {
		t.Run(fmt.Sprintf("%s, style %d, layered %v", x.transport, x.style, x.layered), func(t *testing.T) {
			d := newRAM(4 * mib)
			d.fill(0, mib)
			dev := stack(t, d)
			if x.layered {
				dev = stack(t, d, passThrough())
			}
			r := serve(t, dev, setup{style: x.style, transport: x.transport})
			for range count {
				r.send(proto.Request{Command: proto.CmdRead, Offset: 0, Length: mib}, nil)
			}
			data := full(5, mib)
			for range count {
				r.send(proto.Request{Command: proto.CmdWrite, Offset: mib}, data)
			}
			for range 2 * count {
				if p := r.receive(); p.errno != proto.OK {
					t.Fatalf("%v", p.errno)
				}
			}
			r.end()
			if !bytes.Equal(d.contents(mib, mib), data) {
				t.Error("not written")
			}
		})
	}
}

// TestVanish ends the client's side after each kind of byte.
func TestVanish(t *testing.T) {
	before := runtime.NumGoroutine()
	for _, transport := range []string{"unix", "pipe", "tls"} {
		t.Run(transport, func(t *testing.T) {
			forAll(t, mib, func(t *testing.T, s style, d *ramDisk, dev *block.Device) {
				rng := rand.New(rand.NewPCG(2, uint64(s)))
				group := new(Group)
				held := d.fill(0, mib)
				for range 12 {
					x := newSession(rng, s, 30, held)
					r := serve(t, dev, setup{style: s, transport: transport, group: group})
					n := rng.IntN(len(x.stream))
					sent := make(chan struct{})
					go func() {
						r.conn.Write(x.stream[:n])
						close(sent)
					}()
					if rng.IntN(2) == 0 { // takes some answers
						r.conn.Read(make([]byte, rng.IntN(10_000)))
					}
					if transport != "pipe" {
						<-sent
					}
					if err := r.hangUp(); err == nil {
						t.Error("Serve: nil, want an error")
					}
					<-sent
				}
				if group.changes.Busy() || group.count.Load() != 0 {
					t.Error("something is left in the group")
				}
			})
		})
	}
	until(t, "all goroutines have ended", func() bool { return runtime.NumGoroutine() <= before })
}

// TestVanishInPayload stops in the middle of a payload and hangs up: the write is
// not carried out by a worker, not answered, and keeps nothing.
func TestVanishInPayload(t *testing.T) {
	for _, n := range []int{512, 40 << 10, 500 << 10} {
		forAll(t, mib, func(t *testing.T, s style, d *ramDisk, dev *block.Device) {
			group := new(Group)
			r := serve(t, dev, setup{style: s, group: group})
			_, b := r.request(proto.Request{Command: proto.CmdWrite}, full(1, n))
			r.write(b[:len(b)-1])
			if err := r.hangUp(); !errors.Is(err, ErrHungUp) {
				t.Errorf("Serve: %v", err)
			}
			if d.contents(int64(n-1), 1)[0] != 0 || n < wholeWrite && d.contents(0, 1)[0] != 0 {
				t.Error("a part of a write was carried out")
			}
			if group.changes.Busy() {
				t.Error("changes are left")
			}
		})
	}
}

// TestReadsPassStuckWrite: reads on a connection do not wait behind a write or a
// flush that hangs.
func TestReadsPassStuckWrite(t *testing.T) {
	for _, c := range []proto.Command{proto.CmdWrite, proto.CmdFlush, proto.CmdTrim, proto.CmdWriteZeroes} {
		method := map[proto.Command]string{proto.CmdWrite: "WriteAt", proto.CmdFlush: "Flush", proto.CmdTrim: "Trim", proto.CmdWriteZeroes: "WriteZeroes"}[c]
		t.Run(c.String(), func(t *testing.T) {
			forAll(t, mib, func(t *testing.T, s style, d *ramDisk, dev *block.Device) {
				d.noWrite = true // writes go to the workers
				stuck, release := make(chan struct{}), make(chan struct{})
				d.hook = func(m string) {
					if m == method {
						close(stuck)
						<-release
					}
				}
				r := serve(t, dev, setup{style: s})
				q, payload := valid(c)
				cookie := r.send(q, payload)
				within(t, "the device has the request", stuck)
				for range 12 {
					r.alive()
					r.want(proto.OK, proto.Request{Command: proto.CmdRead, Offset: 8192, Length: 100 << 10}, nil)
				}
				close(release)
				if p := r.receive(); p.cookie != cookie || p.errno != proto.OK {
					t.Errorf("%#x: %v", p.cookie, p.errno)
				}
				r.end()
			})
		})
	}
}

// TestWorkers: no more requests than Workers wait for the disk at a time, and all
// of them are answered.
func TestWorkers(t *testing.T) {
	gate := delay.NewGate(nil)
	r := serve(t, stack(t, newRAM(mib), delay.Layer(delay.Config{Gate: gate})), setup{cfg: Config{Workers: 3}})
	const count = 20
	for range count {
		r.send(proto.Request{Command: proto.CmdRead, Length: 512}, nil)
	}
	until(t, "all requests have been read", func() bool { return r.c.pending.Load() == count })
	for range 3 {
		arrived(t, gate)
	}
	if n := gate.Waiting(); n != 3 {
		t.Errorf("%d at the disk, want 3", n)
	}
	gate.Open()
	for range count {
		r.receive()
	}
	r.end()
}

// TestStuckClient ends a client that takes nothing for too long.
func TestStuckClient(t *testing.T) {
	for _, transport := range []string{"unix", "pipe", "tls"} {
		forStyles(t, func(t *testing.T, s style) {
			d := newRAM(16 * mib)
			r := serve(t, stack(t, d), setup{style: s, transport: transport, cfg: Config{StuckTimeout: time.Millisecond}})
			var stream []byte
			for range 8 {
				_, b := r.request(proto.Request{Command: proto.CmdRead, Flags: 0, Length: 8 * mib}, nil)
				stream = append(stream, b...)
			}
			if s != simple { // not holes
				d.fill(0, 8*mib)
			}
			go r.conn.Write(stream)
			if err := r.wait(); !errors.Is(err, errStuck) {
				t.Errorf("%s: Serve: %v, want errStuck", transport, err)
			}
		})
	}
}

// TestIdleHoldsNothing: a connection at rest has no buffer.
func TestIdleHoldsNothing(t *testing.T) {
	d := newRAM(mib)
	r := serve(t, stack(t, d), setup{})
	for range 100 {
		r.want(proto.OK, proto.Request{Command: proto.CmdWrite}, make([]byte, 100<<10))
	}
	r.c.net.SetReadDeadline(time.Unix(1, 0)) // ends the reader, where it rests
	r.wait()
	if r.c.raw != nil && r.c.in.buf != nil || r.c.batch.cur != nil {
		t.Error("buffers are held")
	}
}

// TestManyStatusNoneTaken asks for the status of a disk with many holes again and
// again, and takes nothing.
func TestManyStatusNoneTaken(t *testing.T) {
	const count, buffered = 4000, 4 * mib
	for _, s := range []style{structured, extended} {
		d := newRAM(64 * mib)
		for i := range d.used {
			d.used[i] = i%2 == 0
		}
		var most heldMax
		d.hook = func(string) { most.look() }
		r := serve(t, stack(t, d), setup{style: s, cfg: Config{MaxBuffered: buffered}, tune: func(c *conn, _, _ net.Conn) { most.c.Store(c) }})
		var stream []byte
		for range count {
			_, b := r.request(proto.Request{Command: proto.CmdBlockStatus, Length: 64 * mib}, nil)
			stream = append(stream, b...)
		}
		r.write(stream)
		until(t, "all requests have been read", func() bool { return r.c.pending.Load() > count-100 })
		for range 3 {
			if p := r.receive(); p.errno != proto.OK || len(p.status(t, allContexts[0].ID)) != maxStatus {
				t.Errorf("%v", p.errno)
			}
		}
		if most.max.Load() > buffered || most.max.Load() == 0 {
			t.Errorf("%d bytes held, more than %d", most.max.Load(), buffered)
		}
		if err := r.hangUp(); !errors.Is(err, ErrHungUp) {
			t.Errorf("Serve: %v", err)
		}
	}
}

// TestShortAnswersNoneTaken asks for what has short answers until no more is read,
// one at a time, and takes nothing: the answers must not hold a buffer each.
func TestShortAnswersNoneTaken(t *testing.T) {
	d := newRAM(mib)
	r := serve(t, stack(t, d), setup{transport: "pipe"})
	const count = 1000
	for i := range count {
		q := proto.Request{Command: proto.CmdFlush}
		if i%2 == 0 {
			q = proto.Request{Command: proto.CmdTrim, Length: 1 << 40} // refused by the reader
		}
		r.send(q, nil)
		until(t, "it is answered", func() bool {
			r.c.out.mu.Lock()
			defer r.c.out.mu.Unlock()
			n := 0
			for _, s := range append(r.c.out.queue[:len(r.c.out.queue):len(r.c.out.queue)], r.c.out.sending...) {
				n += s.requests
			}
			return n == i+1
		})
	}
	r.c.out.mu.Lock()
	n := len(r.c.out.queue)
	r.c.out.mu.Unlock()
	if n > 20 {
		t.Errorf("%d buffers for %d answers", n, count)
	}
	for range count {
		r.receive()
	}
	r.end()
}
