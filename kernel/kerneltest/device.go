package kerneltest

import (
	"io"
	"sync"
	"syscall"

	"nbd.example/nbd/kernel"
	"nbd.example/nbd/proto"
)

// Device is a fake kernel device, as a file system sees it. Its I/O methods behave like
// direct I/O on /dev/nbdN: they wait for the reply however long that takes, fail with
// [syscall.EIO] whatever the server's error was, and want offset and length to be
// multiples of the block size ([syscall.EINVAL]). A device that is not attached has no
// size: reads return [io.EOF], changes [syscall.ENOSPC]. Large ones become several
// requests, side by side, spread over the connections.
type Device struct {
	k     *Kernel
	index kernel.Index

	config sync.Mutex // the driver's config_lock: held while it is told something

	mu         sync.Mutex
	changed    *sync.Cond // anything has: requests come and go, connections live and die
	att        *attachment
	openers    int
	claimed    bool
	halted     bool
	edit       func(*kernel.Info)
	maxRequest int // of the queue, which outlives attachments
}

func newDevice(k *Kernel, i kernel.Index) *Device {
	d := &Device{k: k, index: i, maxRequest: k.cfg.MaxRequest}
	d.changed = sync.NewCond(&d.mu)
	return d
}

// inUse reports whether the device is attached, or open.
func (d *Device) inUse() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.att != nil || d.openers > 0
}

// Socket is what a device knows of one of its connections.
type Socket struct {
	Dead  bool
	Inode uint64 // of the socket, as fstat says it; 0 on systems that have none
	Sent  int    // requests sent on it
}

// span checks a range, and returns the attachment and how many bytes of n the device
// has there.
func (d *Device) span(off int64, n int) (*attachment, int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.att == nil {
		return nil, 0, nil
	}
	size := d.att.a.Size &^ (kernel.SectorSize - 1)
	if mask := d.att.a.BlockSize - 1; off < 0 || off&mask != 0 || int64(n)&mask != 0 {
		return nil, 0, syscall.EINVAL
	}
	return d.att, int(max(0, min(int64(n), size-off))), nil
}

