package kernel

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"nbd.example/nbd/proto"
)

// Driver is the kernel's NBD driver, as far as it can be told what to do. There are
// two of them, nbdnl.Open and nbdioctl.Open, and a fake one, kerneltest.New. All
// methods may be called concurrently.
//
// Errors wrap those below, or what the system said (a [syscall.Errno]), and name the
// kernel device.
type Driver interface {
	// Connect attaches a kernel device and returns its index. The sockets of a are
	// the caller's still: the driver has references of its own, and closing the
	// caller's copies ends no connection (shutdown does).
	Connect(ctx context.Context, a *Attach) (Index, error)
	// Reconfigure changes an attached kernel device. Whether sockets were taken shows
	// in their SO_SNDTIMEO, which the kernel sets to the device's Timeout when it
	// takes one. So give the Timeout of the device along with sockets, also an
	// unchanged one, and also when it is 0: the driver then uses another one for a
	// moment. Without it, nil may be returned for sockets that were dropped.
	Reconfigure(ctx context.Context, i Index, c *Change) error
	// Disconnect asks the driver to let go of the export: it sends NBD_CMD_DISC and
	// fails what waits. It returns before the device is really gone; see [Info.Gone].
	Disconnect(ctx context.Context, i Index) error
	// Status returns what the driver says of one device.
	Status(ctx context.Context, i Index) (Status, error)
	// StatusAll returns what it says of all devices that exist, by their index.
	StatusAll(ctx context.Context) ([]Status, error)
	// Watch calls f with the index of each device of which a connection has died
	// (NBD_CMD_LINK_DEAD), from a goroutine of its own, one call at a time, until ctx
	// ends or the driver is closed. It returns once it listens: deaths after its
	// return are reported. The driver does not say which connection it was.
	Watch(ctx context.Context, f func(Index)) error
	// Info returns what the system tells of the device beyond the driver: size,
	// process, identifier, requests in flight, holders. It asks no driver, so it
	// answers also while the driver hangs. [ErrNoDevice] if there is none.
	Info(i Index) (*Info, error)
	// Rescan opens the device once and closes it, which makes the kernel look for
	// partitions anew: after Connect they appear, after Disconnect they go. Where udev
	// runs it does that, too. It reads from the device, so it may wait for as long as
	// there is no connection, or ctx ends; then the opening goes on by itself.
	Rescan(ctx context.Context, i Index) error
	// Claim finds out whether somebody holds the device for himself: see [System.Claim].
	Claim(ctx context.Context, i Index) error
	// LimitRequests sets the most that one request asks for, in bytes: see
	// [System.LimitRequests].
	LimitRequests(ctx context.Context, i Index, most int64) error
	// Can says what this driver is able to do.
	Can() Abilities
	// Close gives up the way to the driver. Devices stay attached, but for those of
	// nbdioctl, which need their process.
	Close() error
}

// Abilities say what a driver can do.
type Abilities struct {
	Reconfigure bool // sockets, sizes and timeouts of attached devices can change
	Watch       bool // it reports dead connections
	AnyIndex    bool // it can choose the device by itself
	Adopt       bool // devices outlive the process that attached them
}

// Index is the number of a kernel device: 0 for /dev/nbd0.
type Index uint32

// Path returns the path of the device's node, as /dev/nbd0.
func (i Index) Path() string { return "/dev/" + i.Name() }

// Name returns the device's name in the system, as nbd0.
func (i Index) Name() string { return "nbd" + strconv.FormatUint(uint64(i), 10) }

// ParseIndex reads the name of a kernel device: /dev/nbd0, nbd0, or /dev/nb0 as in the
// first documentation. It does not look whether there is such a device.
func ParseIndex(name string) (Index, error) {
	s := strings.TrimPrefix(name, "/dev/")
	for _, p := range []string{"nbd/", "nbd", "nb"} {
		digits, ok := strings.CutPrefix(s, p)
		if !ok {
			continue
		}
		n, err := strconv.ParseUint(digits, 10, 20) // minors have 20 bits
		if err == nil && strconv.FormatUint(n, 10) == digits {
			return Index(n), nil
		}
	}
	return 0, fmt.Errorf("%q is not the name of an NBD device, which is like /dev/nbd0", name)
}

