package transmission

import "sync"

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
		return &buffer{make([]byte, n, size), i}
	}
	return &buffer{make([]byte, n), -1}
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

func (b *buffer) put() {
	if b != nil && b.class >= 0 {
		pools[b.class].Put(b)
	}
}
