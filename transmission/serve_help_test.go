package transmission

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"

	"nbd.example/nbd/block"
	"nbd.example/nbd/layer/delay"
	"nbd.example/nbd/layer/fault"
	"nbd.example/nbd/proto"
)

// patience is how long a test waits for what must happen before it fails. Nothing
// is measured by it.
const patience = 60 * time.Second

// everything is what an export of a ramDisk offers in the given style.
func everything(s style) proto.TransmissionFlags {
	f := proto.FlagHasFlags | proto.FlagSendFlush | proto.FlagSendFUA | proto.FlagSendTrim |
		proto.FlagSendWriteZeroes | proto.FlagSendFastZero | proto.FlagSendCache | proto.FlagCanMultiConn
	if s != simple {
		f |= proto.FlagSendDF
	}
	if s == extended {
		f |= proto.FlagBlockStatusPayload
	}
	return f
}

// ids of the contexts that a rig of a style other than simple has.
const (
	idAllocation = 7
	idDepth      = 9
	idInstance   = 11
)

var allContexts = []proto.MetaContext{
	{ID: idAllocation, Name: proto.ContextBaseAllocation},
	{ID: idDepth, Name: proto.ContextAllocationDepth},
	{ID: idInstance, Name: proto.ContextInstance + "0123"},
}

// ramDisk is a disk in memory whose contents, extents and stable state are exact.
type ramDisk struct {
	caps block.Caps

	mu      sync.Mutex
	data    []byte
	stable  []byte // what a power cut would leave
	used    []bool // of each page: it is allocated
	flushes int
	cached  int
	noRead  bool // TryRead says no
	noWrite bool // TryWrite says no
	// hook, if set, is called at the beginning of each call, with the method's name.
	hook func(method string)
}

var (
	_ block.Writer     = (*ramDisk)(nil)
	_ block.Flusher    = (*ramDisk)(nil)
	_ block.Trimmer    = (*ramDisk)(nil)
	_ block.ZeroWriter = (*ramDisk)(nil)
	_ block.Extenter   = (*ramDisk)(nil)
	_ block.Cacher     = (*ramDisk)(nil)
	_ block.Direct     = (*ramDisk)(nil)
)

func newRAM(size int64) *ramDisk {
	return &ramDisk{
		caps:   block.Caps{Size: size, MultiConn: true, FUA: block.Native, Depth: true, Instance: "0123"},
		data:   make([]byte, size),
		stable: make([]byte, size),
		used:   make([]bool, (size+page-1)/page),
	}
}

// fill makes [off, off+n) hold a pattern that tells offsets apart, and returns it.
func (d *ramDisk) fill(off, n int64) []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	for i := off; i < off+n; i++ {
		d.data[i] = byte(i) ^ byte(i>>8) ^ byte(i>>16) | 1
		d.used[i/page] = true
	}
	copy(d.stable, d.data)
	return bytes.Clone(d.data[off : off+n])
}

func (d *ramDisk) enter(method string) {
	if d.hook != nil {
		d.hook(method)
	}
}

// load puts whole contents.
func (d *ramDisk) load(data []byte) {
	d.mu.Lock()
	defer d.mu.Unlock()
	copy(d.data, data)
}

// allocated tells whether the page at off is.
func (d *ramDisk) allocated(off int64) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.used[off/page]
}

func (d *ramDisk) contents(off, n int64) []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	return bytes.Clone(d.data[off : off+n])
}

func (d *ramDisk) stableContents(off, n int64) []byte {
	d.mu.Lock()
	defer d.mu.Unlock()
	return bytes.Clone(d.stable[off : off+n])
}

func (d *ramDisk) Caps() block.Caps { return d.caps }
func (d *ramDisk) Close() error     { return nil }

func (d *ramDisk) ReadAt(_ context.Context, p []byte, off int64) error {
	d.enter("ReadAt")
	d.mu.Lock()
	defer d.mu.Unlock()
	copy(p, d.data[off:])
	return nil
}

func (d *ramDisk) settle(off, n int64, f block.Flags) {
	if f&block.FUA != 0 {
		copy(d.stable[off:off+n], d.data[off:off+n])
	}
}

