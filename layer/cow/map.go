package cow

// A block's value in the map: where its bytes are.
const (
	inBase    = 0 // in the device below
	isZero    = 1 // nowhere: it reads as zeroes
	firstSlot = 2 // in the diff, at slot value-firstSlot; with sparse diffs, at its own place
)

// fanBits is the logarithm of how many children a node of the map has.
const (
	fanBits = 10
	fan     = 1 << fanBits
)

// blockMap gives every block a value. It is a tree in which a node whose blocks
// all have one value that needs no telling apart has no children: a device of
// any size begins as one node, and discarding all of it makes it one again. What
// it takes is about 4 bytes for each block that is in the diff.
//
// It is not safe for concurrent use. The zero value is not ready; use newMap.
type blockMap struct {
	root   *node
	height uint // the root covers fan**(height+1) blocks
	blocks int64
	sparse bool // all blocks in the diff have the value firstSlot
}

// node covers fan**(level+1) blocks. A nil node is uniform, and inBase. Uniform
// nodes are shared and never changed.
type node struct {
	uniform uint32   // the value of all blocks, if leaf and kids are nil
	leaf    []uint32 // level 0
	kids    []*node  // other levels
}

// uniforms are the uniform nodes. Of the slots only the first can be uniform, with
// a sparse diff.
var uniforms = [...]*node{inBase: nil, isZero: {uniform: isZero}, firstSlot: {uniform: firstSlot}}

func newMap(blocks int64, sparse bool) *blockMap {
	m := &blockMap{blocks: blocks, sparse: sparse}
	for m.span(m.height) < blocks {
		m.height++
	}
	return m
}

// span returns how many blocks a node covers.
func (*blockMap) span(level uint) int64 { return 1 << ((level + 1) * fanBits) }

// numbered reports whether neighbours with the value v on the first have
// consecutive values, not the same.
func (m *blockMap) numbered(v uint32) bool { return v >= firstSlot && !m.sparse }

// follows reports whether a block n blocks after one with the value v continues
// it if its own value is w.
func (m *blockMap) follows(v, w uint32, n int64) bool {
	if m.numbered(v) {
		return int64(w) == int64(v)+n
	}
	return w == v
}

// value returns what all blocks under n have in common, if they are uniform.
func (n *node) value() (v uint32, ok bool) {
	switch {
	case n == nil:
		return inBase, true
	case n.leaf == nil && n.kids == nil:
		return n.uniform, true
	}
	return 0, false
}

// get returns the value of block b, and for how many blocks from b on it goes on
// like that. It stops looking after limit blocks; the answer may be longer, and
// may reach past the device.
func (m *blockMap) get(b, limit int64) (v uint32, n int64) {
	v, n = m.probe(b)
	for n < limit && b+n < m.blocks {
		w, more := m.probe(b + n)
		if !m.follows(v, w, n) {
			break
		}
		n += more
	}
	return v, n
}

// probe is get inside one node.
func (m *blockMap) probe(b int64) (v uint32, n int64) {
	at, level := m.root, m.height
	for {
		if v, ok := at.value(); ok {
			span := m.span(level)
			return v, span - b&(span-1)
		}
		i := b >> (level * fanBits) & (fan - 1)
		if level > 0 {
			at, level = at.kids[i], level-1
			continue
		}
		v, n = at.leaf[i], 1
		for i+n < fan && m.follows(v, at.leaf[i+n], n) {
			n++
		}
		return v, n
	}
}

// set gives n blocks from b on the value v, or values from v on.
func (m *blockMap) set(b, n int64, v uint32) {
	if b+n == m.blocks && !m.numbered(v) {
		n = m.span(m.height) - b // what is past the end is anything
	}
	m.root = m.setNode(m.root, m.height, b, n, v)
}

// setNode returns what n becomes. b is counted from the node's first block.
func (m *blockMap) setNode(n *node, level uint, b, count int64, v uint32) *node {
	numbered := m.numbered(v)
	if !numbered && count == m.span(level) {
		return uniforms[v]
	}
	n = n.split(level)
	end := b + count
	if level == 0 {
		for ; b < end; b++ {
			n.leaf[b] = v
			if numbered {
				v++
			}
		}
		return n.join(end)
	}
	kid := m.span(level - 1)
	for b < end {
		i := b / kid
		k := min(end, (i+1)*kid) - b
		n.kids[i] = m.setNode(n.kids[i], level-1, b-i*kid, k, v)
		b += k
		if numbered {
			v += uint32(k)
		}
	}
	return n.join((end + kid - 1) / kid)
}

// split returns n with children of its own.
func (n *node) split(level uint) *node {
	v, ok := n.value()
	if !ok {
		return n
	}
	s := &node{}
	if level == 0 {
		s.leaf = make([]uint32, fan)
		for i := range s.leaf {
			s.leaf[i] = v
		}
		return s
	}
	s.kids = make([]*node, fan)
	for i := range s.kids {
		s.kids[i] = uniforms[v]
	}
	return s
}

// join returns a uniform node in the place of n if its children have become
// that. It looks only when the change reached the last child, so that a device
// that is written or discarded in order costs one look for each node.
func (n *node) join(end int64) *node {
	if end != fan {
		return n
	}
	if n.leaf != nil {
		v := n.leaf[0]
		for _, w := range n.leaf[1:] {
			if w != v {
				return n
			}
		}
		return uniforms[v]
	}
	for _, k := range n.kids {
		if k != n.kids[0] {
			return n
		}
	}
	if _, ok := n.kids[0].value(); !ok {
		return n
	}
	return n.kids[0]
}
