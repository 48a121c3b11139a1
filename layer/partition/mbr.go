package partition

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// An MBR is the first sector of a disk: 446 bytes of a program, 4 entries of 16,
// and a signature. The first sector of each logical partition's stretch, the EBR,
// looks the same.
const (
	mbrSize    = 512
	mbrEntries = 446
	mbrEntry   = 16
	protective = 0xee // all of the disk is a GPT's
	maxLogical = 256  // as Linux has it, roughly; a chain may be a circle
)

// entry is an entry of an MBR or EBR.
type entry struct {
	kind         byte
	first, count uint32 // sectors
}

func (e entry) empty() bool { return e.kind == 0 || e.count == 0 }

func (e entry) extended() bool { return e.kind == 0x05 || e.kind == 0x0f || e.kind == 0x85 }

// parseMBR reads a sector of mbrSize bytes.
func parseMBR(p []byte) (list [4]entry, err error) {
	if len(p) != mbrSize || p[510] != 0x55 || p[511] != 0xaa {
		return list, errors.New("there is no partition table: the signature is not there")
	}
	for i := range list {
		x := p[mbrEntries+i*mbrEntry:][:mbrEntry]
		if x[0]&0x7f != 0 { // active, or not
			return list, fmt.Errorf("there is no partition table: entry %d of the first sector makes no sense, so it may be that of a file system", i+1)
		}
		list[i] = entry{x[4], binary.LittleEndian.Uint32(x[8:]), binary.LittleEndian.Uint32(x[12:])}
	}
	return list, nil
}

// mbr reads the logical partitions too.
func (r *reader) mbr(primary [4]entry, sector int64) (*Table, error) {
	t := &Table{Kind: MBR, Sector: sector}
	next := 5
	for i, e := range primary {
		if e.empty() {
			continue
		}
		t.Partitions = append(t.Partitions, Partition{
			Number: i + 1, Offset: int64(e.first) * sector, Size: int64(e.count) * sector,
			Type: fmt.Sprintf("%#02x", e.kind), Extended: e.extended(),
		})
	}
	for _, e := range primary {
		if e.empty() || !e.extended() {
			continue
		}
		list, err := r.logical(e, sector, next)
		if err != nil {
			return nil, err
		}
		next += len(list)
		t.Partitions = append(t.Partitions, list...)
	}
	return t, nil
}

// logical follows the chain in an extended partition. The place of a logical
// partition is counted from its EBR, that of the next EBR from the beginning of the
// extended partition.
func (r *reader) logical(outer entry, sector int64, number int) ([]Partition, error) {
	var list []Partition
	at := int64(outer.first)
	for links := 0; ; links++ {
		if links == maxLogical {
			return nil, fmt.Errorf("the chain of logical partitions has more than %d links; it may be a circle", maxLogical)
		}
		p, err := r.bytes(at*sector, mbrSize)
		if err != nil {
			return nil, fmt.Errorf("the chain of logical partitions, behind number %d: %w", number-1+len(list), err)
		}
		entries, err := parseMBR(p)
		if err != nil {
			if links == 0 {
				return nil, nil // an extended partition in which nothing was ever made
			}
			return nil, fmt.Errorf("the chain of logical partitions is broken behind number %d, at byte %d: %w", number-1+len(list), at*sector, err)
		}
		next := int64(-1)
		for _, e := range entries {
			switch {
			case e.empty():
			case e.extended() && next < 0:
				next = int64(outer.first) + int64(e.first)
			case !e.extended():
				list = append(list, Partition{
					Number: number + len(list), Offset: (at + int64(e.first)) * sector, Size: int64(e.count) * sector,
					Type: fmt.Sprintf("%#02x", e.kind),
				})
			}
		}
		if next < 0 {
			return list, nil
		}
		at = next
	}
}
