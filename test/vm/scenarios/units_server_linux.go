package scenarios

import (
	"bytes"
	"os"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"nbd.example/nbd/client"
	"nbd.example/nbd/proto"
	"nbd.example/nbd/test/harness"
	"nbd.example/nbd/test/vm/guest"
)

// What the server serves that systemd starts in the Debian of the steps "units-…". Its file
// is made by the step.
const (
	servedFile   = "/srv/served.img"
	servedSocket = "/run/nbd-server/socket"
	servedConfig = "/etc/nbd-server/config"
	servedPort   = "nbd://127.0.0.1:10809/disk"
	servedBytes  = 8 << 20
)

// unitsServer has systemd start our server, as root with everything that it may, then by its
// socket and as somebody else.
func unitsServer(t *guest.T) {
	disk := harness.Random(816, servedBytes)
	t.Must(os.WriteFile(servedFile, disk, 0o600), "the served file")
	const disks = "[disk]\nexportname = " + servedFile + "\n"
	config := func(generic string) {
		t.Must(os.WriteFile(servedConfig, []byte("[generic]\n"+generic+disks), 0o644), "configuration")
	}
	const service, socket = "nbd-server.service", "nbd-server.socket"
	config("unixsock = " + servedSocket + "\nduallisten = true\nswap = true\n")
	harness.Run(t, "systemctl", "start", service)
	wantActive(t, service, true)
	wantLocked(t, show(t, service, "MainPID"))
	wantRoom(t)
	if _, err := os.Stat("/run/nbd-server/control"); err != nil {
		t.Errorf("the control socket: %v", err)
	}

	c := served(t, disk)
	harness.Run(t, "systemctl", "reload", service)
	t.Await("the configuration is taken over", func() bool { return strings.Contains(serverLog(t), "configuration taken over") })
	rewrite(t, c, disk)
	harness.Run(t, "systemctl", "restart", service)
	served(t, disk).Close()
	harness.Run(t, "systemctl", "stop", service)
	wantActive(t, service, false)
	wantNoWarnings(t)

	t.Must(os.Chown(servedFile, 65534, 65534), "owner of the served file")
	config("user = nobody\ngroup = nogroup\n")
	harness.Run(t, "systemctl", "start", socket)
	wantActive(t, service, false)
	rewrite(t, served(t, disk), disk)
	wantActive(t, service, true)
	status, err := os.ReadFile("/proc/" + show(t, service, "MainPID") + "/status")
	t.Must(err, "status of the server")
	if !bytes.Contains(status, []byte("\nUid:\t65534\t65534\t65534\t65534\n")) || !bytes.Contains(status, []byte("\nCapEff:\t0000000000000000\n")) {
		t.Errorf("as nobody, the server is\n%s", status)
	}
	harness.Run(t, "systemctl", "stop", socket, service)
	wantActive(t, service, false)
}

// wantNoWarnings wants the server to lack nothing but what its administrator has to see to:
// a reserve of memory, and files past the page cache.
func wantNoWarnings(t *guest.T) {
	for line := range strings.Lines(serverLog(t)) {
		if strings.Contains(line, "warning:") && !strings.Contains(line, "vm.min_free_kbytes is") && !strings.Contains(line, "not fit for swap") {
			t.Errorf("the server says: %s", line)
		}
	}
}

func serverLog(t *guest.T) string {
	return harness.Run(t, "journalctl", "-b", "--no-pager", "-o", "cat", "-u", "nbd-server.service")
}

// served connects to the server, and wants to read the whole disk.
func served(t *guest.T, disk []byte) *client.Conn {
	c, err := client.Dial(t.Context(), servedPort, nil)
	t.Must(err, "connect")
	t.Cleanup(func() { c.Close() })
	wantDisk(t, c, disk)
	return c
}

func wantDisk(t *guest.T, c *client.Conn, disk []byte) {
	if got := make([]byte, len(disk)); c.Size() != servedBytes {
		t.Errorf("the export has %d bytes", c.Size())
	} else if t.Must(c.ReadAt(t.Context(), got, 0), "read"); !bytes.Equal(got, disk) {
		t.Errorf("what is served is not what is in the file")
	}
}

// rewrite changes the disk, and ends the connection.
func rewrite(t *guest.T, c *client.Conn, disk []byte) {
	for i := range disk[:1<<20] {
		disk[i]++
	}
	t.Must(c.WriteAt(t.Context(), disk[:1<<20], 0, 0), "write")
	t.Must(c.Flush(t.Context()), "flush")
	wantDisk(t, c, disk)
	t.Must(c.Close(), "close")
	stored, err := os.ReadFile(servedFile)
	t.Must(err, "the served file")
	if !bytes.Equal(stored, disk) {
		t.Errorf("what was written is not in the file")
	}
}

// wantLocked wants a process to be ready for swap.
func wantLocked(t *guest.T, pid string) {
	status, err := os.ReadFile("/proc/" + pid + "/status")
	t.Must(err, "status of the server")
	if !bytes.Contains(status, []byte("\nVmLck:")) || bytes.Contains(status, []byte("\nVmLck:\t       0 kB")) {
		t.Errorf("the server has locked no memory:\n%s", status)
	}
	score, err := os.ReadFile("/proc/" + pid + "/oom_score_adj")
	t.Must(err, "score of the server")
	if got := strings.TrimSpace(string(score)); got != "-1000" {
		t.Errorf("the server may be ended for want of memory: its score is %s", got)
	}
}

// wantRoom wants answers on a unix socket to have more room than the system gives by itself,
// 208 KiB: asked for by a client that reads nothing, that much more is on its way.
func wantRoom(t *guest.T) {
	r, err := client.DialRaw(t.Context(), harness.UnixURI(servedSocket, "disk"), nil)
	t.Must(err, "connect by the unix socket")
	defer r.Close()
	t.Must(r.Send(&client.RawRequest{Request: proto.Request{Command: proto.CmdRead, Length: servedBytes}}), "ask")
	raw, err := r.Conn.(syscall.Conn).SyscallConn()
	t.Must(err, "descriptor")
	t.AwaitFor(time.Minute, "more than 600 KiB wait in the socket", func() bool {
		n := 0
		t.Must(raw.Control(func(fd uintptr) { n, err = unix.IoctlGetInt(int(fd), unix.TIOCINQ) }), "descriptor")
		t.Must(err, "what waits in the socket")
		return n > 600<<10
	})
}
