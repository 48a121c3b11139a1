package main

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"
	"unicode"

	"nbd.example/nbd/handshake"
	"nbd.example/nbd/internal/vsocket"
	"nbd.example/nbd/proto"
	"nbd.example/nbd/supervise"
	"nbd.example/nbd/supervise/tlsfiles"
	"nbd.example/nbd/uri"
)

// exports answers -l: it prints what the server exports, a name in each line, and what
// the server says of it.
func (p *program) exports(ctx context.Context) int {
	spec, err := p.spec(p.flags)
	if err != nil {
		return p.fail(ctx, err)
	}
	var list []proto.ServerReply
	for i, text := range spec.URIs {
		u, parseErr := uri.Parse(text)
		if parseErr != nil {
			return p.fail(ctx, parseErr)
		}
		if list, err = p.list(ctx, u, spec); err == nil {
			break
		}
		if i < len(spec.URIs)-1 {
			p.log.Warn(err.Error())
		}
	}
	if err != nil {
		return p.fail(ctx, err)
	}
	for _, e := range list {
		line := printable(e.Export)
		if e.Description != "" {
			line += ": " + printable(e.Description)
		}
		if _, err := fmt.Fprintln(p.env.stdout, line); err != nil {
			return p.tell(err)
		}
	}
	return exitOK
}

// listLimit bounds the question for the exports.
const listLimit = 10 * time.Second

// list asks a server for its exports.
func (p *program) list(ctx context.Context, u *uri.URI, spec *supervise.Spec) ([]proto.ServerReply, error) {
	limit := spec.ConnectTimeout
	if limit == 0 {
		limit = listLimit
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("no answer in %v", limit))
	defer cancel()
	conn, err := dial(ctx, u)
	if err != nil {
		return nil, fmt.Errorf("connect to %v: %w", u, err)
	}
	h, err := handshake.NewClient(ctx, conn)
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("connect to %v: %w", u, err)
	}
	defer h.Abort(ctx)
	if u.TLS {
		source, err := tlsfiles.New(u, spec.TLS)
		if err != nil {
			return nil, fmt.Errorf("connect to %v: %w", u, err)
		}
		if err := h.StartTLS(ctx, source.Get()); err != nil {
			return nil, fmt.Errorf("connect to %v: %w", u, err)
		}
	}
	list, err := h.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list the exports of %v: %w", u, err)
	}
	return list, nil
}

// dial connects to the server of a URI.
func dial(ctx context.Context, u *uri.URI) (net.Conn, error) {
	if u.Transport == uri.VSock {
		return vsocket.Dial(ctx, vsocket.Addr{Context: u.CID, Port: u.Port})
	}
	network, address := u.Dial()
	return new(net.Dialer).DialContext(ctx, network, address)
}

// printable quotes text from a server if it holds what a terminal would obey.
func printable(s string) string {
	if strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return strconv.Quote(s)
	}
	return s
}
