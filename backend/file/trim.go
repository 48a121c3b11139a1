package file

import "encoding/binary"

//lint:file-ignore U1000 Other systems than the one that is looked at use these.

// What other systems than Linux are asked when a range of a disk need not be kept. None of
// them says what it reads as afterwards, so it never counts as zeroes. The shapes stand here
// so that they are tested wherever the tests run.

// diskAttribute is struct diocgattr_arg of FreeBSD's sys/disk.h, for an attribute that is
// an int.
type diskAttribute struct {
	name   [64]byte
	length int32
	value  struct {
		_      [0]int64 // the union is aligned as its off_t
		number int32
		_      [252]byte
	}
}

// unmapRange is dk_extent_t of macOS's sys/disk.h.
type unmapRange struct{ offset, length uint64 }

// unmapRequest is dk_unmap_t.
type unmapRequest struct {
	ranges  *unmapRange
	count   uint32
	options uint32
}

// featureUnmap is DK_FEATURE_UNMAP.
const featureUnmap = 0x10

// Windows' winioctl.h.
const (
	dataSetTrim     = 1          // DeviceDsmAction_Trim
	dataSetNoFiles  = 0x80000000 // DEVICE_DSM_FLAG_TRIM_NOT_FS_ALLOCATED: no file system uses it
	dataSetHeader   = 28         // bytes of DEVICE_MANAGE_DATA_SET_ATTRIBUTES
	dataSetRangesAt = 32         // where the ranges begin, aligned
)

// dataSetRequest is a DEVICE_MANAGE_DATA_SET_ATTRIBUTES that trims one DEVICE_DATA_SET_RANGE.
func dataSetRequest(off, n int64) (b [dataSetRangesAt + 16]byte) {
	for i, v := range []uint32{dataSetHeader, dataSetTrim, dataSetNoFiles, 0, 0, dataSetRangesAt, 16} {
		binary.LittleEndian.PutUint32(b[4*i:], v)
	}
	binary.LittleEndian.PutUint64(b[dataSetRangesAt:], uint64(off))
	binary.LittleEndian.PutUint64(b[dataSetRangesAt+8:], uint64(n))
	return b
}

// trimEnabled reads a DEVICE_TRIM_DESCRIPTOR: its version, its size, and a boolean.
func trimEnabled(descriptor []byte) bool { return len(descriptor) > 8 && descriptor[8] != 0 }
