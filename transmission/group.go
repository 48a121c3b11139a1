package transmission

import (
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"nbd.example/nbd/internal/ranges"
)

// Group holds the connections of one shared device: one order of changes, and
// the fence that keeps a dead connection's writes from landing late. The zero
// value is ready.
//
// When a connection dies, nbd.ko sends what it left again, on a sibling or on a
// new connection, while the old writes may still sit in the dead connection's
// socket, or with a worker. If they were carried out after newer ones they would
// undo them. So before a connection begins, and before each batch of changes,
// every member whose peer has hung up is run to its end first. What a network
// hides (an end that never arrived) cannot be fenced that way.
type Group struct {
	changes ranges.Queue

	mu      sync.Mutex
	members []*conn
	count   atomic.Int32
}

// fenceLimit is how long a newcomer waits for the dead.
const fenceLimit = 30 * time.Second

// ErrFenced is returned when a dead connection of the same export does not come
// to its end: its disk hangs, and whatever was written now could be undone.
var ErrFenced = errors.New("a dead connection of the same export still has unfinished writes")

func (g *Group) join(c *conn) {
	g.mu.Lock()
	g.members = append(g.members, c)
	g.mu.Unlock()
	g.count.Add(1)
}

func (g *Group) leave(c *conn) {
	g.mu.Lock()
	g.members = slices.DeleteFunc(g.members, func(m *conn) bool { return m == c })
	g.mu.Unlock()
	g.count.Add(-1)
	close(c.gone)
}

// dead returns the members but c whose peers have hung up; none if c's own has.
func (g *Group) dead(c *conn) []*conn {
	g.mu.Lock()
	defer g.mu.Unlock()
	return hungUp(c, g.members)
}

// fence waits for dead siblings, once for each time that input has come. Who
// enters says so, to be refused with a word of its own.
func (c *conn) fence() error {
	if c.fenced || c.group.count.Load() < 2 {
		return nil
	}
	c.fenced = true
	dead := c.group.dead(c)
	if len(dead) == 0 {
		return nil
	}
	c.flush()
	limit := time.NewTimer(fenceLimit)
	defer limit.Stop()
	for _, d := range dead {
		select {
		case <-d.gone:
		case <-limit.C:
			return fmt.Errorf("%w after %v", ErrFenced, fenceLimit)
		}
	}
	return nil
}
