package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"slices"

	"nbd.example/nbd/internal/daemon"
	"nbd.example/nbd/internal/nbdconf"

	"github.com/coreos/go-systemd/v22/activation"
)

// defaultPort is the one that IANA has assigned to NBD.
const defaultPort = "10809"

// address is one that the server listens on.
type address struct{ network, host, port string }

// addresses says where to listen. What the configuration says holds; what the
// command line says is added, and takes the place of the defaults.
func (p *program) addresses(g *nbdconf.Generic) []address {
	var list []address
	if g.UnixSock != "" {
		path := g.UnixSock
		if path[0] != '@' {
			path = p.env.open.Abs(path)
		}
		list = append(list, address{"unix", path, ""})
	}
	line := p.flags.Listen
	port := g.Port
	_, given := g.Where("port")
	given = given && port != "" || len(g.ListenAddr) > 0
	if port == "" {
		port = defaultPort
		if line != nil && line.Host == "" {
			port = line.Port
		}
	}
	tcp := g.UnixSock == "" || g.DualListen
	if tcp && (given || line == nil) {
		hosts := g.ListenAddr
		if len(hosts) == 0 {
			hosts = []string{""}
		}
		for _, h := range hosts {
			list = append(list, address{"tcp", h, port})
		}
	}
	// One port is bound once: with the same port the configuration's addresses hold.
	if line != nil && !(tcp && given && line.Port == port) {
		list = append(list, address{"tcp", line.Host, line.Port})
	}
	return list
}

// listen opens the listeners: those of the service manager, or its own.
func (p *program) listen(ctx context.Context, g *nbdconf.Generic) (_ []net.Listener, err error) {
	list, conns, err := p.inherited()
	if err != nil {
		return nil, err
	}
	if len(conns) > 0 {
		return nil, errors.New("the service manager passed a connection, not a listening socket; start the server with port 0, and the connection on standard input")
	}
	if len(list) > 0 {
		for _, key := range []string{"port", "listenaddr", "unixsock"} {
			if pos, ok := g.Where(key); ok {
				p.log.Warn(fmt.Sprintf("%s: %s has no effect: the service manager has passed the sockets", pos, key))
			}
		}
		return list, nil
	}
	defer func() {
		if err != nil {
			closeAll(list)
		}
	}()
	for _, a := range p.addresses(g) {
		if a.network == "unix" {
			l, err := daemon.ListenUnix(ctx, a.host)
			if err != nil {
				return list, err
			}
			list = append(list, l)
			continue
		}
		more, err := listenTCP(ctx, a)
		list = append(list, more...)
		if err != nil {
			return list, err
		}
	}
	return list, nil
}

func closeAll(list []net.Listener) {
	for _, l := range list {
		l.Close()
	}
}

// listenTCP listens on one address. No host stands for all addresses.
func listenTCP(ctx context.Context, a address) (list []net.Listener, err error) {
	lc := net.ListenConfig{KeepAlive: -1} // the server sets its own
	lc.SetMultipathTCP(false)             // it would be slower, and not what the kernel's client takes
	hosts := []struct{ network, host string }{{"tcp", a.host}}
	switch a.host {
	case "":
		if runtime.GOOS == "openbsd" || runtime.GOOS == "dragonfly" { // no IPv4 on IPv6 sockets
			hosts[0].network = "tcp6"
			hosts = append(hosts, struct{ network, host string }{"tcp4", ""})
		}
	case "::":
		hosts[0].network = "tcp6"
	case "0.0.0.0":
		hosts[0].network = "tcp4"
	}
	for _, h := range hosts {
		l, err := lc.Listen(ctx, h.network, net.JoinHostPort(h.host, a.port))
		if err != nil {
			closeAll(list)
			return nil, err
		}
		list = append(list, l)
	}
	return list, nil
}

// inherited takes the sockets that a service manager has passed, listening and
// connected ones.
func (p *program) inherited() (list []net.Listener, conns []net.Conn, err error) {
	for _, f := range activation.Files(true) {
		l, err := net.FileListener(f)
		if err == nil {
			list = append(list, l)
			p.log.Info("listening on a socket of the service manager", "name", f.Name(), "address", l.Addr().String())
		} else if c, bad := net.FileConn(f); bad == nil {
			conns = append(conns, c)
		} else {
			closeAll(list)
			return nil, nil, fmt.Errorf("the socket %q of the service manager: %w", f.Name(), err)
		}
		f.Close() // net has its own
	}
	return list, conns, nil
}

// addressTexts lists where the server listens.
func addressTexts(list []net.Listener) []string {
	var texts []string
	for _, l := range list {
		texts = append(texts, l.Addr().String())
	}
	slices.Sort(texts)
	return texts
}

// stdinConn takes the client on standard input, as inetd gives it.
func stdinConn(f *os.File) (net.Conn, error) {
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("port 0 means that the client is on standard input, but that is not a socket: %w", err)
	}
	return c, nil
}
