package kerneltest

import (
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"

	"nbd.example/nbd/kernel"
	"nbd.example/nbd/proto"
)

// attachment is what the driver calls a config: what a device has from CONNECT until
// the last one lets go of it. Its fields are guarded by the device's mutex.
type attachment struct {
	d     *Device
	conns []*conn // not changed
	flags proto.TransmissionFlags

	a            kernel.Attach // as changed since
	pid          int
	live         int  // connections that are not dead
	requested    bool // a disconnect was asked for
	disconnected bool
	bound        bool // attached; else it only lives on because somebody has the device open
	frozen       bool // requests wait until it is over
	resent       int
	next         int // queue of the next request
	queues       []*queue
	receivers    sync.WaitGroup
}

// queue is a hardware queue of blk-mq: one for each connection.
type queue struct {
	slots [128]slot
}

// slot is what blk-mq calls a tag. Its generation is the upper half of cookies: it
// changes with each sending.
type slot struct {
	generation uint32
	req        *request
}

// conn is what the driver calls a nsock: the place of a connection. Its fields change
// only while tx and the device's mutex are held, so that one of them is enough to read.
type conn struct {
	tx       sync.Mutex // held while something is sent; taken before the device's mutex
	socket   *socket
	dead     bool
	cookie   int // counts sockets in this place
	fallback int // index of the connection that was used last in place of this one
	sent     int // requests
}

// connect attaches a device, or says why it cannot. Sockets that it has taken are set
// to nil.
func (k *Kernel) connect(a *kernel.Attach, sockets []*socket) (*Device, error) {
	if a.BlockSize > pageSize {
		return nil, syscall.EINVAL
	}
	for {
		d := k.choose(a)
		err := d.connect(a, sockets)
		if !a.Any || !errors.Is(err, kernel.ErrBusy) {
			return d, err
		}
	}
}

// pageSize bounds the block size, as on most machines.
const pageSize = 4096

func (d *Device) connect(a *kernel.Attach, sockets []*socket) error {
	d.config.Lock()
	defer d.config.Unlock()
	att := &attachment{d: d, a: *a, flags: a.Flags, live: len(sockets), bound: true, pid: d.k.cfg.PID}
	att.a.Index, att.a.Any, att.a.Sockets = d.index, false, nil
	if att.a.BlockSize == 0 {
		att.a.BlockSize = kernel.SectorSize
	}
	d.mu.Lock()
	if d.halted {
		d.mu.Unlock()
		return errClosed
	}
	if d.att != nil || d.openers > 0 {
		d.mu.Unlock()
		return kernel.ErrBusy
	}
	for i, s := range sockets {
		att.conns = append(att.conns, &conn{socket: s, fallback: -1})
		att.queues = append(att.queues, &queue{})
		sockets[i] = nil
	}
	d.att = att
	d.mu.Unlock()
	for i, c := range att.conns {
		att.receive(i, c, c.socket)
	}
	return nil
}

// reconfigure changes an attached device.
func (d *Device) reconfigure(c *kernel.Change, sockets []*socket) error {
	d.mu.Lock()
	att := d.att
	if att != nil && att.a.Identifier != "" && att.a.Identifier != c.Identifier {
		d.mu.Unlock()
		return fmt.Errorf("%w: %q, not %q", kernel.ErrIdentifier, att.a.Identifier, c.Identifier)
	}
	d.mu.Unlock()
	d.config.Lock()
	defer d.config.Unlock()
	d.mu.Lock()
	defer d.mu.Unlock()
	if att == nil || d.att != att || !att.bound {
		return kernel.ErrNotConnected
	}
	if err := att.resize(c.Size, c.BlockSize); err != nil {
		return err
	}
	if c.Timeout != nil {
		att.a.Timeout = *c.Timeout
	}
	if c.DeadTimeout != nil {
		att.a.DeadTimeout = *c.DeadTimeout
	}
	if c.Client != nil {
		att.a.Client = *c.Client
	}
	for i, s := range sockets {
		if !att.replace(s) {
			if c.Timeout == nil {
				return nil // nbdnl would not know
			}
			return fmt.Errorf("%w (%d of %d were taken)", kernel.ErrNotTaken, i, len(sockets))
		}
		sockets[i] = nil
	}
	return nil
}

