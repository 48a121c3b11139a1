package transmission

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"nbd.example/nbd/block"
	"nbd.example/nbd/proto"
)

// told is a call of a Tap's method.
type told struct {
	request  bool // a request
	answered bool // an answer
	r        proto.Request
	payload  []byte
	e        proto.Errno
}

// recorder is a Tap that keeps what it is told.
type recorder struct {
	payloads bool
	keeps    bool // payloads that have an owner
	mu       sync.Mutex
	calls    []told
	kept     []keptPayload
}

// keptPayload is a payload that a recorder has not given back.
type keptPayload struct {
	payload, want []byte
	owner         interface{ Release() }
}

func (t *recorder) Payloads() bool { return t.payloads }

func (t *recorder) tell(x told) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if x.payload != nil {
		x.payload = bytes.Clone(x.payload)
	}
	t.calls = append(t.calls, x)
}

func (t *recorder) Begun(r proto.Request, payload []byte, owner interface{ Release() }) bool {
	t.tell(told{request: true, r: r, payload: payload})
	if !t.keeps || owner == nil {
		return false
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.kept = append(t.kept, keptPayload{payload, bytes.Clone(payload), owner})
	return true
}

func (t *recorder) Ended(cookie uint64, e proto.Errno) {
	t.tell(told{answered: true, r: proto.Request{Cookie: cookie}, e: e})
}

func (t *recorder) Answered(r proto.Request, payload []byte, e proto.Errno) {
	t.tell(told{request: true, answered: true, r: r, payload: payload, e: e})
}

// tap begins to serve with a tap.
func tap(t testing.TB, dev *block.Device, x Tap, s setup) *rig {
	s.session = func(session *Session) { session.Tap = x }
	return serve(t, dev, s)
}

// TestTapIsToldAll sends every command on each path, and some that are refused. Each
// must be told once, with its payload, and with the answer that the client got.
func TestTapIsToldAll(t *testing.T) {
	for _, payloads := range []bool{false, true} {
		t.Run(fmt.Sprintf("payloads %v", payloads), func(t *testing.T) {
			forAll(t, mib, func(t *testing.T, s style, _ *ramDisk, dev *block.Device) { testToldAll(t, payloads, s, dev) })
		})
	}
}

func testToldAll(t *testing.T, payloads bool, s style, dev *block.Device) {
	x := &recorder{payloads: payloads}
	r := tap(t, dev, x, setup{style: s})
	type sent struct {
		q       proto.Request
		payload []byte
		e       proto.Errno
	}
	list := []sent{
		{proto.Request{Command: proto.CmdRead, Length: 4096}, nil, proto.OK},
		{proto.Request{Command: proto.CmdRead, Length: 128 << 10}, nil, proto.OK},
		{proto.Request{Command: proto.CmdRead}, nil, proto.OK},
		{proto.Request{Command: proto.CmdRead, Offset: mib, Length: 1}, nil, proto.EINVAL},
		{proto.Request{Command: proto.CmdWrite, Offset: 512}, full(1, 512), proto.OK},
		{proto.Request{Command: proto.CmdWrite, Offset: 512, Flags: proto.CmdFlagFUA}, full(2, 512), proto.OK},
		{proto.Request{Command: proto.CmdWrite, Offset: 4096}, full(3, 300<<10), proto.OK},
		{proto.Request{Command: proto.CmdWrite, Offset: mib}, full(4, 512), proto.ENOSPC},
		{proto.Request{Command: proto.CmdFlush}, nil, proto.OK},
		{proto.Request{Command: proto.CmdTrim, Length: 4096}, nil, proto.OK},
		{proto.Request{Command: proto.CmdWriteZeroes, Length: 4096, Flags: proto.CmdFlagNoHole}, nil, proto.OK},
		{proto.Request{Command: proto.CmdCache, Length: 4096}, nil, proto.OK},
		{proto.Request{Command: 99}, nil, proto.EINVAL},
	}
	if s != simple {
		list = append(list, sent{proto.Request{Command: proto.CmdBlockStatus, Length: 4096}, nil, proto.OK})
	}
	for i := range list {
		list[i].q.Cookie = uint64(i + 1)
		r.want(list[i].e, list[i].q, list[i].payload)
	}
	r.end()
	if len(x.calls) == 0 || x.calls[len(x.calls)-1].r.Command != proto.CmdDisc {
		t.Error("it was not told of NBD_CMD_DISC")
	}
	for _, want := range list {
		requests, answers := 0, 0
		for _, got := range x.calls {
			if got.r.Cookie != want.q.Cookie {
				continue
			}
			if got.answered {
				if answers++; got.e != want.e || requests == 0 && !got.request {
					t.Errorf("%v: told the answer %v, want %v, behind the request", want.q, got.e, want.e)
				}
			}
			if got.request {
				requests++
				expected := want.payload
				if !payloads || want.e != proto.OK {
					expected = nil
				}
				if got.r.Command != want.q.Command || got.r.Offset != want.q.Offset || !bytes.Equal(got.payload, expected) || (got.payload == nil) != (expected == nil) {
					t.Errorf("%v: told %v with a payload of %d bytes, want %d", want.q, got.r, len(got.payload), len(expected))
				}
			}
		}
		if requests != 1 || answers != 1 {
			t.Errorf("%v: told %d times, and %d answers", want.q, requests, answers)
		}
	}
}

// TestTapOrder has four connections change one small stretch at once, in place and
// by workers. Carrying out again what was told, in that order, must lead to the same
// contents, byte by byte.
func TestTapOrder(t *testing.T) {
	const size = 32 << 10
	forPaths(t, func() *ramDisk { return newRAM(size) }, func(t *testing.T, d *ramDisk, dev *block.Device) {
		x := &recorder{payloads: true}
		group := new(Group)
		var wg sync.WaitGroup
		var rigs []*rig
		for i := range uint64(4) {
			r := tap(t, dev, x, setup{style: style(i % 3), group: group})
			wg.Go(func() { overlaps(t, r, i, size) })
			rigs = append(rigs, r)
		}
		wg.Wait()
		for _, r := range rigs {
			r.end()
		}
		again := make([]byte, size)
		for _, got := range x.calls {
			if !got.request || got.answered && got.e != proto.OK {
				continue
			}
			switch q := got.r; q.Command {
			case proto.CmdWrite:
				copy(again[q.Offset:], got.payload)
			case proto.CmdWriteZeroes:
				clear(again[q.Offset : q.Offset+q.Length])
			}
		}
		if !bytes.Equal(again, d.contents(0, size)) {
			t.Error("what was told does not lead to the same contents")
		}
	})
}

// TestTapKeeps keeps what is written, while more is. It must stay as it was until it is given
// back, and then serve again.
func TestTapKeeps(t *testing.T) {
	const size = 1 << 20
	x := &recorder{payloads: true, keeps: true}
	dev := stack(t, newRAM(size))
	r := tap(t, dev, x, setup{})
	const writes = 20
	for i := range uint64(writes) {
		r.want(proto.OK, proto.Request{Command: proto.CmdWrite, Cookie: i + 1, Flags: proto.CmdFlagFUA}, full(byte(i), 100<<10))
	}
	r.end()
	if len(x.kept) != writes {
		t.Fatalf("%d payloads were kept, want %d", len(x.kept), writes)
	}
	places := map[*byte]bool{}
	for i, k := range x.kept {
		if places[&k.payload[0]] || !bytes.Equal(k.payload, k.want) {
			t.Errorf("payload %d has been used again", i)
		}
		places[&k.payload[0]] = true
		b := k.owner.(*buffer)
		if n := b.shared.Load(); n != 1 {
			t.Errorf("payload %d has %d users, want the tap", i, n)
		}
		k.owner.Release()
		if n := b.shared.Load(); n != 0 {
			t.Errorf("payload %d has %d users after its release", i, n)
		}
	}
}

// TestTapKeepsCounted: what a tap keeps counts where memory is bounded, and takes at most
// half of it.
func TestTapKeepsCounted(t *testing.T) {
	const writes, length = 20, 100 << 10
	x := &recorder{payloads: true, keeps: true}
	memory := NewMemory(4 << 20)
	r := tap(t, stack(t, newRAM(1<<20)), x, setup{cfg: Config{Memory: memory}})
	for i := range uint64(writes) {
		r.want(proto.OK, proto.Request{Command: proto.CmdWrite, Cookie: i + 1, Flags: proto.CmdFlagFUA}, full(byte(i), length))
	}
	r.end()
	told := 0
	for _, c := range x.calls {
		if len(c.payload) == length {
			told++
		}
	}
	size := bufferSize(length)
	if n := len(x.kept); n == 0 || n*size > 2<<20 || told != writes || memory.Used() != int64(n*size) {
		t.Errorf("%d payloads of %d bytes are kept, %d of %d were told, and %d bytes count", n, size, told, writes, memory.Used())
	}
	for _, k := range x.kept {
		k.owner.Release()
	}
	if n := memory.Used(); n != 0 {
		t.Errorf("%d bytes count when nothing is kept", n)
	}
}

// overlaps sends changes that overlap each other, all at once, and takes the replies.
func overlaps(t *testing.T, r *rig, seed uint64, size uint64) {
	rng := rand.New(rand.NewPCG(seed, 3))
	var stream []byte
	const n = 300
	for i := range n {
		q := proto.Request{Command: proto.CmdWrite, Offset: rng.Uint64N(size - 1), Cookie: seed<<32 | uint64(i+1)}
		q.Length = 1 + rng.Uint64N(min(size-q.Offset, 6000))
		payload := full(byte(rng.Uint32()), int(q.Length))
		switch rng.IntN(4) {
		case 0:
			q.Flags = proto.CmdFlagFUA
		case 1:
			q.Command, payload = proto.CmdWriteZeroes, nil
		}
		_, b := r.request(q, payload)
		stream = append(stream, b...)
	}
	go r.conn.Write(stream)
	for range n {
		if p, err := readReply(r.conn, r.style, r.waiting); err != nil || p.errno != proto.OK {
			t.Errorf("%v, %v", p, err)
			return
		}
	}
}

// TestTapErrors wants the tap to be told what the client is told when a device fails,
// or panics.
func TestTapErrors(t *testing.T) {
	d := newRAM(mib)
	dev := stack(t, d, faulty(t, "write@4096+512=EIO; read@8192+512=EIO"))
	x := &recorder{}
	r := tap(t, dev, x, setup{})
	r.want(proto.EIO, proto.Request{Command: proto.CmdWrite, Offset: 4096, Cookie: 1}, full(1, 512))
	r.want(proto.EIO, proto.Request{Command: proto.CmdRead, Offset: 8192, Length: 512, Cookie: 2}, nil)
	r.end()
	for _, cookie := range []uint64{1, 2} {
		if !slices.ContainsFunc(x.calls, func(c told) bool { return c.answered && c.r.Cookie == cookie && c.e == proto.EIO }) {
			t.Errorf("of request %d it was told %+v", cookie, x.calls)
		}
	}
}

// nothing is a Tap that does nothing.
type nothing struct{ payloads bool }

func (n nothing) Payloads() bool                                         { return n.payloads }
func (nothing) Begun(proto.Request, []byte, interface{ Release() }) bool { return false }
func (nothing) Ended(uint64, proto.Errno)                                {}
func (nothing) Answered(proto.Request, []byte, proto.Errno)              {}

// TestTapAllocations wants a tap to take no memory for each request on the fast
// paths.
func TestTapAllocations(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector makes pools forget")
	}
	for _, p := range paths {
		if p.layered || p.request.Length > wholeWrite {
			continue
		}
		t.Run(p.name, func(t *testing.T) {
			l := p.loadWith(t, setup{session: func(s *Session) { s.Tap, s.Live = nothing{true}, new(Live) }})
			measureAllocations(t, l, p.allocs)
		})
	}
}

