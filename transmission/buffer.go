package transmission

import (
	"sync"
	"sync/atomic"
)

// Sizes of pooled buffers, in bytes. Each leaves room for the header of a reply
// behind a power of two of data.
const (
	headroom   = 64
	smallSize  = 8<<10 + headroom
	mediumSize = 64<<10 + headroom
	batchSize  = 256<<10 + headroom // what is read from and written to a socket at once
	largeSize  = 1<<20 + headroom
)

var classes = [...]int{smallSize, mediumSize, batchSize, largeSize}

// buffer is a piece of pooled memory. b has the length that was asked for.
type buffer struct {
	b     []byte
	class int // index of classes; -1 for one that is too large to keep
	// shared is 0 while there is one user, else how many there are.
	shared atomic.Int32
	memory *Memory // where the second user's share counts; may be nil
}

var pools [len(classes)]sync.Pool // of *buffer

// getBuffer returns a buffer of n bytes with arbitrary contents. It is the
// caller's until put.
func getBuffer(n int) *buffer {
	for i, size := range classes {
		if n > size {
			continue
		}
		if b, _ := pools[i].Get().(*buffer); b != nil {
			b.b = b.b[:n]
			return b
		}
		return &buffer{b: make([]byte, n, size), class: i}
	}
	return &buffer{b: make([]byte, n), class: -1}
}

// size returns how much memory b takes, in bytes. That of nil is 0.
func (b *buffer) size() int {
	if b == nil {
		return 0
	}
	return cap(b.b)
}

// bufferSize returns how much memory getBuffer(n) takes, in bytes.
func bufferSize(n int) int {
	for _, size := range classes {
		if n <= size {
			return size
		}
	}
	return n
}

// share adds a second user, who is to call Release, and whose share counts in m until then.
func (b *buffer) share(m *Memory) {
	b.memory = m
	m.take(b.size())
	b.shared.Store(2)
}

// Release is put, for the second user.
func (b *buffer) Release() {
	m, n := b.memory, b.size()
	b.put()
	m.take(-n)
}

// put ends the use of a buffer.
func (b *buffer) put() {
	if b == nil || b.shared.Load() > 0 && b.shared.Add(-1) > 0 {
		return
	}
	if b.class >= 0 {
		pools[b.class].Put(b)
	}
}
