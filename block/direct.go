package block

// HasDirect reports whether the fast path has a door here at all.
func (d *Device) HasDirect() bool { return d.direct != nil }

// TryRead fills p now, or reports false: then ReadAt tells why, or waits.
func (d *Device) TryRead(p []byte, off int64) bool {
	n, size := int64(len(p)), d.Size()
	return d.direct != nil && n > 0 && off >= 0 && off <= size && n <= size-off &&
		d.aligned(off, n) && d.direct.TryRead(p, off)
}

// TryWrite writes p now, or reports false: then WriteAt tells why, or waits. It
// has no flags: a write with FUA always waits.
func (d *Device) TryWrite(p []byte, off int64) bool {
	n, size := int64(len(p)), d.Size()
	if d.direct == nil || d.caps.ReadOnly || n == 0 || off < 0 || off > size || n > size-off ||
		d.min > 1 || d.broken.Load() != nil {
		return false
	}
	return d.direct.TryWrite(p, off)
}

// Range returns a stretch of bytes that are in memory and can go to a socket
// as they are.
func (d *Device) Range(off, n int64, onlyData bool) (Span, bool) {
	if size := d.Size(); d.direct == nil || off < 0 || n <= 0 || off > size || n > size-off {
		return Span{}, false
	}
	return d.direct.Range(off, n, onlyData)
}

// HasMapped reports whether Mapped may ever say yes.
func (d *Device) HasMapped() bool { return d.mapper != nil }

// Mapped returns a stretch of bytes that can go to a socket from where they are
// mapped.
func (d *Device) Mapped(off, n int64) (Span, bool) {
	if size := d.Size(); d.mapper == nil || off < 0 || n <= 0 || off > size || n > size-off {
		return Span{}, false
	}
	return d.mapper.Mapped(off, n)
}

// Avoid tells the back end that s could not be sent whole.
func (d *Device) Avoid(s Span) {
	if d.direct != nil {
		d.direct.Avoid(s)
	}
}
