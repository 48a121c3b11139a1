package server

import (
	"context"
	"errors"
	"strings"
	"testing"

	"nbd.example/nbd/block"
	"nbd.example/nbd/proto"
)

// longDisk is a disk that may become longer or shorter while it is open. It has data for
// all that it is ever said to have.
type longDisk struct {
	*disk
	size int64
	fail error
	gate chan struct{} // not nil: measuring waits for it
	boom bool          // measuring panics
}

// longFile is one opened longDisk.
type longFile struct {
	diskFile
	d *longDisk
}

func newLongDisk() *longDisk { return &longDisk{disk: newDisk(), size: 1 << 19} }

func (d *longDisk) open(context.Context, Client) (*block.Device, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.holders++
	d.opened++
	return block.New(&longFile{diskFile{d.disk}, d})
}

func (f *longFile) Caps() block.Caps {
	c := f.diskFile.Caps()
	c.Size = f.d.size
	return c
}

func (f *longFile) Remeasure() (int64, error) {
	if f.d.gate != nil {
		f.d.reading <- struct{}{}
		<-f.d.gate
	}
	f.d.mu.Lock()
	defer f.d.mu.Unlock()
	if f.d.boom {
		panic("in Remeasure")
	}
	return f.d.size, f.d.fail
}

func (d *longDisk) setSize(n int64) { d.set(func() { d.size = n }) }

// told returns the size that a new client is told, by INFO.
func told(t *testing.T, s *Server) uint64 {
	t.Helper()
	p := connect(t, s, nil)
	info, err := p.c.Info(testContext(t), "x")
	if err != nil {
		t.Fatal(err)
	}
	p.abort()
	return info.Size
}

// TestGrows: new clients are told the new size, old ones may use it.
func TestGrows(t *testing.T) {
	d, log := newLongDisk(), &logBuffer{}
	s := newServer(t, Config{Exports: []*Export{{Name: "x", Open: d.open}}, Logger: log.logger()}, d.disk)
	u := connect(t, s, nil).use("x")
	beyond := func() error { return u.do(proto.CmdWrite, 1<<19, make([]byte, 512)) }
	if err := beyond(); !errors.Is(err, proto.ENOSPC) {
		t.Errorf("a write behind the end: %v", err)
	}
	d.setSize(1<<19 + 4096)
	if err := beyond(); !errors.Is(err, proto.ENOSPC) {
		t.Errorf("a write behind the end that nobody was told of: %v", err)
	}
	if n := told(t, s); n != 1<<19+4096 {
		t.Errorf("after it has grown, a client is told %d bytes", n)
	}
	if err := beyond(); err != nil {
		t.Errorf("a write to what is new, by a client that was there: %v", err)
	}
	u.leave()
	if n := len(log.lines("export has grown")); n != 1 {
		t.Errorf("the log has %d lines of it", n)
	}
	if _, opened := d.counts(); opened != 1 {
		t.Errorf("it was opened %d times", opened)
	}
}

// TestGrowsAtReload: nobody has to ask.
func TestGrowsAtReload(t *testing.T) {
	d := newLongDisk()
	cfg := Config{Exports: []*Export{{Name: "x", Open: d.open, MinBlock: 4096}}}
	s := newServer(t, cfg, d.disk)
	u := connect(t, s, nil).use("x")
	d.setSize(1<<19 + 4096 + 512)
	if _, err := s.Reload(cfg); err != nil {
		t.Fatal(err)
	}
	if err := u.do(proto.CmdWrite, 1<<19, make([]byte, 4096)); err != nil {
		t.Errorf("a write to what is new: %v", err)
	}
	if n := s.Exports()[0].Size; n != 1<<19+4096 {
		t.Errorf("it has %d bytes, not a whole number of its blocks", n)
	}
	u.leave()
}

// TestShrinks: not while there are clients, and then at once.
func TestShrinks(t *testing.T) {
	d, log := newLongDisk(), &logBuffer{}
	s := newServer(t, Config{Exports: []*Export{{Name: "x", Open: d.open}}, Logger: log.logger()}, d.disk)
	u := connect(t, s, nil).use("x")
	d.setSize(4096)
	for range 2 {
		if n := told(t, s); n != 1<<19 {
			t.Errorf("while it has a client, another one is told %d bytes", n)
		}
	}
	if n := len(log.lines("an export has become smaller")); n != 1 {
		t.Errorf("the log has %d lines of it", n)
	}
	u.works()
	u.leave()
	wait(t, "the device is closed", d.closed)
	if n := told(t, s); n != 4096 {
		t.Errorf("when its client has left, another one is told %d bytes", n)
	}
	// Nobody is there, and nobody was told before.
	d.setSize(512)
	if n := told(t, s); n != 512 {
		t.Errorf("a client is told %d bytes, of 512", n)
	}
	if holders, opened := d.counts(); holders != 1 || opened != 3 {
		t.Errorf("it is open %d times, and was %d times; want 1 and 3", holders, opened)
	}
}