func (d *ramDisk) WriteAt(_ context.Context, p []byte, off int64, f block.Flags) error {
	d.enter("WriteAt")
	d.put(p, off, f)
	return nil
}

func (d *ramDisk) put(p []byte, off int64, f block.Flags) {
	d.mu.Lock()
	defer d.mu.Unlock()
	copy(d.data[off:], p)
	for i := off / page; i*page < off+int64(len(p)); i++ {
		d.used[i] = true
	}
	d.settle(off, int64(len(p)), f)
}

func (d *ramDisk) Flush(context.Context) error {
	d.enter("Flush")
	d.mu.Lock()
	defer d.mu.Unlock()
	d.flushes++
	copy(d.stable, d.data)
	return nil
}

// clear zeroes a range, and lets go of the pages in it unless keep is set.
func (d *ramDisk) clear(off, n int64, keep bool) {
	clear(d.data[off : off+n])
	for i := off / page; i*page < off+n; i++ {
		if keep {
			d.used[i] = true
		} else if i*page >= off && min((i+1)*page, d.caps.Size) <= off+n {
			d.used[i] = false
		}
	}
}

func (d *ramDisk) Trim(_ context.Context, off, n int64, f block.Flags) error {
	d.enter("Trim")
	d.mu.Lock()
	defer d.mu.Unlock()
	d.clear(off, n, false)
	d.settle(off, n, f)
	return nil
}

