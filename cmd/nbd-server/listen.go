package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"
	"slices"
	"strings"
	"syscall"

	"nbd.example/nbd/internal/daemon"
	"nbd.example/nbd/internal/nbdconf"
	"nbd.example/nbd/internal/serverflags"
	"nbd.example/nbd/internal/vsocket"

	"github.com/coreos/go-systemd/v22/activation"
)

// defaultPort is the one that IANA has assigned to NBD.
const defaultPort = "10809"

// address is one that the server listens on.
type address struct {
	nbdconf.Address
	// oldstyle names the export that antique clients are served there; nil for a
	// listener as they are today.
	oldstyle *string

	key string      // says so; "" for the command line
	pos nbdconf.Pos // of the key; without a File if nobody has said anything
}

// origin tells people who says so.
func (a *address) origin() string {
	switch {
	case a.key == "":
		return "the command line"
	case a.pos.File == "":
		return "[generic], where nothing else is said"
	}
	return a.key + " at " + a.pos.String()
}

// wrap adds to an error where the configuration says so.
func (a *address) wrap(err error) error {
	if a.pos.File == "" {
		return err
	}
	return fmt.Errorf("%s: %s: %w", a.pos, a.key, err)
}

// addresses says where to listen. What the configuration says holds; what the
// command line says is added, and takes the place of the defaults.
func (p *program) addresses(conf *nbdconf.Config) []address {
	g := &conf.Generic
	l := listening{p: p, g: g}
	if g.UnixSock != "" {
		l.add("unixsock", "unix", g.UnixSock, "")
	}
	for _, text := range g.Listen {
		l.parse("listen", text)
	}
	for _, text := range p.flags.Addresses {
		l.parse("", text)
	}
	line := p.flags.Listen
	old := p.flags.OldStyle && p.flags.File != ""
	switch {
	case p.flags.Address != "":
		l.parse("", p.flags.Address)
	case old && line != nil:
		l.add("", "tcp", line.Host, line.Port)
		line = nil
	}
	if old && len(l.list) > 0 {
		l.list[len(l.list)-1].oldstyle = new(string)
	}
	l.addTCP(line)
	return append(l.list, antiques(conf)...)
}

// listening collects addresses.
type listening struct {
	p    *program
	g    *nbdconf.Generic
	list []address
}

func (l *listening) add(key, network, host, port string) {
	if network == "unix" && host[0] != '@' {
		host = l.p.env.open.Abs(host)
	}
	pos, _ := l.g.Where(key)
	l.list = append(l.list, address{Address: nbdconf.Address{Network: network, Host: host, Port: port}, key: key, pos: pos})
}

func (l *listening) parse(key, text string) {
	if a, err := nbdconf.ParseAddress(text); err == nil { // others were refused before
		l.add(key, a.Network, a.Host, a.Port)
	}
}

// addTCP adds what port and listenaddr say, or their defaults, and an operand of the
// command line, unless it is nil.
func (l *listening) addTCP(line *serverflags.Listen) {
	g := l.g
	other := len(l.list) > 0 // than the default
	port, key := g.Port, "port"
	_, given := g.Where("port")
	given = given && port != "" || len(g.ListenAddr) > 0
	if len(g.ListenAddr) > 0 {
		key = "listenaddr"
	}
	if port == "" {
		port = defaultPort
		if line != nil && line.Host == "" {
			port = line.Port
		}
	}
	tcp := g.UnixSock == "" || g.DualListen
	if tcp && (given || line == nil && !other || g.DualListen && line == nil) {
		for _, h := range orAll(g.ListenAddr) {
			l.add(key, "tcp", h, port)
		}
	}
	// One port is bound once: with the same port the configuration's addresses hold.
	if line != nil && !(tcp && given && line.Port == port) {
		l.add("", "tcp", line.Host, line.Port)
	}
}

// clashes finds addresses that are to be listened on twice, which cannot work.
func (p *program) clashes(conf *nbdconf.Config) (problems nbdconf.Problems) {
	if p.flags.Inetd || p.activated {
		return nil // nothing is listened on
	}
	list := p.addresses(conf)
	for i, a := range list {
		first := slices.IndexFunc(list[:i], func(b address) bool { return a.Address == b.Address && a.Port != "0" })
		if first < 0 {
			continue
		}
		pos := a.pos
		if pos.File == "" {
			pos.File = a.origin()
		}
		problems = append(problems, nbdconf.Problem{Pos: pos, Severity: nbdconf.Error, Text: fmt.Sprintf(
			"%s: %s is taken by %s; two cannot listen there, give one of them another port or address", cmp.Or(a.key, "the address"), a.text(), list[first].origin())})
	}
	return problems
}

// text is the address for people.
func (a *address) text() string {
	switch {
	case a.Network == "unix":
		return a.Host
	case a.Host == "" && a.Network == "tcp":
		return "port " + a.Port + " of all addresses"
	}
	return net.JoinHostPort(a.Host, a.Port)
}

