package server

import (
	"fmt"
	"net"
)

// crowd counts connections against a limit, and remembers that it was logged that there
// are too many. Server.mu guards it.
type crowd struct {
	n    int
	told bool
}

// full tells whether there is no room for one more. The first time it is so, tell is true.
func (c *crowd) full(limit int) (full, tell bool) {
	if limit <= 0 || c.n < limit {
		return false, false
	}
	tell, c.told = !c.told, true
	return true, tell
}

// left counts one out. What was told is forgotten, but not at once, so that a log full of
// it tells of floods, not of a limit that is just reached.
func (c *crowd) left(limit int) {
	c.n--
	if limit <= 0 || c.n < limit-limit/4 {
		c.told = false
	}
}

// origin is what the connections of one client have in common: the address of its machine.
// Clients on unix sockets, and inside this process, have none: "".
func origin(a net.Addr) string {
	if c, ok := a.(interface{ CID() uint32 }); ok {
		return fmt.Sprintf("vsock:%d", c.CID())
	}
	if a == nil {
		return ""
	}
	ip, ok := addressOf(a)
	if !ok {
		return ""
	}
	return ip.String()
}

// admitConn counts a connection in, or says why there are too many. The caller holds s.mu.
func (s *Server) admitConn(c *conn) error {
	if full, tell := s.crowd.full(s.cfg.MaxConnections); full {
		if tell {
			s.log.Warn("too many connections, closing new ones until there is room", "limit", s.cfg.MaxConnections, "client", c.who())
		}
		return fmt.Errorf("%w: %d", ErrCrowded, s.cfg.MaxConnections)
	}
	if c.origin = origin(c.nc.RemoteAddr()); c.origin != "" {
		own := s.origins[c.origin]
		if own == nil {
			own = new(crowd)
		}
		if full, tell := own.full(s.cfg.MaxPerClient); full {
			if tell {
				s.log.Warn("too many connections from one address, closing new ones from there until there is room", "limit", s.cfg.MaxPerClient, "client", c.who())
			}
			return fmt.Errorf("%w: %d from one address", ErrCrowded, s.cfg.MaxPerClient)
		}
		own.n++
		s.origins[c.origin] = own
	}
	s.crowd.n++
	return nil
}

// countOut is the reverse of admitConn. The caller holds s.mu.
func (s *Server) countOut(c *conn) {
	s.crowd.left(s.cfg.MaxConnections)
	if own := s.origins[c.origin]; own != nil {
		if own.left(s.cfg.MaxPerClient); own.n == 0 {
			delete(s.origins, c.origin)
		}
	}
}
