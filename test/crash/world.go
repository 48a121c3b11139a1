// Package crash simulates power cuts.
//
// # Concepts
//
// A [World] is a machine with disks, files and folders that live in memory. It
// records everything that is done to them, in order, with its content: writes,
// trims, flushes, names that come and go. So a program runs once, undisturbed, with
// as many goroutines as it likes, and is then looked at as if the power had
// been cut after any of these events:
//
//	w := crash.New()
//	… let the program work on w.Disk("base", size) and w.OpenFile("/diff", …) …
//	w.Cuts(rnd, func(c *crash.Cut) bool {
//		… open what is left, c.World.Disk("base", size), and look at it …
//	})
//
// What had been made stable before the cut is there. Of the rest each sector, and each
// name, is what it last was when it was stable, or any of the things that it
// has become since: what was written later may be there when what was written before is
// lost. Cuts tries different mixes: all lost, all there, some of both.
//
// A program says what it has promised by [World.Mark]: a client's flush has
// returned, say. [Cut].Marks has all that was said before the cut.
//
// The difference to blocktest.Disk is that there are several disks and files with one
// order of events, so that what one holds can be compared with what another does
// not hold yet, and that one run gives all cuts. Layers that write to a file of
// their own and storage formats need that.
package crash

import (
	"bytes"
	"io/fs"
	"path"
	"sync"

	"nbd.example/nbd/block"
)

// Sector is the size in bytes of what is old or new, but never mixed.
const Sector = 512

// World is a machine. Its methods, and those of what it has, may be called
// concurrently.
type World struct {
	mu     sync.Mutex
	stores []*store       // what has bytes: disks and files, by number
	disks  map[string]int // their stores
	names  map[string]int // files and folders by path; a folder's store is folder
	id     string         // stays after a cut
	start  *snapshot      // what was there before the first event
	events []event
}

// folder stands for a store where a name is that of a folder.
const folder = -1

// store has the bytes of a disk or a file, as a program sees them.
type store struct {
	size    int64             // bytes; that of a disk never changes
	sectors map[int64]*sector // of those that were written; others are zeroes
}

// sector is the contents of one. It is never changed.
type sector [Sector]byte

// event is something that was done. Exactly one of the groups is used.
type event struct {
	// Bytes of a store have become others; all of a sector is kept.
	store   int
	sectors map[int64]*sector // nil for zeroes
	size    int64             // of the store, from now on
	stable  bool              // at once, for all sectors from first up to end
	first   int64
	end     int64
	sync    bool // all that was done to the store before is stable

	// A name has become another store's, or nobody's.
	name     string
	gone     bool
	syncName string // all that was done to the names in this folder before is stable
	syncAll  bool   // everything is

	mark any
}

// New returns a machine with nothing but the folder "/".
func New() *World {
	w := &World{disks: map[string]int{}, names: map[string]int{"/": folder}, id: block.NewInstance()}
	w.start = w.snapshot()
	return w
}

// Mark notes what the program has promised now.
func (w *World) Mark(promise any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.events = append(w.events, event{store: folder, mark: promise})
}

// Forget makes everything stable and forgets how it came about: the cuts begin
// here.
func (w *World) Forget() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.events = nil
	w.start = w.snapshot()
}

// Events returns how many events there have been.
func (w *World) Events() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.events)
}

// newStore adds a store. It is there from the beginning, with no bytes, so that
// only its name can be lost. w.mu is held.
func (w *World) newStore() int {
	w.stores = append(w.stores, &store{sectors: map[int64]*sector{}})
	return len(w.stores) - 1
}

// read fills p from a store. What it does not have is zeroes.
func (w *World) read(i int, p []byte, off int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.stores[i]
	for len(p) > 0 {
		at := off % Sector
		n := min(int64(len(p)), Sector-at)
		if x := s.sectors[off/Sector]; x != nil {
			copy(p[:n], x[at:])
		} else {
			clear(p[:n])
		}
		p, off = p[n:], off+n
	}
}

// size returns the size of a store in bytes.
func (w *World) size(i int) int64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.stores[i].size
}

// write puts p into a store, which grows if it must.
func (w *World) write(i int, p []byte, off int64, stable bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.stores[i]
	e := event{store: i, sectors: map[int64]*sector{}, stable: stable}
	s.size = max(s.size, off+int64(len(p)))
	for len(p) > 0 {
		at := off % Sector
		x := new(sector)
		if old := s.sectors[off/Sector]; old != nil {
			*x = *old
		}
		n := int64(copy(x[at:], p))
		e.sectors[off/Sector], s.sectors[off/Sector] = x, x
		p, off = p[n:], off+n
	}
	e.size = s.size
	w.events = append(w.events, e)
}

// zero makes bytes of a store zeroes. Sectors that are zeroes already are no event.
func (w *World) zero(i int, off, n int64, stable bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	e := event{store: i, size: w.stores[i].size, stable: stable, first: off / Sector, end: (off + n + Sector - 1) / Sector}
	e.sectors = w.stores[i].clear(off, off+n)
	w.events = append(w.events, e)
}

// clear makes bytes zeroes, and returns the sectors that have changed.
func (s *store) clear(off, end int64) map[int64]*sector {
	changed := map[int64]*sector{}
	for k, x := range s.sectors {
		lo, hi := max(off, k*Sector), min(end, (k+1)*Sector)
		switch {
		case lo >= hi:
		case hi-lo == Sector:
			changed[k] = nil
			delete(s.sectors, k)
		default:
			y := *x
			clear(y[lo-k*Sector : hi-k*Sector])
			changed[k], s.sectors[k] = &y, &y
		}
	}
	return changed
}

// truncate gives a store another size.
func (w *World) truncate(i int, size int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.stores[i]
	e := event{store: i, size: size, sectors: s.clear(size, max(size, s.size))}
	s.size = size
	w.events = append(w.events, e)
}

// sync makes a store stable.
func (w *World) sync(i int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.events = append(w.events, event{store: i, sync: true})
}

// rename gives a name a store, or takes it away. w.mu is held.
func (w *World) rename(name string, i int, gone bool) {
	if gone {
		delete(w.names, name)
	} else {
		w.names[name] = i
	}
	w.events = append(w.events, event{store: i, name: name, gone: gone})
}

// SyncDir makes the names in a folder stable.
func (w *World) SyncDir(name string) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	name = clean(name)
	if i, ok := w.names[name]; !ok || i != folder {
		return &fs.PathError{Op: "sync", Path: name, Err: fs.ErrNotExist}
	}
	w.events = append(w.events, event{store: folder, syncName: name})
	return nil
}

// SyncAll makes all files and all names stable.
func (w *World) SyncAll() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.events = append(w.events, event{store: folder, syncAll: true})
}

func clean(name string) string { return path.Join("/", name) }

// Same reports whether two machines hold the same disk: what is only in one is
// zeroes in the other.
func Same(a, b *World, disk string) bool {
	x, y := a.stores[a.disks[disk]], b.stores[b.disks[disk]]
	return x.within(y) && y.within(x)
}

func (s *store) within(t *store) bool {
	var zeroes sector
	for k, x := range s.sectors {
		y := t.sectors[k]
		if y == nil {
			y = &zeroes
		}
		if !bytes.Equal(x[:], y[:]) {
			return false
		}
	}
	return true
}
