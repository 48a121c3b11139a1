package cow

import (
	"math"
	"math/rand/v2"
	"testing"
)

// TestMap compares the map with a slice, over ranges that lie in several nodes.
func TestMap(t *testing.T) {
	for _, sparse := range []bool{false, true} {
		for _, blocks := range []int64{1, 1000, fan, fan + 1, 3*fan - 7, fan*fan + 3*fan + 5} {
			rnd := rand.New(rand.NewPCG(1, uint64(blocks)))
			m, model := newMap(blocks, sparse), make([]uint32, blocks)
			next := uint32(firstSlot)
			for range 300 {
				b := rnd.Int64N(blocks)
				if rnd.IntN(2) == 0 {
					b -= b % fan // whole nodes
				}
				n := 1 + rnd.Int64N(blocks-b)
				if rnd.IntN(2) == 0 {
					n = min(n, 1+rnd.Int64N(3*fan))
				}
				v := uint32(rnd.IntN(3))
				if v == firstSlot && !sparse {
					v, next = next, next+uint32(n)
				}
				m.set(b, n, v)
				for i := range n {
					model[b+i] = v
					if m.numbered(v) {
						v++
					}
				}
				checkMap(t, m, model)
			}
		}
	}
}

// checkMap walks over the map.
func checkMap(t *testing.T, m *blockMap, model []uint32) {
	t.Helper()
	for b := int64(0); b < m.blocks; {
		limit := min(m.blocks-b, 5000)
		v, n := m.get(b, limit)
		if n < 1 {
			t.Fatalf("block %d: a run of %d", b, n)
		}
		end := min(b+n, m.blocks)
		for i := b; i < end; i++ {
			want := v
			if m.numbered(v) {
				want += uint32(i - b)
			}
			if model[i] != want {
				t.Fatalf("block %d of a run of %d from %d on: %d, want %d", i, n, b, want, model[i])
			}
		}
		if end < b+limit && m.follows(v, model[end], end-b) {
			t.Fatalf("the run from %d on ends at %d, and goes on", b, end)
		}
		b = end
	}
}

// TestMapHuge discards the largest device whole, and in halves.
func TestMapHuge(t *testing.T) {
	const blocks = math.MaxInt64>>blockBits + 1
	m := newMap(blocks, false)
	if _, n := m.get(0, 1); n < blocks {
		t.Errorf("a new map begins with a run of %d blocks, want all %d", n, int64(blocks))
	}
	m.set(5, 1, firstSlot)
	m.set(0, blocks, isZero)
	if m.root != uniforms[isZero] {
		t.Error("a map whose blocks are all zero is not one node")
	}
	m.set(blocks-1, 1, inBase)
	if v, n := m.get(7, 1); v != isZero || n < 1 {
		t.Errorf("block 7: %d for %d", v, n)
	}
	if v, _ := m.get(blocks-1, 1); v != inBase {
		t.Errorf("last block: %d", v)
	}
}

// TestMapJoins writes and discards a device in order: no node has to stay.
func TestMapJoins(t *testing.T) {
	const blocks = 5 * fan
	m := newMap(blocks, true)
	for _, v := range []uint32{firstSlot, isZero, firstSlot} {
		for b := int64(0); b < blocks; b += 8 {
			m.set(b, 8, v)
		}
		if m.root != uniforms[v] {
			t.Errorf("the map did not become one node of value %d", v)
		}
	}
}

// FuzzMap plays sets that are described by bytes.
func FuzzMap(f *testing.F) {
	f.Add([]byte{0, 0, 0, 255, 1, 4, 0, 9, 9, 2}, true)
	f.Add([]byte{0, 0, 0, 255, 2, 4, 0, 1, 0, 2}, false)
	f.Fuzz(func(t *testing.T, ops []byte, sparse bool) {
		const blocks = 2*fan + 100
		m, model := newMap(blocks, sparse), make([]uint32, blocks)
		next := uint32(firstSlot)
		for ; len(ops) >= 5; ops = ops[5:] {
			b := (int64(ops[0])<<8 | int64(ops[1])) % blocks
			n := min((int64(ops[2])<<8|int64(ops[3]))+1, blocks-b)
			v := uint32(ops[4] % 3)
			if v == firstSlot && !sparse {
				v, next = next, next+uint32(n)
			}
			m.set(b, n, v)
			for i := range n {
				model[b+i] = v
				if m.numbered(v) {
					v++
				}
			}
		}
		checkMap(t, m, model)
	})
}

func TestStripes(t *testing.T) {
	var s stripes
	const unit = 1 << stripeBits
	for _, x := range []struct{ off, end, want int64 }{
		{0, 0, 0}, {0, 1, 1}, {0, unit, 1}, {unit - 1, unit + 1, 2}, {0, unit * stripeCount, stripeCount},
		{unit * 60, unit * 70, 10}, {unit*63 + 1, unit*64 + 1, 2}, {5, math.MaxInt64, stripeCount},
		{unit * 63, unit * (63 + stripeCount), stripeCount},
	} {
		s.lock(x.off, x.end)
		locked := int64(0)
		for i := range s {
			if !s[i].TryLock() {
				locked++
				continue
			}
			s[i].Unlock()
		}
		if locked != x.want {
			t.Errorf("range %d to %d: %d locks, want %d", x.off, x.end, locked, x.want)
		}
		s.unlock(x.off, x.end)
	}
	for i := range s {
		if !s[i].TryLock() {
			t.Errorf("stripe %d stayed locked", i)
		}
	}
}
