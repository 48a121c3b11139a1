package transmission

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"nbd.example/nbd/block"
	"nbd.example/nbd/proto"
)

// conn is one connection in the transmission phase.
//
// The goroutine that runs Serve reads requests and answers at once what needs
// no waiting. All else goes to workers, goroutines that are started when there
// is work and end when there is none. What both have to say goes to the output.
type conn struct {
	s     *Session
	cfg   Config
	dev   *block.Device
	group *Group
	ctx   context.Context // for the device's operations

	net    net.Conn
	raw    syscall.RawConn
	fd     int // of the socket below conn, for asking whether its peer is there; -1 if none
	in     input
	out    output
	quiet  chan struct{}   // closed when all that this connection will change is in the queue of changes
	doom   chan struct{}   // closed when the server itself cuts the connection: nothing more is read
	drain  <-chan struct{} // closed when the server shuts down
	number int32           // in the group

	style     style
	readOnly  bool
	alignMask uint64 // minimum block size - 1
	holes     bool   // long reads look for holes
	inPlace   bool   // the device has a fast path
	mapped    bool   // some of it may be a mapping
	freeFlush bool   // a flush does not wait
	zeroCopy  bool   // spans of files are worth it on this socket
	spanFrom  int    // the length of a read, in bytes, from which it is answered by a span

	tap      Tap  // nil if nobody is told of requests
	payloads bool // it wants what is written

	batch   batch    // the reader's answers
	making  *request // the request whose payload the reader is at
	owed    bool     // the reader's last request is in pending, and nobody answers it yet
	settled bool     // quiet is closed
	fenced  bool     // siblings were looked at since the last read
	stats   Stats    // the reader's
	seen    uint64   // how many requests there had been at the last wait
	wstats  workerStats
	pending atomic.Int64 // requests whose answer has not been sent
	held    account      // bytes of answers, ready or to be
	taken   account      // bytes of payloads that wait for a worker
	changes atomic.Int64 // changes that wait for a worker, or have one
	waiting atomic.Bool  // the reader waits for one of these to fall
	hurry   atomic.Bool  // the peer has hung up, and siblings wait for what it left to be read

	mu       sync.Mutex
	cond     sync.Cond
	readers  lane // requests that only read
	changers lane // those that change the device, and flushes
	deferred list // of reads that wait for room in held
	waits    atomic.Int64
	broken   error // why a worker ended the connection
}

type workerStats struct{ errors, faults, read, written atomic.Uint64 }

func newConn(ctx context.Context, nc net.Conn, s *Session, cfg *Config) *conn {
	c := &conn{s: s, dev: s.Device, group: s.Group, net: nc, raw: plainSocket(nc), quiet: make(chan struct{}), doom: make(chan struct{}), drain: ctx.Done()}
	c.fd = descriptor(nc)
	if _, unix := nc.LocalAddr().(*net.UnixAddr); unix {
		enlarge(c.fd)
	}
	if cfg != nil {
		c.cfg = *cfg
	}
	c.cfg.fill()
	for _, a := range []*account{&c.held, &c.taken} {
		a.c, a.limit, a.all = c, int64(c.cfg.MaxBuffered), c.cfg.Memory
	}
	c.ctx = context.WithoutCancel(ctx)
	if c.group == nil {
		c.group = new(Group)
	}
	if c.tap = s.Tap; c.tap != nil {
		c.payloads = c.tap.Payloads()
	}
	caps := c.dev.Caps()
	switch {
	case s.Extended:
		c.style = extended
	case s.Structured:
		c.style = structured
	}
	c.readOnly = caps.ReadOnly || s.Flags&proto.FlagReadOnly != 0
	c.alignMask = uint64(max(s.MinBlock, 1) - 1)
	c.holes = c.style != simple && caps.Extents == block.Native
	c.inPlace = c.dev.HasDirect()
	c.zeroCopy = c.raw != nil && !loopback(nc)
	c.freeFlush = c.inPlace && caps.FreeFlush
	c.mapped = c.raw != nil && c.dev.HasMapped()
	c.cond.L = &c.mu
	c.in = input{conn: nc, raw: c.raw, idle: c.flush}
	if p, ok := nc.(interface{ Linger(deep bool) bool }); ok {
		c.in.linger = p.Linger
	}
	c.in.init(s.Early)
	c.out = output{conn: nc, raw: c.raw, stuck: c.cfg.StuckTimeout, sent: c.sent, avoid: c.avoid}
	c.out.copies = c.raw != nil && !c.zeroCopy
	switch {
	case c.raw == nil, c.holes:
		c.spanFrom = longRead
	case c.out.copies: // what is shorter goes out with others that are
		c.spanFrom = batchSize - headroom
	default:
		c.spanFrom = spanRead
	}
	c.out.init()
	s.Live.watch(c)
	return c
}

func (c *Config) fill() {
	def := func(v *int, d int) {
		if *v <= 0 {
			*v = d
		}
	}
	def(&c.MaxPayload, 64<<20)
	c.MaxPayload = max(c.MaxPayload, proto.DefaultMaxPayload)
	def(&c.MaxRequests, 4096)
	def(&c.MaxBuffered, 64<<20)
	def(&c.Workers, 32)
	switch {
	case c.StuckTimeout == 0:
		c.StuckTimeout = 15 * time.Minute
	case c.StuckTimeout < 0:
		c.StuckTimeout = 0
	}
}

