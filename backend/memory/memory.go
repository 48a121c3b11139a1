// Package memory is a disk in the memory of the process, gone when it is closed.
//
// # Concepts
//
// The disk is sparse. It is cut into chunks of [ChunkSize] bytes; a chunk takes
// memory from the first write to it until it is trimmed or zeroed, and all that
// was never written reads as zeroes and takes none. A disk of many terabytes that
// holds a little takes a little.
//
// Nothing ever waits for a disk, so every operation is "native" in the sense of
// [block.Caps]: what was written is as stable as it can be at once, and Flush has
// nothing to do. The contents do not outlive the process, which is what a new
// [block.Caps.Instance] for each disk says.
package memory

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"

	"nbd.example/nbd/block"
)

// Sizes, in bytes.
const (
	ChunkSize = 1 << chunkBits // what is taken and given back at a time
	MaxSize   = 1 << 56        // the largest disk
)

// Config describes a disk.
type Config struct {
	// Size of the disk in bytes, 0 to MaxSize.
	Size int64
	// Limit is the most memory in bytes that the contents may take, rounded down
	// to whole chunks. A write past it fails with [syscall.ENOSPC]. 0 means no
	// limit.
	Limit int64
}

// Memory is a disk. It implements every optional interface of package block.
type Memory struct {
	size     int64
	instance string
	table    table

	limit int64        // chunks; 0 means none
	used  atomic.Int64 // chunks

	// A chunk, and its slot in the table, change only under its lock.
	locks [lockCount]paddedLock
}

var (
	_ block.Backend    = (*Memory)(nil)
	_ block.Writer     = (*Memory)(nil)
	_ block.Flusher    = (*Memory)(nil)
	_ block.Trimmer    = (*Memory)(nil)
	_ block.ZeroWriter = (*Memory)(nil)
	_ block.Extenter   = (*Memory)(nil)
	_ block.Cacher     = (*Memory)(nil)
	_ block.Direct     = (*Memory)(nil)
)

// lockCount is how many locks the chunks share: enough that two requests seldom
// meet, few enough to cost little. A power of two.
const lockCount = 256

// paddedLock keeps two locks out of one cache line.
type paddedLock struct {
	sync.RWMutex
	_ [40]byte
}

// New makes a disk that reads as zeroes. The result is a [*Memory].
func New(c Config) (block.Backend, error) {
	if c.Size < 0 || c.Size > MaxSize {
		return nil, fmt.Errorf("memory: size %d is not between 0 and %d", c.Size, int64(MaxSize))
	}
	if c.Limit < 0 || c.Limit > 0 && c.Limit < ChunkSize {
		return nil, fmt.Errorf("memory: limit %d is less than one chunk of %d bytes", c.Limit, ChunkSize)
	}
	m := &Memory{size: c.Size, limit: c.Limit / ChunkSize, instance: block.NewInstance()}
	m.table.init(c.Size)
	return m, nil
}

// Caps says that everything is native.
func (m *Memory) Caps() block.Caps {
	return block.Caps{
		Size: m.size, MultiConn: true, Instance: m.instance,
		Flush: block.Native, FreeFlush: true, FUA: block.Native, Trim: block.Native, Zero: block.Native,
		FastZero: block.Native, Extents: block.Native, Cache: block.Native,
	}
}

// Used returns the memory that the contents take now, in bytes.
func (m *Memory) Used() int64 { return m.used.Load() * ChunkSize }

// Close gives the memory back.
func (m *Memory) Close() error {
	m.table = table{}
	m.used.Store(0)
	return nil
}

func (m *Memory) lock(index int64) *sync.RWMutex {
	return &m.locks[index&(lockCount-1)].RWMutex
}

// piece returns the chunk that off is in, the place in it, and how many of n
// bytes are in it.
func piece(off, n int64) (index, at, length int64) {
	at = off & (ChunkSize - 1)
	return off >> chunkBits, at, min(n, ChunkSize-at)
}

// TryRead reads: nothing here has to wait for a disk.
func (m *Memory) TryRead(p []byte, off int64) bool {
	for len(p) > 0 {
		index, at, n := piece(off, int64(len(p)))
		m.readChunk(p[:n], index, at)
		p, off = p[n:], off+n
	}
	return true
}

func (m *Memory) readChunk(p []byte, index, at int64) {
	s := m.table.slot(index)
	if s == nil || s.Load() == nil {
		clear(p)
		return
	}
	l := m.lock(index)
	l.RLock()
	if c := s.Load(); c != nil {
		copy(p, c[at:])
	} else {
		clear(p)
	}
	l.RUnlock()
}

// ReadAt fills p.
func (m *Memory) ReadAt(_ context.Context, p []byte, off int64) error {
	m.TryRead(p, off)
	return nil
}

// TryWrite writes, unless the limit forbids it.
func (m *Memory) TryWrite(p []byte, off int64) bool { return m.write(p, off) == nil }

// WriteAt writes p. It fails only at the limit.
func (m *Memory) WriteAt(_ context.Context, p []byte, off int64, _ block.Flags) error {
	return m.write(p, off)
}

func (m *Memory) write(p []byte, off int64) error {
	for len(p) > 0 {
		index, at, n := piece(off, int64(len(p)))
		l := m.lock(index)
		l.Lock()
		c, err := m.touch(index)
		if err != nil {
			l.Unlock()
			return &block.OffsetError{Off: off, Err: err}
		}
		copy(c[at:], p[:n])
		l.Unlock()
		p, off = p[n:], off+n
	}
	return nil
}

// touch returns the chunk, which it makes if there is none. Its lock is held.
func (m *Memory) touch(index int64) (*chunk, error) {
	s := m.table.makeSlot(index)
	if c := s.Load(); c != nil {
		return c, nil
	}
	if used := m.used.Add(1); m.limit > 0 && used > m.limit {
		m.used.Add(-1)
		return nil, fmt.Errorf("memory: all %d bytes that the disk may take are in use: %w", m.limit*ChunkSize, syscall.ENOSPC)
	}
	c := new(chunk)
	s.Store(c)
	return c, nil
}

// Flush has nothing to do.
func (m *Memory) Flush(context.Context) error { return nil }

// Cache has nothing to do.
func (m *Memory) Cache(context.Context, int64, int64) error { return nil }

// Range offers nothing: the contents are in no file.
func (m *Memory) Range(int64, int64, bool) (block.Span, bool) { return block.Span{}, false }

// Avoid has nothing to do: there was no span.
func (m *Memory) Avoid(block.Span) {}

// Trim gives memory back. The range reads as zeroes.
func (m *Memory) Trim(ctx context.Context, off, n int64, _ block.Flags) error {
	return m.release(ctx, off, n)
}
