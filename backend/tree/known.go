package tree

import (
	"errors"
	"fmt"
	"io/fs"
	"math/bits"
	"sync"
)

// known tells which files and folders there are. It reads each folder once. The
// zero value, with a tree, is ready.
type known struct {
	tree   *Tree
	shards [knownShards]shard
}

const (
	knownShards = 64
	shardLimit  = 256 // folders that a shard remembers
)

type shard struct {
	mu    sync.RWMutex
	nodes map[node]*children
}

// children has a bit for each child of a folder.
type children [fan / 64]uint64

func (c *children) has(i int64) bool { return c[i/64]&(1<<(i%64)) != 0 }
func (c *children) add(i int64)      { c[i/64] |= 1 << (i % 64) }
func (c *children) remove(i int64)   { c[i/64] &^= 1 << (i % 64) }

// next returns the first child from i on, or fan.
func (c *children) next(i int64) int64 {
	for ; i < fan; i = (i/64 + 1) * 64 {
		if rest := c[i/64] >> (i % 64); rest != 0 {
			return i + int64(bits.TrailingZeros64(rest))
		}
	}
	return fan
}

func (k *known) shard(n node) *shard {
	return &k.shards[uint64(n.index*7+int64(n.level))%knownShards]
}

// with calls do with the children of a folder. It reads the folder first, if it must;
// one that is not there has none. The folder stays locked meanwhile, so that what
// do changes is not lost.
func (k *known) with(n node, do func(c *children)) error {
	s := k.shard(n)
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.nodes[n]
	if c == nil {
		var err error
		if c, err = k.read(n); err != nil {
			return err
		}
		if s.nodes == nil {
			s.nodes = map[node]*children{}
		}
		if len(s.nodes) >= shardLimit {
			for old := range s.nodes { // any
				delete(s.nodes, old)
				break
			}
		}
		s.nodes[n] = c
	}
	do(c)
	return nil
}

// read reads a folder.
func (k *known) read(n node) (*children, error) {
	prefix := filePrefix
	if n.level > 0 {
		prefix = dirPrefix
	}
	c := new(children)
	err := k.tree.fs.ReadDir(k.tree.dir(n), func(s string) {
		if i := parseName(prefix, s); i >= 0 {
			c.add(i)
		}
	})
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("tree: look into a folder: %w", err)
	}
	return c, nil
}

// has reports whether a block has a file.
func (k *known) has(b int64) (ok bool, err error) {
	n := leaf(b)
	s := k.shard(n)
	s.mu.RLock()
	c := s.nodes[n]
	ok = c != nil && c.has(b&(fan-1))
	s.mu.RUnlock()
	if c == nil {
		err = k.with(n, func(c *children) { ok = c.has(b & (fan - 1)) })
	}
	return ok, err
}

// hasNow is has, for who must not wait: if the folder has not been read yet, or is
// being changed, it is not sure.
func (k *known) hasNow(b int64) (ok, sure bool) {
	n := leaf(b)
	s := k.shard(n)
	if !s.mu.TryRLock() {
		return false, false
	}
	c := s.nodes[n]
	ok = c != nil && c.has(b&(fan-1))
	s.mu.RUnlock()
	return ok, c != nil
}

// find returns the first block from b on that has a file, or end. It passes over
// what is not there by whole folders.
func (k *known) find(b, end int64) (int64, error) {
search:
	for b < end {
		for level := k.tree.levels; level >= 0; level-- {
			bits := level * fanBits
			number := b >> bits
			child := number & (fan - 1)
			found := child
			err := k.with(node{level, number >> fanBits}, func(c *children) { found = c.next(child) })
			if err != nil {
				return 0, err
			}
			if found != child {
				number += found - child
				if number > end>>bits {
					return end, nil
				}
				b = number << bits
				continue search
			}
		}
		return b, nil
	}
	return end, nil
}
