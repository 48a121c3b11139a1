package robust

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"nbd.example/nbd/proto"
	"nbd.example/nbd/test/harness"
)

func TestMain(m *testing.M) { os.Exit(harness.Main(m)) }

const (
	mib = harness.MiB
	// limit ends a test that is stuck. It is no measure of speed.
	limit = 2 * time.Minute
)

// raw is a client with simple replies. Its methods return errors, so that they can
// be used from any goroutine.
type raw struct {
	net.Conn
	size  uint64
	flags proto.TransmissionFlags
}

// connect connects to the server's socket. The connection is closed with the test,
// and has a deadline.
func connect(t testing.TB, s *harness.Server) *raw {
	t.Helper()
	return connectBy(t, s, "unix")
}

// connectBy does so over "unix" or "tcp".
func connectBy(t testing.TB, s *harness.Server, network string) *raw {
	t.Helper()
	addr := s.Socket
	if network == "tcp" {
		addr = s.TCPAddr()
	}
	c := harness.Dial(t, network, addr)
	if err := c.SetDeadline(time.Now().Add(limit)); err != nil {
		t.Fatal(err)
	}
	return &raw{Conn: c}
}

// open connects and enters the transmission phase.
func open(t testing.TB, s *harness.Server, export string) *raw {
	t.Helper()
	return openBy(t, s, "unix", export)
}

// openBy does so over "unix" or "tcp".
func openBy(t testing.TB, s *harness.Server, network, export string) *raw {
	t.Helper()
	c := connectBy(t, s, network)
	if err := c.negotiate(export); err != nil {
		t.Fatalf("handshake: %v", err)
	}
	return c
}

// greet takes the greeting and sends the client flags. proto.md, "Newstyle
// negotiation".
func (c *raw) greet() error {
	var greeting [18]byte
	if _, err := io.ReadFull(c, greeting[:]); err != nil {
		return fmt.Errorf("greeting: %w", err)
	}
	if string(greeting[:16]) != "NBDMAGICIHAVEOPT" {
		return fmt.Errorf("greeting %q", greeting)
	}
	_, err := c.Write([]byte{0, 0, 0, 3})
	return err
}

// option makes the bytes of an option. proto.md, "Newstyle negotiation".
func option(o proto.Option, data []byte) []byte {
	b := []byte("IHAVEOPT")
	b = binary.BigEndian.AppendUint32(b, uint32(o))
	b = binary.BigEndian.AppendUint32(b, uint32(len(data)))
	return append(b, data...)
}

// goData is the data of NBD_OPT_GO without requests for information.
func goData(export string) []byte {
	b := binary.BigEndian.AppendUint32(nil, uint32(len(export)))
	return append(append(b, export...), 0, 0)
}

// negotiate goes through the whole handshake.
func (c *raw) negotiate(export string) error {
	return c.negotiateWith(export)
}

// negotiateWith does so after an option without data that the server must agree to, and
// a choice of base:allocation.
func (c *raw) negotiateWith(export string, options ...proto.Option) error {
	if err := c.greet(); err != nil {
		return err
	}
	for _, o := range options {
		if err := c.ask(o, nil); err != nil {
			return err
		}
	}
	if len(options) > 0 {
		q := &proto.MetaContextRequest{Export: export, Queries: []string{"base:allocation"}}
		if err := c.ask(proto.OptSetMetaContext, proto.AppendMetaContextRequest(nil, q)); err != nil {
			return err
		}
	}
	return c.ask(proto.OptGo, goData(export))
}

// ask sends an option and waits until the server has agreed.
func (c *raw) ask(o proto.Option, data []byte) error {
	if _, err := c.Write(option(o, data)); err != nil {
		return err
	}
	for {
		typ, data, err := c.optionReply()
		switch {
		case err != nil:
			return err
		case typ == proto.RepAck:
			return nil
		case typ.IsError():
			return fmt.Errorf("%v is refused by %v: %q", o, typ, data)
		case typ == proto.RepInfo && len(data) == 12 && data[1] == byte(proto.InfoExport):
			c.size = binary.BigEndian.Uint64(data[2:])
			c.flags = proto.TransmissionFlags(binary.BigEndian.Uint16(data[10:]))
		}
	}
}

// optionReply takes one reply to an option.
func (c *raw) optionReply() (proto.OptionReply, []byte, error) {
	var head [20]byte
	if _, err := io.ReadFull(c, head[:]); err != nil {
		return 0, nil, fmt.Errorf("reply to an option: %w", err)
	}
	n := binary.BigEndian.Uint32(head[16:])
	if binary.BigEndian.Uint64(head[:]) != 0x3e889045565a9 || n > 1<<20 {
		return 0, nil, fmt.Errorf("reply to an option begins with %x", head)
	}
	data := make([]byte, n)
	_, err := io.ReadFull(c, data)
	return proto.OptionReply(binary.BigEndian.Uint32(head[12:])), data, err
}

