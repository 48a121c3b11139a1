package crash_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"testing"

	"nbd.example/nbd/block"
	"nbd.example/nbd/test/crash"
)

// Promises that the test notes in the order of events.
type (
	issued  struct{ client, op int } // a client's operation begins
	stable  struct{ client, op int } // a flush has returned that began after this one had
	fua     struct{ client, op int } // an operation has returned that is stable by itself
	version struct {
		op   int
		data []byte // a sector
	}
)

// client writes to blocks that are its own, and knows what they may hold.
type client struct {
	t        *testing.T
	w        *crash.World
	d        *block.Device
	number   int
	rnd      *rand.Rand
	size     int64               // of the device
	places   []int64             // of its blocks, 4 KiB each
	versions map[int64][]version // by the offset of the sector
	op       int
}

const hot = 4096

// newClient makes a client whose blocks are spread over a device of size bytes; one of
// them is at its end, and short. They hold zeroes.
func newClient(t *testing.T, w *crash.World, number, of int, size int64, seed uint64) *client {
	c := &client{t: t, w: w, number: number, size: size, rnd: rand.New(rand.NewPCG(seed, 0)), versions: map[int64][]version{}}
	for i := range int64(12) {
		at := size * i / 12 / hot * hot
		c.places = append(c.places, at+int64(number)*hot)
	}
	if number == of-1 {
		c.places = append(c.places, size/hot*hot)
	}
	for _, at := range c.places {
		c.note(make([]byte, min(hot, size-at)), at)
	}
	return c
}

// prepare gives the blocks other contents on d. It is for the time before the events.
func (c *client) prepare(d *block.Device) {
	clear(c.versions)
	for _, at := range c.places {
		p := c.noise(min(hot, c.size-at))
		if err := d.WriteAt(c.t.Context(), p, at, 0); err != nil {
			c.t.Fatal(err)
		}
		c.note(p, at)
	}
}

func (c *client) noise(n int64) []byte {
	p := bytes.Repeat([]byte{byte(c.rnd.Uint32()), byte(c.rnd.Uint32()), byte(c.number)}, int(n)/3+1)
	return p[:n]
}

// note adds versions of the sectors that p is written to. Only whole sectors are
// written.
func (c *client) note(p []byte, at int64) {
	for len(p) > 0 {
		n := min(len(p), crash.Sector)
		c.versions[at] = append(c.versions[at], version{c.op, p[:n]})
		p, at = p[n:], at+int64(n)
	}
}

// work does one operation.
func (c *client) work() {
	c.op++
	ctx := context.Background()
	if c.rnd.IntN(4) == 0 {
		last := c.op - 1
		if err := c.d.Flush(ctx); err != nil {
			c.t.Error(err)
		}
		c.w.Mark(stable{c.number, last})
		return
	}
	at := c.places[c.rnd.IntN(len(c.places))]
	end := min(at+hot, c.size)
	at += c.rnd.Int64N((end-at+crash.Sector-1)/crash.Sector) * crash.Sector
	n := min(end-at, crash.Sector*(1+c.rnd.Int64N(8)))
	if c.rnd.IntN(2) == 0 { // the whole block
		at = end - 1 - (end-1)%hot
		n = end - at
	}
	p, f := c.noise(n), block.Flags(0)
	if c.rnd.IntN(5) == 0 {
		f = block.FUA
	}
	zero := c.rnd.IntN(3) == 0
	if zero {
		clear(p)
	}
	c.note(p, at)
	c.w.Mark(issued{c.number, c.op})
	var err error
	switch {
	case zero:
		err = c.d.WriteZeroes(ctx, at, n, f)
	case f == 0 && c.rnd.IntN(2) == 0 && c.d.TryWrite(p, at): // as the server does first
	default:
		err = c.d.WriteAt(ctx, p, at, f)
	}
	if err != nil {
		c.t.Error(err)
	}
	if f == block.FUA {
		c.w.Mark(fua{c.number, c.op})
	}
}

// yield lets others go first now and then, so that more orders are tried.
func yield() {
	for range rand.IntN(4) * rand.IntN(20) {
		runtime.Gosched()
	}
}

// promises are what had been promised to clients when the power was cut, by client.
type promises struct {
	last, safe []int          // operations up to last had begun, and those up to safe were stable
	fua        []map[int]bool // operations that were stable by themselves
}

func (p *promises) add(mark any) {
	switch m := mark.(type) {
	case issued:
		p.last[m.client] = m.op
	case stable:
		p.safe[m.client] = m.op
	case fua:
		p.fua[m.client][m.op] = true
	}
}

func newPromises(clients []*client, marks []any) *promises {
	p := &promises{last: make([]int, len(clients)), safe: make([]int, len(clients))}
	for range clients {
		p.fua = append(p.fua, map[int]bool{})
	}
	for _, m := range marks {
		p.add(m)
	}
	return p
}

// check looks whether d holds what it may hold.
func (p *promises) check(d *block.Device, clients []*client) error {
	for _, c := range clients {
		for at, versions := range c.versions {
			got := make([]byte, len(versions[0].data))
			if err := d.ReadAt(context.Background(), got, at); err != nil {
				return err
			}
			ok, hidden := false, false // hidden: a newer version is stable
			for _, v := range slices.Backward(versions) {
				ok = ok || v.op <= p.last[c.number] && !hidden && bytes.Equal(v.data, got)
				hidden = hidden || v.op <= p.safe[c.number] || p.fua[c.number][v.op]
			}
			if !ok {
				return fmt.Errorf("client %d: the sector at %d begins with % x, which is nothing that it was between the operations %d and %d",
					c.number, at, got[:4], p.safe[c.number], p.last[c.number])
			}
		}
	}
	return nil
}

// hold returns what the blocks of all clients hold.
func hold(t *testing.T, d *block.Device, clients []*client) []byte {
	var all []byte
	for _, c := range clients {
		for _, at := range c.places {
			p := make([]byte, min(hot, c.size-at))
			if err := d.ReadAt(context.Background(), p, at); err != nil {
				t.Fatal(err)
			}
			all = append(all, p...)
		}
	}
	return all
}
