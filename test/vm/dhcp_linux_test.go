package vm

import (
	"io"
	"net"
	"path/filepath"
	"strconv"
)

// besideServer makes the machine that serves a network for the station, on which that has
// its only network card: addresses, names, and our server, whose port there is
// scenarios.BesidePort.
func (s *station) besideServer() {
	init := filepath.Join(s.dir, "init")
	s.must(Build(s.t.Context(), "nbd.example/nbd/test/vm/init", init))
	s.beside = NewLab(s.t, s.name()+"-beside", s.kernel, Contents{Init: init, Programs: []string{"dnsmasq"}, Network: true})
	s.wire = wire{filepath.Join(s.dir, "wire1"), filepath.Join(s.dir, "wire2")}
	s.beside.wire, s.beside.memory, s.beside.cpus, s.beside.limit = s.wire.turned(), 256, 1, longLimit
	s.beside.boot(s.t)
}

// withDHCP does something while the machine beside the station hands out addresses, and a
// root path, if one is given.
func (s *station) withDHCP(do func(), path ...string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	s.must(err)
	defer l.Close()
	done := make(chan struct{})
	defer func() { <-done }()
	go func() {
		defer close(done)
		defer l.Close() // nobody else will come
		ports := []string{strconv.Itoa(s.server.Port), strconv.Itoa(l.Addr().(*net.TCPAddr).Port)}
		s.beside.Run(s.t, "dhcp", append(ports, path...)...)
	}()
	c, err := l.Accept()
	s.must(err)
	defer c.Close() // which ends the scenario
	_, err = io.ReadFull(c, make([]byte, len("ready\n")))
	s.must(err)
	do()
}