// request makes the bytes of a request. proto.md, "Request message".
func request(cmd proto.Command, cookie, off uint64, length uint32, payload []byte) []byte {
	b := []byte{0x25, 0x60, 0x95, 0x13, 0, 0}
	b = binary.BigEndian.AppendUint16(b, uint16(cmd))
	b = binary.BigEndian.AppendUint64(b, cookie)
	b = binary.BigEndian.AppendUint64(b, off)
	b = binary.BigEndian.AppendUint32(b, length)
	return append(b, payload...)
}

// reply takes a simple reply without its data.
func (c *raw) reply() (proto.Errno, uint64, error) {
	var b [16]byte
	if _, err := io.ReadFull(c, b[:]); err != nil {
		return 0, 0, fmt.Errorf("reply: %w", err)
	}
	if m := binary.BigEndian.Uint32(b[:]); m != 0x67446698 {
		return 0, 0, fmt.Errorf("reply begins with %x", b)
	}
	return proto.Errno(binary.BigEndian.Uint32(b[4:])), binary.BigEndian.Uint64(b[8:]), nil
}

// read reads into p and waits for it.
func (c *raw) read(p []byte, off uint64) error {
	if _, err := c.Write(request(proto.CmdRead, off, off, uint32(len(p)), nil)); err != nil {
		return err
	}
	e, cookie, err := c.reply()
	if err != nil {
		return err
	}
	if e != 0 || cookie != off {
		return fmt.Errorf("read at %d: %v, cookie %d", off, e, cookie)
	}
	_, err = io.ReadFull(c, p)
	return err
}

// disconnect leaves as it should be done, by NBD_CMD_DISC, and waits until the
// server has hung up.
func (c *raw) disconnect() error {
	if _, err := c.Write(request(proto.CmdDisc, 0, 0, 0, nil)); err != nil {
		return err
	}
	if n, err := io.Copy(io.Discard, c); n != 0 || err != nil {
		return fmt.Errorf("after NBD_CMD_DISC: %d bytes, %w", n, err)
	}
	return c.Close()
}

// roundTrips reads n times 4 KiB, one at a time, and compares with what should be
// there.
func (c *raw) roundTrips(n int, data []byte) error {
	p := make([]byte, 4096)
	for i := range n {
		off := i * 40_961 % (len(data) - len(p))
		if err := c.read(p, uint64(off)); err != nil {
			return fmt.Errorf("round trip %d: %w", i, err)
		}
		if !bytes.Equal(p, data[off:off+len(p)]) {
			return fmt.Errorf("round trip %d: wrong data at %d", i, off)
		}
	}
	return nil
}

// networks are what clients come over.
var networks = []string{"unix", "tcp"}

// serve serves data as the export "disk", over both networks. Beside it are "cow",
// the same with copyonwrite, and "mem", 32 MiB of memory.
func serve(t *testing.T, data []byte) *harness.Server {
	t.Helper()
	dir := harness.Dir(t)
	image := harness.Image(t, dir, "disk.img", data)
	return harness.StartIn(t, dir, harness.Config{
		Plain: true,
		TCP:   true,
		Exports: "[disk]\nexportname = " + image + "\n" +
			"[cow]\nexportname = " + image + "\ncopyonwrite = true\n" +
			"[mem]\nexportname = memory:32M\n",
	})
}

// unhurt fails the test if another client of the server does not get its answers.
func unhurt(t *testing.T, s *harness.Server, data []byte) {
	t.Helper()
	c := open(t, s, "disk")
	if err := c.roundTrips(500, data); err != nil {
		t.Errorf("another client: %v", err)
	}
	if err := c.disconnect(); err != nil {
		t.Error(err)
	}
}

// settledUsage returns what the server holds when it has worked once, and rests.
func settledUsage(t *testing.T, s *harness.Server, data []byte) harness.Usage {
	t.Helper()
	c := openBy(t, s, "tcp", "disk") // for the first of which it opens files that stay
	if err := c.roundTrips(1, data); err != nil {
		t.Fatal(err)
	}
	c.Close()
	unhurt(t, s, data)
	return s.Usage()
}

// settled waits until the server holds no more files than before.
func settled(t *testing.T, s *harness.Server, before harness.Usage) harness.Usage {
	t.Helper()
	again := time.NewTicker(10 * time.Millisecond)
	defer again.Stop()
	end := time.After(limit)
	for {
		now := s.Usage()
		if now.Files <= before.Files {
			return now
		}
		select {
		case <-end:
			t.Fatalf("%d files open, %d before: %q", now.Files, before.Files, s.FileNames())
		case <-again.C:
		}
	}
}