// Attach is what NBD_CMD_CONNECT takes.
type Attach struct {
	Index Index
	Any   bool // let the driver choose a free device, or make one; Index is not read

	// Size of the export in bytes. The kernel counts in sectors of 512 bytes and rounds
	// down to them, not to blocks: a block at the end that is not whole cannot be used.
	Size      int64
	BlockSize int64 // logical block size in bytes: a power of two from 512 to the page size; 0 means 512
	// Flags are the transmission flags as the server sent them.
	Flags proto.TransmissionFlags

	// Timeout is how long a request may wait for its reply before its connection is
	// declared dead and the request is sent again on another one, in whole seconds,
	// rounded up. 0 means 30 s for a device with several connections, and with a single
	// one that nothing is declared dead: every 30 s the driver only logs, and sends
	// again what was sent on a connection in whose place there is another one now.
	// What waits for a reply when its connection dies goes on waiting until this time
	// is over: nothing else sends it again.
	Timeout time.Duration
	// DeadTimeout is how long requests wait for a new connection once all are dead, in
	// whole seconds, rounded up, before they fail. 0 fails them at once.
	DeadTimeout time.Duration

	Client ClientFlags
	// Identifier is shown in /sys/block/nbdN/backend, and must be repeated by each
	// Reconfigure. "" sets none. Drivers of kernels before 5.14 ignore it.
	Identifier string
	// Sockets are connected TCP or unix stream sockets in the transmission phase, one
	// or more. More than one need NBD_FLAG_CAN_MULTI_CONN.
	Sockets []*os.File
}

// Change is what NBD_CMD_RECONFIGURE takes. Zero values change nothing.
//
// The kernel takes a new socket only in place of one that it knows to be dead, and
// drops what it has no place for without a word. So: shut down the old one first, wait
// for Watch, and offer the new one. Reconfigure looks whether all of them were taken,
// and returns [ErrNotTaken] if not: the first ones may have been. It can tell that for
// certain only when Timeout is given; see [Driver.Reconfigure].
type Change struct {
	Sockets     []*os.File
	Size        int64 // bytes; never while requests wait on a dead connection: the driver deadlocks
	BlockSize   int64 // bytes
	Timeout     *time.Duration
	DeadTimeout *time.Duration
	Client      *ClientFlags
	// Identifier is that of the device, where it has one; another is refused.
	Identifier string
}

// ClientFlags are NBD_ATTR_CLIENT_FLAGS.
type ClientFlags uint64

// The client flags.
const (
	// DestroyOnDisconnect removes the device's node after it was disconnected
	// (NBD_CFLAG_DESTROY_ON_DISCONNECT).
	DestroyOnDisconnect ClientFlags = 1 << 0
	// DisconnectOnClose disconnects when the last one closes the device
	// (NBD_CFLAG_DISCONNECT_ON_CLOSE).
	DisconnectOnClose ClientFlags = 1 << 1
)

// Status is what NBD_CMD_STATUS tells of a device.
type Status struct {
	Index Index
	// Connected says that the device is attached, or not yet gone because somebody has
	// it open, or not attached and open: the driver does not tell these apart, Info
	// does. Its connections may all be dead.
	Connected bool
}

// Info is what the system tells of a kernel device.
type Info struct {
	Index      Index
	Size       int64  // bytes; 0 if it is not attached
	BlockSize  int64  // logical block size, bytes
	ReadOnly   bool   // as the block layer has it
	PID        int    // of the process that attached it, 0 if it is not attached; 1 or another may have its number by now
	Identifier string // what Attach.Identifier was
	MaxRequest int64  // the most that one request asks for, bytes
	// Reads and Writes are the requests in flight that the block layer counts: those that
	// wait for a reply. Those that wait for a connection are not among them.
	Reads, Writes int
	Partitions    []string // names, as nbd0p1
	Holders       []string // names of block devices on top: dm-0, md0
	Mounts        []string // where it, or a partition of it, is mounted, in this mount namespace
	Swap          bool     // it, or a partition of it, is swapped on
	Openers       []Opener // processes that have it open; nil before System.AddOpeners
	Claimed       bool     // somebody holds it for himself alone, as Claim has found out
	Node          bool     // /dev/nbdN is there
}

// Opener is a process that has a kernel device open.
type Opener struct {
	PID     int
	Command string
}

// Gone reports whether nothing is left of an attachment: no process, no size, no
// partition.
func (i *Info) Gone() bool { return i.PID == 0 && i.Size == 0 && len(i.Partitions) == 0 }

// Errors of drivers.
var (
	// ErrNoModule: the driver is not there. Modprobe nbd.
	ErrNoModule = errors.New("the kernel has no NBD driver: load the module nbd")
	// ErrNoDevice: there is no device of that index.
	ErrNoDevice = errors.New("no such device")
	// ErrBusy: the device is attached, or somebody has it open.
	ErrBusy = errors.New("the device is in use")
	// ErrNotConnected: the device is not attached.
	ErrNotConnected = errors.New("the device is not attached")
	// ErrPermission: CAP_SYS_ADMIN and CAP_NET_ADMIN are needed, in the first network
	// namespace.
	ErrPermission = errors.New("not permitted: only root may attach and detach kernel devices")
	// ErrNotTaken: there are more sockets than dead connections in whose place they
	// could be.
	ErrNotTaken = errors.New("the kernel did not take the socket: it knows of no dead connection in whose place it could be")
	// ErrIdentifier: the device was attached with another identifier.
	ErrIdentifier = errors.New("the device has another identifier")
	// ErrUnsupported: this driver cannot do that.
	ErrUnsupported = errors.New("this driver cannot do that")
)
