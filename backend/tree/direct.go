package tree

import "nbd.example/nbd/block"

var _ block.Direct = (*Tree)(nil)

// TryRead implements block.Direct.
func (t *Tree) TryRead(p []byte, off int64) bool {
	for len(p) > 0 {
		at := off % BlockSize
		n := min(len(p), int(BlockSize-at))
		if !t.tryRead(off>>blockBits, p[:n], at) {
			return false
		}
		p, off = p[n:], off+int64(n)
	}
	return true
}

func (t *Tree) tryRead(b int64, p []byte, at int64) bool {
	l := t.lock(b)
	if !l.TryRLock() {
		return false
	}
	defer l.RUnlock()
	ok, sure := t.known.hasNow(b)
	if !sure {
		return false
	}
	if !ok {
		clear(p)
		return true
	}
	h := t.openNow(b, len(p) < BlockSize)
	if h == nil {
		return false
	}
	defer h.release()
	return h.ReadNow(p, at)
}

// openNow is open, if that needs no waiting. Otherwise it returns nil.
func (t *Tree) openNow(b int64, keep bool) *handle {
	if h := t.cache.get(b); h != nil {
		return h
	}
	f := t.fs.OpenNow(t.file(b), t.openFlag())
	if f == nil {
		return nil
	}
	return t.cache.put(b, f, keep)
}

// longWrite is the length from which a write is left to others, in bytes: while one opens,
// writes and closes more than eight files, the next can be read and another one be made.
// Shorter ones gain nothing by that, or lose.
const longWrite = 32<<10 + 1

// TryWrite implements block.Direct. Files are not made here.
func (t *Tree) TryWrite(p []byte, off int64) bool {
	if t.config.Sync || len(p) >= longWrite {
		return false
	}
	for len(p) > 0 {
		at := off % BlockSize
		n := min(len(p), int(BlockSize-at))
		if !t.tryWrite(off>>blockBits, p[:n], at) {
			return false
		}
		p, off = p[n:], off+int64(n)
	}
	return true
}

func (t *Tree) tryWrite(b int64, p []byte, at int64) bool {
	l := t.lock(b)
	if !l.TryRLock() {
		return false
	}
	defer l.RUnlock()
	if ok, _ := t.known.hasNow(b); !ok {
		return false
	}
	h := t.openNow(b, len(p) < BlockSize || t.dirty.keep())
	if h == nil {
		return false
	}
	defer h.release()
	// When the write returns and not before: a flush may be under way.
	defer t.dirty.file(h)
	return (len(p) == BlockSize || h.makeWhole() == nil) && h.WriteNow(p, at)
}

// Range implements block.Direct. A span would be in one file.
func (t *Tree) Range(int64, int64, bool) (block.Span, bool) { return block.Span{}, false }

// Avoid implements block.Direct.
func (t *Tree) Avoid(block.Span) {}
