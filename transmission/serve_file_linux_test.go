package transmission

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"testing"

	"nbd.example/nbd/backend/file"
	"nbd.example/nbd/block"
	"nbd.example/nbd/internal/testgate"
	"nbd.example/nbd/proto"
)

// image makes a file of random bytes in memory, where a plain socket can take
// spans of it.
func image(t testing.TB, size int) (name string, dev *block.Device, data []byte) {
	t.Helper()
	name = filepath.Join(testgate.MemoryDir(t), "image")
	data = make([]byte, size)
	rng := rand.New(rand.NewPCG(1, 1))
	for i := 0; i < len(data); i += 8 {
		v := rng.Uint64()
		for j := range min(8, len(data)-i) {
			data[i+j] = byte(v >> (8 * j))
		}
	}
	if err := os.WriteFile(name, data, 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := file.Open(file.Config{Path: name})
	if err != nil {
		t.Fatal(err)
	}
	return name, stack(t, f), data
}

// TestFile runs the random session over a file, whose spans the socket takes.
func TestFile(t *testing.T) {
	for _, transport := range []string{"unix", "tls"} {
		t.Run(transport, func(t *testing.T) {
			forStyles(t, func(t *testing.T, s style) {
				name, dev, data := image(t, mib)
				for seed := range uint64(5) {
					x := newSession(rand.New(rand.NewPCG(seed, 2)), s, 200, data)
					d := newRAM(mib)
					copy(d.data, x.after) // only so that run has what to compare with
					x.run(t, d, dev, setup{transport: transport}, func(left int) int { return left })
					got, err := os.ReadFile(name)
					if err != nil {
						t.Fatal(err)
					}
					if !bytes.Equal(got, x.after) {
						t.Error("the file does not hold what was written")
					}
					data = got
				}
			})
		})
	}
}

// TestFileOverTCP reads spans through a socket that takes odd amounts.
func TestFileOverTCP(t *testing.T) {
	forStyles(t, func(t *testing.T, s style) {
		_, dev, data := image(t, 4*mib)
		r := serve(t, dev, setup{style: s, transport: "tcp", tune: func(_ *conn, _, server net.Conn) {
			server.(*net.TCPConn).SetWriteBuffer(128 << 10)
		}})
		rng := rand.New(rand.NewPCG(3, 3))
		var stream []byte
		const count = 60
		for range count {
			n := 1 + rng.Uint64N(1<<(10+rng.IntN(11)))
			_, b := r.request(proto.Request{Command: proto.CmdRead, Offset: rng.Uint64N(4*mib - n), Length: n}, nil)
			stream = append(stream, b...)
		}
		go r.conn.Write(stream)
		in := &shortReader{r: r.conn, rng: rng}
		for range count {
			open := map[uint64]proto.Request{}
			for k, v := range r.waiting {
				open[k] = v
			}
			p, err := readReply(in, s, r.waiting)
			if err != nil {
				t.Fatal(err)
			}
			if q := open[p.cookie]; p.errno != proto.OK || !bytes.Equal(p.data, data[q.Offset:q.Offset+q.Length]) {
				t.Fatalf("%v: other data than the file has", p.errno)
			}
		}
		r.end()
	})
}

// shortReader reads short, random amounts.
type shortReader struct {
	r   io.Reader
	rng *rand.Rand
}

func (s *shortReader) Read(p []byte) (int, error) {
	return s.r.Read(p[:min(len(p), 1+s.rng.IntN(1<<s.rng.IntN(16)))])
}

// TestTruncatedImage: a file that has become smaller ends the connection whose
// reply it breaks off (statement 43: after a simple header there is no other
// way), and every retry gets an error, never an endless loop.
func TestTruncatedImage(t *testing.T) {
	for _, transport := range []string{"unix", "tcp"} {
		t.Run(transport, func(t *testing.T) { testTruncatedImage(t, transport) })
	}
}

func testTruncatedImage(t *testing.T, transport string) {
	forStyles(t, func(t *testing.T, s style) {
		name, dev, data := image(t, 4*mib)
		if _, ok := dev.Range(0, mib, false); !ok {
			t.Fatal("no range of a file in memory")
		}
		read := proto.Request{Command: proto.CmdRead, Offset: mib, Length: 2 * mib}
		r := serve(t, dev, setup{style: s, transport: transport})
		if p := r.want(proto.OK, read, nil); !bytes.Equal(p.data, data[mib:3*mib]) {
			t.Error("other data than the file has")
		}
		if err := os.Truncate(name, 2*mib); err != nil {
			t.Fatal(err)
		}
		r.send(read, nil)
		stream, _ := io.ReadAll(r.conn)
		err := r.wait()
		switch {
		case err == nil:
			t.Error("Serve: nil")
		case len(stream) >= 2*mib:
			t.Errorf("%d bytes of a reply that cannot be whole", len(stream))
		case errors.Is(err, ErrHungUp):
			t.Errorf("Serve: %v blames the peer", err)
		}
		for range 3 {
			r := serve(t, dev, setup{style: s, transport: transport})
			for range 2 {
				p := r.want(proto.EIO, read, nil)
				if s != simple && p.at != 2*mib {
					t.Errorf("the error is at %d", p.at)
				}
			}
			r.want(proto.OK, proto.Request{Command: proto.CmdRead, Offset: mib, Length: mib}, nil)
			r.end()
		}
	})
}

// TestHolesInFile: a sparse file's holes come as holes.
func TestHolesInFile(t *testing.T) {
	name, _, _ := image(t, 0)
	if err := os.Truncate(name, 8*mib); err != nil {
		t.Fatal(err)
	}
	f, err := file.Open(file.Config{Path: name})
	if err != nil {
		t.Fatal(err)
	}
	dev := stack(t, f)
	for _, x := range []setup{{style: structured}, {style: extended}, {style: structured, transport: "tcp"}} {
		r := serve(t, dev, x)
		r.want(proto.OK, proto.Request{Command: proto.CmdWrite, Offset: 2 * mib}, full(7, mib))
		p := r.want(proto.OK, proto.Request{Command: proto.CmdRead, Length: 8 * mib}, nil)
		want := make([]byte, 8*mib)
		copy(want[2*mib:], full(7, mib))
		if !bytes.Equal(p.data, want) {
			t.Error("other data than the file has")
		}
		holes := 0
		for _, c := range p.chunks {
			if c.Type == proto.ChunkOffsetHole {
				holes++
			}
		}
		if holes == 0 {
			t.Errorf("no holes: %v", p.types())
		}
		// The shortest read that is looked at for them, wherever it goes.
		p = r.want(proto.OK, proto.Request{Command: proto.CmdRead, Offset: 4 * mib, Length: longRead}, nil)
		if len(p.chunks) == 0 || p.chunks[0].Type != proto.ChunkOffsetHole {
			t.Errorf("%s: a hole is sent as %v", x.transport, p.types())
		}
		r.end()
	}
}
