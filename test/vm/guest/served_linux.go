package guest

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"nbd.example/nbd/internal/control"
	"nbd.example/nbd/test/harness"
)

// Control is the line of a server's configuration by which AwaitServing can ask it. The
// folder is the server's.
func Control(dir string) string { return "control = " + controlPath(dir) + "\n" }

func controlPath(dir string) string { return filepath.Join(dir, "control") }

// AwaitServing waits until a server with Control has n connections at least that carry load
// now, each of them.
func AwaitServing(t *T, s *harness.Server, n int) {
	const some = 20 // requests
	first := map[uint64]uint64{}
	var last string
	defer func() {
		if t.Failed() {
			t.Logf("requests of each connection, by its number: %s; at first: %v", last, first)
		}
	}()
	t.Await(fmt.Sprintf("each of %d connections carries load", n), func() bool {
		requests, err := requestsOf(s)
		last = fmt.Sprint(requests, err)
		serving := 0
		for id, now := range requests {
			before, seen := first[id]
			switch {
			case !seen:
				first[id] = now
			case now >= before+some:
				serving++
			}
		}
		return serving >= n
	})
}

// requestsOf returns the number of requests of each connection, by its number.
func requestsOf(s *harness.Server) (map[uint64]uint64, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	c, err := control.Dial(ctx, controlPath(s.Dir))
	if err != nil {
		return nil, err
	}
	defer c.Close()
	var all []control.Connection
	if err := c.Do(ctx, control.Request{Op: control.OpConnections}, &all); err != nil {
		return nil, err
	}
	requests := map[uint64]uint64{}
	for _, k := range all {
		requests[k.ID] = k.Requests
	}
	return requests, nil
}