// resize sets the size. If it changes, all requests that are there must end first,
// while new ones wait, and also whoever wants to disconnect: this is how the kernel
// deadlocks when connections are dead. The device's mutex is held, but not meanwhile.
func (att *attachment) resize(size, block int64) error {
	if size == 0 {
		size = att.a.Size
	}
	if block == 0 {
		block = att.a.BlockSize
	}
	if size == att.a.Size && block == att.a.BlockSize {
		return nil
	}
	if block > pageSize {
		return syscall.EINVAL
	}
	att.frozen = true
	for att.inFlight() > 0 && !att.d.halted {
		att.d.changed.Wait()
	}
	att.frozen = false
	att.a.Size, att.a.BlockSize = size, block
	att.d.changed.Broadcast()
	return nil
}

// replace takes a socket for the first connection that is dead, if there is one. The
// device's mutex is held, but not all the time.
func (att *attachment) replace(s *socket) bool {
	d := att.d
	for i, c := range att.conns {
		if !c.dead {
			continue
		}
		d.mu.Unlock()
		c.tx.Lock()
		d.mu.Lock()
		if !c.dead || d.halted {
			c.tx.Unlock()
			continue
		}
		c.socket.conn.Close()
		c.socket, c.dead, c.fallback, c.sent = s, false, -1, 0
		c.cookie++
		att.live++
		att.disconnected = false
		c.tx.Unlock()
		d.changed.Broadcast()
		d.mu.Unlock()
		att.receive(i, c, s)
		d.mu.Lock()
		return true
	}
	return false
}

// disconnect is NBD_CMD_DISCONNECT.
func (d *Device) disconnect() error {
	d.mu.Lock()
	att := d.att
	d.mu.Unlock()
	if att == nil {
		return kernel.ErrNotConnected
	}
	d.config.Lock()
	defer d.config.Unlock()
	d.mu.Lock()
	if d.att != att {
		d.mu.Unlock()
		return kernel.ErrNotConnected
	}
	att.requested = true
	d.mu.Unlock()
	for _, c := range att.conns { // also of those that are dead
		c.tx.Lock()
		att.deadline(c)
		c.socket.conn.Write(proto.AppendRequest(nil, &proto.Request{Command: proto.CmdDisc}))
		c.tx.Unlock()
	}
	att.shutdown()
	att.receivers.Wait()
	att.clear()
	d.mu.Lock()
	att.bound = false
	d.release(att)
	d.mu.Unlock()
	return nil
}

// release ends an attachment that nobody holds any more. The device's mutex is held.
func (d *Device) release(att *attachment) {
	if d.att != att || att.bound || d.openers > 0 {
		return
	}
	d.att = nil
	for _, c := range att.conns {
		c.socket.conn.Close()
	}
	d.changed.Broadcast()
	if att.a.Client&kernel.DestroyOnDisconnect != 0 {
		go d.k.remove(d) // it wants the kernel's mutex
	}
}

// shutdown ends all connections without telling anybody: no request waits for a new one
// after it. (sock_shutdown)
func (att *attachment) shutdown() {
	att.d.mu.Lock()
	was := att.disconnected
	att.disconnected = true
	att.d.changed.Broadcast()
	att.d.mu.Unlock()
	if was {
		return
	}
	for _, c := range att.conns {
		c.tx.Lock()
		att.markDead(c, false)
		c.tx.Unlock()
	}
	att.d.k.log.Warn("shutting down sockets", "device", att.d.index.Name())
}

// markDead notes that a connection is dead, and says so if that is news. Its tx is held.
func (att *attachment) markDead(c *conn, notify bool) {
	d := att.d
	d.mu.Lock()
	defer d.mu.Unlock()
	if c.dead {
		return
	}
	c.dead = true
	c.socket.shutdown()
	att.live--
	notify = notify && !att.disconnected && !att.requested
	if att.live == 0 && att.requested {
		att.requested, att.disconnected = false, true
	}
	d.changed.Broadcast()
	if notify {
		d.k.linkDead(d.index)
	}
}

// clear fails all requests that wait for a reply.
func (att *attachment) clear() {
	att.d.mu.Lock()
	var list []*request
	for r := range att.requests() {
		list = append(list, r)
	}
	att.d.mu.Unlock()
	for _, r := range list {
		r.lock.Lock()
		r.fail()
		r.lock.Unlock()
	}
}

// deadline limits how long sending may take, as SO_SNDTIMEO does.
func (att *attachment) deadline(c *conn) {
	var t time.Time
	att.d.mu.Lock()
	if att.a.Timeout > 0 {
		t = time.Now().Add(att.d.k.seconds(att.a.Timeout))
	}
	att.d.mu.Unlock()
	c.socket.conn.SetWriteDeadline(t)
}
