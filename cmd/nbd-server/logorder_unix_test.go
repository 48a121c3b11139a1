//go:build unix

package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"nbd.example/nbd/client"
	"nbd.example/nbd/internal/trlog"
	"nbd.example/nbd/proto"
	"nbd.example/nbd/test/harness"
)

// answers are the cookies of writes whose replies clients have seen, on any
// connection, in order.
type answers struct {
	mu   sync.Mutex
	seen []uint64
	// before has for each flush how many of seen there were before it was sent.
	before map[uint64]int
}

func (a *answers) add(cookie uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.seen = append(a.seen, cookie)
}

func (a *answers) flush(cookie uint64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.before[cookie] = len(a.seen)
}

// commit does on a connection what a data base does: some writes side by side, some
// of them with FUA, and when all are answered a flush. Cookies begin at first.
func (a *answers) commit(ctx context.Context, uri string, first uint64, rounds int) error {
	r, err := client.DialRaw(ctx, uri, &client.Config{NoExtended: true, NoStructured: true})
	if err != nil {
		return err
	}
	defer r.Close()
	const writes, size = 6, 4096
	next := first
	for range rounds {
		var batch []*client.RawRequest
		for i := range uint64(writes) {
			q := proto.Request{Command: proto.CmdWrite, Cookie: next, Offset: (next * 7 % 64) * size, Length: size}
			if i%3 == 0 {
				q.Flags = proto.CmdFlagFUA
			}
			batch = append(batch, &client.RawRequest{Request: q, Payload: make([]byte, size)})
			next++
		}
		if err := r.Send(batch...); err != nil {
			return err
		}
		for range batch {
			reply, err := r.Receive()
			if err != nil || reply.Error != proto.OK {
				return fmt.Errorf("write: %w, %v", err, reply)
			}
			a.add(reply.Cookie)
		}
		a.flush(next)
		if err := r.Send(&client.RawRequest{Request: proto.Request{Command: proto.CmdFlush, Cookie: next}}); err != nil {
			return err
		}
		if reply, err := r.Receive(); err != nil || reply.Cookie != next || reply.Error != proto.OK {
			return fmt.Errorf("flush: %w, %v", err, reply)
		}
		next++
	}
	return nil
}

// TestTransactionLogOrder: whoever reads a log sees of each flush what it made
// stable: the replies of all writes that clients, of any connection, knew to be done
// when it was asked for stand before it, and behind their own requests. So does what
// was promised by FUA.
func TestTransactionLogOrder(t *testing.T) {
	for name, source := range map[string]string{"memory": "memory:1M", "file": "DIR/disk", "slow": "memory:1M | delay:write=1ms,flush=1ms"} {
		t.Run(name, func(t *testing.T) {
			dir := harness.Dir(t)
			write(t, dir, "disk", strings.Repeat("x", 1<<20))
			write(t, dir, "c.conf", "[generic]\nunixsock = s\n[e]\nexportname = "+strings.ReplaceAll(source, "DIR", dir)+"\ntransactionlog = log\n")
			p := launch(t, dir, nil, "-n", "-C", "c.conf")
			p.await("serving exports=1")
			a := &answers{before: make(map[uint64]int)}
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			var all sync.WaitGroup
			for i := range 4 {
				all.Go(func() {
					if err := a.commit(ctx, harness.UnixURI(filepath.Join(dir, "s"), "e"), uint64(i)<<32, 40); err != nil {
						t.Error(err)
					}
				})
			}
			all.Wait()
			p.stop()
			requests, replies := places(t, filepath.Join(dir, "log"))
			for _, cookie := range a.seen {
				if at, ok := replies[cookie]; !ok || at < requests[cookie] {
					t.Fatalf("the write %#x: request at %d, reply at %d (%v)", cookie, requests[cookie], at, ok)
				}
			}
			for cookie, n := range a.before {
				at, ok := requests[cookie]
				late := slices.IndexFunc(a.seen[:n], func(w uint64) bool { return replies[w] > at })
				if !ok || late >= 0 {
					t.Fatalf("the flush %#x at %d (%v) stands before the reply of a write that had been answered", cookie, at, ok)
				}
			}
		})
	}
}

// places tells where in a log requests and replies are, by their cookies.
func places(t *testing.T, name string) (requests, replies map[uint64]int64) {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	requests, replies = make(map[uint64]int64), make(map[uint64]int64)
	for r := trlog.NewReader(f); ; {
		switch x, err := r.Next(); {
		case err == io.EOF:
			return requests, replies
		case err != nil:
			t.Fatal(err)
		case x.Kind == trlog.Request:
			requests[x.Request.Cookie] = x.At
		case x.Kind == trlog.Reply:
			replies[x.Reply.Cookie] = x.At
		}
	}
}
