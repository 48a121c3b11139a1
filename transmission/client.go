package transmission

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math"
	"net"
	"slices"
	"sync"
	"time"

	"nbd.example/nbd/proto"
)

// Errors with which a [Demux] ends requests that the server has not answered.
var (
	// ErrConnectionLost is wrapped by the one error that all outstanding and
	// all later requests get after the connection has broken. What a request
	// that was on its way has done is unknown.
	ErrConnectionLost = errors.New("connection to the NBD server lost")
	// ErrPeer is wrapped, inside ErrConnectionLost, when the connection was
	// dropped because the server broke the protocol.
	ErrPeer = errors.New("the server broke the protocol")
	// ErrDisconnected is returned for requests after Disconnect or Close.
	ErrDisconnected = errors.New("disconnected from the NBD server")
	// ErrShuttingDown is returned for requests after the server said
	// NBD_ESHUTDOWN. proto.md, "Terminating the transmission phase".
	ErrShuttingDown = errors.New("the NBD server is shutting down")
)

// DemuxConfig is what the handshake has settled, and bounds. Its zero value is
// a connection with simple replies.
type DemuxConfig struct {
	// Structured and Extended say which replies were agreed on. Extended wins.
	Structured, Extended bool
	// Contexts are the metadata contexts that were chosen. A status chunk for
	// any other is a fault of the server.
	Contexts []proto.MetaContext
	// MaxInFlight bounds the requests that wait for their replies. 0 means 128.
	MaxInFlight int
	// Early holds bytes that the server sent behind its last option reply. The
	// Demux reads them before it reads from the connection.
	Early []byte
}

// Call is one request. Lengths and offsets are in bytes.
type Call struct {
	Command proto.Command
	// Flags go onto the wire as they are, but for PAYLOAD_LEN, which is the
	// Demux's business.
	Flags  proto.CommandFlags
	Offset uint64
	// Length is the effect length. It is ignored for READ and WRITE, where it is
	// that of Data.
	Length uint64
	// Data is filled by READ and sent by WRITE. It is the Demux's until the
	// call is over; after a failed READ its contents are undefined.
	Data []byte
	// Filter names the contexts that BLOCK_STATUS asks for, with extended
	// headers only; empty asks for all. Extension, NBD_CMD_BLOCK_STATUS.
	Filter []uint32
	// Status takes what BLOCK_STATUS brings, once for each context, from the
	// goroutine that reads. It must not block and not keep ext. What it was
	// given counts only if the call succeeds.
	Status func(context uint32, ext []proto.Extent)
}

// Demux carries many requests at a time over one connection that has finished
// its handshake, and hands each reply to the request that it belongs to,
// whatever their order: the client's half of the transmission phase. All its
// methods may be called concurrently.
//
// Memory is bounded: a reply's length is checked against its request before
// anything is taken, and what a read brings goes straight into the caller's
// buffer. A server that breaks the protocol in a way that could corrupt data
// is dropped: see [ErrPeer].
type Demux struct {
	conn     net.Conn
	extended bool
	chunked  bool // structured or extended replies were agreed on
	contexts []uint32
	vector   bool // conn takes many buffers in one system call
	socket   bool // conn has a send buffer, so that a short write does not wait

	slots []demuxCall
	free  chan *demuxCall
	dead  chan struct{} // closed by fail
	ended chan struct{} // closed when the reader has ended
	wrote chan struct{} // closed when the writer has ended

	mu       sync.Mutex
	wake     sync.Cond    // there is something for the writer
	queue    []*demuxCall // not sent yet
	writing  bool         // somebody owns the connection's output
	inFlight int
	closing  bool // Disconnect was called
	shutdown bool // the server said NBD_ESHUTDOWN
	disc     bool // NBD_CMD_DISC was sent
	err      error

	in  demuxInput
	out demuxOutput
}

// Uses of a call's buffer.
const (
	usedByReader = 1 << iota
	usedByWriter
)

// demuxCall is a slot for a call in flight. Its reassembly belongs to the
// reader, everything else to Demux.mu.
type demuxCall struct {
	Call
	index  uint32
	gen    uint32
	cookie uint64
	done   func(error)   // nil if somebody waits on ready
	ready  chan struct{} // takes one token when the call is over
	loose  chan struct{} // closed when an abandoned buffer is free; nil if nobody waits for that
	err    error

	active    bool // from submission to the end
	queued    bool
	over      bool  // err is settled
	abandoned bool  // nobody waits any more
	use       uint8 // who is using the buffer

	reply demuxReply
}

