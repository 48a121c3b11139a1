package tree

import (
	"path/filepath"
	"strconv"
	"strings"
)

const (
	filePrefix = "FILE"
	dirPrefix  = "TREE"
	digits     = 4
)

// levels returns how many levels of folders a tree of size bytes has between its own
// folder and the files.
func levels(size int64) int {
	n := 0
	for ; size >= fan*BlockSize; size /= fan {
		n++
	}
	return n
}

// node is a folder: that which holds, on its level, the child with the given number
// times 1024. On level 0 the children are files, and their numbers those of the blocks;
// above they are folders, and their number is that of the block without the bits of
// the levels below.
type node struct {
	level int
	index int64
}

// leaf returns the folder in which the file of a block is.
func leaf(b int64) node { return node{0, b >> fanBits} }

// above returns the folder in which n is.
func (n node) above() node { return node{n.level + 1, n.index >> fanBits} }

// dir returns the path of a folder.
func (t *Tree) dir(n node) string {
	return string(t.appendDirs(nil, n.index<<fanBits<<(n.level*fanBits), n.level))
}

// file returns the path of the file of a block.
func (t *Tree) file(b int64) string {
	return string(appendName(t.appendDirs(nil, b, 0), filePrefix, b))
}

// appendDirs appends the path of the folder on a level that is on the way to a block.
func (t *Tree) appendDirs(p []byte, b int64, level int) []byte {
	p = append(p, t.config.Path...)
	for l := t.levels; l > level; l-- {
		p = appendName(p, dirPrefix, b>>(l*fanBits))
	}
	return p
}

// appendName appends the last part of a path.
func appendName(p []byte, prefix string, number int64) []byte {
	const hex = "0123456789ABCDEF"
	p = append(append(p, filepath.Separator), prefix...)
	number &= fan - 1
	return append(p, hex[number>>12], hex[number>>8&15], hex[number>>4&15], hex[number&15])
}

// parseName returns the number in a name, or -1 if it is not one of the tree's.
func parseName(prefix, s string) int64 {
	if len(s) != len(prefix)+digits || s[:len(prefix)] != prefix {
		return -1
	}
	n, err := strconv.ParseUint(s[len(prefix):], 16, 16)
	if err != nil || n >= fan || strings.ToUpper(s) != s {
		return -1
	}
	return int64(n)
}