// TestShrinksAtReload: the device of an export that nobody uses is opened anew.
func TestShrinksAtReload(t *testing.T) {
	d := newLongDisk()
	cfg := Config{Exports: []*Export{{Name: "x", Open: d.open}}}
	s := newServer(t, cfg, d.disk)
	d.setSize(4096)
	if _, err := s.Reload(cfg); err != nil {
		t.Fatal(err)
	}
	wait(t, "the device is closed", d.closed)
	if n := told(t, s); n != 4096 {
		t.Errorf("a client is told %d bytes", n)
	}
}

// TestGrowsShared: instances of a private export grow, too, and nothing else of it does.
func TestGrowsShared(t *testing.T) {
	d := newLongDisk()
	x := &Export{Name: "x", Open: d.open, Private: true, Share: func(Client) string { return "" }}
	s := newServer(t, Config{Exports: []*Export{x}}, d.disk)
	u := connect(t, s, nil).use("x")
	d.setSize(1 << 20)
	if n := told(t, s); n != 1<<20 {
		t.Errorf("a client is told %d bytes", n)
	}
	if err := u.do(proto.CmdRead, 1<<20-512, make([]byte, 512)); err != nil {
		t.Errorf("a read of what is new: %v", err)
	}
	u.leave()
}

// TestGrowFails: a client is served also if nobody knows how large it is now.
func TestGrowFails(t *testing.T) {
	d, log := newLongDisk(), &logBuffer{}
	s := newServer(t, Config{Exports: []*Export{{Name: "x", Open: d.open}}, Logger: log.logger()}, d.disk)
	d.set(func() { d.fail = errors.New("no answer") })
	if n := told(t, s); n != 1<<19 {
		t.Errorf("a client is told %d bytes", n)
	}
	if l := log.lines("cannot look whether an export has grown"); len(l) != 1 || !strings.Contains(l[0], "no answer") {
		t.Errorf("the log has %q", l)
	}
}

// TestLeftWhileMeasured: a device that a reload measures is not closed under it when its
// last client leaves, though it is to be replaced then.
func TestLeftWhileMeasured(t *testing.T) {
	d := newLongDisk()
	s := newServer(t, Config{Exports: []*Export{{Name: "x", Open: d.open, Settings: "1"}}}, d.disk)
	u := connect(t, s, nil).use("x")
	d.gate = make(chan struct{})
	reloaded := make(chan error, 1)
	go func() {
		_, err := s.Reload(Config{Exports: []*Export{{Name: "x", Open: d.open, Settings: "2"}}})
		reloaded <- err
	}()
	wait(t, "the device is measured", d.reading)
	u.leave()
	wantStates(t, s, "x pending 0 524288; ")
	close(d.gate)
	if err := wait(t, "Reload", reloaded); err != nil {
		t.Fatal(err)
	}
	if n := told(t, s); n != 1<<19 {
		t.Errorf("a client is told %d bytes", n)
	}
	if holders, opened := d.counts(); holders != 1 || opened != 3 {
		t.Errorf("it is open %d times, and was %d times; want 1 and 3", holders, opened)
	}
}

// TestGrowsLater: while the file system does not answer, one client waits for it, and
// others only until they give up.
func TestGrowsLater(t *testing.T) {
	d := newLongDisk()
	s := newServer(t, Config{Exports: []*Export{{Name: "x", Open: d.open}}}, d.disk)
	d.gate = make(chan struct{})
	first, second := connect(t, s, nil), connect(t, s, nil)
	begun := make(chan error, 1)
	go func() { _, err := first.c.Go(testContext(t), "x"); begun <- err }()
	wait(t, "the size is asked for", d.reading)
	given := make(chan error, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { _, err := second.c.Go(ctx, "x"); given <- err }()
	cancel()
	if err := wait(t, "the second client gives up", given); !errors.Is(err, context.Canceled) {
		t.Errorf("the second client: %v", err)
	}
	second.nc.Close()
	close(d.gate)
	if err := wait(t, "the first client is let in", begun); err != nil {
		t.Errorf("the first client: %v", err)
	}
	first.nc.Close()
}
