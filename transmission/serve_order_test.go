package transmission

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"nbd.example/nbd/block"
	"nbd.example/nbd/layer/delay"
	"nbd.example/nbd/proto"
)

func full(b byte, n int) []byte { return bytes.Repeat([]byte{b}, n) }

// TestOverlapsKeepOrder has two connections write to one place: the older write is
// stuck, the younger must wait for it; what does not overlap must not.
func TestOverlapsKeepOrder(t *testing.T) {
	for _, c := range []proto.Command{proto.CmdWrite, proto.CmdTrim, proto.CmdWriteZeroes} {
		t.Run(c.String(), func(t *testing.T) {
			d := newRAM(mib)
			group := new(Group)
			gate := delay.NewGate(func(o delay.Op) bool { return o.Off == 0 })
			dev := stack(t, d, delay.Layer(delay.Config{Gate: gate}))
			a, b := serve(t, dev, setup{group: group}), serve(t, dev, setup{group: group})
			q := proto.Request{Command: c, Offset: 0, Length: 8192}
			if c == proto.CmdWrite {
				a.send(q, full(1, 8192))
			} else {
				a.send(q, nil)
			}
			old := arrived(t, gate)
			young := b.send(proto.Request{Command: proto.CmdWrite, Offset: 4096}, full(2, 8192))
			b.want(proto.OK, proto.Request{Command: proto.CmdWrite, Offset: 64 << 10}, full(3, 4096)) // passes both
			b.want(proto.OK, proto.Request{Command: proto.CmdRead, Offset: 4096, Length: 512}, nil)
			if got := d.contents(4096, 1)[0]; got == 2 {
				t.Error("the younger write did not wait")
			}
			old.Release()
			if p := b.receive(); p.cookie != young || p.errno != proto.OK {
				t.Errorf("%#x: %v", p.cookie, p.errno)
			}
			if p := a.receive(); p.errno != proto.OK {
				t.Errorf("%v", p.errno)
			}
			if got := d.contents(4096, 8192); !bytes.Equal(got, full(2, 8192)) {
				t.Error("the older write has undone the younger")
			}
			a.end()
			b.end()
			if group.changes.Busy() {
				t.Error("changes are left")
			}
		})
	}
}

// TestPipelinedOverlaps sends many overlapping changes on one connection without
// waiting: the last must win, byte by byte, on each path.
func TestPipelinedOverlaps(t *testing.T) {
	const size, count = 64 << 10, 600
	forAll(t, mib, func(t *testing.T, s style, d *ramDisk, dev *block.Device) {
		rng := rand.New(rand.NewPCG(5, uint64(s)))
		d.hook = func(string) { // mixes the fast path with the workers
			runtime.Gosched()
		}
		r := serve(t, dev, setup{style: s})
		want := make([]byte, size)
		var stream []byte
		for i := range count {
			off := rng.Uint64N(size - 1)
			n := 1 + rng.Uint64N(min(size-off, 1<<rng.IntN(16)))
			q := proto.Request{Command: proto.CmdWrite, Offset: off, Length: n}
			if rng.IntN(3) == 0 {
				q.Flags = proto.CmdFlagFUA // by a worker
			}
			var payload []byte
			if rng.IntN(5) == 0 {
				q.Command = proto.CmdWriteZeroes
				clear(want[off : off+n])
			} else {
				payload = full(byte(i)|1, int(n))
				copy(want[off:], payload)
			}
			_, b := r.request(q, payload)
			stream = append(stream, b...)
		}
		go r.conn.Write(stream)
		for range count {
			if p := r.receive(); p.errno != proto.OK {
				t.Fatalf("%#x: %v", p.cookie, p.errno)
			}
		}
		if !bytes.Equal(d.contents(0, size), want) {
			t.Error("changes were reordered")
		}
		r.end()
	})
}

