package transmission

import (
	"cmp"
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
// every member whose peer has hung up is read to its end first; what it has asked
// for then stands in the queue of changes, before whatever overlaps it. What a
// network hides (an end that never arrived), or an end of a TCP stream that stands
// behind data which are not read yet, cannot be fenced that way; a reset can.
type Group struct {
	changes ranges.Queue

	mu      sync.Mutex
	members map[int32]*conn // by number
	last    int32
	count   atomic.Int32
	dying   []*conn // that the server itself is cutting
	watch   watch   // tells whose peer has hung up; only while there are several members

	limit time.Duration // instead of fenceLimit, if not 0
}

// fenceLimit is how long a newcomer waits for the dead. A member waits on: it is
// alive, and to end it would harm more than to let its client be patient.
const fenceLimit = 30 * time.Second

// ErrFenced is returned to a newcomer when a dead connection of the same export does
// not come to its end: its disk hangs, and whatever was written now could be undone.
var ErrFenced = errors.New("a dead connection of the same export still has unfinished writes")

// join makes c a member. Connections that can change nothing need not join.
func (g *Group) join(c *conn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.members == nil {
		g.members = make(map[int32]*conn)
	}
	g.last++
	c.number = g.last
	g.members[c.number] = c
	if c.doomed() { // before it came
		g.dying = append(g.dying, c)
	}
	switch g.count.Add(1) {
	case 1: // nobody to look for it, nor it for anybody
	case 2:
		for _, m := range g.members {
			g.watch.add(m)
		}
	default:
		g.watch.add(c)
	}
}

func (g *Group) leave(c *conn) {
	g.mu.Lock()
	delete(g.members, c.number)
	g.dying = slices.DeleteFunc(g.dying, func(d *conn) bool { return d == c })
	g.watch.remove(c)
	if g.count.Add(-1) == 0 {
		g.watch.close()
	}
	g.mu.Unlock()
	c.settle()
}

// dead returns the members but c that are dying, or whose peers have hung up;
// none if c's own has.
func (g *Group) dead(c *conn) (dead []*conn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, number := range g.watch.hungUp(len(g.members)) {
		switch m := g.members[number]; m {
		case nil:
		case c:
			return nil
		default:
			dead = append(dead, m)
		}
	}
	for _, d := range g.dying {
		if d != c {
			dead = append(dead, d)
		}
	}
	return dead
}

// doom tells the group that the server itself is cutting c. Whoever comes before
// c has joined, or after it has left, is not heard of.
func (g *Group) doom(c *conn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.members[c.number] == c && !slices.Contains(g.dying, c) {
		g.dying = append(g.dying, c)
	}
}

// fence waits for dead siblings, once for each time that input has come.
func (c *conn) fence(newcomer bool) error {
	if c.fenced || c.group.count.Load() < 2 {
		return nil
	}
	c.fenced = true
	dead := c.group.dead(c)
	if len(dead) == 0 {
		return nil
	}
	c.flush()
	patience := cmp.Or(c.group.limit, fenceLimit)
	limit := time.NewTimer(patience)
	defer limit.Stop()
	for _, d := range dead {
		d.hurry.Store(true)
		d.wake()
		for over := false; !over; {
			select {
			case <-d.quiet:
				over = true
			case <-c.drain:
				return ErrDraining
			case <-c.doom: // two that the server cuts must not wait for each other
				return errDoomed
			case <-limit.C:
				if newcomer {
					return fmt.Errorf("%w after %v", ErrFenced, patience)
				}
				c.log().Warn("changes wait for a dead connection of the same export, which cannot be read to its end: its disk may hang", "so far", patience)
			}
		}
	}
	return nil
}
