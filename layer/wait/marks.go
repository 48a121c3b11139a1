package wait

import (
	"bytes"
	"errors"
	"math/bits"
	"slices"
	"sync"
)

// marks say which units of the device are in the diff, one bit for each. A page
// of which no bit is set is not there, and one of which all are is shared.
type marks struct {
	mu    sync.RWMutex
	pages map[int64]*page
}

type page struct {
	bits  *[pageSize]byte
	dirty bool // not as in the file
}

// unitsPerPage is how many units a page stands for.
const unitsPerPage = pageSize * 8

// full is the shared page of which all bits are set. It is never changed.
var full = func() *[pageSize]byte {
	p := new([pageSize]byte)
	for i := range p {
		p[i] = 0xff
	}
	return p
}()

// load takes over a page of the file.
func (m *marks) load(i int64, p []byte) {
	switch {
	case bytes.Equal(p, full[:]):
		m.put(i, &page{bits: full})
	case len(bytes.Trim(p, "\x00")) > 0:
		m.put(i, &page{bits: (*[pageSize]byte)(bytes.Clone(p))})
	}
}

func (m *marks) put(i int64, p *page) {
	if m.pages == nil {
		m.pages = map[int64]*page{}
	}
	m.pages[i] = p
}

// checkEnd complains of bits past the end of a device of size bytes.
func (m *marks) checkEnd(size int64) error {
	last := m.pages[pages(size)-1]
	if last == nil {
		return nil
	}
	for u := (size + unit - 1) / unit % unitsPerPage; u != 0 && u < unitsPerPage; u++ {
		if last.has(u) {
			return errors.New("its bitmap has bits past the end of the device")
		}
	}
	return nil
}

func (p *page) has(u int64) bool { return p.bits[u/8]&(0x80>>(u%8)) != 0 }

// run tells whether the byte at off is in the diff, and up to where the answer is
// the same, at most end.
func (m *marks) run(off, end int64) (set bool, stop int64) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	first := true
	for at := off; at < end; {
		p := m.pages[at/stretch]
		border := (at/stretch + 1) * stretch
		if p == nil || p.bits == full {
			if here := p != nil; first {
				set, first = here, false
			} else if here != set {
				return set, at
			}
			at = border
			continue
		}
		for ; at < min(border, end); at = (at/unit + 1) * unit {
			u := at / unit % unitsPerPage
			// Eight units at a time, where they are alike.
			if b := p.bits[u/8]; u%8 == 0 && at%unit == 0 && !first && (b == 0xff && set || b == 0 && !set) {
				at += 7 * unit
				continue
			}
			if here := p.has(u); first {
				set, first = here, false
			} else if here != set {
				return set, at
			}
		}
	}
	return set, end
}

// set notes that whole units are in the diff. end may be past that of the device.
func (m *marks) set(off, end int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for u, last := off/unit, (end+unit-1)/unit; u < last; {
		i := u / unitsPerPage
		stop := min(last, (i+1)*unitsPerPage)
		p := m.pages[i]
		switch {
		case p == nil && stop-u == unitsPerPage:
			m.put(i, &page{bits: full, dirty: true})
		case p == nil:
			p = &page{bits: new([pageSize]byte)}
			m.put(i, p)
			fallthrough
		case p.bits != full:
			p.set(u-i*unitsPerPage, stop-i*unitsPerPage)
		}
		u = stop
	}
}

// set sets bits from u up to end.
func (p *page) set(u, end int64) {
	for ; u < end && u%8 != 0; u++ {
		p.setOne(u)
	}
	for ; u+8 <= end; u += 8 {
		if p.bits[u/8] != 0xff {
			p.bits[u/8], p.dirty = 0xff, true
		}
	}
	for ; u < end; u++ {
		p.setOne(u)
	}
}

func (p *page) setOne(u int64) {
	if !p.has(u) {
		p.bits[u/8] |= 0x80 >> (u % 8)
		p.dirty = true
	}
}

// dirtyPage is a page that must be written to the file.
type dirtyPage struct {
	i    int64
	bits [pageSize]byte
}

// dirty returns the numbers of the pages that differ from those of the file.
func (m *marks) dirty() []int64 {
	m.mu.RLock()
	defer m.mu.RUnlock()
	var list []int64
	for i, p := range m.pages {
		if p.dirty {
			list = append(list, i)
		}
	}
	slices.Sort(list)
	return list
}

// take returns copies of those pages that are dirty, and takes them for clean.
func (m *marks) take(list []int64) []dirtyPage {
	m.mu.Lock()
	defer m.mu.Unlock()
	var taken []dirtyPage
	for _, i := range list {
		if p := m.pages[i]; p != nil && p.dirty {
			p.dirty = false
			taken = append(taken, dirtyPage{i, *p.bits})
		}
	}
	return taken
}

// again takes pages for dirty: what the file has of them is not known.
func (m *marks) again(list []int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, i := range list {
		if p := m.pages[i]; p != nil {
			p.dirty = true
		}
	}
}

// list returns the numbers of the pages that have anything, in order.
func (m *marks) list() []int64 {
	m.mu.RLock()
	defer m.mu.RUnlock()
	list := make([]int64, 0, len(m.pages))
	for i := range m.pages {
		list = append(list, i)
	}
	slices.Sort(list)
	return list
}

// drop forgets pages.
func (m *marks) drop(list []int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, i := range list {
		delete(m.pages, i)
	}
}

// count returns the bytes of page i that are in the diff of a device of size bytes.
func (m *marks) count(i, size int64) int64 {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.pages[i].bytes(i, size)
}

func (p *page) bytes(i, size int64) int64 {
	if p == nil {
		return 0
	}
	n := int64(unitsPerPage)
	if p.bits != full {
		n = 0
		for _, b := range p.bits {
			n += int64(bits.OnesCount8(b))
		}
	}
	n *= unit
	if short := size % unit; short != 0 && size/stretch == i && p.has(size/unit%unitsPerPage) {
		n -= unit - short
	}
	return n
}

// bytes returns how many bytes of a device of size bytes are in the diff.
func (m *marks) bytes(size int64) int64 {
	m.mu.RLock()
	defer m.mu.RUnlock()
	n := int64(0)
	for i, p := range m.pages {
		n += p.bytes(i, size)
	}
	return n
}