// TestConcurrentOverlaps has four connections change one small stretch at once. No
// two changes may be inside the device in the same byte.
func TestConcurrentOverlaps(t *testing.T) {
	const size = 16 << 10
	var mu sync.Mutex
	var inside []delay.Op
	enter := func(o delay.Op) time.Duration {
		if o.Kind&(delay.Write|delay.Trim|delay.Zero) == 0 {
			return 0
		}
		mu.Lock()
		for _, x := range inside {
			if x.Off < o.Off+o.Len && o.Off < x.Off+x.Len {
				t.Errorf("%v while %v is under way", o, x)
			}
		}
		inside = append(inside, o)
		mu.Unlock()
		runtime.Gosched()
		mu.Lock()
		inside = slices.DeleteFunc(inside, func(x delay.Op) bool { return x == o })
		mu.Unlock()
		return 0
	}
	group := new(Group)
	dev := stack(t, newRAM(mib), delay.Layer(delay.Config{Func: enter}))
	var wg sync.WaitGroup
	for i := range uint64(4) {
		r := serve(t, dev, setup{style: structured, group: group})
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(i, 1))
			var stream []byte
			const n = 300
			for range n {
				off := rng.Uint64N(size - 1)
				k := 1 + rng.Uint64N(min(size-off, 6000))
				_, b := r.request(proto.Request{Command: proto.CmdWrite, Offset: off, Length: k}, make([]byte, k))
				stream = append(stream, b...)
			}
			go r.conn.Write(stream)
			for range n {
				if p, err := readReply(r.conn, r.style, r.waiting); err != nil || p.errno != proto.OK {
					t.Errorf("%v, %v", p, err)
					return
				}
			}
		})
		defer r.end()
	}
	wg.Wait()
}

// grave is a device with a connection a on it whose workers are stuck in a write,
// with more writes behind that nobody has read yet.
type grave struct {
	d     *ramDisk
	dev   *block.Device
	gate  *delay.Gate // holds the write to 0
	group *Group
	a     *rig
}

// places in a grave's device
const (
	stuckAt  = 0         // a's write is with a worker
	unreadAt = 512 << 10 // a's write is in its socket
)

func newGrave(t *testing.T) *grave {
	t.Helper()
	g := &grave{d: newRAM(mib), group: new(Group)}
	g.gate = delay.NewGate(func(o delay.Op) bool { return o.Kind == delay.Write && o.Off == stuckAt })
	g.dev = stack(t, g.d, delay.Layer(delay.Config{Gate: g.gate}))
	t.Cleanup(g.gate.Open)
	g.a = serve(t, g.dev, setup{group: g.group, cfg: Config{MaxBuffered: 1}}) // takes one payload at a time
	g.a.send(proto.Request{Command: proto.CmdWrite, Offset: stuckAt}, full(1, 4096))
	arrived(t, g.gate)
	g.a.send(proto.Request{Command: proto.CmdWrite, Offset: 256 << 10}, full(1, 4096)) // the reader waits here
	g.a.send(proto.Request{Command: proto.CmdWrite, Offset: unreadAt}, full(1, 4096))
	return g
}

// member serves one more connection of the group.
func (g *grave) member(t *testing.T) *rig { return serve(t, g.dev, setup{group: g.group}) }

// fenced waits until somebody waits for a.
func (g *grave) fenced(t *testing.T) {
	t.Helper()
	until(t, "a sibling waits for the dead", g.a.c.hurry.Load)
}

func needFence(t *testing.T) {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("only Linux tells at once that a peer has hung up")
	}
}

// TestOrderAfterDeath: a connection dies with a write stuck in a worker and
// others unread. What a sibling writes after that must stay.
func TestOrderAfterDeath(t *testing.T) {
	needFence(t)
	g := newGrave(t)
	siblings := []*rig{g.member(t), g.member(t), g.member(t)}
	for _, s := range siblings {
		s.alive()
	}
	b := siblings[0]
	g.a.conn.Close()
	// As the kernel does: what a left is sent again, and when that has been
	// answered, newer writes follow to the same places.
	again := []uint64{
		b.send(proto.Request{Command: proto.CmdWrite, Offset: stuckAt}, full(1, 4096)),
		b.send(proto.Request{Command: proto.CmdWrite, Offset: unreadAt}, full(1, 4096)),
	}
	g.fenced(t)
	siblings[1].alive() // reads need not wait
	select {
	case <-g.a.done:
		t.Error("the dead connection ended with a write under way")
	default:
	}
	g.gate.Open()
	for range again {
		if p := b.receive(); p.errno != proto.OK {
			t.Errorf("%v", p.errno)
		}
	}
	if err := g.a.wait(); !errors.Is(err, ErrHungUp) {
		t.Errorf("the dead connection: %v", err)
	}
	b.want(proto.OK, proto.Request{Command: proto.CmdWrite, Offset: stuckAt}, full(2, 4096))
	b.want(proto.OK, proto.Request{Command: proto.CmdWrite, Offset: unreadAt}, full(2, 4096))
	for _, at := range []int64{stuckAt, unreadAt} {
		if got := g.d.contents(at, 4096); !bytes.Equal(got, full(2, 4096)) {
			t.Errorf("at %d: %d", at, got[0])
		}
	}
	if got := g.d.contents(256<<10, 4096); !bytes.Equal(got, full(1, 4096)) {
		t.Error("what the dead connection left was not carried out")
	}
	for _, s := range siblings {
		s.end()
	}
}

