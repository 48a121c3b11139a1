package file

import (
	"sync"
	"unsafe"
)

// aligned reports whether p lies in memory as I/O in blocks of unit bytes needs
// it.
func aligned(p []byte, unit int64) bool {
	return unit == 1 || uintptr(unsafe.Pointer(unsafe.SliceData(p)))%uintptr(unit) == 0
}

// A long request whose memory is not aligned goes through a buffer in pieces.
const (
	pieceSize    = 1 << 20
	maxAlignment = 1 << 16 // the largest block that package block has, in bytes
)

var pieces = sync.Pool{New: func() any {
	b := make([]byte, pieceSize+maxAlignment)
	return &b
}}

// inPieces calls do for one piece of p after another, each with an aligned buffer
// of its length and its place in p, until one fails.
func inPieces(p []byte, unit int64, do func(buf, part []byte, at int) error) error {
	b := pieces.Get().(*[]byte)
	defer pieces.Put(b)
	skip := -int(uintptr(unsafe.Pointer(unsafe.SliceData(*b)))) & int(unit-1)
	buf := (*b)[skip : skip+pieceSize]
	for at := 0; at < len(p); at += pieceSize {
		part := p[at:min(at+pieceSize, len(p))]
		if err := do(buf[:len(part)], part, at); err != nil {
			return err
		}
	}
	return nil
}
