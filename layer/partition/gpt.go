package partition

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"strings"
	"unicode"
	"unicode/utf16"
)

// A GPT has a header in the second sector, and a copy in the last one; each says
// where its array of entries is. UEFI Specification, "GUID Partition Table (GPT) Disk
// Layout".
const (
	gptSignature = "EFI PART"
	gptHeader    = 92 // bytes of the header that have a meaning
	gptEntry     = 128
	gptName      = 72      // bytes of an entry's name, in UTF-16
	maxArray     = 4 << 20 // bytes of entries; the usual array has 16 KiB
)

// gpt reads the first GPT, or else its copy.
func (r *reader) gpt(sector int64) (*Table, error) {
	sectors := []int64{512, 4096}
	if sector != 0 {
		sectors = []int64{sector}
	}
	var errs []error
	for _, backup := range []bool{false, true} {
		for _, sector := range sectors {
			at := int64(1)
			if backup {
				at = r.size/sector - 1
			}
			t, err := r.gptAt(at, sector)
			if err == nil {
				t.Backup = backup
				return t, nil
			}
			if !errors.Is(err, errNoGPT) {
				errs = append(errs, fmt.Errorf("the GPT at byte %d: %w", at*sector, err))
			}
		}
	}
	if errs == nil {
		return nil, fmt.Errorf("the first sector says that there is a GPT, and there is neither one behind it nor a copy at the end: %w", errNoGPT)
	}
	return nil, errors.Join(errs...)
}

var errNoGPT = errors.New("the signature is not there")

// gptAt reads the GPT whose header is in the given sector.
func (r *reader) gptAt(at, sector int64) (*Table, error) {
	if at < 1 || at >= r.size/sector {
		return nil, errNoGPT
	}
	p, err := r.bytes(at*sector, sector)
	if err != nil {
		return nil, err
	}
	h, err := parseGPTHeader(p)
	switch {
	case err != nil:
		return nil, err
	case h.own != uint64(at):
		return nil, fmt.Errorf("its header says that it is in sector %d, and it is in %d", h.own, at)
	case h.entries > uint64(r.size/sector):
		return nil, fmt.Errorf("its entries begin in sector %d, and the disk has %d", h.entries, r.size/sector)
	}
	array, err := r.bytes(int64(h.entries)*sector, int64(h.count)*int64(h.entrySize))
	if err != nil {
		return nil, err
	}
	if crc := crc32.ChecksumIEEE(array); crc != h.arrayCRC {
		return nil, fmt.Errorf("the checksum of its entries is %#08x, and should be %#08x", crc, h.arrayCRC)
	}
	t := &Table{Kind: GPT, Sector: sector}
	for i := range h.count {
		x := array[int64(i)*int64(h.entrySize):][:gptEntry]
		if q, ok := parseGPTEntry(x, sector); ok {
			q.Number = int(i) + 1
			t.Partitions = append(t.Partitions, q)
		}
	}
	return t, nil
}

// gptHead is what a header says.
type gptHead struct {
	own, entries     uint64 // sectors
	count, entrySize uint32
	arrayCRC         uint32
}

// parseGPTHeader reads a header, which is at the beginning of a sector.
func parseGPTHeader(p []byte) (gptHead, error) {
	var h gptHead
	le := binary.LittleEndian
	if len(p) < gptHeader || string(p[:8]) != gptSignature {
		return h, errNoGPT
	}
	size := le.Uint32(p[12:])
	if size < gptHeader || int64(size) > int64(len(p)) {
		return h, fmt.Errorf("its header claims to have %d bytes, and may have %d to %d", size, gptHeader, len(p))
	}
	summed := append([]byte{}, p[:size]...)
	clear(summed[16:20]) // where the sum itself is
	if crc, want := crc32.ChecksumIEEE(summed), le.Uint32(p[16:]); crc != want {
		return h, fmt.Errorf("the checksum of its header is %#08x, and should be %#08x", crc, want)
	}
	if v := le.Uint32(p[8:]); v>>16 != 1 {
		return h, fmt.Errorf("its version is %d.%d, and known is 1.0", v>>16, v&0xffff)
	}
	h = gptHead{
		own: le.Uint64(p[24:]), entries: le.Uint64(p[72:]),
		count: le.Uint32(p[80:]), entrySize: le.Uint32(p[84:]), arrayCRC: le.Uint32(p[88:]),
	}
	switch {
	case h.entrySize < gptEntry || h.entrySize%8 != 0:
		return h, fmt.Errorf("its entries claim to have %d bytes; they have 128 or more", h.entrySize)
	case uint64(h.count)*uint64(h.entrySize) > maxArray:
		return h, fmt.Errorf("it claims to have %d entries of %d bytes; more than %d bytes are not read", h.count, h.entrySize, maxArray)
	}
	return h, nil
}

// parseGPTEntry reads an entry, and reports whether it is used. One that makes no
// sense is not, as with Linux: the others can be shown all the same.
func parseGPTEntry(x []byte, sector int64) (Partition, bool) {
	le := binary.LittleEndian
	if [16]byte(x[:16]) == [16]byte{} {
		return Partition{}, false
	}
	first, last := le.Uint64(x[32:]), le.Uint64(x[40:])
	if first > last || last >= uint64(math.MaxInt64/sector) {
		return Partition{}, false
	}
	return Partition{
		Offset: int64(first) * sector, Size: int64(last-first+1) * sector, Type: guid(x[:16]), Name: gptText(x[56 : 56+gptName]),
	}, true
}

// guid writes a GUID in its usual form: the first three groups are little-endian.
func guid(x []byte) string {
	le := binary.LittleEndian
	return fmt.Sprintf("%08x-%04x-%04x-%x-%x", le.Uint32(x), le.Uint16(x[4:]), le.Uint16(x[6:]), x[8:10], x[10:16])
}

// gptText returns what can be printed of a name in UTF-16, up to the first zero.
func gptText(x []byte) string {
	var units []uint16
	for ; len(x) >= 2; x = x[2:] {
		u := binary.LittleEndian.Uint16(x)
		if u == 0 {
			break
		}
		units = append(units, u)
	}
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, string(utf16.Decode(units)))
}