// TestFenceBeforeBatch: a newer write, to where a dead sibling's unread write
// goes, comes after it, though nothing was sent again.
func TestFenceBeforeBatch(t *testing.T) {
	needFence(t)
	for _, name := range []string{"write", "trim"} {
		t.Run(name, func(t *testing.T) {
			g := newGrave(t)
			b := g.member(t)
			b.alive()
			g.a.conn.Close()
			var w uint64
			want := full(2, 4096)
			if name == "trim" {
				want = full(0, 4096)
				w = b.send(proto.Request{Command: proto.CmdTrim, Offset: unreadAt, Length: 4096}, nil)
			} else {
				w = b.send(proto.Request{Command: proto.CmdWrite, Offset: unreadAt}, want)
			}
			g.fenced(t)
			g.gate.Open()
			if p := b.receive(); p.cookie != w || p.errno != proto.OK {
				t.Errorf("%#x: %v", p.cookie, p.errno)
			}
			g.a.wait()
			if got := g.d.contents(unreadAt, 4096); !bytes.Equal(got, want) {
				t.Error("a dead connection's write has undone a newer one")
			}
			b.end()
		})
	}
}

// TestNewcomerWaits: a new connection begins when the dead are done.
func TestNewcomerWaits(t *testing.T) {
	needFence(t)
	g := newGrave(t)
	g.a.conn.Close()
	b := g.member(t)
	w := b.send(proto.Request{Command: proto.CmdWrite, Offset: unreadAt}, full(2, 4096))
	g.fenced(t)
	if n := b.c.pending.Load(); n != 0 {
		t.Errorf("the newcomer has begun %d requests", n)
	}
	g.gate.Open()
	if p := b.receive(); p.cookie != w || p.errno != proto.OK {
		t.Errorf("%#x: %v", p.cookie, p.errno)
	}
	g.a.wait()
	if got := g.d.contents(unreadAt, 4096); !bytes.Equal(got, full(2, 4096)) {
		t.Error("a dead connection's write has undone a newer one")
	}
	b.end()
}

// TestFenced: past the limit newcomers are refused; members wait on, and say so.
func TestFenced(t *testing.T) {
	needFence(t)
	g := newGrave(t)
	g.group.limit = time.Millisecond
	said := make(chan struct{}, 1)
	b := serve(t, g.dev, setup{group: g.group, log: func() *slog.Logger {
		said <- struct{}{}
		return slog.New(slog.DiscardHandler)
	}})
	b.alive()
	g.a.conn.Close()
	w := b.send(proto.Request{Command: proto.CmdWrite, Offset: unreadAt}, full(2, 4096))
	within(t, "a member says that it waits", said)
	if err := g.member(t).wait(); !errors.Is(err, ErrFenced) {
		t.Errorf("a newcomer: %v, want ErrFenced", err)
	}
	g.gate.Open()
	g.a.wait()
	if p := b.receive(); p.cookie != w || p.errno != proto.OK {
		t.Errorf("%#x: %v", p.cookie, p.errno)
	}
	b.end()
	if got := g.d.contents(unreadAt, 4096); !bytes.Equal(got, full(2, 4096)) {
		t.Error("a dead connection's write has undone a newer one")
	}
}

// TestCutInFence: who waits for the dead, and is cut, ends, and says why.
func TestCutInFence(t *testing.T) {
	needFence(t)
	g := newGrave(t)
	g.a.conn.Close()
	live := new(Live)
	b := serve(t, g.dev, setup{group: g.group, session: func(s *Session) { s.Live = live }})
	g.fenced(t)
	live.Cut()
	if err := b.wait(); !errors.Is(err, ErrCut) {
		t.Errorf("%v, want ErrCut", err)
	}
	g.gate.Open()
	g.a.wait()
}

