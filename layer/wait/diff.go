package wait

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"sync/atomic"
)

// The format; see the package comment.
const (
	magic      = "NBDWAIT\n"
	version    = 1
	unit       = 512 // bytes of the device for each bit
	headerSize = 4096
	// pageSize is the size of what is read and written of the bitmap at once.
	pageSize = 4096
	// stretch is what a page of the bitmap stands for: 16 MiB of the device.
	stretch = pageSize * 8 * unit
	// maxSize bounds the device. Its bitmap has 16 GiB, and is read when it is opened.
	maxSize = 1 << 46
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// header is what identifies a diff.
type header struct {
	size  int64
	name  [16]byte
	begun bool // a merge
}

func (h header) append(p []byte) []byte {
	start := len(p)
	p = append(p, magic...)
	p = binary.BigEndian.AppendUint32(p, version)
	p = binary.BigEndian.AppendUint32(p, unit)
	p = binary.BigEndian.AppendUint64(p, uint64(h.size))
	p = append(p, h.name[:]...)
	state := uint32(0)
	if h.begun {
		state = 1
	}
	p = binary.BigEndian.AppendUint32(p, state)
	p = binary.BigEndian.AppendUint32(p, crc32.Checksum(p[start:], castagnoli))
	return append(p, make([]byte, start+headerSize-len(p))...)
}

// parseHeader reads a header of headerSize bytes.
func parseHeader(p []byte) (header, error) {
	var h header
	switch {
	case len(p) != headerSize || !bytes.HasPrefix(p, []byte(magic)):
		return h, errors.New("it is no diff of this kind; name another file, which will be made")
	case crc32.Checksum(p[:44], castagnoli) != binary.BigEndian.Uint32(p[44:]):
		return h, errors.New("its header is damaged (the checksum is wrong)")
	}
	if v := binary.BigEndian.Uint32(p[8:]); v != version {
		return h, fmt.Errorf("its format has version %d, and this program knows version %d", v, version)
	}
	if u := binary.BigEndian.Uint32(p[12:]); u != unit {
		return h, fmt.Errorf("its bitmap has a unit of %d bytes, not %d", u, unit)
	}
	size := binary.BigEndian.Uint64(p[16:])
	state := binary.BigEndian.Uint32(p[40:])
	if size > maxSize || state > 1 || len(bytes.Trim(p[48:], "\x00")) > 0 {
		return h, errors.New("its header makes no sense")
	}
	h.size, h.begun = int64(size), state == 1
	copy(h.name[:], p[24:])
	return h, nil
}

// diff is the open file.
type diff struct {
	Storage
	head  header
	begun atomic.Bool // the header says so
	data  int64       // where the copy of the device begins
	punch bool        // there are holes
}

// pages returns how many pages the bitmap of a device has.
func pages(size int64) int64 { return (size + stretch - 1) / stretch }

// openDiff reads a diff into m, or makes it, if the file is new.
// A new one gets the given name.
func openDiff(s Storage, size int64, name [16]byte, m *marks) (*diff, error) {
	if size < 0 || size > maxSize {
		return nil, fmt.Errorf("a device of %d bytes is larger than the largest possible, %d", size, int64(maxSize))
	}
	d := &diff{Storage: s, data: headerSize + pages(size)*pageSize}
	have, err := s.Size()
	if err != nil {
		return nil, err
	}
	fresh := have == 0
	if !fresh {
		if fresh, err = d.load(have, size); err != nil {
			return nil, err
		}
	}
	if fresh {
		if err := d.create(size, name); err != nil {
			return nil, fmt.Errorf("make it: %w", err)
		}
	}
	d.begun.Store(d.head.begun)
	if err := d.punchable(); err != nil {
		return nil, err
	}
	if fresh {
		return d, nil
	}
	return d, d.readBitmap(m)
}

// punchable finds out whether there are holes, by making one where nothing is.
func (d *diff) punchable() error {
	err := d.Punch(d.data+d.head.size, pageSize)
	d.punch = err == nil
	if errors.Is(err, errors.ErrUnsupported) {
		err = nil
	}
	return err
}

// load reads the header of a file of have bytes. A file whose creation was cut
// short is fresh.
func (d *diff) load(have, size int64) (fresh bool, err error) {
	p := make([]byte, headerSize)
	if n, err := d.ReadAt(p, 0); n < len(p) && err != io.EOF {
		return false, err
	}
	if len(bytes.Trim(p, "\x00")) == 0 && have == d.data+size {
		return true, nil // as create leaves it before its last step
	}
	if d.head, err = parseHeader(p); err != nil {
		return false, err
	}
	switch {
	case d.head.size != size:
		return false, fmt.Errorf("it was made for a device of %d bytes, and this one has %d", d.head.size, size)
	case have < d.data+size:
		return false, fmt.Errorf("it has %d bytes, fewer than the %d that it began with", have, d.data+size)
	}
	return false, nil
}

// create makes a diff with nothing in it. The header comes last: without it there
// is no diff.
func (d *diff) create(size int64, name [16]byte) error {
	d.head.size, d.head.name = size, name
	if err := d.Truncate(0); err != nil {
		return err
	}
	if err := d.Truncate(d.data + size); err != nil {
		return err
	}
	if err := d.Sync(); err != nil {
		return err
	}
	return d.writeHeader()
}

// writeHeader writes the header, stable.
func (d *diff) writeHeader() error {
	if _, err := d.WriteAt(d.head.append(nil), 0); err != nil {
		return err
	}
	return d.Sync()
}

// begin notes, stable, that a merge has begun.
func (d *diff) begin() error {
	d.head.begun = true
	if err := d.writeHeader(); err != nil {
		return err
	}
	d.begun.Store(true)
	return nil
}

// readBitmap fills m.
func (d *diff) readBitmap(m *marks) error {
	buf := make([]byte, 256*pageSize)
	for first, n := int64(0), pages(d.head.size); first < n; {
		k := min(int64(len(buf)/pageSize), n-first)
		p := buf[:k*pageSize]
		if _, err := d.ReadAt(p, headerSize+first*pageSize); err != nil {
			return fmt.Errorf("read the bitmap: %w", err)
		}
		for i := range k {
			m.load(first+i, p[i*pageSize:(i+1)*pageSize])
		}
		first += k
	}
	return m.checkEnd(d.head.size)
}

// writePage writes a page of the bitmap.
func (d *diff) writePage(i int64, p *[pageSize]byte) error {
	_, err := d.WriteAt(p[:], headerSize+i*pageSize)
	return err
}

func (d *diff) instance() string { return fmt.Sprintf("%x", d.head.name) }

func (d *diff) close() error { return d.Close() }

// read fills p from the bytes of the device at off.
func (d *diff) read(p []byte, off int64) error {
	if _, err := d.ReadAt(p, d.data+off); err != nil {
		return fmt.Errorf("wait: read %d bytes of %d from the diff: %w", len(p), off, err)
	}
	return nil
}

// write is like read.
func (d *diff) write(p []byte, off int64) error {
	if _, err := d.WriteAt(p, d.data+off); err != nil {
		return fmt.Errorf("wait: keep %d bytes of %d in the diff: %w", len(p), off, err)
	}
	return nil
}

// zero makes bytes read as zeroes. There must be holes.
func (d *diff) zero(off, n int64) error {
	if err := d.Punch(d.data+off, n); err != nil {
		return fmt.Errorf("wait: keep %d zeroes of %d in the diff: %w", n, off, err)
	}
	return nil
}
