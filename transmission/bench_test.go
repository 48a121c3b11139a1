package transmission

import (
	"fmt"
	"io"
	"testing"

	"nbd.example/nbd/block"
	"nbd.example/nbd/proto"
)

// load is a batch of requests that is sent again and again. It takes no memory.
type load struct {
	r        *rig
	requests []byte
	replies  []byte
	count    int
}

// newLoad makes a batch of count requests like q, each at another place, whose
// replies have data bytes each besides the header.
func newLoad(r *rig, q proto.Request, count, data int) *load {
	l := &load{r: r, count: count}
	var payload []byte
	if q.Command == proto.CmdWrite {
		payload = make([]byte, q.Length)
		if r.style == extended {
			q.Flags |= proto.CmdFlagPayloadLen
		}
	}
	for i := range count {
		q.Cookie = uint64(i)
		l.requests = r.style.encode(l.requests, q, payload)
		q.Offset += q.Length
	}
	size := r.style.dataHeader() + data
	if r.style != simple && data == 0 {
		size -= 8 // NONE
	}
	l.replies = make([]byte, size*count)
	return l
}

// round sends the batch and takes all replies.
func (l *load) round() error {
	if _, err := l.r.conn.Write(l.requests); err != nil {
		return err
	}
	_, err := io.ReadFull(l.r.conn, l.replies)
	return err
}

// path is a way that requests take through the engine.
type path struct {
	name    string
	style   style
	layered bool
	request proto.Request
	count   int
	data    int
	allocs  float64 // for each request, at most
}

// paths: those with the fast path must not take memory for a request. What goes to
// workers may start goroutines, and so may a socket that is full.
var paths = []path{
	{"read 4K, 32 at once", simple, false, proto.Request{Command: proto.CmdRead, Length: 4096}, 32, 4096, 0},
	{"read 4K, 32 at once, structured", structured, false, proto.Request{Command: proto.CmdRead, Length: 4096}, 32, 4096, 0},
	{"read 4K, 32 at once, extended", extended, false, proto.Request{Command: proto.CmdRead, Length: 4096}, 32, 4096, 0},
	{"read 4K, one at a time", simple, false, proto.Request{Command: proto.CmdRead, Length: 4096}, 1, 4096, 0},
	{"read 256K", simple, false, proto.Request{Command: proto.CmdRead, Length: 256 << 10}, 4, 256 << 10, 1},
	{"write 4K, 32 at once", simple, false, proto.Request{Command: proto.CmdWrite, Length: 4096}, 32, 0, 0},
	{"write 4K, 32 at once, extended", extended, false, proto.Request{Command: proto.CmdWrite, Length: 4096}, 32, 0, 0},
	{"write 4K, one at a time", simple, false, proto.Request{Command: proto.CmdWrite, Length: 4096}, 1, 0, 0},
	{"write 256K", simple, false, proto.Request{Command: proto.CmdWrite, Length: 256 << 10}, 4, 0, 0},
	{"layered read 4K, 32 at once", simple, true, proto.Request{Command: proto.CmdRead, Length: 4096}, 32, 4096, 1},
	{"layered write 4K, 32 at once", simple, true, proto.Request{Command: proto.CmdWrite, Length: 4096}, 32, 0, 1},
	{"layered read 4K, one at a time", simple, true, proto.Request{Command: proto.CmdRead, Length: 4096}, 1, 4096, 2},
}

// load begins to serve a path.
func (p *path) load(t testing.TB) *load { return p.loadWith(t, setup{}) }

// loadWith is load with a setup of its own.
func (p *path) loadWith(t testing.TB, s setup) *load {
	var layers []block.Layer
	if p.layered {
		layers = []block.Layer{passThrough()}
	}
	d := newRAM(4 * mib)
	s.style, s.group = p.style, new(Group)
	r := serve(t, stack(t, d, layers...), s)
	return newLoad(r, p.request, p.count, p.data)
}

// TestAllocations wants the hot paths to take no memory for each request.
func TestAllocations(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector makes pools forget")
	}
	for _, p := range paths {
		t.Run(p.name, func(t *testing.T) {
			measureAllocations(t, p.load(t), p.allocs)
		})
	}
}

// measureAllocations wants at most so many for each request.
func measureAllocations(t *testing.T, l *load, allocs float64) {
	for range 50 { // fills the pools
		if err := l.round(); err != nil {
			t.Fatal(err)
		}
	}
	n := testing.AllocsPerRun(300, func() {
		if err := l.round(); err != nil {
			t.Fatal(err)
		}
	}) / float64(l.count)
	if n > allocs {
		t.Errorf("%v allocations for each request, want at most %v", n, allocs)
	}
	l.r.end()
}

func BenchmarkServe(b *testing.B) {
	for _, p := range paths {
		b.Run(p.name, func(b *testing.B) {
			l := p.load(b)
			b.SetBytes(int64(p.request.Length))
			b.ReportAllocs()
			b.ResetTimer()
			for i := 0; i < b.N; i += p.count { // an iteration is a request
				if err := l.round(); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// BenchmarkHeaders is what the engine does to bytes for one request.
func BenchmarkHeaders(b *testing.B) {
	for _, s := range []style{simple, structured, extended} {
		b.Run(fmt.Sprint("style ", s), func(b *testing.B) {
			d := newRAM(mib)
			c := newConn(b.Context(), nil, &Session{Device: stack(b, d), Flags: everything(s), Structured: s == structured, Extended: s == extended}, nil)
			in := s.encode(nil, proto.Request{Command: proto.CmdRead, Cookie: 1, Offset: 4096, Length: 4096}, nil)
			out := make([]byte, 0, 128)
			b.ReportAllocs()
			for b.Loop() {
				var q proto.Request
				if s == extended {
					proto.ParseExtendedRequest(in, &q)
				} else {
					proto.ParseRequest(in, &q)
				}
				if c.check(&q) != nil {
					b.Fatal("refused")
				}
				out = s.appendData(out[:0], &q, q.Offset, int(q.Length), proto.ReplyFlagDone)
			}
		})
	}
}
