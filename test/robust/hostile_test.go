package robust

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"testing"

	"nbd.example/nbd/internal/testgate"
	"nbd.example/nbd/proto"
	"nbd.example/nbd/test/harness"
)

// TestHostileBytes sends what no client would, each on a connection of its own. The
// server may answer or hang up, but must not wait for more, take much memory, or
// stop serving.
func TestHostileBytes(t *testing.T) {
	t.Parallel()
	testgate.Requires(t, testgate.Linux())
	data := harness.Random(20, 8*mib)
	s := serve(t, data)
	before := settledUsage(t, s, data)
	for _, c := range hostile() {
		t.Run(c.name, func(t *testing.T) {
			conn := connect(t, s)
			if c.transmission { // where what is written stays with the connection
				if err := conn.negotiateWith("cow", c.options...); err != nil {
					t.Fatal(err)
				}
			}
			// A server that hangs up early may leave this unsent.
			conn.Write(c.text)
			if w, ok := conn.Conn.(interface{ CloseWrite() error }); ok {
				w.CloseWrite()
			}
			if n, err := io.Copy(io.Discard, conn); err == nil && n > mib {
				t.Errorf("the answer has %d bytes", n)
			}
			unhurt(t, s, data)
		})
	}
	if now := settled(t, s, before); now.RSS-before.RSS > 128*mib {
		t.Errorf("the server's memory went from %d to %d MiB", before.RSS/mib, now.RSS/mib)
	}
}

// hostileCase is one thing that no client would send.
type hostileCase struct {
	name         string
	transmission bool // after the handshake
	text         []byte
	options      []proto.Option // agreed on in the handshake
}

func hostile() []hostileCase {
	flags := []byte{0, 0, 0, 3}
	hugeOption := append(append([]byte{}, flags...), option(proto.OptGo, nil)...)
	binary.BigEndian.PutUint32(hugeOption[len(hugeOption)-4:], 0xffffffff)
	nested := append(append([]byte{}, flags...), option(proto.OptGo, []byte{0xff, 0xff, 0xff, 0xff, 0, 0})...)
	manyOptions := append([]byte{}, flags...)
	for range 5000 {
		manyOptions = append(manyOptions, option(0x4242, []byte("what is this"))...)
	}
	cases := []hostileCase{
		{"nothing", false, nil, nil},
		{"another protocol", false, []byte("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"), nil},
		{"unknown client flags", false, []byte{0xff, 0xff, 0xff, 0xff}, nil},
		{"an option of 4 GiB", false, hugeOption, nil},
		{"a name of 4 GiB", false, nested, nil},
		{"5,000 unknown options", false, manyOptions, nil},
		{"wrong magic of an option", false, append(append([]byte{}, flags...), make([]byte, 64)...), nil},
		{"wrong magic of a request", true, make([]byte, 28), nil},
		{"a write of 4 GiB", true, request(proto.CmdWrite, 1, 0, 0xffffffff, nil), nil},
		{"a read of 4 GiB", true, request(proto.CmdRead, 1, 0, 0xffffffff, nil), nil},
		{"a block status of nothing", true, request(proto.CmdBlockStatus, 1, 0, 0, nil), nil},
		{"an unknown command", true, request(0x77, 1, 0, 512, nil), nil},
		{"a write past the end", true, request(proto.CmdWrite, 1, 1<<63, 512, make([]byte, 512)), nil},
	}
	r := rand.New(rand.NewPCG(1, 2))
	for i := range 20 {
		p := make([]byte, 1+r.IntN(5000))
		for j := range p {
			p[j] = byte(r.Uint32())
		}
		if i%3 == 0 { // get a little further
			copy(p, append(flags, "IHAVEOPT"...))
		}
		cases = append(cases, hostileCase{"random bytes", i%2 == 0, p, nil})
	}
	return append(cases, hostileChunks()...)
}