// TestLive looks at a connection while it is served.
func TestLive(t *testing.T) {
	var live Live
	if live.Stats() != (Stats{}) || live.InFlight() != 0 || (*Live)(nil).Stats() != (Stats{}) || (*Live)(nil).InFlight() != 0 {
		t.Error("something was done before the beginning")
	}
	d := newRAM(mib)
	held, release := make(chan struct{}), make(chan struct{})
	d.hook = func(method string) {
		if method == "Flush" {
			close(held)
			<-release
		}
	}
	r := serve(t, stack(t, d), setup{session: func(s *Session) { s.Live = &live }})
	r.want(proto.OK, proto.Request{Command: proto.CmdRead, Length: 4096}, nil)
	r.want(proto.OK, proto.Request{Command: proto.CmdWrite}, full(1, 512))
	r.want(proto.OK, proto.Request{Command: proto.CmdWrite, Flags: proto.CmdFlagFUA}, full(1, 1024)) // by a worker
	r.want(proto.EINVAL, proto.Request{Command: 99}, nil)
	r.send(proto.Request{Command: proto.CmdFlush}, nil)
	<-held
	until(t, "the reader waits", func() bool { return live.Stats().Requests == 5 })
	if got, want := live.Stats(), (Stats{Requests: 5, Errors: 1, BytesRead: 4096, BytesWritten: 1536}); got != want {
		t.Errorf("%+v, want %+v", got, want)
	}
	until(t, "only the flush is in flight", func() bool { return live.InFlight() == 1 })
	close(release)
	r.receive()
	until(t, "nothing is in flight", func() bool { return live.InFlight() == 0 })
	r.end()
	if live.Stats() != r.stats {
		t.Errorf("%+v, and in the end %+v", live.Stats(), r.stats)
	}
}

// endPanics is a Tap that panics when it is told of an answer.
type endPanics struct{ recorder }

func (*endPanics) Ended(uint64, proto.Errno)                   { panic("the tap's own") }
func (*endPanics) Answered(proto.Request, []byte, proto.Errno) { panic("the tap's own") }

// TestTapPanics: a panic of the tap ends that connection alone, also in a worker.
func TestTapPanics(t *testing.T) {
	forPaths(t, func() *ramDisk { return newRAM(mib) }, func(t *testing.T, _ *ramDisk, dev *block.Device) {
		group := new(Group)
		b := serve(t, dev, setup{group: group})
		b.alive()
		a := serve(t, dev, setup{group: group, session: func(s *Session) { s.Tap = new(endPanics) }})
		a.send(proto.Request{Command: proto.CmdWrite}, full(1, 4096))
		if err := a.wait(); !errors.Is(err, ErrPanic) {
			t.Errorf("%v, want ErrPanic", err)
		}
		b.want(proto.OK, proto.Request{Command: proto.CmdWrite}, full(2, 4096))
		b.end()
	})
}
