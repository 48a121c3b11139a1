package nbdnl

import (
	"errors"
	"math"
	"strconv"
	"time"

	"github.com/mdlayher/netlink"

	"nbd.example/nbd/kernel"
)

// The family, as in the kernel's linux/nbd-netlink.h. netlink-proto.md, "Family
// Information".
const (
	familyName = "nbd"
	version    = 1
	groupName  = "nbd_mc_group"
)

// command is what a message asks for. netlink-proto.md, "Message Types".
type command uint8

const (
	cmdConnect     command = 1
	cmdDisconnect  command = 2
	cmdReconfigure command = 3
	cmdLinkDead    command = 4
	cmdStatus      command = 5
)

// String returns what the command is called in messages.
func (c command) String() string {
	names := map[command]string{
		cmdConnect: "connect", cmdDisconnect: "disconnect", cmdReconfigure: "reconfigure",
		cmdLinkDead: "link dead", cmdStatus: "status",
	}
	if s := names[c]; s != "" {
		return s
	}
	return "command " + strconv.Itoa(int(c))
}

// Attributes of messages. netlink-proto.md, "Configuration Attributes".
const (
	attrIndex             = 1  // u32
	attrSizeBytes         = 2  // u64
	attrBlockSizeBytes    = 3  // u64
	attrTimeout           = 4  // u64, seconds
	attrServerFlags       = 5  // u64
	attrClientFlags       = 6  // u64
	attrSockets           = 7  // nested
	attrDeadConnTimeout   = 8  // u64, seconds
	attrDeviceList        = 9  // nested
	attrBackendIdentifier = 10 // string
)

// Attributes within attrSockets and attrDeviceList. netlink-proto.md, "Socket
// Attributes", "Device List Attributes".
const (
	sockItem        = 1 // nested, any number
	sockFD          = 1 // u32
	deviceItem      = 1 // nested, any number
	deviceIndex     = 1 // u32
	deviceConnected = 2 // u8
)

// encodeConnect returns the attributes of NBD_CMD_CONNECT. The attachment was checked.
//
// Whatever has a default is sent all the same: the driver's block size is 1,024, and
// without a timeout the last attachment's is used.
func encodeConnect(a *kernel.Attach, fds []uint32) ([]byte, error) {
	e := netlink.NewAttributeEncoder()
	if !a.Any {
		e.Uint32(attrIndex, uint32(a.Index))
	}
	e.Uint64(attrSizeBytes, uint64(a.Size))
	block := a.BlockSize
	if block == 0 {
		block = kernel.SectorSize
	}
	e.Uint64(attrBlockSizeBytes, uint64(block))
	e.Uint64(attrTimeout, kernel.Seconds(a.Timeout))
	e.Uint64(attrDeadConnTimeout, deadSeconds(a.DeadTimeout))
	e.Uint64(attrServerFlags, uint64(a.Flags))
	e.Uint64(attrClientFlags, uint64(a.Client))
	if a.Identifier != "" {
		e.String(attrBackendIdentifier, a.Identifier)
	}
	encodeSockets(e, fds)
	return e.Encode()
}

// encodeReconfigure returns the attributes of NBD_CMD_RECONFIGURE.
func encodeReconfigure(i kernel.Index, c *kernel.Change, fds []uint32) ([]byte, error) {
	e := netlink.NewAttributeEncoder()
	e.Uint32(attrIndex, uint32(i))
	if c.Size != 0 {
		e.Uint64(attrSizeBytes, uint64(c.Size))
	}
	if c.BlockSize != 0 {
		e.Uint64(attrBlockSizeBytes, uint64(c.BlockSize))
	}
	if c.Timeout != nil {
		e.Uint64(attrTimeout, kernel.Seconds(*c.Timeout))
	}
	if c.DeadTimeout != nil {
		e.Uint64(attrDeadConnTimeout, deadSeconds(*c.DeadTimeout))
	}
	if c.Client != nil {
		e.Uint64(attrClientFlags, uint64(*c.Client))
	}
	if c.Identifier != "" {
		e.String(attrBackendIdentifier, c.Identifier)
	}
	encodeSockets(e, fds)
	return e.Encode()
}

// encodeIndex returns the attributes of NBD_CMD_DISCONNECT, and of NBD_CMD_STATUS for
// one device.
func encodeIndex(i kernel.Index) ([]byte, error) {
	e := netlink.NewAttributeEncoder()
	e.Uint32(attrIndex, uint32(i))
	return e.Encode()
}

// encodeSockets adds the list of sockets, if there are any.
func encodeSockets(e *netlink.AttributeEncoder, fds []uint32) {
	if len(fds) == 0 {
		return
	}
	e.Nested(attrSockets, func(list *netlink.AttributeEncoder) error {
		for _, fd := range fds {
			list.Nested(sockItem, func(item *netlink.AttributeEncoder) error {
				item.Uint32(sockFD, fd)
				return nil
			})
		}
		return nil
	})
}

// deadSeconds returns a timeout for attrDeadConnTimeout, which the kernel multiplies by
// up to 1,000 in an int of the machine's size: more is as good as for ever.
func deadSeconds(d time.Duration) uint64 { return min(kernel.Seconds(d), math.MaxInt/1000) }

// errNoIndex is for messages that must have an index.
var errNoIndex = errors.New("the kernel sent no index")

// decodeIndex returns the index in a message: the reply to NBD_CMD_CONNECT, and
// NBD_CMD_LINK_DEAD.
func decodeIndex(b []byte) (kernel.Index, error) {
	d, err := netlink.NewAttributeDecoder(b)
	if err != nil {
		return 0, err
	}
	index, found := uint32(0), false
	for d.Next() {
		if d.Type() == attrIndex {
			index, found = d.Uint32(), true
		}
	}
	if err := d.Err(); err != nil {
		return 0, err
	}
	if !found {
		return 0, errNoIndex
	}
	return kernel.Index(index), nil
}

// decodeStatus returns the devices in the reply to NBD_CMD_STATUS, in the kernel's
// order, which is by index.
func decodeStatus(b []byte) ([]kernel.Status, error) {
	d, err := netlink.NewAttributeDecoder(b)
	if err != nil {
		return nil, err
	}
	var list []kernel.Status
	for d.Next() {
		if d.Type() != attrDeviceList {
			continue
		}
		d.Nested(func(items *netlink.AttributeDecoder) error {
			for items.Next() {
				if items.Type() != deviceItem {
					continue
				}
				items.Nested(func(item *netlink.AttributeDecoder) error {
					s, err := decodeDevice(item)
					list = append(list, s)
					return err
				})
			}
			return nil
		})
	}
	if err := d.Err(); err != nil {
		return nil, err
	}
	return list, nil
}

// decodeDevice reads one device of the list.
func decodeDevice(d *netlink.AttributeDecoder) (s kernel.Status, err error) {
	found := false
	for d.Next() {
		switch d.Type() {
		case deviceIndex:
			s.Index, found = kernel.Index(d.Uint32()), true
		case deviceConnected:
			s.Connected = d.Uint8() != 0
		}
	}
	if d.Err() == nil && !found {
		return s, errNoIndex
	}
	return s, d.Err()
}