// orAll returns hosts, or what stands for all addresses if there are none.
func orAll(hosts []string) []string {
	if len(hosts) == 0 {
		return []string{""}
	}
	return hosts
}

// antiques says where the exports of the configuration are served to antique clients.
func antiques(conf *nbdconf.Config) (list []address) {
	if !conf.Generic.OldStyle {
		return nil
	}
	for _, x := range conf.Exports {
		if x.Port == "" {
			continue
		}
		hosts, key := x.ListenAddr, "listenaddr"
		if len(hosts) == 0 {
			hosts, key = orAll(conf.Generic.ListenAddr), "port"
		}
		for _, h := range hosts {
			list = append(list, address{
				nbdconf.Address{Network: "tcp", Host: h, Port: x.Port}, &x.Name, fmt.Sprintf("%s in [%s]", key, x.Name), x.Where(key),
			})
		}
	}
	return list
}

// listen opens the listeners: those of the service manager, or its own.
func (p *program) listen(ctx context.Context, conf *nbdconf.Config) (*listeners, error) {
	list, conns, err := p.inherited(conf)
	if err != nil {
		return nil, err
	}
	ls := &listeners{p: p, passed: len(list) > 0, failed: make(chan error, 1), list: list}
	if len(conns) > 0 {
		return nil, errors.New("the service manager passed a connection, not a listening socket; start the server with port 0, and the connection on standard input")
	}
	if len(list) > 0 {
		if p.flags.OldStyle && !slices.ContainsFunc(list, func(l *listener) bool { return l.oldstyle != nil }) {
			p.log.Warn("--oldstyle has no effect: the service manager has passed the sockets; one for antique clients is called oldstyle (FileDescriptorName)")
		}
		p.tellPassed(conf)
		return ls, nil
	}
	for _, a := range p.addresses(conf) {
		more, err := p.open(ctx, a)
		if err != nil {
			ls.close()
			return nil, a.wrap(err)
		}
		ls.list = append(ls.list, more...)
	}
	return ls, nil
}

// tellPassed warns of keys that say nothing where the service manager has passed sockets.
func (p *program) tellPassed(conf *nbdconf.Config) {
	for _, key := range []string{"port", "listen", "listenaddr", "unixsock", "oldstyle"} {
		if pos, ok := conf.Generic.Where(key); ok {
			p.log.Warn(fmt.Sprintf("%s: %s has no effect: the service manager has passed the sockets", pos, key))
		}
	}
}

// open opens the listeners that an address stands for.
func (p *program) open(ctx context.Context, a address) ([]*listener, error) {
	opened, err := p.listenOn(ctx, a.Address)
	if err != nil {
		return nil, err
	}
	list := make([]*listener, len(opened))
	for i, l := range opened {
		list[i] = &listener{Listener: l, address: a}
	}
	return list, nil
}

// listenOn opens what one address stands for.
func (p *program) listenOn(ctx context.Context, a nbdconf.Address) ([]net.Listener, error) {
	var l net.Listener
	var err error
	switch a.Network {
	case "unix":
		l, err = daemon.ListenUnix(ctx, a.Host)
	case "vsock":
		var v vsocket.Addr
		if v, err = vsocket.Parse(a.Host + ":" + a.Port); err == nil {
			l, err = vsocket.Listen(v)
		}
	default:
		return p.listenTCP(ctx, a)
	}
	if err != nil {
		return nil, err
	}
	return []net.Listener{l}, nil
}

func closeAll[L net.Listener](list []L) {
	for _, l := range list {
		l.Close()
	}
}

// listenTCP listens on one address, or on all that a name stands for. No host stands for
// all addresses.
func (p *program) listenTCP(ctx context.Context, a nbdconf.Address) (list []net.Listener, err error) {
	if _, err := net.DefaultResolver.LookupPort(ctx, "tcp", a.Port); err != nil {
		return nil, fmt.Errorf("listen on %q: it is neither the number of a port nor a name of /etc/services; a file to serve comes behind the port, as in \"nbd-server %s /srv/disk.img\"", a.Port, defaultPort)
	}
	hosts, err := hostsOf(ctx, a.Host)
	if err != nil {
		return nil, fmt.Errorf("listen on %q: %w", net.JoinHostPort(a.Host, a.Port), err)
	}
	lc := net.ListenConfig{KeepAlive: -1} // the server sets its own
	lc.SetMultipathTCP(false)             // it would be slower, and not what the kernel's client takes
	var missing error
	for _, h := range hosts {
		l, err := lc.Listen(ctx, h.network, net.JoinHostPort(h.host, a.Port))
		switch {
		case err == nil:
			list = append(list, l)
		case len(hosts) > 1 && (errors.Is(err, syscall.EADDRNOTAVAIL) || errors.Is(err, syscall.EAFNOSUPPORT)):
			missing = err // localhost is ::1, too, where there is no IPv6
		default:
			closeAll(list)
			return nil, err
		}
	}
	if len(list) == 0 {
		return nil, missing
	}
	if missing != nil {
		p.log.Warn("of the addresses of a name this machine has not all", "name", a.Host, "why", missing)
	}
	return list, nil
}

