package transmission

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"syscall"
	"testing"
	"unicode/utf8"

	"nbd.example/nbd/block"
	"nbd.example/nbd/layer/delay"
	"nbd.example/nbd/proto"
)

// TestFlushFails: after a failed flush nothing that changes the device, and no
// flush, succeeds on any connection. Reads go on.
func TestFlushFails(t *testing.T) {
	for name, fail := range map[string]struct {
		rule    string
		request proto.Request
	}{
		"FLUSH": {"flush:once=EIO", proto.Request{Command: proto.CmdFlush}},
		"FUA":   {"write:2=EIO", proto.Request{Command: proto.CmdWrite, Flags: proto.CmdFlagFUA, Offset: 4096}},
	} {
		t.Run(name, func(t *testing.T) {
			forStyles(t, func(t *testing.T, s style) {
				d := newRAM(mib)
				dev := stack(t, d, faulty(t, fail.rule))
				group := new(Group)
				a, b := serve(t, dev, setup{style: s, group: group}), serve(t, dev, setup{style: s, group: group})
				a.want(proto.OK, proto.Request{Command: proto.CmdWrite}, full(1, 4096))
				var payload []byte
				if fail.request.Command == proto.CmdWrite {
					payload = full(1, 4096)
				}
				a.want(proto.EIO, fail.request, payload)
				before := d.contents(0, mib)
				for _, r := range []*rig{b, a, serve(t, dev, setup{style: s, group: group})} {
					for range 2 {
						r.want(proto.EIO, proto.Request{Command: proto.CmdFlush}, nil)
						for _, f := range []proto.CommandFlags{0, proto.CmdFlagFUA} {
							for _, c := range []proto.Command{proto.CmdWrite, proto.CmdTrim, proto.CmdWriteZeroes} {
								q, payload := valid(c)
								q.Flags = f
								r.want(proto.EIO, q, payload)
							}
						}
						p := r.want(proto.OK, proto.Request{Command: proto.CmdRead, Length: 4096}, nil)
						if !bytes.Equal(p.data, full(1, 4096)) {
							t.Error("reads something else")
						}
					}
					r.end()
				}
				if !bytes.Equal(before, d.contents(0, mib)) {
					t.Error("an EIO has changed the device")
				}
			})
		})
	}
}

// TestFlushFailsDirect: writes in place stop too.
func TestFlushFailsDirect(t *testing.T) {
	d := newRAM(mib)
	bad := &badFlush{disk: d}
	dev := stack(t, bad)
	r := serve(t, dev, setup{})
	r.want(proto.OK, proto.Request{Command: proto.CmdWrite}, full(1, 4096))
	r.want(proto.EIO, proto.Request{Command: proto.CmdFlush}, nil)
	r.want(proto.EIO, proto.Request{Command: proto.CmdWrite}, full(2, 4096))
	r.want(proto.EIO, proto.Request{Command: proto.CmdWrite}, full(2, 300<<10))
	r.alive()
	r.end()
	if !bytes.Equal(d.contents(0, 4096), full(1, 4096)) {
		t.Error("an EIO has changed the device")
	}
}

// TestBadSector: each retry gets its EIO, on each connection, and the rest of the
// device is served.
func TestBadSector(t *testing.T) {
	forStyles(t, func(t *testing.T, s style) {
		d := newRAM(mib)
		d.fill(0, mib)
		dev := stack(t, d, faulty(t, "read@131072+512=EIO"))
		for range 3 {
			r := serve(t, dev, setup{style: s})
			for range 3 {
				r.want(proto.EIO, proto.Request{Command: proto.CmdRead, Offset: 100 << 10, Length: 64 << 10}, nil)
				r.want(proto.EIO, proto.Request{Command: proto.CmdRead, Offset: 128 << 10, Length: 512}, nil)
				r.want(proto.OK, proto.Request{Command: proto.CmdRead, Offset: 128<<10 + 512, Length: 64 << 10}, nil)
			}
			r.end()
		}
	})
}

// TestTornSparseRead: an error behind data that was read already is an error
// chunk, and the stream stays in step.
func TestTornSparseRead(t *testing.T) {
	for _, s := range []style{structured, extended} {
		d := newRAM(mib)
		d.fill(0, 128<<10)
		d.fill(256<<10, 128<<10)
		r := serve(t, stack(t, d, faulty(t, "read@307200+1=EIO")), setup{style: s})
		p := r.want(proto.EIO, proto.Request{Command: proto.CmdRead, Length: mib}, nil)
		if p.at != 300<<10 {
			t.Errorf("the error is at %d", p.at)
		}
		r.alive()
		r.end()
		r = serve(t, stack(t, d, faulty(t, "extents=EIO")), setup{style: s})
		r.want(proto.EIO, proto.Request{Command: proto.CmdBlockStatus, Length: mib}, nil)
		r.alive()
		r.end()
	}
}

