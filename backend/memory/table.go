package memory

import "sync/atomic"

// The table has three levels, so that a large disk with few chunks needs little,
// and finding a chunk takes three loads and no lock.
const (
	chunkBits  = 15 // 32 KiB: the largest size that the runtime's allocator keeps ready
	leafBits   = 10 // a leaf covers 32 MiB and takes 8 KiB
	branchBits = 12 // a branch covers 128 GiB and takes 32 KiB
)

const (
	leafSpan   = 1 << leafBits                // chunks
	branchSpan = 1 << (leafBits + branchBits) // chunks
)

type (
	chunk  [ChunkSize]byte
	slot   = atomic.Pointer[chunk]
	leaf   [1 << leafBits]slot
	branch [1 << branchBits]atomic.Pointer[leaf]
)

// table finds the chunks of a disk. Leaves and branches stay once they are made.
type table struct {
	root []atomic.Pointer[branch]
}

func (t *table) init(size int64) {
	const span = branchSpan * ChunkSize // bytes
	t.root = make([]atomic.Pointer[branch], (size+span-1)/span)
}

// slot returns where the chunk's address is, or nil if there is no such chunk.
func (t *table) slot(index int64) *slot {
	s, _ := t.find(index)
	return s
}

// find returns the chunk's slot, or nil and the index of the next chunk that may
// have one.
func (t *table) find(index int64) (*slot, int64) {
	r := index / branchSpan
	if r >= int64(len(t.root)) {
		return nil, int64(MaxSize / ChunkSize)
	}
	b := t.root[r].Load()
	if b == nil {
		return nil, (r + 1) * branchSpan
	}
	f := b[index/leafSpan%(1<<branchBits)].Load()
	if f == nil {
		return nil, (index/leafSpan + 1) * leafSpan
	}
	return &f[index%leafSpan], index + 1
}

// makeSlot returns the chunk's slot, and makes what leads to it.
func (t *table) makeSlot(index int64) *slot {
	b := ensure(&t.root[index/branchSpan])
	f := ensure(&b[index/leafSpan%(1<<branchBits)])
	return &f[index%leafSpan]
}

// ensure returns what p points to, and makes it if there is nothing yet. Of
// several callers at once, all get the same.
func ensure[T any](p *atomic.Pointer[T]) *T {
	if v := p.Load(); v != nil {
		return v
	}
	p.CompareAndSwap(nil, new(T))
	return p.Load()
}
