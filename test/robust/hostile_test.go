package robust

import (
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
			if c.transmission {
				if err := conn.negotiate("disk"); err != nil {
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
		{"nothing", false, nil},
		{"another protocol", false, []byte("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")},
		{"unknown client flags", false, []byte{0xff, 0xff, 0xff, 0xff}},
		{"an option of 4 GiB", false, hugeOption},
		{"a name of 4 GiB", false, nested},
		{"5,000 unknown options", false, manyOptions},
		{"wrong magic of an option", false, append(append([]byte{}, flags...), make([]byte, 64)...)},
		{"wrong magic of a request", true, make([]byte, 28)},
		{"a write of 4 GiB", true, request(proto.CmdWrite, 1, 0, 0xffffffff, nil)},
		{"a read of 4 GiB", true, request(proto.CmdRead, 1, 0, 0xffffffff, nil)},
		{"a block status of nothing", true, request(proto.CmdBlockStatus, 1, 0, 0, nil)},
		{"an unknown command", true, request(0x77, 1, 0, 512, nil)},
		{"a write past the end", true, request(proto.CmdWrite, 1, 1<<63, 512, make([]byte, 512))},
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
		cases = append(cases, hostileCase{"random bytes", i%2 == 0, p})
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