// TestFenceReadsOnly: what a dead connection has begun keeps only those waiting
// that overlap it.
func TestFenceReadsOnly(t *testing.T) {
	needFence(t)
	d := newRAM(mib)
	group := new(Group)
	gate := delay.NewGate(func(o delay.Op) bool { return o.Kind == delay.Write && o.Off == stuckAt })
	dev := stack(t, d, delay.Layer(delay.Config{Gate: gate}))
	defer gate.Open()
	a, b := serve(t, dev, setup{group: group}), serve(t, dev, setup{group: group})
	b.alive()
	a.send(proto.Request{Command: proto.CmdWrite, Offset: stuckAt}, full(1, 4096))
	arrived(t, gate)
	a.conn.Close()
	b.want(proto.OK, proto.Request{Command: proto.CmdWrite, Offset: unreadAt}, full(2, 4096))
	c := serve(t, dev, setup{group: group})
	c.want(proto.OK, proto.Request{Command: proto.CmdWrite, Offset: unreadAt}, full(3, 4096))
	young := c.send(proto.Request{Command: proto.CmdWrite, Offset: stuckAt}, full(3, 4096))
	c.want(proto.OK, proto.Request{Command: proto.CmdRead, Offset: stuckAt, Length: 512}, nil)
	gate.Open()
	if p := c.receive(); p.cookie != young || p.errno != proto.OK {
		t.Errorf("%#x: %v", p.cookie, p.errno)
	}
	if got := d.contents(stuckAt, 4096); !bytes.Equal(got, full(3, 4096)) {
		t.Error("the older write has undone the younger")
	}
	a.wait()
	b.end()
	c.end()
}

// TestCut: what a connection had read, and not begun, when it was cut is not carried
// out; what it had begun comes before what others ask for then.
func TestCut(t *testing.T) {
	for _, when := range []string{"served", "before it is served"} {
		t.Run(when, func(t *testing.T) {
			d := newRAM(mib)
			group, live := new(Group), new(Live)
			gate := delay.NewGate(func(o delay.Op) bool { return o.Kind == delay.Write && o.Off == stuckAt })
			dev := stack(t, d, delay.Layer(delay.Config{Gate: gate}))
			defer gate.Open()
			b := serve(t, dev, setup{group: group})
			b.alive()
			if when != "served" {
				live.Cut()
			}
			a := serve(t, dev, setup{group: group, cfg: Config{MaxRequests: 2}, session: func(s *Session) { s.Live = live }})
			if when == "served" {
				var stream []byte
				for _, at := range []uint64{stuckAt, stuckAt, unreadAt} { // the reader waits with the last one
					_, q := a.request(proto.Request{Command: proto.CmdWrite, Offset: at}, full(1, 4096))
					stream = append(stream, q...)
				}
				a.write(stream)
				held := arrived(t, gate)
				until(t, "two requests are read", func() bool { return a.c.pending.Load() == 2 })
				live.Cut()
				b.want(proto.OK, proto.Request{Command: proto.CmdWrite, Offset: unreadAt}, full(2, 4096))
				young := b.send(proto.Request{Command: proto.CmdWrite, Offset: stuckAt}, full(2, 4096))
				b.want(proto.OK, proto.Request{Command: proto.CmdRead, Offset: unreadAt, Length: 512}, nil)
				held.Release()
				gate.Open()
				if p := b.receive(); p.cookie != young || p.errno != proto.OK {
					t.Errorf("%#x: %v", p.cookie, p.errno)
				}
			}
			if err := a.wait(); !errors.Is(err, ErrCut) {
				t.Errorf("%v, want ErrCut", err)
			}
			for _, at := range []int64{stuckAt, unreadAt} {
				if got := d.contents(at, 4096)[0]; when == "served" && got != 2 {
					t.Errorf("at %d: %d", at, got)
				}
			}
			b.end()
			if len(group.members)+len(group.dying) != 0 {
				t.Error(fmt.Sprint(group.members, group.dying))
			}
		})
	}
}

// TestFenceDrains: a server that shuts down does not wait in the fence.
func TestFenceDrains(t *testing.T) {
	needFence(t)
	g := newGrave(t)
	g.a.conn.Close()
	b := g.member(t)
	g.fenced(t)
	b.cancel()
	if err := b.wait(); !errors.Is(err, ErrDraining) {
		t.Errorf("%v, want ErrDraining", err)
	}
	g.gate.Open()
	g.a.wait()
}

