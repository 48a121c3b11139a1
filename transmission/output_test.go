package transmission

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"nbd.example/nbd/block"
)

// outputRig is an output with its peer, and a file that its spans are of.
type outputRig struct {
	out            output
	peer           net.Conn
	requests, held atomic.Int64  // that the output has told to be gone
	changed        chan struct{} // after they have
	avoided        atomic.Int64
	file           []byte // contents of the file
	fd             uintptr
}

// add makes a message of random segments that begins with its number and its
// length. It returns the message, as it must arrive.
func (r *outputRig) add(rng *rand.Rand, number uint32, segs []segment) ([]segment, []byte) {
	var want []byte
	first := len(segs)
	for i := range 1 + rng.IntN(5) {
		if r.fd != 0 && i > 0 && rng.IntN(3) == 0 {
			off := rng.Int64N(int64(len(r.file)) - 1)
			n := 1 + rng.Int64N(min(int64(len(r.file))-off, 1<<rng.IntN(16)))
			want = append(want, r.file[off:off+n]...)
			segs = append(segs, segment{span: block.Span{FD: r.fd, Off: off, Len: n}})
			continue
		}
		n := 8 + rng.IntN(1<<(3+rng.IntN(12)))
		buf := getBuffer(n)
		for j := range buf.b {
			buf.b[j] = byte(rng.Uint32())
		}
		segs = append(segs, segment{buf: buf, hi: n})
		want = append(want, buf.b...)
		if rng.IntN(2) == 0 { // hi may lie beyond the length that was asked for
			buf.b = buf.b[:rng.IntN(n)]
		}
	}
	head := segs[first].buf.b[:8]
	binary.BigEndian.PutUint32(head, number)
	binary.BigEndian.PutUint32(head[4:], uint32(len(want)))
	copy(want, head)
	last := &segs[len(segs)-1]
	last.requests, last.held = 1, len(want)
	return segs, want
}

// trickle reads short, random amounts.
func trickle(rng *rand.Rand, in io.Reader, b []byte) error {
	for len(b) > 0 {
		n, err := in.Read(b[:min(len(b), 1+rng.IntN(1<<rng.IntN(14)))])
		if b = b[n:]; err != nil {
			return err
		}
	}
	return nil
}

// forOutputs runs f over each kind of connection.
func forOutputs(t *testing.T, f func(t *testing.T, r *outputRig)) {
	t.Helper()
	for _, transport := range []string{"pipe", "unix", "tcp", "copied"} {
		t.Run(transport, func(t *testing.T) {
			r := newOutputRig(t, transport)
			f(t, r)
			r.noBufferTwice(t)
		})
	}
}

func newOutputRig(t *testing.T, transport string) *outputRig {
	t.Helper()
	r := &outputRig{changed: make(chan struct{}, 1)}
	var server net.Conn
	switch transport {
	case "pipe":
		r.peer, server = net.Pipe()
	case "unix":
		r.peer, server = demuxSockets(t)
	case "tcp", "copied":
		r.peer, server = tcpSockets(t)
	}
	t.Cleanup(func() { r.peer.Close(); server.Close() })
	r.peer.SetDeadline(time.Now().Add(patience))
	switch c := server.(type) {
	case *net.UnixConn:
		c.SetWriteBuffer(1) // the system rounds up to its least
	case *net.TCPConn:
		c.SetWriteBuffer(1)
	}
	r.out = output{conn: server, raw: plainSocket(server), copies: transport == "copied",
		sent: func(requests, held int) {
			r.requests.Add(int64(requests))
			r.held.Add(int64(held))
			select {
			case r.changed <- struct{}{}:
			default:
			}
		},
		avoid: func(block.Span) { r.avoided.Add(1) },
	}
	r.out.init()
	if r.out.raw != nil {
		r.openFile(t)
	}
	return r
}

func tcpSockets(t testing.TB) (client, server net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if client, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if server, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	return client, server
}

// idle waits until nobody owns the output any more.
func (r *outputRig) idle(t *testing.T, requests, held int64) {
	t.Helper()
	limit := time.After(patience)
	for r.requests.Load() != requests || r.held.Load() != held {
		select {
		case <-r.changed:
		case <-limit:
			t.Fatalf("%d of %d requests and %d of %d bytes are gone", r.requests.Load(), requests, r.held.Load(), held)
		}
	}
}

// noBufferTwice takes many buffers out of the pools and wants each only once.
func (r *outputRig) noBufferTwice(t *testing.T) {
	t.Helper()
	seen := map[*buffer]bool{}
	for _, size := range classes {
		for range 2000 {
			b := getBuffer(size)
			if seen[b] {
				t.Fatal("a buffer was given back twice")
			}
			seen[b] = true
			if size > mediumSize && len(seen) > 6000 {
				break
			}
		}
		if size == mediumSize {
			return
		}
	}
}