// TestErrorTexts: a text is bounded, and valid.
func TestErrorTexts(t *testing.T) {
	d := newRAM(mib)
	gate := delay.NewGate(nil)
	for i, s := range []style{structured, structured, structured, extended} {
		long := errors.New(strings.Repeat("x", i) + strings.Repeat("€", 5000))
		r := serve(t, stack(t, d, delay.Layer(delay.Config{Gate: gate})), setup{style: s})
		cookie := r.send(proto.Request{Command: proto.CmdRead, Length: 512}, nil)
		arrived(t, gate).Fail(long)
		p := r.receive()
		if p.cookie != cookie || p.errno != proto.EIO || len(p.text) > proto.MaxString || p.text == "" {
			t.Errorf("%v, %d bytes of text", p.errno, len(p.text))
		}
		if err := proto.CheckString([]byte(p.text)); err != nil || !utf8.ValidString(p.text) {
			t.Errorf("%v, %q", err, p.text)
		}
		r.end()
	}
}

// badFlush is a ramDisk whose flush fails, with its fast path.
type badFlush struct{ disk *ramDisk }

func (b *badFlush) Caps() block.Caps { return block.Caps{Size: b.disk.caps.Size} }
func (b *badFlush) Close() error     { return nil }
func (b *badFlush) ReadAt(ctx context.Context, p []byte, off int64) error {
	return b.disk.ReadAt(ctx, p, off)
}
func (b *badFlush) WriteAt(ctx context.Context, p []byte, off int64, f block.Flags) error {
	return b.disk.WriteAt(ctx, p, off, f)
}
func (b *badFlush) Flush(context.Context) error                 { return syscall.EIO }
func (b *badFlush) TryRead(p []byte, off int64) bool            { return b.disk.TryRead(p, off) }
func (b *badFlush) TryWrite(p []byte, off int64) bool           { return b.disk.TryWrite(p, off) }
func (b *badFlush) Range(int64, int64, bool) (block.Span, bool) { return block.Span{}, false }
func (b *badFlush) Avoid(block.Span)                            {}

// lockedBuffer takes a log.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// TestPanic: a panic in a back end ends that connection alone, is logged, and
// leaves nothing behind.
func TestPanic(t *testing.T) {
	for _, method := range []string{
		"ReadAt", "WriteAt", "Flush", "Trim", "WriteZeroes", "Extents", "Cache", // in a worker
		"TryRead", "TryWrite", // in the reader
	} {
		t.Run(method, func(t *testing.T) {
			forStyles(t, func(t *testing.T, s style) {
				command := map[string]proto.Command{
					"ReadAt": proto.CmdRead, "WriteAt": proto.CmdWrite, "Flush": proto.CmdFlush, "Trim": proto.CmdTrim,
					"WriteZeroes": proto.CmdWriteZeroes, "Extents": proto.CmdBlockStatus, "Cache": proto.CmdCache,
					"TryRead": proto.CmdRead, "TryWrite": proto.CmdWrite,
				}[method]
				if command == proto.CmdBlockStatus && s == simple {
					t.Skip("there is no block status without structured replies")
				}
				d := newRAM(mib)
				var once sync.Once
				d.hook = func(m string) {
					if m == method {
						once.Do(func() { panic("the back end's own " + m) })
					}
				}
				layers := []block.Layer{passThrough()}
				if strings.HasPrefix(method, "Try") {
					layers = nil
				}
				dev := stack(t, d, layers...)
				group := new(Group)
				var log lockedBuffer
				logger := func() *slog.Logger { return slog.New(slog.NewTextHandler(&log, nil)) }
				a, b := serve(t, dev, setup{style: s, group: group, log: logger}), serve(t, dev, setup{style: s, group: group, log: logger})
				q, payload := valid(command)
				a.send(q, payload)
				if err := a.wait(); !errors.Is(err, ErrPanic) {
					t.Errorf("Serve: %v, want ErrPanic", err)
				}
				if text := log.String(); !strings.Contains(text, "the back end's own "+method) || !strings.Contains(text, "ramDisk") {
					t.Errorf("log: %.300s", text)
				}
				// The others go on, in the same place too.
				b.want(proto.OK, q, payload)
				b.want(proto.OK, proto.Request{Command: proto.CmdWrite, Offset: 4096}, full(9, 4096))
				b.end()
				if group.changes.Busy() {
					t.Error("changes are left")
				}
			})
		})
	}
}

// TestPanicInLongWrite: a panic in the middle of a payload.
func TestPanicInLongWrite(t *testing.T) {
	d := newRAM(mib)
	calls := 0
	d.hook = func(m string) {
		if m == "TryWrite" {
			if calls++; calls == 2 {
				panic("the second piece")
			}
		}
	}
	group := new(Group)
	r := serve(t, stack(t, d), setup{transport: "pipe", group: group})
	_, b := r.request(proto.Request{Command: proto.CmdWrite}, full(1, 600<<10))
	go r.conn.Write(b)
	if err := r.wait(); !errors.Is(err, ErrPanic) {
		t.Errorf("Serve: %v, want ErrPanic", err)
	}
	if group.changes.Busy() {
		t.Error("changes are left")
	}
}