// TestAllDead: connections that are all dead do not wait for each other.
func TestAllDead(t *testing.T) {
	g := newGrave(t)
	var others []*rig
	for i := range uint64(40) {
		b := g.member(t)
		b.alive()
		b.send(proto.Request{Command: proto.CmdWrite, Offset: unreadAt + (i+1)<<12}, full(9, 4096))
		others = append(others, b)
	}
	for _, b := range others {
		b.conn.Close()
	}
	g.a.conn.Close()
	g.gate.Open()
	g.a.wait()
	for i, b := range others {
		if err := b.wait(); !errors.Is(err, ErrHungUp) {
			t.Errorf("%v", err)
		}
		if got := g.d.contents(unreadAt+int64(i+1)<<12, 4096); !bytes.Equal(got, full(9, 4096)) {
			t.Errorf("connection %d: its write was not carried out", i)
		}
	}
	if g.group.count.Load() != 0 || g.group.changes.Busy() {
		t.Error("something is left in the group")
	}
}

// TestHalfClosedSibling: a peer that has closed its sending half and takes no
// answers must not keep its siblings in the fence.
func TestHalfClosedSibling(t *testing.T) {
	needFence(t)
	d := newRAM(mib)
	group := new(Group)
	dev := stack(t, d)
	a := serve(t, dev, setup{group: group, cfg: Config{MaxRequests: 8, MaxBuffered: 64 << 10}})
	b := serve(t, dev, setup{group: group})
	b.alive()
	const n = 1000
	var stream []byte
	for range n {
		_, q := a.request(proto.Request{Command: proto.CmdRead, Length: 32 << 10}, nil)
		stream = append(stream, q...)
	}
	_, q := a.request(proto.Request{Command: proto.CmdWrite, Offset: 4096}, full(1, 4096))
	a.write(append(stream, q...))
	a.conn.(*net.UnixConn).CloseWrite()
	b.want(proto.OK, proto.Request{Command: proto.CmdWrite, Offset: 4096}, full(2, 4096))
	if got := d.contents(4096, 4096); !bytes.Equal(got, full(2, 4096)) {
		t.Error("the older write has undone the younger")
	}
	for range n + 1 { // and its answers are still there to be taken
		if p := a.receive(); p.errno != proto.OK {
			t.Fatalf("%v", p.errno)
		}
	}
	if err := a.wait(); !errors.Is(err, ErrHungUp) {
		t.Errorf("%v", err)
	}
	b.end()
}

// TestStalledPayload: a client that stops in the middle of a write keeps nobody
// else from writing to the same place.
func TestStalledPayload(t *testing.T) {
	for _, n := range []int{4096, 48 << 10, 400 << 10} {
		forPaths(t, func() *ramDisk { return newRAM(mib) }, func(t *testing.T, d *ramDisk, dev *block.Device) {
			group := new(Group)
			a, b := serve(t, dev, setup{group: group, transport: "pipe"}), serve(t, dev, setup{group: group})
			_, stream := a.request(proto.Request{Command: proto.CmdWrite, Offset: 0}, full(1, n))
			a.write(stream[:len(stream)-1])
			b.want(proto.OK, proto.Request{Command: proto.CmdWrite, Offset: 0}, full(2, n))
			if got := d.contents(0, int64(n)); !bytes.Equal(got, full(2, n)) {
				t.Error("not written")
			}
			a.write(stream[len(stream)-1:])
			if p := a.receive(); p.errno != proto.OK {
				t.Errorf("%v", p.errno)
			}
			a.end()
			b.end()
		})
	}
}

// TestGroupChurn lets connections come and go while others write.
func TestGroupChurn(t *testing.T) {
	d := newRAM(mib)
	group := new(Group)
	dev := stack(t, d)
	var wg sync.WaitGroup
	for i := range uint64(4) {
		wg.Go(func() {
			for j := range 40 {
				r := serve(t, dev, setup{group: group, style: style(j % 3)})
				for range 3 {
					_, b := r.request(proto.Request{Command: proto.CmdWrite, Offset: i * 8192}, full(byte(j), 8192))
					if _, err := r.conn.Write(b); err != nil {
						t.Error(err)
					}
				}
				if j%2 == 0 {
					for range 3 {
						if _, err := readReply(r.conn, r.style, r.waiting); err != nil {
							t.Error(err)
						}
					}
				}
				r.conn.Close()
				<-r.done
				if !errors.Is(r.err, ErrHungUp) {
					t.Errorf("%v", r.err)
				}
				if got := d.contents(int64(i)*8192, 8192); !bytes.Equal(got, full(byte(j), 8192)) {
					t.Errorf("what was sent before the end was not carried out: %d, want %d", got[0], j)
				}
			}
		})
	}
	wg.Wait()
	if n := group.count.Load(); n != 0 {
		t.Errorf("%d members are left", n)
	}
	if len(group.members)+len(group.dying) != 0 {
		t.Error(fmt.Sprint(group.members, group.dying))
	}
}
