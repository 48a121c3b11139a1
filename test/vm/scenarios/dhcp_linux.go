package scenarios

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"os"
	"strings"

	"nbd.example/nbd/test/harness"
	"nbd.example/nbd/test/vm/guest"
)

// Beside returns the scenarios of machines that are there for another one.
func Beside() []guest.Scenario {
	return []guest.Scenario{{Name: "dhcp", Series: all, Run: dhcp}}
}

// What a machine has that gets its address from the one with the scenario "dhcp".
const (
	BesideIPv4 = "192.168.77.1" // the server's
	BesideIPv6 = "fd77::1"      // also the server's, and that of the name server1
	BesidePort = "10809"
)

// dhcp serves the network on the second interface: addresses of both kinds and names by
// dnsmasq, and the NBD server of the host, with which it passes bytes on. The arguments are
// the port of that server, the one where the test outside waits to hear that all this is
// there, and DHCP's root path, if there is to be one. It ends when that one hangs up.
func dhcp(t *guest.T) {
	port, control, path := t.Args[0], t.Args[1], t.Args[2:]
	for _, words := range []string{
		"addr add " + BesideIPv4 + "/24 dev eth1", "link set eth1 up", "-6 addr add " + BesideIPv6 + "/64 dev eth1",
	} {
		harness.Run(t, "busybox", append([]string{"ip"}, strings.Fields(words)...)...)
	}
	t.Cleanup(func() {
		harness.Run(t, "busybox", "ip", "addr", "flush", "dev", "eth1")
		harness.Run(t, "busybox", "ip", "link", "set", "eth1", "down")
	})
	t.Must(os.WriteFile("/etc/passwd", []byte("root:x:0:0::/:/bin/sh\n"), 0o644), "passwd")
	options := []string{
		"--keep-in-foreground", "--conf-file=/dev/null", "--log-facility=-", "--log-dhcp", "--user=root", "--group=",
		"--interface=eth1", "--bind-interfaces", "--no-hosts", "--no-resolv", "--pid-file=", "--no-ping",
		"--dhcp-leasefile=" + t.TempDir() + "/leases", "--dhcp-authoritative", "--dhcp-range=192.168.77.100,192.168.77.150",
		"--enable-ra", "--dhcp-range=" + BesideIPv6 + ",ra-only", "--host-record=server1," + BesideIPv6,
	}
	for _, p := range path {
		options = append(options, "--dhcp-option=option:root-path,"+p)
	}
	dnsmasq := harness.Spawn(t, nil, "dnsmasq", options...)
	dnsmasq.AwaitText("DHCP, IP range")
	l, err := net.Listen("tcp", ":"+BesidePort)
	t.Must(err, "listen")
	t.Cleanup(func() { l.Close() })
	go passOn(l, guest.HostAddress+":"+port)
	c, err := net.Dial("tcp", guest.HostAddress+":"+control)
	t.Must(err, "tell that all is ready")
	defer c.Close()
	_, err = fmt.Fprintln(c, "ready")
	t.Must(err, "tell that all is ready")
	_, err = bufio.NewReader(c).ReadString('\n')
	if err != io.EOF {
		t.Errorf("wait for the end: %v", err)
	}
	dnsmasq.Stop()
}

// passOn passes bytes between those who connect and another address, until one of both
// ends.
func passOn(l net.Listener, to string) {
	for {
		c, err := l.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			up, err := net.Dial("tcp", to)
			if err != nil {
				return
			}
			defer up.Close()
			done := make(chan struct{}, 2)
			go func() { io.Copy(up, c); done <- struct{}{} }()
			go func() { io.Copy(c, up); done <- struct{}{} }()
			<-done
		}()
	}
}