// ReadAt reads like pread on the device: len(p) bytes, fewer only at its end.
func (d *Device) ReadAt(p []byte, off int64) (int, error) {
	att, n, err := d.span(off, len(p))
	if err != nil {
		return 0, err
	}
	if n > 0 {
		if err := att.split(proto.CmdRead, 0, off, p[:n]); err != nil {
			return 0, err
		}
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// WriteAt writes like pwrite on the device.
func (d *Device) WriteAt(p []byte, off int64) (int, error) { return d.write(p, off, 0) }

// write writes what fits.
func (d *Device) write(p []byte, off int64, flags proto.CommandFlags) (int, error) {
	att, n, err := d.span(off, len(p))
	if err != nil {
		return 0, err
	}
	if n > 0 {
		if att.flags&proto.FlagReadOnly != 0 {
			return 0, syscall.EPERM
		}
		if err := att.split(proto.CmdWrite, flags, off, p[:n]); err != nil {
			return 0, err
		}
	}
	if n < len(p) {
		return n, syscall.ENOSPC
	}
	return n, nil
}

// WriteFUA writes with FUA where the server offers that, else it writes and flushes. As
// in the kernel, FUA counts only along with NBD_FLAG_SEND_FLUSH.
func (d *Device) WriteFUA(p []byte, off int64) error {
	const both = proto.FlagSendFlush | proto.FlagSendFUA
	if d.offers(both) {
		_, err := d.write(p, off, proto.CmdFlagFUA)
		return err
	}
	if _, err := d.write(p, off, 0); err != nil {
		return err
	}
	return d.Flush()
}

// offers reports whether the server offers all of the flags.
func (d *Device) offers(f proto.TransmissionFlags) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.att != nil && d.att.flags&f == f
}

// Flush is fsync on the device. It succeeds at once where the server cannot flush, and
// where nothing is attached.
func (d *Device) Flush() error {
	if !d.offers(proto.FlagSendFlush) {
		return nil
	}
	d.mu.Lock()
	att := d.att
	d.mu.Unlock()
	if att == nil {
		return nil
	}
	return att.do(&request{command: proto.CmdFlush})
}

// Trim is BLKDISCARD on the device: [syscall.EOPNOTSUPP] where the server cannot.
func (d *Device) Trim(off, n int64) error { return d.effect(proto.CmdTrim, proto.FlagSendTrim, off, n) }

// Zero is BLKZEROOUT on the device where the server offers WRITE_ZEROES, as kernels from
// 6.12 do it: [syscall.EOPNOTSUPP] where it does not.
func (d *Device) Zero(off, n int64) error {
	return d.effect(proto.CmdWriteZeroes, proto.FlagSendWriteZeroes, off, n)
}

// effect does a request without data.
func (d *Device) effect(c proto.Command, need proto.TransmissionFlags, off, n int64) error {
	const most = 1<<32 - kernel.MaxBlockSize
	for n > 0 {
		step := min(n, most)
		att, whole, err := d.span(off, int(step))
		switch {
		case err != nil:
			return err
		case att == nil || whole < int(step):
			return syscall.ENOSPC
		case att.flags&proto.FlagReadOnly != 0:
			return syscall.EPERM
		case att.flags&need == 0:
			return syscall.EOPNOTSUPP
		}
		if err := att.do(&request{command: c, offset: off, length: step}); err != nil {
			return err
		}
		off, n = off+step, n-step
	}
	return nil
}

// split does a request with data, as several ones side by side if it is large.
func (att *attachment) split(c proto.Command, f proto.CommandFlags, off int64, p []byte) error {
	att.d.mu.Lock()
	most := att.d.maxRequest
	att.d.mu.Unlock()
	var wg sync.WaitGroup
	errs := make([]error, (len(p)+most-1)/most)
	for i := range errs {
		part := p[i*most : min(len(p), (i+1)*most)]
		r := &request{command: c, flags: f, offset: off + int64(i*most), length: int64(len(part)), data: part}
		wg.Go(func() { errs[i] = att.do(r) })
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// Open opens the device as a mount does: it counts as a user until release is called,
// and keeps what was attached from being gone.
func (d *Device) Open() (release func(), err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.halted {
		return nil, syscall.ENXIO
	}
	d.openers++
	return sync.OnceFunc(d.close), nil
}

// Claim opens the device for one user alone, as a mount does: [kernel.ErrBusy] if there
// is one already. Others may have it open.
func (d *Device) Claim() (release func(), err error) {
	d.mu.Lock()
	busy := d.claimed
	d.claimed = true
	d.mu.Unlock()
	if busy {
		return nil, kernel.ErrBusy
	}
	unclaim := func() {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.claimed = false
	}
	closed, err := d.Open()
	if err != nil {
		unclaim()
		return nil, err
	}
	return sync.OnceFunc(func() { unclaim(); closed() }), nil
}

// limitRequests is what writing to the queue's attribute does.
func (d *Device) limitRequests(most int64) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.maxRequest = min(max(int(most)&^1023, pageSize), MaxRequest)
}

// close is that of one who has the device open.
func (d *Device) close() {
	d.mu.Lock()
	d.openers--
	last := d.openers == 0
	att := d.att
	d.mu.Unlock()
	if !last || att == nil {
		return
	}
	d.mu.Lock()
	disconnect := att.a.Client&kernel.DisconnectOnClose != 0 && att.bound
	d.release(att)
	d.mu.Unlock()
	if disconnect {
		d.disconnect()
	}
}

// Sockets returns the device's connections. None are there when it is not attached.
func (d *Device) Sockets() []Socket {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.att == nil {
		return nil
	}
	var list []Socket
	for _, c := range d.att.conns {
		list = append(list, Socket{Dead: c.dead, Inode: c.socket.inode, Sent: c.sent})
	}
	return list
}

// InFlight returns how many requests are under way or wait for a connection.
func (d *Device) InFlight() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.att == nil {
		return 0
	}
	return d.att.inFlight()
}

// Resent returns how many times a request was sent again, since the device was attached.
func (d *Device) Resent() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.att == nil {
		return 0
	}
	return d.att.resent
}

// Attached returns what the device was attached with, with all changes since; nil if it
// is not attached. Sockets are not in it.
func (d *Device) Attached() *kernel.Attach {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.att == nil {
		return nil
	}
	a := d.att.a
	return &a
}

// SetInfo lets f change what Info tells of the device: holders, mounts, partitions,
// openers. It is called for each answer. Nil ends it.
func (d *Device) SetInfo(f func(*kernel.Info)) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.edit = f
}

// info returns what sysfs would tell.
func (d *Device) info() *kernel.Info {
	d.mu.Lock()
	defer d.mu.Unlock()
	i := &kernel.Info{Index: d.index, BlockSize: kernel.SectorSize, Node: true, MaxRequest: int64(d.maxRequest)}
	if att := d.att; att != nil {
		i.Size, i.BlockSize = att.a.Size&^(kernel.SectorSize-1), att.a.BlockSize
		i.ReadOnly, i.PID = att.flags&proto.FlagReadOnly != 0, att.pid
		i.Identifier = att.a.Identifier
		for r := range att.requests() {
			switch {
			case !r.started:
			case r.command == proto.CmdRead:
				i.Reads++
			default:
				i.Writes++
			}
		}
	}
	if d.edit != nil {
		d.edit(i)
	}
	return i
}

// halt ends everything: the kernel is closed.
func (d *Device) halt() {
	d.mu.Lock()
	d.halted = true
	att := d.att
	d.changed.Broadcast()
	if att == nil {
		d.mu.Unlock()
		return
	}
	att.disconnected = true
	var list []*request
	for r := range att.requests() {
		list = append(list, r)
	}
	var sockets []*socket
	for _, c := range att.conns {
		sockets = append(sockets, c.socket)
	}
	d.mu.Unlock()
	for _, s := range sockets {
		s.shutdown() // so that nothing hangs in sending
	}
	for _, r := range list {
		r.lock.Lock()
		r.end(syscall.EIO)
		r.lock.Unlock()
	}
	closeAll(sockets)
}
