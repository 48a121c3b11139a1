package robust

import (
	"bytes"
	"fmt"
	"io"
	"testing"
	"time"

	"nbd.example/nbd/internal/testgate"
	"nbd.example/nbd/proto"
	"nbd.example/nbd/test/harness"
)

// TestSlowReader asks for much, lets others work, and takes it only then.
func TestSlowReader(t *testing.T) {
	t.Parallel()
	data := harness.Random(1, 64*mib)
	for _, network := range networks {
		t.Run(network, func(t *testing.T) {
			t.Parallel()
			s := serve(t, data)
			c := openBy(t, s, network, "disk")
			const reads = 48
			for i := range uint64(reads) {
				if _, err := c.Write(request(proto.CmdRead, i, i*mib, mib, nil)); err != nil {
					t.Fatal(err)
				}
			}
			unhurt(t, s, data)
			if err := c.takeReads(reads, data); err != nil {
				t.Error(err)
			}
		})
	}
}

// takeReads takes the answers to n reads of a MiB each, whose cookies are their
// places in data, in MiB.
func (c *raw) takeReads(n int, data []byte) error {
	p := make([]byte, mib)
	seen := map[uint64]bool{}
	for range n {
		e, i, err := c.reply()
		if err != nil || e != 0 || i >= uint64(n) || seen[i] {
			return fmt.Errorf("reply %v, cookie %d: %w", e, i, err)
		}
		seen[i] = true
		if _, err := io.ReadFull(c, p); err != nil {
			return err
		}
		if !bytes.Equal(p, data[i*mib:(i+1)*mib]) {
			return fmt.Errorf("wrong data for read %d", i)
		}
	}
	return nil
}

// TestStopsInMidRequest leaves requests unfinished, at every kind of place.
func TestStopsInMidRequest(t *testing.T) {
	t.Parallel()
	testgate.Requires(t, testgate.Linux())
	data := harness.Random(2, 8*mib)
	s := serve(t, data)
	before := settledUsage(t, s, data)
	write := request(proto.CmdWrite, 1, 0, 4*mib, data[:4*mib]) // what is there already
	cuts := []int{1, 4, 27, 28, 29, 4096, 2 * mib, len(write) - 1}
	var clients []*raw
	for _, n := range cuts {
		c := open(t, s, "disk")
		if _, err := c.Write(write[:n]); err != nil {
			t.Fatal(err)
		}
		clients = append(clients, c)
	}
	for _, text := range [][]byte{nil, {0, 0}, append([]byte{0, 0, 0, 3}, option(proto.OptGo, goData("disk"))[:17]...)} {
		c := connect(t, s)
		if _, err := c.Write(text); err != nil {
			t.Fatal(err)
		}
		clients = append(clients, c)
	}
	unhurt(t, s, data)
	for _, c := range clients {
		c.Close()
	}
	settled(t, s, before)
	unhurt(t, s, data)
}

