// Package partition is a layer that shows one partition of a disk as a device of
// its own. It reads partition tables of both usual kinds, MBR with logical
// partitions, and GPT.
//
// # Concepts
//
// Partitions have the numbers that Linux gives them. In an MBR, 1 to 4 are the
// primary ones, by their place in the table, and from 5 on come the logical ones,
// which are chained inside an extended partition. An extended partition is
// a container, and cannot be shown by itself. In a GPT the number is the place in
// the table, from 1 on.
//
// A GPT is protected by checksums, and has a copy at the end of the disk. If the
// first one is damaged, the copy is used; if both are, that is an error. It is a
// GPT if the MBR in front of it says so, with a partition of the type 0xEE.
//
// Tables count in sectors, of 512 bytes or of 4096. A GPT is looked for with
// both; of an MBR nothing tells which it is, so 512 is assumed, unless
// [Config].Sector says otherwise.
//
// The table is read once, when the layer is made. Nothing of the disk outside the
// partition can be reached from then on: see package offset, which does the rest.
package partition

import (
	"context"
	"fmt"
	"strings"

	"nbd.example/nbd/block"
	"nbd.example/nbd/layer/offset"
)

// Config says which partition is shown.
type Config struct {
	Number int   // from 1 on
	Sector int64 // size in bytes in which the table counts, 512 or 4096; 0 finds out
}

// Layer returns a layer that shows the partition. Putting it over a disk that does
// not have it is an error, which tells the partitions that there are.
func Layer(c Config) block.Layer {
	return func(next *block.Device) (block.Backend, error) {
		t, err := Read(context.Background(), next, c.Sector)
		if err != nil {
			return nil, err
		}
		p, err := t.find(c.Number, next.Size())
		if err != nil {
			return nil, err
		}
		return offset.Layer(offset.Config{Offset: p.Offset, Size: p.Size})(next)
	}
}

// Kinds of tables.
const (
	MBR = "MBR"
	GPT = "GPT"
)

// Table is a partition table.
type Table struct {
	Kind   string // MBR or GPT
	Sector int64  // size in bytes in which the table counts
	// Backup says that the first GPT is damaged, and this is the copy.
	Backup     bool
	Partitions []Partition // by number
}

// Partition is an entry of a table. What it says has not been checked against the
// size of the disk.
type Partition struct {
	Number int
	Offset int64  // bytes from the start of the disk
	Size   int64  // bytes, never 0
	Type   string // as "0x83", or as a GUID in its usual form
	Name   string // of a GPT; what cannot be printed is left out
	// Extended says that it only holds logical partitions.
	Extended bool
}

// find returns a partition that can be shown.
func (t *Table) find(number int, size int64) (Partition, error) {
	for _, p := range t.Partitions {
		switch {
		case p.Number != number:
		case p.Extended:
			return p, fmt.Errorf("partition: partition %d is an extended one, which only holds others; %s", number, t.list())
		case p.Offset > size || p.Size > size-p.Offset:
			return p, fmt.Errorf("partition: partition %d has %d bytes at %d, and the disk ends at %d: it was cut off, or has sectors of another size than %d",
				number, p.Size, p.Offset, size, t.Sector)
		default:
			return p, nil
		}
	}
	return Partition{}, fmt.Errorf("partition: there is no partition %d; %s", number, t.list())
}

// list tells what there is, for messages.
func (t *Table) list() string {
	var b strings.Builder
	const most = 16
	for i, p := range t.Partitions {
		switch {
		case i == most:
			fmt.Fprintf(&b, " and %d more", len(t.Partitions)-most)
		case i < most:
			if i > 0 {
				b.WriteString(", ")
			}
			fmt.Fprintf(&b, "%d (%s)", p.Number, p.describe())
		}
	}
	if b.Len() == 0 {
		return "the " + t.Kind + " has none"
	}
	return "the " + t.Kind + " has " + b.String()
}

func (p Partition) describe() string {
	switch {
	case p.Extended:
		return "extended"
	case p.Name != "":
		return fmt.Sprintf("%d bytes at %d, %q", p.Size, p.Offset, p.Name)
	}
	return fmt.Sprintf("%d bytes at %d", p.Size, p.Offset)
}

// Read reads the partition table of a disk. Sector is as in [Config].
func Read(ctx context.Context, disk *block.Device, sector int64) (*Table, error) {
	r := &reader{size: disk.Size(), read: func(p []byte, off int64) error { return disk.ReadAt(ctx, p, off) }}
	t, err := r.table(sector)
	if err != nil {
		return nil, fmt.Errorf("partition: %w", err)
	}
	return t, nil
}

// reader reads a table.
type reader struct {
	size int64 // of the disk
	read func(p []byte, off int64) error
}

// bytes returns n bytes at off, which the caller has bounded, or complains that the
// disk does not have them.
func (r *reader) bytes(off, n int64) ([]byte, error) {
	if off < 0 || off > r.size || n > r.size-off {
		return nil, fmt.Errorf("%d bytes at %d are past the end of the disk, at %d", n, off, r.size)
	}
	p := make([]byte, n)
	if err := r.read(p, off); err != nil {
		return nil, fmt.Errorf("read %d bytes at %d: %w", n, off, err)
	}
	return p, nil
}

// table finds out what kind of table there is.
func (r *reader) table(sector int64) (*Table, error) {
	if sector != 0 && sector != 512 && sector != 4096 {
		return nil, fmt.Errorf("sectors have 512 or 4096 bytes, not %d", sector)
	}
	if r.size < mbrSize {
		return nil, fmt.Errorf("a disk of %d bytes has no room for a partition table", r.size)
	}
	boot, err := r.bytes(0, mbrSize)
	if err != nil {
		return nil, err
	}
	primary, err := parseMBR(boot)
	if err != nil {
		return nil, err
	}
	for _, e := range primary {
		if e.kind == protective {
			return r.gpt(sector)
		}
	}
	return r.mbr(primary, max(sector, 512))
}
