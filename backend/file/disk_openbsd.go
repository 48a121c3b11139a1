package file

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// diskLabel is struct disklabel of sys/disklabel.h, with room for as many
// partitions as any release has.
type diskLabel struct {
	_              [4]byte // magic number
	_              [4]byte // kinds
	_              [32]byte
	sectorSize     uint32
	_              [4]uint32 // geometry
	_              uint32    // size of the disk, low part
	uid            [8]byte
	_              uint32
	_              [2]uint16
	_              [3]uint32
	_              [5]uint32
	_              [2]uint16
	_              [4]uint32
	_              uint32 // magic number again
	_              uint16
	partitionCount uint16
	_              [2]uint32
	partitions     [64]diskPartition
	_              [0]byte
}

// diskPartition is struct partition. Its sizes count sectors.
type diskPartition struct {
	size     uint32
	_        uint32
	_        uint16
	sizeHigh uint16
	_        [4]byte
}

// DIOCGDINFO carries the size of struct disklabel, which has grown.
const (
	getLabel64 = 0x44946465 // with 64 partitions
	getLabel16 = 0x41946465 // with 16, until OpenBSD 7.8
)

// label returns the label of the disk, and which of its partitions this is.
func (f *File) label() (label *diskLabel, partition int, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.fd), &st); err != nil {
		return nil, 0, err
	}
	minor := int(unix.Minor(uint64(st.Rdev)))
	label = new(diskLabel)
	if f.ioctl("DIOCGDINFO", getLabel64, unsafe.Pointer(label)) == nil {
		return label, minor % 64, nil
	}
	if err := f.ioctl("DIOCGDINFO", getLabel16, unsafe.Pointer(label)); err != nil {
		return nil, 0, err
	}
	return label, minor % 16, nil
}

func (f *File) measureDisk() (int64, error) {
	label, part, err := f.label()
	if err != nil || part >= int(label.partitionCount) {
		return unknownSize, nil
	}
	p := &label.partitions[part]
	return (int64(p.sizeHigh)<<32 | int64(p.size)) * int64(label.sectorSize), nil
}

func (f *File) sectorSize() int64 {
	if label, _, err := f.label(); err == nil && label.sectorSize != 0 {
		return int64(label.sectorSize)
	}
	return 512
}

// diskName is the number that the label carries.
func (f *File) diskName() string {
	label, part, err := f.label()
	if err != nil || label.uid == [8]byte{} {
		return ""
	}
	return fmt.Sprintf("disk %x.%d", label.uid, part)
}