// TestOutputModel wants the stream to be what was appended, for many random mixes
// of buffers and spans.
func TestOutputModel(t *testing.T) {
	forOutputs(t, func(t *testing.T, r *outputRig) {
		rng := rand.New(rand.NewPCG(1, 2))
		var requests, held int64
		for round := range 300 {
			var want []byte
			for range 1 + rng.IntN(10) {
				var segs []segment
				for range 1 + rng.IntN(3) {
					var m []byte
					segs, m = r.add(rng, uint32(requests), segs)
					want = append(want, m...)
					requests++
				}
				r.out.send(segs)
			}
			held += int64(len(want))
			got := make([]byte, len(want))
			if err := trickle(rng, r.peer, got); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Fatalf("round %d: the stream is not what was appended", round)
			}
		}
		r.idle(t, requests, held)
		if err := r.out.failure(); err != nil {
			t.Error(err)
		}
	})
}

// TestOutputConcurrent has several goroutines append. What each sends must arrive
// whole, once, and in its order.
func TestOutputConcurrent(t *testing.T) {
	const senders, each = 4, 250
	forOutputs(t, func(t *testing.T, r *outputRig) {
		var mu sync.Mutex
		wants := map[uint32][]byte{}
		var held atomic.Int64
		var wg sync.WaitGroup
		for s := range uint32(senders) {
			wg.Go(func() {
				rng := rand.New(rand.NewPCG(uint64(s), 3))
				for i := range uint32(each) {
					segs, want := r.add(rng, s*each+i, nil)
					held.Add(int64(len(want)))
					mu.Lock()
					wants[s*each+i] = want
					mu.Unlock()
					r.out.send(segs)
				}
			})
		}
		rng := rand.New(rand.NewPCG(4, 5))
		next := [senders]uint32{}
		for range senders * each {
			head := make([]byte, 8)
			if err := trickle(rng, r.peer, head); err != nil {
				t.Fatal(err)
			}
			number := binary.BigEndian.Uint32(head)
			mu.Lock()
			want := wants[number]
			delete(wants, number)
			mu.Unlock()
			got := append(head, make([]byte, max(len(want)-8, 0))...)
			if err := trickle(rng, r.peer, got[8:]); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, want) {
				t.Fatalf("message %d is not what was appended", number)
			}
			if s := number / each; number%each != next[s] {
				t.Fatalf("message %d of sender %d after %d others", number%each, s, next[s])
			} else {
				next[s]++
			}
		}
		wg.Wait()
		r.idle(t, senders*each, held.Load())
	})
}

// TestOutputPeerLeaves hangs up in the middle: all that was appended, before and
// after, must be accounted for once.
func TestOutputPeerLeaves(t *testing.T) {
	forOutputs(t, func(t *testing.T, r0 *outputRig) {
		transport := t.Name()[len("TestOutputPeerLeaves/"):]
		for round := range uint64(25) {
			r := newOutputRig(t, transport)
			var wg sync.WaitGroup
			var held atomic.Int64
			const senders, each = 3, 40
			for s := range uint64(senders) {
				wg.Go(func() {
					rng := rand.New(rand.NewPCG(round, s))
					for range each {
						segs, want := r.add(rng, 0, nil)
						held.Add(int64(len(want)))
						r.out.send(segs)
					}
				})
			}
			rng := rand.New(rand.NewPCG(round, 9))
			if err := trickle(rng, r.peer, make([]byte, rng.IntN(20_000))); err != nil {
				t.Fatal(err)
			}
			r.peer.Close()
			wg.Wait()
			r.idle(t, senders*each, held.Load())
			if r.out.failure() == nil {
				t.Error("no failure")
			}
			if r.avoided.Load() != 0 {
				t.Error("the file was blamed for what the peer did")
			}
		}
	})
}

// TestOutputKilled fails the output from the outside while it waits for the peer.
func TestOutputKilled(t *testing.T) {
	forOutputs(t, func(t *testing.T, r *outputRig) {
		rng := rand.New(rand.NewPCG(6, 6))
		var held int64
		const n = 400
		for range n {
			segs, want := r.add(rng, 0, nil)
			held += int64(len(want))
			r.out.send(segs)
		}
		why := errors.New("the server's own fault")
		r.out.kill(why)
		r.idle(t, n, held)
		if err := r.out.failure(); err != why {
			t.Errorf("failure: %v", err)
		}
	})
}

// TestOutputStuck ends a peer that takes nothing.
func TestOutputStuck(t *testing.T) {
	forOutputs(t, func(t *testing.T, r *outputRig) {
		r.out.stuck = time.Millisecond
		rng := rand.New(rand.NewPCG(6, 6))
		var held int64
		const n = 400
		for range n {
			segs, want := r.add(rng, 0, nil)
			held += int64(len(want))
			r.out.send(segs)
		}
		r.idle(t, n, held)
		if err := r.out.failure(); !errors.Is(err, errStuck) {
			t.Errorf("failure: %v, want errStuck", err)
		}
	})
}
