package transmission

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"nbd.example/nbd/block"
	"nbd.example/nbd/proto"
)

// session is a stream of random valid and refused requests that touch disjoint
// places, with what is to come of them.
type session struct {
	style   style
	stream  []byte
	waiting map[uint64]proto.Request
	errno   map[uint64]proto.Errno
	data    map[uint64][]byte // of reads
	after   []byte            // what the device holds in the end
}

// newSession makes a stream of n requests to a device of mib bytes that holds
// before. Writes go to the upper half, each to a place of its own; reads come
// from the lower half.
func newSession(rng *rand.Rand, s style, n int, before []byte) *session {
	x := &session{
		style: s, waiting: map[uint64]proto.Request{}, errno: map[uint64]proto.Errno{}, data: map[uint64][]byte{},
		after: bytes.Clone(before),
	}
	next := int64(mib / 2)
	for i := range n {
		q := proto.Request{Cookie: rng.Uint64()<<16 | uint64(i)}
		var payload []byte
		errno := proto.OK
		switch rng.IntN(8) {
		case 0, 1, 2:
			q.Command = proto.CmdRead
			q.Length = 1 + rng.Uint64N(map[bool]uint64{true: 8192, false: 200 << 10}[rng.IntN(8) > 0])
			q.Offset = rng.Uint64N(mib/2 - q.Length)
			x.data[q.Cookie] = before[q.Offset : q.Offset+q.Length]
		case 3, 4:
			q.Command, q.Offset = proto.CmdWrite, uint64(next)
			k := min(1+rng.Int64N(map[bool]int64{true: 6000, false: 90 << 10}[rng.IntN(8) > 0]), mib-next)
			payload = make([]byte, k)
			for j := range payload {
				payload[j] = byte(rng.Uint32())
			}
			copy(x.after[next:], payload)
			next += k
		case 5:
			q.Command, q.Offset, q.Length = proto.CmdWriteZeroes, uint64(next), min(1+rng.Uint64N(3000), uint64(mib-next))
			clear(x.after[next : next+int64(q.Length)])
			next += int64(q.Length)
		case 6:
			q.Command = proto.CmdFlush
		case 7: // refused, with a payload that must be drained
			q.Command, q.Offset, errno = proto.CmdWrite, mib, proto.ENOSPC
			payload = bytes.Repeat([]byte{0x25, 0x60, 0x95, 0x13}, 1+rng.IntN(3000)) // looks like requests
		}
		if q.Command == proto.CmdWrite {
			q.Length = uint64(len(payload))
			if s == extended {
				q.Flags = proto.CmdFlagPayloadLen
			}
		}
		x.waiting[q.Cookie], x.errno[q.Cookie] = q, errno
		x.stream = s.encode(x.stream, q, payload)
	}
	x.stream = s.encode(x.stream, proto.Request{Command: proto.CmdDisc}, nil)
	return x
}

// run sends the stream in pieces as cut says while it reads the replies, and
// compares them.
func (x *session) run(t *testing.T, d *ramDisk, dev *block.Device, s setup, cut func(left int) int) {
	t.Helper()
	s.style = x.style
	if len(s.early) > 0 {
		x.stream = x.stream[len(s.early):]
	}
	r := serve(t, dev, s)
	r.waiting = x.waiting
	sent := make(chan error, 1)
	go func() {
		for b := x.stream; len(b) > 0; {
			n := min(max(cut(len(b)), 1), len(b))
			if _, err := r.conn.Write(b[:n]); err != nil {
				sent <- err
				return
			}
			b = b[n:]
		}
		sent <- nil
	}()
	for len(x.waiting) > 0 {
		p := r.receive()
		if p.errno != x.errno[p.cookie] {
			t.Fatalf("%#x: %v, want %v", p.cookie, p.errno, x.errno[p.cookie])
		}
		if want, ok := x.data[p.cookie]; ok && !bytes.Equal(p.data, want) {
			t.Fatalf("%#x: other data than the device has", p.cookie)
		}
	}
	if err := <-sent; err != nil {
		t.Fatal(err)
	}
	if err := r.wait(); err != nil {
		t.Error(err)
	}
	r.silent()
	if !bytes.Equal(d.contents(0, mib), x.after) {
		t.Error("the device does not hold what was written")
	}
}