// TestByteByByte sends everything a byte at a time, with a pause before each: a
// second of a real client's time is a millisecond here.
func TestByteByByte(t *testing.T) {
	t.Parallel()
	data := harness.Random(3, mib)
	s := serve(t, data)
	c := connect(t, s)
	send := func(p []byte) error {
		pause := time.NewTicker(time.Millisecond)
		defer pause.Stop()
		for i := range p {
			<-pause.C
			if _, err := c.Write(p[i : i+1]); err != nil {
				return err
			}
		}
		return nil
	}
	if _, err := io.ReadFull(c, make([]byte, 18)); err != nil {
		t.Fatal(err)
	}
	if err := send(append([]byte{0, 0, 0, 3}, option(proto.OptGo, goData("disk"))...)); err != nil {
		t.Fatal(err)
	}
	for {
		typ, data, err := c.optionReply()
		if err != nil || typ.IsError() {
			t.Fatalf("%v %q: %v", typ, data, err)
		}
		if typ == proto.RepAck {
			break
		}
	}
	patch := harness.Random(4, 100)
	all := append(request(proto.CmdWrite, 7, 5000, 100, patch), request(proto.CmdRead, 8, 5000, 100, nil)...)
	done := make(chan error, 1)
	go func() { done <- send(all) }()
	if e, cookie, err := c.reply(); err != nil || e != 0 || cookie != 7 {
		t.Fatalf("write: %v, cookie %d: %v", e, cookie, err)
	}
	if e, cookie, err := c.reply(); err != nil || e != 0 || cookie != 8 {
		t.Fatalf("read: %v, cookie %d: %v", e, cookie, err)
	}
	got := make([]byte, 100)
	if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, patch) {
		t.Errorf("read %x: %v", got, err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// TestGreedyReader asks for 125 GiB and takes nothing.
func TestGreedyReader(t *testing.T) {
	t.Parallel()
	testgate.Requires(t, testgate.Linux())
	const (
		reads  = 4000
		length = 32 * mib
		most   = 200 * mib // above an idle server: bound on buffers, and the collector's slack
	)
	data := harness.Random(5, length)
	for _, kind := range []struct{ network, export string }{
		{"unix", "disk"}, {"tcp", "disk"}, {"unix", "cow"}, {"unix", "mem"},
	} {
		t.Run(kind.export+", "+kind.network, func(t *testing.T) {
			t.Parallel()
			s := serve(t, data)
			before := settledUsage(t, s, data)
			c := openBy(t, s, kind.network, kind.export)
			go func() {
				for i := range uint64(reads) {
					if _, err := c.Write(request(proto.CmdRead, i, 0, length, nil)); err != nil {
						return // the server may rather end this one
					}
				}
			}()
			var peak int64
			for range 5 {
				unhurt(t, s, data)
				peak = max(peak, s.Usage().RSS-before.RSS)
			}
			if t.Logf("%d MiB more than before", peak/mib); peak > most {
				t.Error("that is too much")
			}
			c.Close()
			settled(t, s, before)
			unhurt(t, s, data)
		})
	}
}

// TestSendsDeep sends all its requests before it looks at the first reply. They are
// within the bounds that the server states, so it must go on reading while nobody
// takes its replies.
func TestSendsDeep(t *testing.T) {
	t.Parallel()
	data := harness.Random(6, 16*mib)
	for _, c := range []struct {
		name   string
		n      int
		length uint32
		write  func(i int) bool
	}{
		{"reads", 4000, 4096, func(int) bool { return false }},
		{"large reads", 100, 512 << 10, func(int) bool { return false }},
		{"writes", 4000, 4096, func(int) bool { return true }},
		{"large writes", 1000, 32 << 10, func(int) bool { return true }},
		{"both", 4000, 4096, func(i int) bool { return i%2 == 1 }},
	} {
		for _, network := range networks {
			t.Run(c.name+", "+network, func(t *testing.T) {
				t.Parallel()
				if err := sendDeep(openBy(t, serve(t, data), network, "disk"), data, c.n, c.length, c.write); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// sendDeep sends n requests, then takes n replies. Writes write what is there.
func sendDeep(c *raw, data []byte, n int, length uint32, write func(int) bool) error {
	offset := func(i int) uint64 { return uint64(i) * uint64(length) % uint64(len(data)-int(length)) }
	for i := range n {
		off := offset(i)
		b := request(proto.CmdRead, uint64(i), off, length, nil)
		if write(i) {
			b = request(proto.CmdWrite, uint64(i), off, length, data[off:off+uint64(length)])
		}
		if _, err := c.Write(b); err != nil {
			return fmt.Errorf("send %d: %w", i, err)
		}
	}
	p := make([]byte, length)
	for range n {
		e, i, err := c.reply()
		if err != nil || e != 0 || i >= uint64(n) {
			return fmt.Errorf("reply %v, cookie %d: %w", e, i, err)
		}
		if write(int(i)) {
			continue
		}
		if _, err := io.ReadFull(c, p); err != nil {
			return err
		}
		off := offset(int(i))
		if !bytes.Equal(p, data[off:off+uint64(length)]) {
			return fmt.Errorf("wrong data for read %d", i)
		}
	}
	return nil
}
