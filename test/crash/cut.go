package crash

import (
	"maps"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
)

// Cut is what is left after a power cut.
type Cut struct {
	// At is how many events there had been.
	At int
	// Marks has what was promised before, in order.
	Marks []any
	// World is the machine after the cut, with its power back, and no events.
	World *World
	// Mix says what has become of what was not stable, for messages.
	Mix string
}

// snapshot is what is stable, and what has been done since.
type snapshot struct {
	stores []stored
	names  map[string][]named // the first is stable, the last is now
	disks  map[string]int
	id     string
}

type stored struct {
	sizes   []int64             // the first is stable, the last is now
	sectors map[int64][]*sector // the same; nil is zeroes
	loose   map[int64]struct{}  // those of sectors with more than one
}

// named is what a name may be.
type named struct {
	store int
	gone  bool
}

// snapshot returns what is now, as stable. w.mu is held, or w is new.
func (w *World) snapshot() *snapshot {
	s := &snapshot{names: map[string][]named{}, disks: maps.Clone(w.disks), id: w.id}
	for _, x := range w.stores {
		t := stored{sizes: []int64{x.size}, sectors: map[int64][]*sector{}, loose: map[int64]struct{}{}}
		for k, y := range x.sectors {
			t.sectors[k] = []*sector{y}
		}
		s.stores = append(s.stores, t)
	}
	for name, i := range w.names {
		s.names[name] = []named{{store: i}}
	}
	return s
}

// clone returns a copy that can be played on.
func (s *snapshot) clone() *snapshot {
	c := &snapshot{names: map[string][]named{}, disks: s.disks, id: s.id}
	for _, t := range s.stores {
		u := stored{sizes: slices.Clone(t.sizes), sectors: map[int64][]*sector{}, loose: map[int64]struct{}{}}
		for k, versions := range t.sectors {
			u.sectors[k] = slices.Clone(versions)
		}
		c.stores = append(c.stores, u)
	}
	for name, versions := range s.names {
		c.names[name] = slices.Clone(versions)
	}
	return c
}

// play does one event.
func (s *snapshot) play(e event) {
	switch {
	case e.mark != nil:
	case e.syncAll:
		for name, versions := range s.names {
			s.names[name] = versions[len(versions)-1:]
		}
		for i := range s.stores {
			s.stores[i].sync()
		}
	case e.syncName != "":
		for name, versions := range s.names {
			if path.Dir(name) == e.syncName && name != "/" {
				s.names[name] = versions[len(versions)-1:]
			}
		}
	case e.name != "":
		if len(s.names[e.name]) == 0 {
			s.names[e.name] = []named{{gone: true}}
		}
		s.names[e.name] = append(s.names[e.name], named{e.store, e.gone})
	case e.sync:
		s.stores[e.store].sync()
	default:
		s.stores[e.store].change(e)
	}
}

func (t *stored) sync() {
	t.sizes = t.sizes[len(t.sizes)-1:]
	for k := range t.loose {
		v := t.sectors[k]
		t.sectors[k] = []*sector{v[len(v)-1]}
	}
	clear(t.loose)
}

func (t *stored) change(e event) {
	if e.stable {
		t.sizes = []int64{e.size}
	} else if e.size != t.sizes[len(t.sizes)-1] {
		t.sizes = append(t.sizes, e.size)
	}
	for k, x := range e.sectors {
		switch {
		case e.stable:
			t.sectors[k] = []*sector{x}
			delete(t.loose, k)
			continue
		case len(t.sectors[k]) == 0:
			t.sectors[k] = []*sector{nil}
		}
		t.sectors[k] = append(t.sectors[k], x)
		t.loose[k] = struct{}{}
	}
	for k := range t.loose {
		if e.stable && e.first <= k && k < e.end { // zeroes that were zeroes already
			v := t.sectors[k]
			t.sectors[k] = []*sector{v[len(v)-1]}
			delete(t.loose, k)
		}
	}
}

