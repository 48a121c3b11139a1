package server

import (
	"context"
	"net"
)

// ServeOldstyle is [Server.Serve] for clients of before 2011, which speak oldstyle
// negotiation: all that connect to l are served the one export, by any of its
// names. An export that demands TLS, or a server that does, cannot be served so;
// such connections are closed. The names of exports that a reload brings or takes
// away count from the next connection on.
func (s *Server) ServeOldstyle(l net.Listener, export string) error {
	return s.accept(l, &export)
}

// ServeOldstyleConn is [Server.ServeConn] in oldstyle negotiation, see
// [Server.ServeOldstyle].
func (s *Server) ServeOldstyleConn(ctx context.Context, nc net.Conn, export string) error {
	return s.serveConn(ctx, &conn{nc: nc, oldstyle: &export})
}