func (d *ramDisk) WriteZeroes(_ context.Context, off, n int64, f block.Flags) error {
	d.enter("WriteZeroes")
	if f&block.FastZero != 0 && f&block.NoHole != 0 {
		return fmt.Errorf("%w: fast zeroes without a hole", errors.ErrUnsupported)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.clear(off, n, f&block.NoHole != 0)
	d.settle(off, n, f)
	return nil
}

func (d *ramDisk) Extents(_ context.Context, off, n int64, f block.Flags, add func(block.Extent) bool) error {
	d.enter("Extents")
	for at := off; at < off+n; {
		d.mu.Lock()
		i := at / page
		j := i
		for j < int64(len(d.used)) && d.used[j] == d.used[i] {
			j++
		}
		x := block.Extent{Length: min(j*page, d.caps.Size) - at, State: block.Hole | block.Zero}
		if d.used[i] {
			x.State, x.Depth = 0, 1
		}
		d.mu.Unlock()
		if !add(x) || f&block.One != 0 {
			return nil
		}
		at += x.Length
	}
	return nil
}

func (d *ramDisk) Cache(context.Context, int64, int64) error {
	d.enter("Cache")
	d.mu.Lock()
	defer d.mu.Unlock()
	d.cached++
	return nil
}

func (d *ramDisk) TryRead(p []byte, off int64) bool {
	d.enter("TryRead")
	d.mu.Lock()
	defer d.mu.Unlock()
	copy(p, d.data[off:])
	return !d.noRead
}

func (d *ramDisk) TryWrite(p []byte, off int64) bool {
	d.enter("TryWrite")
	if d.noWrite {
		return false
	}
	d.put(p, off, 0)
	return true
}

func (d *ramDisk) Range(int64, int64, bool) (block.Span, bool) { return block.Span{}, false }
func (d *ramDisk) Avoid(block.Span)                            {}

// stack makes a device that is closed with the test.
func stack(t testing.TB, b block.Backend, layers ...block.Layer) *block.Device {
	t.Helper()
	dev, err := block.Stack(b, layers...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { dev.Close() })
	return dev
}

// passThrough takes the fast path away and nothing else.
func passThrough() block.Layer { return delay.Layer(delay.Config{}) }

// faulty returns a layer that follows rules.
func faulty(t testing.TB, rules string) block.Layer {
	t.Helper()
	s, err := fault.New(rules)
	if err != nil {
		t.Fatal(err)
	}
	return fault.Layer(s)
}

// setup says how a rig differs from the usual.
type setup struct {
	style     style
	transport string // "unix", which "" means, "pipe" or "tls"
	deny      proto.TransmissionFlags
	add       proto.TransmissionFlags
	contexts  []proto.MetaContext // nil means allContexts unless style is simple
	minBlock  uint32
	group     *Group
	early     []byte
	log       func() *slog.Logger
	cfg       Config
	// session changes what the connection is told.
	session func(*Session)
	// tune changes the connection before it begins.
	tune func(c *conn, client, server net.Conn)
}

// rig is a connection that is served, and its client's end.
type rig struct {
	t      testing.TB
	conn   net.Conn
	c      *conn
	style  style
	cancel context.CancelFunc
	done   chan struct{} // closed when Serve has returned
	stats  Stats
	err    error

	cookie  uint64
	waiting map[uint64]proto.Request // sent, and not answered
}

// serve begins to serve dev.
func serve(t testing.TB, dev *block.Device, s setup) *rig {
	t.Helper()
	client, server := connect(t, s.transport)
	client.SetDeadline(time.Now().Add(patience))
	flags := everything(s.style)&^s.deny | s.add
	if dev.Caps().ReadOnly {
		flags |= proto.FlagReadOnly
	}
	if s.contexts == nil && s.style != simple {
		s.contexts = allContexts
	}
	session := &Session{
		Device: dev, Group: s.group, Flags: flags, Structured: s.style == structured, Extended: s.style == extended,
		Contexts: s.contexts, MinBlock: s.minBlock, Early: s.early, Log: s.log,
	}
	if s.session != nil {
		s.session(session)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &rig{
		t: t, conn: client, style: s.style, cancel: cancel, done: make(chan struct{}),
		waiting: make(map[uint64]proto.Request), cookie: 0x1122334455667700,
		c: newConn(ctx, server, session, &s.cfg),
	}
	if s.tune != nil {
		s.tune(r.c, client, server)
	}
	t.Cleanup(cancel)
	t.Cleanup(func() { client.Close() })
	go func() {
		r.stats, r.err = r.c.serve(ctx)
		close(r.done)
		server.Close()
	}()
	return r
}

// connect returns two ends of a connection.
func connect(t testing.TB, transport string) (client, server net.Conn) {
	t.Helper()
	switch transport {
	case "pipe":
		return net.Pipe()
	case "tcp":
		return tcpSockets(t)
	case "tls":
		c, s := demuxSockets(t)
		config := tlsConfig(t)
		return tls.Client(c, config), tls.Server(s, config)
	}
	return demuxSockets(t)
}

// tlsConfig is for both ends; the client trusts anybody.
var tlsConfig = func() func(t testing.TB) *tls.Config {
	once := sync.OnceValues(func() (*tls.Config, error) {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		if err != nil {
			return nil, err
		}
		template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
		der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
		if err != nil {
			return nil, err
		}
		cert := tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
		return &tls.Config{Certificates: []tls.Certificate{cert}, InsecureSkipVerify: true}, nil
	})
	return func(t testing.TB) *tls.Config {
		c, err := once()
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
}()

// encode returns the bytes of a request.
func (s style) encode(b []byte, q proto.Request, payload []byte) []byte {
	if s == extended {
		return append(proto.AppendExtendedRequest(b, &q), payload...)
	}
	return append(proto.AppendRequest(b, &q), payload...)
}

// request gives q a cookie, notes it as sent, and returns its bytes.
func (r *rig) request(q proto.Request, payload []byte) (cookie uint64, b []byte) {
	if q.Cookie == 0 {
		r.cookie++
		q.Cookie = r.cookie
	}
	if q.Command == proto.CmdWrite && r.style == extended && payload != nil {
		q.Flags |= proto.CmdFlagPayloadLen
	}
	if payload != nil && q.Length == 0 {
		q.Length = uint64(len(payload))
	}
	r.waiting[q.Cookie] = q
	return q.Cookie, r.style.encode(nil, q, payload)
}

// write sends bytes as they are.
func (r *rig) write(b []byte) {
	r.t.Helper()
	if _, err := r.conn.Write(b); err != nil {
		r.t.Fatalf("the client's write: %v", err)
	}
}

// send sends a request and returns its cookie.
func (r *rig) send(q proto.Request, payload []byte) uint64 {
	r.t.Helper()
	cookie, b := r.request(q, payload)
	r.write(b)
	return cookie
}

// chunk is a chunk with its payload.
type chunk struct {
	proto.Chunk
	payload []byte
}

// reply is a whole reply that keeps the rules.
type reply struct {
	cookie uint64
	errno  proto.Errno
	text   string
	at     uint64 // of ERROR_OFFSET
	data   []byte // of a read
	chunks []chunk
}

// status returns the descriptors for a context.
func (p *reply) status(t testing.TB, id uint32) []proto.Extent {
	t.Helper()
	for _, c := range p.chunks {
		if c.Type != proto.ChunkBlockStatus && c.Type != proto.ChunkBlockStatusExt {
			continue
		}
		got, ext, err := proto.ParseBlockStatus(c.payload, c.Type, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got == id {
			return ext
		}
	}
	t.Fatalf("no status for context %d", id)
	return nil
}

// types lists the chunks' types.
func (p *reply) types() (types []proto.ChunkType) {
	for _, c := range p.chunks {
		types = append(types, c.Type)
	}
	return types
}

// raw reads n bytes of the server's stream.
func (r *rig) raw(n int) []byte {
	r.t.Helper()
	b := make([]byte, n)
	if _, err := io.ReadFull(r.conn, b); err != nil {
		r.t.Fatalf("the client's read of %d bytes: %v", n, err)
	}
	return b
}

// receive reads the next reply, whosever it is. Replies with several chunks must
// not be mixed with others, which this server never does.
func (r *rig) receive() *reply {
	r.t.Helper()
	p, err := readReply(r.conn, r.style, r.waiting)
	if err != nil {
		r.t.Fatal(err)
	}
	return p
}

// readReply reads one reply and holds it against the specification's rules.
func readReply(in io.Reader, s style, waiting map[uint64]proto.Request) (*reply, error) {
	if s == simple {
		return readSimple(in, waiting)
	}
	p := &reply{}
	var q proto.Request
	for first := true; ; first = false {
		c, err := readChunk(in, s)
		if err != nil {
			return nil, err
		}
		if first {
			var ok bool
			if q, ok = waiting[c.Cookie]; !ok {
				return nil, fmt.Errorf("a reply with the cookie %#x that no request has", c.Cookie)
			}
			p.cookie = c.Cookie
		}
		if c.Cookie != p.cookie {
			return nil, fmt.Errorf("a chunk of %#x among those of %#x", c.Cookie, p.cookie)
		}
		if s == extended && c.Offset != q.Offset {
			return nil, fmt.Errorf("a reply with offset %d to a request with offset %d", c.Offset, q.Offset)
		}
		p.chunks = append(p.chunks, c)
		if c.Flags&^proto.ReplyFlagDone != 0 {
			return nil, fmt.Errorf("unknown reply flags %v", c.Flags)
		}
		if c.Flags&proto.ReplyFlagDone != 0 {
			break
		}
	}
	delete(waiting, p.cookie)
	return p, p.check(q, s)
}

func readSimple(in io.Reader, waiting map[uint64]proto.Request) (*reply, error) {
	b := make([]byte, proto.SimpleReplySize)
	if _, err := io.ReadFull(in, b); err != nil {
		return nil, fmt.Errorf("reading a reply: %w", err)
	}
	var h proto.SimpleReply
	if !proto.ParseSimpleReply(b, &h) {
		return nil, fmt.Errorf("not a simple reply: %x", b)
	}
	q, ok := waiting[h.Cookie]
	if !ok {
		return nil, fmt.Errorf("a reply with the cookie %#x that no request has", h.Cookie)
	}
	delete(waiting, h.Cookie)
	p := &reply{cookie: h.Cookie, errno: h.Error}
	if q.Command == proto.CmdRead && h.Error == proto.OK {
		p.data = make([]byte, q.Length)
		if _, err := io.ReadFull(in, p.data); err != nil {
			return nil, fmt.Errorf("reading %d bytes of data: %w", q.Length, err)
		}
	}
	return p, nil
}

func readChunk(in io.Reader, s style) (c chunk, err error) {
	b := make([]byte, s.dataHeader()-8)
	if _, err := io.ReadFull(in, b); err != nil {
		return c, fmt.Errorf("reading a chunk's header: %w", err)
	}
	ok := false
	if s == extended {
		ok = proto.ParseExtendedChunk(b, &c.Chunk)
	} else {
		ok = proto.ParseChunk(b, &c.Chunk)
	}
	if !ok {
		return c, fmt.Errorf("not a chunk: %x", b)
	}
	if c.Length > 1<<28 {
		return c, fmt.Errorf("a chunk of %d bytes", c.Length)
	}
	c.payload = make([]byte, c.Length)
	if _, err := io.ReadFull(in, c.payload); err != nil {
		return c, fmt.Errorf("reading a payload of %d bytes: %w", c.Length, err)
	}
	return c, nil
}

// check holds chunks against "Structured reply types", and puts data together.
func (p *reply) check(q proto.Request, s style) error {
	covered := uint64(0)
	content := 0
	type stretch struct{ lo, hi uint64 }
	var seen []stretch
	if q.Command == proto.CmdRead && q.Length <= 1<<28 {
		p.data = make([]byte, q.Length)
	}
	place := func(off, n uint64, data []byte) error {
		content++
		if q.Command != proto.CmdRead || n == 0 || off < q.Offset || off-q.Offset+n > q.Length {
			return fmt.Errorf("content of %d bytes at %d for %v of %d at %d", n, off, q.Command, q.Length, q.Offset)
		}
		for i := len(seen) - 1; i >= 0; i-- {
			if x := seen[i]; off < x.hi && x.lo < off+n {
				return fmt.Errorf("content of %d bytes at %d overlaps %d to %d", n, off, x.lo, x.hi)
			}
		}
		if k := len(seen) - 1; k >= 0 && seen[k].hi == off {
			seen[k].hi += n
		} else {
			seen = append(seen, stretch{off, off + n})
		}
		covered += n
		copy(p.data[off-q.Offset:], data)
		return nil
	}
	for _, c := range p.chunks {
		var err error
		switch c.Type {
		case proto.ChunkNone:
			if c.Length != 0 || c.Flags&proto.ReplyFlagDone == 0 {
				err = fmt.Errorf("NONE with %d bytes and flags %v", c.Length, c.Flags)
			}
		case proto.ChunkOffsetData:
			if c.Length < 9 {
				return fmt.Errorf("OFFSET_DATA of %d bytes", c.Length)
			}
			err = place(uint64(c.payload[0])<<56|be48(c.payload[1:8]), c.Length-8, c.payload[8:])
		case proto.ChunkOffsetHole:
			var off uint64
			var n uint32
			if off, n, err = proto.ParseHole(c.payload); err == nil {
				err = place(off, uint64(n), nil)
			}
		case proto.ChunkErrorPlain, proto.ChunkErrorOffset:
			var e proto.ErrorPayload
			if e, err = proto.ParseErrorPayload(c.payload, c.Type); err == nil {
				p.errno, p.text, p.at = e.Error, e.Message, e.Offset
			}
			if c.Type == proto.ChunkErrorOffset && (p.at < q.Offset || p.at-q.Offset >= q.Length) {
				err = fmt.Errorf("ERROR_OFFSET at %d for %d bytes at %d", p.at, q.Length, q.Offset)
			}
		case proto.ChunkBlockStatus, proto.ChunkBlockStatusExt:
			if q.Command != proto.CmdBlockStatus || (c.Type == proto.ChunkBlockStatusExt) != (s == extended) {
				err = fmt.Errorf("%v in answer to %v", c.Type, q.Command)
			}
		default:
			err = fmt.Errorf("a chunk of type %v", c.Type)
		}
		if err != nil {
			return err
		}
	}
	if p.errno == proto.OK && q.Command == proto.CmdRead && covered != q.Length {
		return fmt.Errorf("success with %d of %d bytes", covered, q.Length)
	}
	if q.Flags&proto.CmdFlagDF != 0 && content > 1 {
		return fmt.Errorf("%d content chunks though DF was set", content)
	}
	return nil
}

// be48 reads seven bytes.
func be48(b []byte) (v uint64) {
	for _, x := range b {
		v = v<<8 | uint64(x)
	}
	return v
}

// do sends a request and waits for its reply.
func (r *rig) do(q proto.Request, payload []byte) *reply {
	r.t.Helper()
	cookie := r.send(q, payload)
	p := r.receive()
	if p.cookie != cookie {
		r.t.Fatalf("cookie %#x for %#x", p.cookie, cookie)
	}
	return p
}

// want does q and compares the error.
func (r *rig) want(e proto.Errno, q proto.Request, payload []byte) *reply {
	r.t.Helper()
	p := r.do(q, payload)
	if p.errno != e {
		r.t.Errorf("%v %v of %d at %d: %v (%q), want %v", q.Command, q.Flags, q.Length, q.Offset, p.errno, p.text, e)
	}
	return p
}

// alive checks that the connection still answers, in step.
func (r *rig) alive() {
	r.t.Helper()
	r.want(proto.OK, proto.Request{Command: proto.CmdRead, Offset: 0, Length: 512}, nil)
}

// wait waits until Serve has returned, checks that it has given everything back,
// and returns its error.
func (r *rig) wait() error {
	r.t.Helper()
	within(r.t, "Serve returns", r.done)
	c := r.c
	if n := c.pending.Load(); n != 0 {
		r.t.Errorf("%d requests are still pending", n)
	}
	if n := c.held.used.Load(); n != 0 {
		r.t.Errorf("%d bytes are still held", n)
	}
	if n := c.taken.used.Load(); n != 0 {
		r.t.Errorf("%d bytes are still taken", n)
	}
	if n := c.changes.Load(); n != 0 {
		r.t.Errorf("%d changes are still under way", n)
	}
	return r.err
}

// end disconnects, and wants nothing but the end of the stream.
func (r *rig) end() {
	r.t.Helper()
	r.write(r.style.encode(nil, proto.Request{Command: proto.CmdDisc}, nil))
	if err := r.wait(); err != nil {
		r.t.Errorf("Serve: %v", err)
	}
	r.silent()
}

// silent wants no more bytes from the server, but the end.
func (r *rig) silent() {
	r.t.Helper()
	if b, _ := io.ReadAll(r.conn); len(b) > 0 {
		r.t.Errorf("the server sent %d bytes more: %x", len(b), b[:min(len(b), 64)])
	}
}

// hangUp closes the client's end and waits for Serve's.
func (r *rig) hangUp() error {
	r.t.Helper()
	r.conn.Close()
	return r.wait()
}

// within waits for an event that must come.
func within(t testing.TB, what string, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(patience):
		stacks := make([]byte, 1<<18)
		t.Fatalf("waiting too long until %s\n%s", what, stacks[:runtime.Stack(stacks, true)])
	}
}

// until waits for what no event tells.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); runtime.Gosched() {
		if time.Now().After(end) {
			stacks := make([]byte, 1<<18)
			t.Fatalf("waiting too long until %s\n%s", what, stacks[:runtime.Stack(stacks, true)])
		}
	}
}

// arrived waits until an operation is held at the gate.
func arrived(t testing.TB, g *delay.Gate) *delay.Held {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	h, err := g.Arrived(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// forStyles runs f for each style of reply.
func forStyles(t *testing.T, f func(t *testing.T, s style)) {
	t.Helper()
	for s, name := range map[style]string{simple: "simple", structured: "structured", extended: "extended"} {
		t.Run(name, func(t *testing.T) { f(t, s) })
	}
}

// forPaths runs f with a device over d that has the fast path, and one that has
// not.
func forPaths(t *testing.T, d func() *ramDisk, f func(t *testing.T, d *ramDisk, dev *block.Device)) {
	t.Helper()
	t.Run("direct", func(t *testing.T) {
		d := d()
		f(t, d, stack(t, d))
	})
	t.Run("layered", func(t *testing.T) {
		d := d()
		f(t, d, stack(t, d, passThrough()))
	})
}

// forAll is forStyles and forPaths.
func forAll(t *testing.T, size int64, f func(t *testing.T, s style, d *ramDisk, dev *block.Device)) {
	t.Helper()
	forStyles(t, func(t *testing.T, s style) {
		forPaths(t, func() *ramDisk { return newRAM(size) }, func(t *testing.T, d *ramDisk, dev *block.Device) { f(t, s, d, dev) })
	})
}