// hostileChunks are for sessions with structured replies, and with extended headers.
func hostileChunks() (cases []hostileCase) {
	structured, extended := []proto.Option{proto.OptStructuredReply}, []proto.Option{proto.OptExtendedHeaders}
	add := func(name string, options []proto.Option, text []byte) {
		cases = append(cases, hostileCase{name, true, text, options})
	}
	// wide makes an extended request.
	wide := func(cmd proto.Command, f proto.CommandFlags, off, length uint64, payload []byte) []byte {
		return append(proto.AppendExtendedRequest(nil, &proto.Request{Command: cmd, Flags: f, Cookie: 1, Offset: off, Length: length}), payload...)
	}
	filter := proto.AppendStatusFilter(nil, &proto.StatusFilter{Length: 4096, Contexts: []uint32{0xffffffff, 0, 1, 0xfffffffe}})
	odd := append(bytes.Clone(filter), 1, 2, 3)
	many := bytes.Repeat(filter, 2000)

	add("structured, a block status of 4 GiB", structured, request(proto.CmdBlockStatus, 1, 0, 0xffffffff, nil))
	add("structured, a block status past the end", structured, request(proto.CmdBlockStatus, 1, 1<<63, 512, nil))
	add("structured, a block status around the end", structured, request(proto.CmdBlockStatus, 1, 1<<64-256, 512, nil))
	add("structured, 5,000 block statuses", structured, bytes.Repeat(request(proto.CmdBlockStatus, 1, 0, 8*mib, nil), 5000))
	add("structured, a read of 4 GiB", structured, request(proto.CmdRead, 1, 0, 0xffffffff, nil))
	add("structured, an extended request", structured, wide(proto.CmdBlockStatus, 0, 0, 512, nil))
	add("extended, a block status of 2^64-1", extended, wide(proto.CmdBlockStatus, 0, 0, 1<<64-1, nil))
	add("extended, a block status around the end", extended, wide(proto.CmdBlockStatus, 0, 1<<64-256, 512, nil))
	add("extended, a trim of 2^64-1", extended, wide(proto.CmdTrim, 0, 1, 1<<64-1, nil))
	add("extended, a write of 2^63", extended, wide(proto.CmdWrite, proto.CmdFlagPayloadLen, 0, 1<<63, make([]byte, 4096)))
	add("extended, a filter of contexts that are not there", extended, wide(proto.CmdBlockStatus, proto.CmdFlagPayloadLen, 0, uint64(len(filter)), filter))
	add("extended, a filter of an odd length", extended, wide(proto.CmdBlockStatus, proto.CmdFlagPayloadLen, 0, uint64(len(odd)), odd))
	add("extended, a filter of 3 bytes", extended, wide(proto.CmdBlockStatus, proto.CmdFlagPayloadLen, 0, 3, []byte{1, 2, 3}))
	add("extended, a filter of 4 GiB", extended, wide(proto.CmdBlockStatus, proto.CmdFlagPayloadLen, 0, 1<<32, filter))
	add("extended, a filter of thousands", extended, wide(proto.CmdBlockStatus, proto.CmdFlagPayloadLen, 0, uint64(len(many)), many))
	add("extended, a payload for a flush", extended, wide(proto.CmdFlush, proto.CmdFlagPayloadLen, 0, 4096, make([]byte, 4096)))
	add("extended, a compact request", extended, append(request(proto.CmdBlockStatus, 1, 0, 512, nil), make([]byte, 64)...))
	r := rand.New(rand.NewPCG(3, 4))
	for i := range 20 {
		p := make([]byte, 1+r.IntN(5000))
		for j := range p {
			p[j] = byte(r.Uint32())
		}
		head := wide(proto.Command(r.IntN(9)), proto.CommandFlags(r.IntN(64)), uint64(r.IntN(1<<24)), uint64(r.IntN(len(p)+1)), nil)
		options := extended
		if i%2 == 0 {
			options, head = structured, request(proto.Command(r.IntN(9)), 1, uint64(r.IntN(1<<24)), uint32(r.IntN(len(p)+1)), nil)
		}
		add("random bytes behind a request", options, append(head, p...))
	}
	return cases
}

// TestRefusedWrites mixes writes that are refused with reads: the payload of a
// refused write must be taken off the wire.
func TestRefusedWrites(t *testing.T) {
	t.Parallel()
	data := harness.Random(21, mib)
	s := serve(t, data)
	c := open(t, s, "disk")
	for i := range uint64(100) {
		if _, err := c.Write(request(proto.CmdWrite, i, c.size-1, 4096, make([]byte, 4096))); err != nil {
			t.Fatal(err)
		}
		if e, cookie, err := c.reply(); err != nil || e != proto.ENOSPC || cookie != i {
			t.Fatalf("a write past the end: %v, cookie %d: %v", e, cookie, err)
		}
		if err := c.roundTrips(1, data); err != nil {
			t.Fatal(err)
		}
	}
}

// TestSilentCrowd has many clients that connect and say nothing, or stop in the
// handshake.
func TestSilentCrowd(t *testing.T) {
	t.Parallel()
	data := harness.Random(22, mib)
	s := serve(t, data)
	for i := range 300 {
		c := connect(t, s)
		if i%2 == 0 {
			if err := c.greet(); err != nil {
				t.Fatal(err)
			}
		}
	}
	unhurt(t, s, data)
}

// TestPendingWorkBeforeDisconnect sends writes and NBD_CMD_DISC in one breath, and
// looks at the image through another connection: the writes came first.
func TestPendingWorkBeforeDisconnect(t *testing.T) {
	t.Parallel()
	data := make([]byte, 4*mib)
	s := serve(t, data)
	want := harness.Random(23, len(data))
	c := open(t, s, "disk")
	var all []byte
	for off := 0; off < len(want); off += 64 << 10 {
		all = append(all, request(proto.CmdWrite, uint64(off), uint64(off), 64<<10, want[off:off+64<<10])...)
	}
	all = append(all, request(proto.CmdDisc, 0, 0, 0, nil)...)
	if _, err := c.Write(all); err != nil {
		t.Fatal(err)
	}
	replies := 0
	for {
		_, _, err := c.reply()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		replies++
	}
	if replies != len(want)/(64<<10) {
		t.Errorf("%d replies, want %d", replies, len(want)/(64<<10))
	}
	unhurt(t, s, want)
}
