package nbdioctl

import (
	"fmt"
	"math"

	"nbd.example/nbd/kernel"
)

// request is the number of an ioctl, as in the kernel's linux/nbd.h: _IO(0xab, n). The
// numbers are these on all machines but those on which _IO has a direction: see ioNone.
type request uint

const (
	setSock       request = 0xab00 | ioNone
	setBlockSize  request = 0xab01 | ioNone
	setSize       request = 0xab02 | ioNone
	doIt          request = 0xab03 | ioNone
	clearSock     request = 0xab04 | ioNone
	clearQueue    request = 0xab05 | ioNone
	setSizeBlocks request = 0xab07 | ioNone
	disconnect    request = 0xab08 | ioNone
	setTimeout    request = 0xab09 | ioNone
	setFlags      request = 0xab0a | ioNone
)

// String returns the name in linux/nbd.h.
func (r request) String() string {
	switch r {
	case setSock:
		return "NBD_SET_SOCK"
	case setBlockSize:
		return "NBD_SET_BLKSIZE"
	case setSize:
		return "NBD_SET_SIZE"
	case doIt:
		return "NBD_DO_IT"
	case clearSock:
		return "NBD_CLEAR_SOCK"
	case clearQueue:
		return "NBD_CLEAR_QUE"
	case setSizeBlocks:
		return "NBD_SET_SIZE_BLOCKS"
	case disconnect:
		return "NBD_DISCONNECT"
	case setTimeout:
		return "NBD_SET_TIMEOUT"
	case setFlags:
		return "NBD_SET_FLAGS"
	}
	return fmt.Sprintf("ioctl %#x", uint(r))
}

// step is one ioctl with its argument.
type step struct {
	request request
	arg     uint64
}

// plan returns what to tell the driver once it has the sockets. The argument of an ioctl
// is a word of the machine, so that 4 GiB do not fit on one of 32 bits: word is the
// largest number that does.
func plan(a *kernel.Attach, word uint64) ([]step, error) {
	steps, err := planSize(a.Size, blockSize(a.BlockSize), word)
	if err != nil {
		return nil, err
	}
	return append(steps,
		step{setTimeout, kernel.Seconds(a.Timeout)}, // also 0: the last one's would stay
		step{setFlags, uint64(a.Flags)},
	), nil
}

// planSize returns how to set the block size and the size.
func planSize(size, block int64, word uint64) ([]step, error) {
	steps := []step{{setBlockSize, uint64(block)}}
	switch blocks := size / block; {
	case uint64(size) <= word:
		return append(steps, step{setSize, uint64(size)}), nil
	case uint64(blocks) <= word:
		return append(steps, step{setSizeBlocks, uint64(blocks)}), nil
	}
	return nil, fmt.Errorf("%d bytes are more than this machine can have on a kernel device: use larger blocks than %d bytes", size, block)
}

// blockSize returns the block size that is meant by n.
func blockSize(n int64) int64 {
	if n == 0 {
		return kernel.SectorSize
	}
	return n
}

// word is the largest argument of an ioctl here.
const word uint64 = math.MaxUint