// TestFragmentation feeds the same requests in one piece, byte by byte, and in
// random pieces, over each transport.
func TestFragmentation(t *testing.T) {
	for _, transport := range []string{"unix", "pipe", "tls"} {
		t.Run(transport, func(t *testing.T) {
			forAll(t, mib, func(t *testing.T, s style, d *ramDisk, dev *block.Device) {
				before := d.fill(0, mib)
				rng := rand.New(rand.NewPCG(1, uint64(s)))
				for name, cut := range map[string]func(int) int{
					"one piece": func(left int) int { return left },
					"random":    func(int) int { return 1 + rng.IntN(1<<rng.IntN(18)) },
				} {
					d.load(before)
					newSession(rand.New(rand.NewPCG(7, 7)), s, 200, before).run(t, d, dev, setup{transport: transport}, cut)
					if t.Failed() {
						t.Fatal(name)
					}
				}
				// The whole stream byte by byte takes long; its beginning does not.
				d.load(before)
				left := 5_000
				newSession(rand.New(rand.NewPCG(9, 9)), s, 40, before).run(t, d, dev, setup{transport: transport}, func(n int) int {
					if left--; left > 0 {
						return 1
					}
					return n
				})
			})
		})
	}
}

// TestEarly hands the beginning of the stream to Serve as bytes that came with the
// handshake.
func TestEarly(t *testing.T) {
	for _, transport := range []string{"unix", "pipe"} {
		for _, n := range []int{1, 27, 28, 31, 32, 33, 1000, 300 << 10} {
			t.Run(fmt.Sprintf("%s, %d bytes", transport, n), func(t *testing.T) {
				forStyles(t, func(t *testing.T, s style) {
					d := newRAM(mib)
					before := d.fill(0, mib)
					x := newSession(rand.New(rand.NewPCG(3, 3)), s, 120, before)
					early := x.stream[:min(n, len(x.stream)-1)]
					x.run(t, d, stack(t, d), setup{transport: transport, early: early}, func(left int) int { return left })
				})
			})
		}
	}
}

// TestMatrix sends every command with every set of flags that goes with it.
func TestMatrix(t *testing.T) {
	forAll(t, mib, func(t *testing.T, s style, d *ramDisk, dev *block.Device) {
		r := serve(t, dev, setup{style: s})
		for _, c := range commands {
			if c == proto.CmdBlockStatus && s == simple {
				continue
			}
			allowed := flagsOf(c, s)
			for f := proto.CommandFlags(0); f < 64; f++ {
				if f&^allowed != 0 {
					continue
				}
				d.fill(0, mib)
				q, payload := valid(c)
				q.Flags = f
				want := proto.OK
				switch {
				case c == proto.CmdWrite && s == extended && f&proto.CmdFlagPayloadLen == 0:
					continue // rig adds the flag
				case c == proto.CmdBlockStatus && f&proto.CmdFlagPayloadLen != 0:
					payload = proto.AppendStatusFilter(nil, &proto.StatusFilter{Length: 4096, Contexts: []uint32{idAllocation}})
					q.Length = uint64(len(payload))
				case c == proto.CmdWriteZeroes && f&proto.CmdFlagFastZero != 0 && f&proto.CmdFlagNoHole != 0:
					want = proto.ENOTSUP
				}
				p := r.want(want, q, payload)
				got := d.contents(4096, 4096)
				switch {
				case want != proto.OK:
				case c == proto.CmdRead && !bytes.Equal(p.data, got):
					t.Errorf("%v: other data than the device has", f)
				case c == proto.CmdWrite && !bytes.Equal(got, payload):
					t.Errorf("%v: not written", f)
				case (c == proto.CmdTrim || c == proto.CmdWriteZeroes) && !bytes.Equal(got, make([]byte, 4096)):
					t.Errorf("%v of %v: not zero", c, f)
				}
				if f&proto.CmdFlagFUA != 0 && want == proto.OK && changes(c) && !bytes.Equal(d.stableContents(4096, 4096), got) {
					t.Errorf("%v with %v: not stable", c, f)
				}
			}
		}
		r.end()
	})
}

// TestStats checks what Serve says it has done.
func TestStats(t *testing.T) {
	forAll(t, mib, func(t *testing.T, s style, d *ramDisk, dev *block.Device) {
		r := serve(t, dev, setup{style: s})
		r.want(proto.OK, proto.Request{Command: proto.CmdRead, Length: 512}, nil)
		r.want(proto.OK, proto.Request{Command: proto.CmdRead, Length: 100 << 10}, nil)
		r.want(proto.OK, proto.Request{Command: proto.CmdWrite}, make([]byte, 4096))
		r.want(proto.OK, proto.Request{Command: proto.CmdWrite, Flags: proto.CmdFlagFUA}, make([]byte, 100))
		r.want(proto.OK, proto.Request{Command: proto.CmdFlush}, nil)
		r.want(proto.EINVAL, proto.Request{Command: proto.CmdRead, Offset: mib, Length: 512}, nil)
		r.end()
		want := Stats{Requests: 6, Errors: 1, BytesRead: 512 + 100<<10, BytesWritten: 4196}
		if r.stats != want {
			t.Errorf("got %+v, want %+v", r.stats, want)
		}
	})
}