// mixes say what becomes of n versions of something: a number below n.
var mixes = []struct {
	name string
	pick func(rnd *rand.Rand, n int) int
}{
	{"nothing is lost", func(_ *rand.Rand, n int) int { return n - 1 }},
	{"all that was not stable is lost", func(*rand.Rand, int) int { return 0 }},
	{"some is lost", func(rnd *rand.Rand, n int) int { return rnd.IntN(n) }},
	{"little is lost", func(rnd *rand.Rand, n int) int {
		if rnd.IntN(8) > 0 {
			return n - 1
		}
		return rnd.IntN(n)
	}},
	{"most is lost", func(rnd *rand.Rand, n int) int {
		if rnd.IntN(8) > 0 {
			return 0
		}
		return rnd.IntN(n)
	}},
}

// Cuts calls each for a cut before the first event, and after every one, with the
// mixes in turn or by chance, until it returns false. The world must not be used
// meanwhile.
func (w *World) Cuts(rnd *rand.Rand, each func(*Cut) bool) {
	s := w.start.clone()
	w.adopt(s)
	var marks []any
	for at := 0; ; at++ {
		// Those that lose everything or nothing, and one between them.
		for _, m := range []int{0, 1, 2 + rnd.IntN(len(mixes)-2)} {
			c := &Cut{At: at, Marks: slices.Clone(marks), Mix: mixes[m].name, World: s.after(rnd, mixes[m].pick)}
			if !each(c) {
				return
			}
		}
		if at == len(w.events) {
			return
		}
		if m := w.events[at].mark; m != nil {
			marks = append(marks, m)
		}
		s.play(w.events[at])
	}
}

// Now returns the machine after a cut at this moment. The world itself goes on: what
// does not know of the cut may use it still.
func (w *World) Now(rnd *rand.Rand) *World {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := w.start.clone()
	w.adopt(s)
	for _, e := range w.events {
		s.play(e)
	}
	return s.after(rnd, mixes[rnd.IntN(len(mixes))].pick)
}

// adopt adds to a snapshot the stores that came later, with nothing in them.
func (w *World) adopt(s *snapshot) {
	s.disks = w.disks
	for len(s.stores) < len(w.stores) {
		s.stores = append(s.stores, stored{sizes: []int64{0}, sectors: map[int64][]*sector{}, loose: map[int64]struct{}{}})
	}
	for _, i := range w.disks {
		s.stores[i].sizes = []int64{w.stores[i].size}
	}
}

// after returns the machine after a cut.
func (s *snapshot) after(rnd *rand.Rand, pick func(*rand.Rand, int) int) *World {
	w := &World{disks: maps.Clone(s.disks), id: s.id, names: map[string]int{}}
	for _, t := range s.stores {
		x := &store{size: t.sizes[pick(rnd, len(t.sizes))], sectors: map[int64]*sector{}}
		for k, v := range t.sectors {
			if y := v[0]; len(v) == 1 && y != nil && k*Sector < x.size {
				x.sectors[k] = y
			}
		}
		for _, k := range slices.Sorted(maps.Keys(t.loose)) { // in one order, so that chance can be repeated
			v := t.sectors[k]
			if y := v[pick(rnd, len(v))]; y != nil && k*Sector < x.size {
				x.sectors[k] = y
			}
		}
		x.clear(x.size, (x.size/Sector+1)*Sector)
		w.stores = append(w.stores, x)
	}
	for _, name := range slices.Sorted(maps.Keys(s.names)) { // folders come before what is in them
		v := s.names[name]
		n := v[pick(rnd, len(v))]
		if in, ok := w.names[path.Dir(name)]; n.gone || name != "/" && (!ok || in != folder) {
			continue
		}
		w.names[name] = n.store
	}
	w.start = w.snapshot()
	return w
}

// inside returns the names directly in a folder.
func (w *World) inside(dir string) []string {
	var list []string
	for name := range w.names {
		if name != "/" && path.Dir(name) == dir {
			list = append(list, strings.TrimPrefix(name[len(dir):], "/"))
		}
	}
	slices.Sort(list)
	return list
}
