package guest

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"nbd.example/nbd/test/harness"
)

// Attach says how to attach a kernel device to a server by nbd-client.
type Attach struct {
	Server      *harness.Server
	Export      string // "disk" if empty
	TCP         bool   // else by the unix socket
	Remote      string // host and port of another server, in place of Server
	Ioctl       bool   // by the old ioctls, else by netlink
	Connections int    // 1 if 0
	Args        []string
}

// String describes the way, for messages.
func (a Attach) String() string {
	way, how := "unix", "netlink"
	if a.TCP || a.Remote != "" {
		way = "tcp"
	}
	if a.Ioctl {
		how = "ioctl"
	}
	return fmt.Sprintf("%s, %s, %d connections", way, how, max(a.Connections, 1))
}

// args returns nbd-client's command line.
func (a Attach) args(dev string) []string {
	export := a.Export
	if export == "" {
		export = "disk"
	}
	args := append([]string{"-N", export, "-C", strconv.Itoa(max(a.Connections, 1))}, a.Args...)
	if a.Ioctl {
		args = append(args, "-L")
	}
	if a.Remote != "" {
		host, port, _ := strings.Cut(a.Remote, ":")
		return append(args, host, port, dev)
	}
	if a.TCP {
		return append(args, "127.0.0.1", strconv.Itoa(a.Server.Port), dev)
	}
	return append(args, "-unix", a.Server.Socket, dev)
}

// Kernel is an attached kernel device.
type Kernel struct {
	t    *T
	Name string // nbd0
	Path string // /dev/nbd0
	live bool
}

// Do attaches the device of that number, and waits until it is there. It is detached at
// the end of the scenario.
func (a Attach) Do(t *T, number int) *Kernel {
	name := fmt.Sprintf("nbd%d", number)
	k := &Kernel{t: t, Name: name, Path: "/dev/" + name, live: true}
	harness.Run(t, "nbd-client", a.args(k.Path)...)
	t.Cleanup(k.Detach)
	t.Await(k.Path+" is attached: "+a.String(), func() bool { return k.attached() && k.Attr("size") != "0" })
	return k
}

// Refused tries to attach the device, which must fail. It returns what nbd-client said.
func (a Attach) Refused(t *T, number int) string {
	return harness.Refused(t, "nbd-client", a.args(fmt.Sprintf("/dev/nbd%d", number))...)
}

// Detach detaches the device, if it is attached, and waits until it is free.
func (k *Kernel) Detach() {
	if k.live {
		k.live = false
		k.Disconnect()
		k.t.Await(k.Path+" is detached", func() bool { return !k.attached() })
	}
}

// Disconnect ends the device's connections, also while it is in use: what is under way
// fails. The device is not free before its users have closed it.
func (k *Kernel) Disconnect() {
	if k.attached() {
		harness.Run(k.t, "nbd-client", "-d", k.Path)
	}
}

// attached reports whether the kernel holds the device to be connected.
func (k *Kernel) attached() bool {
	_, err := os.Stat("/sys/block/" + k.Name + "/pid")
	return err == nil
}

// Attr returns an attribute of the device in sysfs, such as "queue/discard_max_bytes".
func (k *Kernel) Attr(name string) string { return Attr(k.t, k.Name, name) }

// Attr returns an attribute of a block device in sysfs.
func Attr(t *T, device, name string) string {
	text, err := os.ReadFile("/sys/block/" + device + "/" + name)
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(text))
}

// InFlight returns how many reads and writes a block device has to do just now.
func InFlight(t *T, device string) (reads, writes int) {
	text := Attr(t, device, "inflight")
	if _, err := fmt.Sscan(text, &reads, &writes); err != nil {
		t.Fatalf("%s/inflight says %q: %v", device, text, err)
	}
	return reads, writes
}

// AwaitConnections waits until the server has n clients: sockets, beside those that it
// listens on.
func AwaitConnections(t *T, s *harness.Server, n int) {
	listeners := 1 // the unix socket
	if s.Port != 0 {
		listeners++
	}
	t.Await(fmt.Sprintf("the server has %d clients", n), func() bool {
		sockets := 0
		for _, name := range s.FileNames() {
			if strings.Contains(name, " socket:") {
				sockets++
			}
		}
		return sockets-listeners == n
	})
}