// host is an address as package net takes it.
type host struct{ network, host string }

// hostsOf returns what a host of the configuration stands for.
func hostsOf(ctx context.Context, name string) (list []host, err error) {
	switch name {
	case "":
		if runtime.GOOS == "openbsd" || runtime.GOOS == "dragonfly" { // no IPv4 on IPv6 sockets
			return []host{{"tcp6", ""}, {"tcp4", ""}}, nil
		}
		return []host{{"tcp", ""}}, nil
	case "::":
		return []host{{"tcp6", name}}, nil
	case "0.0.0.0":
		return []host{{"tcp4", name}}, nil
	}
	addrs, err := net.DefaultResolver.LookupIPAddr(ctx, name)
	if err != nil {
		return nil, err
	}
	for _, a := range addrs {
		if h := (host{"tcp", a.String()}); !slices.Contains(list, h) {
			list = append(list, h)
		}
	}
	return list, nil
}

// inherited takes the sockets that a service manager has passed, listening and
// connected ones. Their names say what they are for: "oldstyle" and
// "oldstyle@EXPORT" for antique clients, "control" for nbd ctl; all others are for clients as they are
// today.
func (p *program) inherited(conf *nbdconf.Config) (list []*listener, conns []net.Conn, err error) {
	for _, f := range activation.Files(true) {
		old, err := antiqueSocket(conf, f.Name())
		l, no := net.FileListener(f)
		if no != nil {
			l, no = vsocket.FileListener(f)
		}
		switch {
		case no == nil && f.Name() == "control" && p.control == nil:
			p.control = l
		case no == nil && err == nil:
			list = append(list, &listener{Listener: l, address: address{oldstyle: old}})
			p.log.Info("listening on a socket of the service manager", "name", f.Name(), "address", l.Addr().String())
		case no == nil:
			l.Close()
		default:
			var c net.Conn
			if c, err = net.FileConn(f); err == nil {
				conns = append(conns, c)
			}
		}
		f.Close() // net has its own
		if err != nil {
			closeAll(list)
			return nil, nil, fmt.Errorf("the socket %q of the service manager: %w", f.Name(), err)
		}
	}
	return list, conns, nil
}

// antiqueSocket says which export a socket of that name serves to antique clients.
func antiqueSocket(conf *nbdconf.Config, name string) (*string, error) {
	kind, export, named := strings.Cut(name, "@")
	if kind != "oldstyle" {
		return nil, nil
	}
	if !named {
		if len(conf.Exports) != 1 {
			return nil, fmt.Errorf("it is for antique clients, but there are %d exports; name the socket oldstyle@EXPORT", len(conf.Exports))
		}
		return &conf.Exports[0].Name, nil
	}
	for _, x := range conf.Exports {
		if x.Name == export {
			return &x.Name, nil
		}
	}
	return nil, fmt.Errorf("it is for an export %q, and there is none", export)
}

// addressTexts lists where the server listens.
func addressTexts(list []*listener) []string {
	var texts []string
	for _, l := range list {
		text := l.Addr().String()
		if l.oldstyle != nil {
			text += fmt.Sprintf("(oldstyle %q)", *l.oldstyle)
		}
		texts = append(texts, text)
	}
	slices.Sort(texts)
	return texts
}

// inetdByConfig tells whether port = 0 of the configuration means that the client is on
// standard input, as the reference has it: if there is one. Where it has to be
// found out, the program cannot go to the background first.
func (p *program) inetdByConfig() bool {
	f := p.flags
	if f.Foreground || f.Listen != nil || len(f.AllAddresses()) > 0 || p.printsOnly() {
		return false
	}
	info, err := p.env.stdin.Stat()
	if err != nil || info.Mode()&os.ModeSocket == 0 {
		return false
	}
	conf, _, _ := p.load() // problems are told when it is read for good
	if g := &conf.Generic; g.Port != "0" || g.UnixSock != "" || len(g.Listen) > 0 {
		return false
	}
	c, err := stdinConn(p.env.stdin)
	if err != nil {
		return false
	}
	defer c.Close()
	return c.RemoteAddr() != nil
}

// stdinConn takes the client on standard input, as inetd gives it.
func stdinConn(f *os.File) (net.Conn, error) {
	c, err := net.FileConn(f)
	if err != nil {
		return nil, fmt.Errorf("port 0 means that the client is on standard input, but that is not a socket: %w", err)
	}
	return c, nil
}
