package configs

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"nbd.example/nbd/block"
	"nbd.example/nbd/client"
	"nbd.example/nbd/test/harness"
)

// Clients of a device that merges have a page of its diff each, which is merged at once, and
// write a half of it.
const (
	mergeClients = 4
	mergePage    = 16 << 20
	mergeStretch = 8 << 20
	mergeBlock   = 4096
)

// merging is a server with a diff over an image that takes its time for each write.
type merging struct {
	*harness.Server
	image, diff string
	clients     [mergeClients]*rewriter
}

func (m *merging) export(delay string) string {
	return fmt.Sprintf("[e]\nexportname = file:%s | delay:write=%s\nwaitfile = %s\n", m.image, delay, m.diff)
}

func startMerging(t *testing.T) *merging {
	t.Helper()
	unixOnly(t)
	dir := harness.Dir(t)
	m := &merging{image: harness.Image(t, dir, "image", make([]byte, mergeClients*mergePage)), diff: filepath.Join(dir, "diff")}
	m.Server = harness.StartIn(t, dir, harness.Config{Exports: m.export("50ms")})
	c := dial(t, m.URI("e"), nil)
	defer c.Close()
	for i := range m.clients {
		x := &rewriter{first: int64(i) * mergePage, model: harness.Random(uint64(i+2), mergeStretch)}
		for off := int64(0); off < mergeStretch; off += 1 << 20 {
			if err := c.WriteAt(t.Context(), x.model[off:off+1<<20], x.first+off, 0); err != nil {
				t.Fatal(err)
			}
		}
		m.clients[i] = x
	}
	if err := c.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	harness.Same(t, m.image, make([]byte, mergeClients*mergePage))
	return m
}

// load lets all clients write until the returned function is called, which waits for
// their ends.
func (m *merging) load(t *testing.T) (stop func()) {
	var done sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	for _, x := range m.clients {
		c := dial(t, m.URI("e"), nil)
		done.Go(func() {
			defer c.Close()
			x.run(ctx, t, c)
		})
	}
	return func() {
		cancel()
		done.Wait()
	}
}

// until waits until ok.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); runtime.Gosched() {
		if t.Failed() || time.Now().After(end) {
			t.Fatalf("waiting in vain until %s", what)
		}
	}
}

// more waits until so many more writes of each of the clients were answered.
func more(t *testing.T, n int64, clients ...*rewriter) {
	t.Helper()
	for _, x := range clients {
		want := x.answered.Load() + n
		until(t, "a client is answered", func() bool { return x.answered.Load() >= want })
	}
}

func (m *merging) total() (n int64) {
	for _, x := range m.clients {
		n += x.answered.Load()
	}
	return n
}

// done wants the merge to have ended well, and the image to hold what the clients know.
func (m *merging) done(t *testing.T) {
	t.Helper()
	want := make([]byte, mergeClients*mergePage)
	for _, x := range m.clients {
		copy(want[x.first:], x.model)
	}
	harness.Same(t, m.image, want)
	if _, err := os.Stat(m.diff); !os.IsNotExist(err) {
		t.Errorf("the diff is still there: %v", err)
	}
}

// rewriter writes one block after the other of its stretch, and reads what it has written.
type rewriter struct {
	first    int64
	model    []byte // what must be there
	number   uint64 // of the next write
	lost     []byte // what the write without an answer was about, at lostAt
	lostAt   int64
	answered atomic.Int64
}

// run writes until ctx ends or the server is gone. FUA: what is answered outlives the server.
func (x *rewriter) run(ctx context.Context, t *testing.T, c *client.Conn) {
	x.settle(t, c)
	got := make([]byte, mergeBlock)
	for ctx.Err() == nil {
		at := int64(x.number*7919*mergeBlock) % mergeStretch
		data := harness.Random(x.number+100, mergeBlock)
		x.number++
		if c.WriteAt(context.Background(), data, x.first+at, block.FUA) != nil {
			x.lost, x.lostAt = data, at
			return
		}
		copy(x.model[at:], data)
		x.answered.Add(1)
		if err := c.ReadAt(context.Background(), got, x.first+at); err != nil {
			return
		}
		if !bytes.Equal(got, data) {
			t.Errorf("at %d is not what was written", x.first+at)
			return
		}
	}
}

// settle compares the stretch, and finds out whether the write without an answer was done.
func (x *rewriter) settle(t *testing.T, c *client.Conn) {
	got := make([]byte, len(x.model))
	for off := int64(0); off < mergeStretch; off += 1 << 20 {
		if err := c.ReadAt(context.Background(), got[off:off+1<<20], x.first+off); err != nil {
			t.Errorf("read after the start: %v", err)
			return
		}
	}
	if x.lost != nil && bytes.Equal(got[x.lostAt:x.lostAt+mergeBlock], x.lost) {
		copy(x.model[x.lostAt:], x.lost)
	}
	x.lost = nil
	if !bytes.Equal(got, x.model) {
		t.Errorf("of the stretch at %d something that was answered is lost", x.first)
	}
}

// TestMergeUnderLoad: clients write before, during and behind a merge by SIGUSR1, and nothing
// of that is lost.
func TestMergeUnderLoad(t *testing.T) {
	m := startMerging(t)
	stop := m.load(t)
	more(t, 20, m.clients[:]...)
	m.Signal(mergeSignal)
	await(t, m.Process, "merging export=e", 1)
	before := m.total()
	until(t, "somebody writes during the merge", func() bool { return m.total() > before+10 })
	if _, err := os.Stat(m.diff); err != nil {
		t.Errorf("nobody has written during the merge: %v", err)
	}
	await(t, m.Process, "merged exports=1", 1)
	more(t, 10, m.clients[:]...)
	stop()
	c := dial(t, m.URI("e"), nil)
	for _, x := range m.clients {
		x.settle(t, c)
	}
	c.Close()
	m.Stop()
	m.done(t)
}

// TestMergeKilled: a server that is killed in the middle of a merge, and once more when it
// goes on with that, goes on with it at the next start, while clients write.
func TestMergeKilled(t *testing.T) {
	m := startMerging(t)
	stop := m.load(t)
	more(t, 20, m.clients[:]...)
	image, err := os.Open(m.image)
	if err != nil {
		t.Fatal(err)
	}
	defer image.Close()
	m.Signal(mergeSignal)
	kill := func() {
		t.Helper()
		m.Kill()
		stop()
		if strings.Contains(m.Log(), "merged exports=") {
			t.Fatal("the merge had ended when the server was killed")
		}
	}
	resume := func(delay string) {
		t.Helper()
		m.WriteConfig(t, "", m.export(delay))
		m.Restart(t)
		await(t, m.Process, "a merge was cut off when the server ended; it goes on", 1)
		stop = m.load(t)
	}
	// The second page is begun with when the first is done.
	until(t, "a page is merged", func() bool {
		var b [16]byte
		_, err := image.ReadAt(b[:], mergePage)
		return err == nil && b != [16]byte{}
	})
	kill()
	resume("1h")                           // it comes to a write, and no further
	more(t, 20, m.clients[mergeClients-1]) // whose page is the last
	kill()
	resume("20ms")
	await(t, m.Process, "merged exports=1", 1)
	more(t, 10, m.clients[:]...)
	stop()
	m.Stop()
	m.done(t)
}