// NewDemux takes over conn. Nobody else may use it from now on; the Demux
// closes it at its end.
func NewDemux(conn net.Conn, cfg *DemuxConfig) *Demux {
	n := cfg.MaxInFlight
	if n <= 0 {
		n = 128
	}
	d := &Demux{
		conn:     conn,
		extended: cfg.Extended,
		chunked:  cfg.Extended || cfg.Structured,
		slots:    make([]demuxCall, n),
		free:     make(chan *demuxCall, n),
		dead:     make(chan struct{}),
		ended:    make(chan struct{}),
		wrote:    make(chan struct{}),
	}
	for _, c := range cfg.Contexts {
		d.contexts = append(d.contexts, c.ID)
	}
	switch conn.(type) {
	case *net.TCPConn, *net.UnixConn:
		d.vector, d.socket = true, true
	case *tls.Conn:
		d.socket = true
	}
	d.wake.L = &d.mu
	for i := range d.slots {
		c := &d.slots[i]
		c.index = uint32(i)
		c.ready = make(chan struct{}, 1)
		d.free <- c
	}
	d.in.init(cfg.Early)
	d.out.init()
	go d.readLoop()
	go d.writeLoop()
	return d
}

// Submit sends a request and returns without waiting for its reply; it waits
// only for a place among those in flight, as long as ctx lets it. If it returns
// an error, nothing was sent and done is not called; else done is called
// exactly once, from a goroutine of the Demux, and must not block nor call
// Disconnect or Close. Until then call.Data is the Demux's.
//
// done gets nil, a [*RequestError], or the error that ended the connection.
func (d *Demux) Submit(ctx context.Context, call *Call, done func(error)) error {
	c, err := d.acquire(ctx, call)
	if err != nil {
		return err
	}
	c.done = done
	return d.enqueue(c, false)
}

// Do sends a request and waits for its reply. When ctx ends first, Do returns
// its error, and call.Data is the caller's again: a reply that comes later is
// thrown away. The server may still carry the request out.
func (d *Demux) Do(ctx context.Context, call *Call) error {
	c, err := d.acquire(ctx, call)
	if err != nil {
		return err
	}
	c.done = nil
	if err := d.enqueue(c, true); err != nil {
		return err
	}
	select {
	case <-c.ready:
	default:
		select {
		case <-c.ready:
		case <-ctx.Done():
			if d.abandon(c) {
				return fmt.Errorf("%v: %w", call.Command, context.Cause(ctx))
			}
			<-c.ready
		}
	}
	err = c.err
	d.free <- c
	return err
}

// acquire waits for a free slot and fills it.
func (d *Demux) acquire(ctx context.Context, call *Call) (*demuxCall, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("%v: %w", call.Command, context.Cause(ctx))
	}
	length := call.Length
	if call.Command == proto.CmdRead || call.Command == proto.CmdWrite {
		length = uint64(len(call.Data))
	}
	switch {
	case length > math.MaxUint32 && !d.extended:
		return nil, fmt.Errorf("%v of %d bytes: without extended headers a request has at most 2^32-1", call.Command, length)
	case len(call.Filter) > 0 && !d.extended:
		return nil, fmt.Errorf("%v: a filter of contexts needs extended headers", call.Command)
	case len(call.Filter) > maxFilter:
		return nil, fmt.Errorf("%v: a filter of %d contexts, over the limit of %d", call.Command, len(call.Filter), maxFilter)
	case call.Command == proto.CmdDisc:
		return nil, errors.New("NBD_CMD_DISC has no reply: call Disconnect")
	}
	var c *demuxCall
	select {
	case c = <-d.free:
	default:
		select {
		case c = <-d.free:
		case <-d.dead:
			return nil, d.Err()
		case <-ctx.Done():
			return nil, fmt.Errorf("%v: %w", call.Command, context.Cause(ctx))
		}
	}
	c.Call = *call
	c.Length = length
	return c, nil
}

// enqueue hands c to the writer, or writes at once where that cannot wait.
func (d *Demux) enqueue(c *demuxCall, inline bool) error {
	d.mu.Lock()
	if err := d.refusal(); err != nil {
		d.mu.Unlock()
		c.drop()
		d.free <- c
		return err
	}
	c.gen++
	c.cookie = uint64(c.gen)<<32 | uint64(c.index)
	c.err, c.use = nil, 0
	c.active, c.queued, c.over, c.abandoned = true, true, false, false
	c.reply.reset()
	d.inFlight++
	d.queue = append(d.queue, c)
	// With nothing else in flight the server has taken all that was sent, so the
	// send buffer has room, and the caller can save the way to another goroutine.
	if inline && d.socket && !d.writing && d.inFlight == 1 && c.payload() <= maxCopied {
		d.writing = true
		d.send()
		d.writing = false
	}
	if len(d.queue) > 0 || d.err != nil || d.discDue() {
		d.wake.Signal()
	}
	d.mu.Unlock()
	return nil
}

// refusal says why no new request is taken.
func (d *Demux) refusal() error {
	switch {
	case d.err != nil:
		return d.err
	case d.shutdown:
		return ErrShuttingDown
	case d.closing:
		return ErrDisconnected
	}
	return nil
}

// drop lets go of what belongs to the caller.
func (c *demuxCall) drop() { c.Data, c.Filter, c.Status = nil, nil, nil }

