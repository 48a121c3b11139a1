package robust

import (
	"fmt"
	"sync"
	"testing"

	"nbd.example/nbd/internal/testgate"
	"nbd.example/nbd/proto"
	"nbd.example/nbd/test/harness"
)

// TestIdleConnections holds 5,000 connections that have worked and now rest.
func TestIdleConnections(t *testing.T) {
	testgate.Requires(t, testgate.Linux(), testgate.Files(2*crowd))
	for _, network := range networks {
		t.Run(network, func(t *testing.T) { idleConnections(t, network) })
	}
}

const crowd = 5000

func idleConnections(t *testing.T, network string) {
	const most = 100 * mib // above an idle server
	data := harness.Random(10, 8*mib)
	s := serve(t, data)
	before := settledUsage(t, s, data)
	var clients []*raw
	for range crowd {
		c := openBy(t, s, network, "disk")
		if err := c.roundTrips(1, data); err != nil {
			t.Fatal(err)
		}
		clients = append(clients, c)
	}
	c := openBy(t, s, network, "disk")
	if err := c.roundTrips(5000, data); err != nil {
		t.Errorf("a client beside the crowd: %v", err)
	}
	now := s.Usage()
	t.Logf("%d idle connections: %.1f MiB more than before, %d threads", crowd, float64(now.RSS-before.RSS)/mib, now.Threads)
	if now.RSS-before.RSS > most {
		t.Errorf("the server's memory went from %d to %d MiB", before.RSS/mib, now.RSS/mib)
	}
	// They still work, and all can leave at once.
	for i := 0; i < crowd; i += 100 {
		if err := clients[i].roundTrips(1, data); err != nil {
			t.Fatalf("client %d after its rest: %v", i, err)
		}
	}
	for _, c := range clients {
		c.Close()
	}
	c.Close()
	settled(t, s, before)
}

// TestConnects connects and disconnects, in every way there is, and looks for leaks.
func TestConnects(t *testing.T) {
	testgate.Requires(t, testgate.Linux())
	for _, network := range networks {
		t.Run(network, func(t *testing.T) { connects(t, network, 5000) })
	}
}

// TestSoakConnects does it 100,000 times.
func TestSoakConnects(t *testing.T) {
	testgate.Requires(t, testgate.Linux(), testgate.Asked("soak"))
	for _, network := range networks {
		t.Run(network, func(t *testing.T) { connects(t, network, 50_000) })
	}
}

// connects connects n times, from several goroutines.
func connects(t *testing.T, network string, n int) {
	t.Helper()
	data := harness.Random(11, 4*mib)
	s := serve(t, data)
	visit := func(from, to int) error {
		for i := from; i < to; i++ {
			c := connectBy(quiet{t}, s, network)
			err := leave(c, i, data)
			c.Close()
			if err != nil {
				return fmt.Errorf("connection %d: %w", i, err)
			}
		}
		return nil
	}
	// What the first ones bring into memory stays there.
	if err := visit(0, n/10); err != nil {
		t.Fatal(err)
	}
	before := settledUsage(t, s, data)
	const workers = 4
	var wg sync.WaitGroup
	errs := make([]error, workers)
	for w := range workers {
		wg.Go(func() { errs[w] = visit(w*n/workers, (w+1)*n/workers) })
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			t.Error(err)
		}
	}
	unhurt(t, s, data)
	now := settled(t, s, before)
	t.Logf("%d connects: memory %+d KiB, threads %+d, files %+d", n,
		(now.RSS-before.RSS)/1024, now.Threads-before.Threads, now.Files-before.Files)
	if now.RSS-before.RSS > 32*mib {
		t.Errorf("the server's memory went from %d to %d MiB", before.RSS/mib, now.RSS/mib)
	}
	if now.Threads > before.Threads+32 {
		t.Errorf("%d threads, %d before", now.Threads, before.Threads)
	}
}

// quiet is a test that does not keep a cleanup for each of 100,000 connections.
type quiet struct{ testing.TB }

func (quiet) Cleanup(func()) {}

// leave uses a connection a little and leaves it in one of several ways. The caller
// closes it.
func leave(c *raw, i int, data []byte) error {
	switch i % 7 {
	case 0: // at once
		return nil
	case 1: // in the greeting
		return c.greet()
	case 2: // in an option
		if err := c.greet(); err != nil {
			return err
		}
		_, err := c.Write(option(proto.OptGo, goData("disk"))[:19])
		return err
	case 3: // with NBD_OPT_ABORT, without waiting for its answer
		if err := c.greet(); err != nil {
			return err
		}
		_, err := c.Write(option(proto.OptAbort, nil))
		return err
	}
	if err := c.negotiate("disk"); err != nil {
		return err
	}
	switch i % 7 {
	case 4: // as it should be
		if err := c.roundTrips(2, data); err != nil {
			return err
		}
		_, err := c.Write(request(proto.CmdDisc, 0, 0, 0, nil))
		return err
	case 5: // with an answer on its way
		_, err := c.Write(request(proto.CmdRead, 1, 0, mib, nil))
		return err
	default: // in the payload of a write
		_, err := c.Write(request(proto.CmdWrite, 1, 0, 65536, data[:1000]))
		return err
	}
}
