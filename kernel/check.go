package kernel

import (
	"fmt"
	"strings"
	"time"

	"nbd.example/nbd/proto"
)

// SectorSize is the unit in which the kernel counts the sizes of devices, in bytes.
const SectorSize = 512

// Limits of what drivers take.
const (
	// MaxBlockSize is the largest block size that any kernel takes, in bytes; most take
	// no more than the size of a page.
	MaxBlockSize = 64 << 10
	// MaxIdentifier is how long an identifier may be, in bytes: the driver prints it
	// into a page of memory, without looking whether it fits.
	MaxIdentifier = 2048
	// MaxTimeout is the largest Attach.Timeout: the driver multiplies it by up to 1,000
	// in 32 bits.
	MaxTimeout = 24 * 24 * time.Hour
	// maxIndex is the largest minor number.
	maxIndex = 1<<20 - 1
)

// Check says what is wrong with a, as far as that shows without a kernel. Drivers call
// it. What the kernel would answer with a bare EINVAL gets a reason here.
func (a *Attach) Check() error {
	if !a.Any && a.Index > maxIndex {
		return fmt.Errorf("%s: there are no devices beyond nbd%d", a.Index.Name(), maxIndex)
	}
	if a.Size < SectorSize {
		return fmt.Errorf("the export has %d bytes: a kernel device needs at least %d", a.Size, SectorSize)
	}
	if err := checkBlockSize(a.BlockSize); err != nil {
		return err
	}
	if len(a.Sockets) == 0 {
		return fmt.Errorf("no socket to attach")
	}
	if len(a.Sockets) > 1 && a.Flags&proto.FlagCanMultiConn == 0 {
		return fmt.Errorf("%d connections, but the server does not offer NBD_FLAG_CAN_MULTI_CONN: use one", len(a.Sockets))
	}
	if a.Timeout > MaxTimeout {
		return fmt.Errorf("the timeout %v is longer than %v, the most that the driver takes", a.Timeout, MaxTimeout)
	}
	return checkIdentifier(a.Identifier)
}

// Check says what is wrong with c, as far as that shows without a kernel.
func (c *Change) Check() error {
	if c.Size != 0 && c.Size < SectorSize {
		return fmt.Errorf("the new size is %d bytes: a kernel device needs at least %d", c.Size, SectorSize)
	}
	if err := checkBlockSize(c.BlockSize); err != nil {
		return err
	}
	if c.Timeout != nil && *c.Timeout > MaxTimeout {
		return fmt.Errorf("the timeout %v is longer than %v, the most that the driver takes", *c.Timeout, MaxTimeout)
	}
	return checkIdentifier(c.Identifier)
}

func checkBlockSize(n int64) error {
	if n != 0 && (n < SectorSize || n > MaxBlockSize || n&(n-1) != 0) {
		return fmt.Errorf("the block size %d is no power of two from %d to the size of a page", n, SectorSize)
	}
	return nil
}

func checkIdentifier(s string) error {
	if len(s) > MaxIdentifier {
		return fmt.Errorf("the identifier has %d bytes, more than %d", len(s), MaxIdentifier)
	}
	if strings.ContainsAny(s, "\x00\n") {
		return fmt.Errorf("the identifier %.40q holds the end of a line, or of a string", s)
	}
	return nil
}

// Seconds returns d in whole seconds, rounded up, which is how drivers count. Less than
// nothing is nothing.
func Seconds(d time.Duration) uint64 {
	if d <= 0 {
		return 0
	}
	n := uint64(d / time.Second)
	if d%time.Second != 0 {
		n++
	}
	return n
}