// payload returns how many bytes follow the request's header.
func (c *demuxCall) payload() int {
	switch {
	case c.Command == proto.CmdWrite:
		return len(c.Data)
	case len(c.Filter) > 0:
		return 8 + 4*len(c.Filter)
	}
	return 0
}

// abandon gives up waiting for c, and reports false if c is over already. When
// it returns true the buffer is free.
func (d *Demux) abandon(c *demuxCall) bool {
	d.mu.Lock()
	if !c.active {
		d.mu.Unlock()
		return false
	}
	c.abandoned = true
	if c.queued { // it never leaves
		if i := slices.Index(d.queue, c); i >= 0 {
			d.queue = slices.Delete(d.queue, i, i+1)
		}
		c.over = true
	}
	if d.out.tail == c { // it is being sent in copied pieces: copy the rest
		d.out.rest, d.out.tail = slices.Clone(d.out.rest), nil
		c.use &^= usedByWriter
	}
	if c.use == 0 {
		d.settle(c)
		d.mu.Unlock()
		return true
	}
	// Wake whoever is inside the buffer: both sides take a deadline that has
	// passed as a knock on the door, and remove it.
	loose := make(chan struct{})
	c.loose = loose
	if c.use&usedByReader != 0 {
		d.in.knock = true
		d.conn.SetReadDeadline(time.Unix(1, 0))
	}
	if c.use&usedByWriter != 0 {
		d.out.knock = true
		d.conn.SetWriteDeadline(time.Unix(1, 0))
	}
	d.mu.Unlock()
	<-loose
	return true
}

// settle is called, with mu held, whenever c may have become over or unused. It
// returns the callback that the caller must call after it has released mu.
func (d *Demux) settle(c *demuxCall) func(error) {
	if c.use != 0 {
		return nil
	}
	if c.abandoned {
		c.drop()
		if c.loose != nil {
			close(c.loose)
			c.loose = nil
		}
	}
	if !c.over || !c.active {
		return nil
	}
	c.active = false
	c.drop()
	d.inFlight--
	if d.inFlight == 0 && (d.closing || d.shutdown) {
		d.wake.Signal()
	}
	switch done := c.done; {
	case done != nil:
		c.done = nil
		d.free <- c
		return done
	case c.abandoned:
		d.free <- c
	default:
		c.ready <- struct{}{}
	}
	return nil
}

// conclude ends c with err, once the writer has let go of it.
func (d *Demux) conclude(c *demuxCall, err error) {
	d.mu.Lock()
	if c.over {
		d.mu.Unlock()
		return
	}
	c.over, c.err = true, err
	done := d.settle(c)
	d.mu.Unlock()
	if done != nil {
		done(err)
	}
}

// fail ends the connection and everything that is outstanding. Only the first
// call's reason counts.
func (d *Demux) fail(err error) {
	d.mu.Lock()
	if d.err != nil {
		d.mu.Unlock()
		return
	}
	d.err = err
	close(d.dead)
	d.conn.Close()
	d.queue = nil
	var dones []func(error)
	for i := range d.slots {
		c := &d.slots[i]
		if !c.active {
			continue
		}
		c.queued = false
		if !c.over {
			c.over, c.err = true, err
		}
		if done := d.settle(c); done != nil {
			dones = append(dones, func(error) { done(c.err) })
		}
	}
	d.wake.Broadcast()
	d.mu.Unlock()
	for _, done := range dones {
		done(err)
	}
}

// Err returns nil while the connection stands, and then why it ended.
func (d *Demux) Err() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.err
}

// Done is closed when the connection has ended; Err then says why.
func (d *Demux) Done() <-chan struct{} { return d.dead }

// ShuttingDown reports whether the server has said NBD_ESHUTDOWN. Then new
// requests are refused, and once those in flight are answered the Demux
// disconnects by itself.
func (d *Demux) ShuttingDown() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.shutdown
}

// Disconnect refuses new requests, waits for those in flight, sends
// NBD_CMD_DISC, waits for the server to close the connection, and closes it. If
// ctx ends first, the connection is closed at once and ctx's error returned.
// proto.md, "Terminating the transmission phase".
func (d *Demux) Disconnect(ctx context.Context) error {
	d.mu.Lock()
	d.closing = true
	d.wake.Signal()
	d.mu.Unlock()
	select {
	case <-d.ended:
	case <-ctx.Done():
		d.Close()
		return fmt.Errorf("disconnect: %w", context.Cause(ctx))
	}
	err := d.Err()
	d.Close()
	if errors.Is(err, ErrDisconnected) || errors.Is(err, ErrShuttingDown) {
		return nil
	}
	return err
}

// Close closes the connection at once. What is in flight ends with an error.
func (d *Demux) Close() error {
	d.fail(ErrDisconnected)
	<-d.ended
	<-d.wrote
	return nil
}