// run reads and answers until the connection is over, then waits for what was
// begun.
func (c *conn) run(ctx context.Context) (err error) {
	stop := context.AfterFunc(ctx, func() { c.net.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	err = c.readAll()
	if errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() != nil {
		err = ErrDraining
	}
	c.abandon()
	if c.owed { // the reader ended in the middle of it
		c.owed = false
		c.pending.Add(-1)
	}
	if len(c.batch.segs) > 0 || c.batch.cur != nil {
		c.flush()
	}
	c.settle()
	c.admit()
	c.await(func() bool { return c.changes.Load() == 0 && c.pending.Load() == 0 })
	c.cfg.Memory.forget(c)
	c.in.r = c.in.w
	c.in.rest()
	return c.verdict(err)
}

// settle lets those go on that wait in the fence: their changes wait for what this
// connection has begun where they overlap it, and nowhere else.
func (c *conn) settle() {
	if !c.settled {
		c.settled = true
		close(c.quiet)
	}
}

func (c *conn) log() *slog.Logger {
	if c.s.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return c.s.Log()
}

// recovered makes an error of a panic: a fault in one connection ends that
// connection alone. It must be deferred.
func (c *conn) recovered(err *error) {
	if p := recover(); p != nil {
		*err = c.panicked(p)
	}
}

// endOnPanic ends the connection after a panic where there is nobody to return an
// error to. It must be deferred.
func (c *conn) endOnPanic() {
	if p := recover(); p != nil {
		c.fail(c.panicked(p))
	}
}

func (c *conn) panicked(p any) error {
	c.log().Error("panic while serving a request; the connection ends", "panic", p, "stack", string(debug.Stack()))
	return fmt.Errorf("%w: %v", ErrPanic, p)
}

// avoid passes on a span that could not be sent. Whoever owns the output calls it.
func (c *conn) avoid(s block.Span) {
	defer c.endOnPanic()
	c.dev.Avoid(s)
}

// verdict says why the connection ended.
func (c *conn) verdict(err error) error {
	c.mu.Lock()
	broken := c.broken
	c.mu.Unlock()
	sending := c.out.failure()
	switch {
	case broken != nil:
		return broken
	case errors.Is(sending, errSpan), errors.Is(sending, errStuck):
		return sending
	case err == nil || errors.Is(err, ErrDraining):
		return err
	case sending != nil && errors.Is(err, os.ErrDeadlineExceeded): // by which the output woke the reader
		return sending
	case errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), errors.Is(err, net.ErrClosed), errors.Is(err, io.ErrClosedPipe):
		return ErrHungUp
	}
	return err
}

// sent is called by the output for all that it has got rid of.
func (c *conn) sent(requests, held int) {
	if held > 0 {
		c.returned(held)
	}
	if requests > 0 {
		c.pending.Add(-int64(requests))
	}
	c.wake()
}

// returned gives back bytes of answers, and begins what has waited for them.
func (c *conn) returned(held int) {
	c.held.take(-held)
	if c.waits.Load() > 0 {
		c.admit()
	}
}

// retry begins what has waited for memory that others had.
func (c *conn) retry() {
	c.admit()
	c.wake()
}

// wake lets the reader look again at what it waits for.
func (c *conn) wake() {
	if c.waiting.Load() {
		c.mu.Lock()
		c.cond.Broadcast()
		c.mu.Unlock()
	}
}

// await blocks the reader until ok, which looks at counters alone.
func (c *conn) await(ok func() bool) {
	if ok() {
		return
	}
	c.mu.Lock()
	c.waiting.Store(true)
	for !ok() {
		c.cond.Wait()
	}
	c.waiting.Store(false)
	c.mu.Unlock()
}

// flush hands the reader's answers to the output, and reports whether there were
// any.
func (c *conn) flush() bool {
	segs, held := c.batch.take()
	if len(segs) == 0 {
		return false
	}
	c.held.take(held)
	c.out.send(segs)
	clear(segs)
	return true
}

// fail ends the connection from the outside, a worker or whoever cuts it: what is
// read and not begun is not done any more.
func (c *conn) fail(err error) {
	c.mu.Lock()
	if c.broken != nil {
		c.mu.Unlock()
		return
	}
	c.broken = err
	close(c.doom)
	c.cond.Broadcast()
	c.mu.Unlock()
	c.group.doom(c)
	c.out.kill(err)
	c.admit()
}

// doomed reports whether fail was called.
func (c *conn) doomed() bool {
	select {
	case <-c.doom:
		return true
	default:
		return false
	}
}

// loopback reports whether conn is TCP to this very machine. There sendfile makes
// the receiver copy from memory that no cache holds, and is slower by a quarter
// than a copy through a buffer, which the output makes; on a unix socket sendfile is
// twice as fast.
func loopback(conn net.Conn) bool {
	a, ok := conn.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return false
	}
	local, ok := conn.LocalAddr().(*net.TCPAddr)
	return a.IP.IsLoopback() || ok && a.IP.Equal(local.IP)
}

// descriptor returns the socket below conn, through TLS too, or -1.
func descriptor(conn net.Conn) int {
	if t, ok := conn.(interface{ NetConn() net.Conn }); ok {
		conn = t.NetConn()
	}
	fd := -1
	if raw := plainSocket(conn); raw != nil {
		raw.Control(func(s uintptr) { fd = int(s) })
	}
	return fd
}
