package scenarios

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"nbd.example/nbd/kernel"
	"nbd.example/nbd/proto"
	"nbd.example/nbd/test/vm/guest"
)

// kernelReconnect kills the server under a device, and gives it another one.
func kernelReconnect(t *guest.T) {
	for _, n := range []int{1, 3} {
		for _, timeout := range []time.Duration{0, 3 * time.Second} {
			reconnect(t, n, timeout)
		}
	}
}

func reconnect(t *guest.T, n int, timeout time.Duration) {
	d := openDriver(t, false)
	dead := make(chan kernel.Index, 100)
	watching, stop := context.WithCancel(t.Context())
	defer stop()
	t.Must(d.Watch(watching, func(i kernel.Index) { dead <- i }), "watch")
	dev := disk(t, 8*mib)
	l := guest.ServeLocal(t, dev, false)
	h := hold(t, d, l, "pair", n, kernel.Attach{Any: true, Timeout: timeout, DeadTimeout: time.Hour, Identifier: "x"})
	// To open it later, for the first time, would wait: the kernel looks for partitions.
	f := guest.Direct(t, h.i.Path())
	defer f.Close()
	surplus := firstOf(l.Sockets("pair", 1))
	err := d.Reconfigure(within(t), h.i, &kernel.Change{Sockets: surplus, Timeout: &timeout, Identifier: "x"})
	if !errors.Is(err, kernel.ErrNotTaken) {
		t.Errorf("a socket too many was taken: %v", err)
	}
	l.Kill()
	for range n {
		select {
		case i := <-dead:
			if i != h.i {
				t.Errorf("%s died, want %s", i.Name(), h.i.Name())
			}
		case <-time.After(hang):
			t.Fatalf("no message of a dead connection")
		}
	}
	begun := time.Now()
	done := make(chan error, 1)
	go func() { _, err := f.WriteAt(guest.Filled(1, 4096), 0); done <- err }()
	// The block layer does not count what waits for a connection.
	t.Await("a write waits", func() bool { return guest.BlockedThreads(t) > 0 })
	if r, w := guest.InFlight(t, h.i.Name()); r+w != 0 {
		t.Logf("in flight while all connections are dead: %d reads, %d writes", r, w)
	}
	sockets := firstOf(l.Sockets("pair", n+1))
	err = d.Reconfigure(within(t), h.i, &kernel.Change{Sockets: sockets, Timeout: &timeout})
	if !errors.Is(err, kernel.ErrIdentifier) {
		t.Errorf("reconfigure without the identifier: %v", err)
	}
	err = d.Reconfigure(within(t), h.i, &kernel.Change{Sockets: sockets, Timeout: &timeout, Identifier: "x"})
	if !errors.Is(err, kernel.ErrNotTaken) || !strings.Contains(err.Error(), fmt.Sprintf("(%d of %d were taken)", n, n+1)) {
		t.Errorf("reconfigure with one socket too many: %v", err)
	}
	t.Must(<-done, "write")
	t.Logf("%d connections, timeout %v: a write that came while all were dead took %v", n, timeout, time.Since(begun).Round(time.Millisecond))
	h.use(dev, 5)
	select {
	case i := <-dead:
		t.Errorf("%s: one death too many was told", i.Name())
	default:
	}
	f.Close()
	h.release()
}

// kernelRefusals tries what cannot be, and looks at the reasons that are given.
func kernelRefusals(t *guest.T) {
	ctx := within(t)
	l := guest.ServeLocal(t, disk(t, mib), false)
	for _, ioctl := range []bool{false, true} {
		d := openDriver(t, ioctl)
		if _, err := d.Status(ctx, 77); !errors.Is(err, kernel.ErrNoDevice) {
			t.Errorf("ioctl %t: status of no device: %v", ioctl, err)
		}
		if err := d.Disconnect(ctx, 77); !errors.Is(err, kernel.ErrNoDevice) {
			t.Errorf("ioctl %t: detach no device: %v", ioctl, err)
		}
		// Somebody has it open, so that it may be about to be attached.
		f := guest.Open(t, "/dev/nbd2", os.O_RDONLY)
		s, err := d.Status(ctx, 2)
		t.Logf("ioctl %t: status of a device that is only open: %+v, %v", ioctl, s, err)
		a := kernel.Attach{Index: 2, Size: mib, Sockets: firstOf(l.Sockets("pair", 1))}
		if !ioctl {
			_, err = d.Connect(ctx, &a)
			if !errors.Is(err, kernel.ErrBusy) || !strings.Contains(err.Error(), fmt.Sprintf("open in process %d", os.Getpid())) {
				t.Errorf("attach a device that is open: %v", err)
			}
		}
		f.Close()
	}
	asNobody(t, func() {
		d := openDriver(t, false)
		a := kernel.Attach{Index: 2, Size: mib, Sockets: firstOf(l.Sockets("pair", 1))}
		if _, err := d.Connect(ctx, &a); !errors.Is(err, kernel.ErrPermission) {
			t.Errorf("attach without rights: %v", err)
		}
		if _, err := d.StatusAll(ctx); err != nil {
			t.Errorf("status without rights: %v", err)
		}
	})
	nl := openDriver(t, false)
	if err := nl.Reconfigure(ctx, 2, &kernel.Change{Sockets: firstOf(l.Sockets("pair", 1))}); !errors.Is(err, kernel.ErrNotConnected) {
		t.Errorf("reconfigure what is not attached: %v", err)
	}
	kernelDestroy(t, nl, l)
}

// kernelDestroy attaches devices that did not exist, and go with the attachment.
func kernelDestroy(t *guest.T, d kernel.Driver, l *guest.Local) {
	ctx := within(t)
	h := hold(t, d, l, "pair", 1, kernel.Attach{Index: 9, Client: kernel.DestroyOnDisconnect})
	t.Must(d.Disconnect(ctx, h.i), "disconnect")
	t.Await("the device is removed", func() bool {
		_, err := d.Info(h.i)
		return errors.Is(err, kernel.ErrNoDevice)
	})
	h = hold(t, d, l, "pair", 1, kernel.Attach{Index: 9, Client: kernel.DestroyOnDisconnect | kernel.DisconnectOnClose})
	guest.Open(t, h.i.Path(), os.O_RDONLY).Close()
	t.Await("the device is detached and removed", func() bool {
		_, err := d.Info(h.i)
		return errors.Is(err, kernel.ErrNoDevice)
	})
}

// asNobody runs f without rights.
func asNobody(t *guest.T, f func()) {
	const nobody = 65534
	t.Must(syscall.Setresuid(-1, nobody, -1), "become nobody")
	defer func() { t.Must(syscall.Setresuid(-1, 0, -1), "become root") }()
	f()
}

// kernelStuck looks at what hangs when a peer reads no more, and that it does not hang us.
func kernelStuck(t *guest.T) {
	d := openDriver(t, false)
	mine, theirs := guest.Pair(t)
	defer theirs.Close()
	f, err := mine.(interface{ File() (*os.File, error) }).File()
	t.Must(err, "socket")
	defer f.Close()
	mine.Close()
	go readsOnly(theirs)
	flags := proto.FlagHasFlags | proto.FlagSendFlush
	i, err := d.Connect(within(t), &kernel.Attach{Any: true, Size: 64 * mib, Flags: flags, DeadTimeout: time.Hour, Sockets: []*os.File{f}})
	t.Must(err, "connect")
	dev := guest.Direct(t, i.Path())
	wrote := make(chan error, 1)
	go func() { _, err := dev.WriteAt(guest.Filled(1, 16*mib), 0); wrote <- err }()
	t.Await("writes wait", func() bool { _, w := guest.InFlight(t, i.Name()); return w > 0 })
	short, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	err = d.Disconnect(short, i)
	t.Logf("disconnect from a peer that reads nothing: %v", err)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("disconnect from a peer that reads nothing: %v", err)
	}
	short, cancel = context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	_, err = d.StatusAll(short)
	t.Logf("status of all devices meanwhile: %v", err)
	if _, err := d.Info(i); err != nil {
		t.Errorf("what the system tells meanwhile: %v", err)
	}
	t.Must(unix.Shutdown(int(f.Fd()), unix.SHUT_RDWR), "shut the socket down")
	if err := <-wrote; !errors.Is(err, unix.EIO) {
		t.Errorf("the write: %v", err)
	}
	dev.Close()
	_, err = kernel.AwaitGone(within(t), d, i)
	t.Must(err, "gone")
}

// readsOnly answers reads with zeroes, until something else comes: then it reads no more.
func readsOnly(conn net.Conn) {
	for {
		var b [proto.RequestSize]byte
		var r proto.Request
		if _, err := io.ReadFull(conn, b[:]); err != nil || !proto.ParseRequest(b[:], &r) || r.Command != proto.CmdRead {
			return
		}
		conn.Write(append(proto.AppendSimpleReply(nil, 0, r.Cookie), make([]byte, r.Length)...))
	}
}

// kernelFacts prints what package kernel says of the kernel, to compare.
func kernelFacts(t *guest.T) {
	d := openDriver(t, false)
	l := guest.ServeLocal(t, disk(t, 8*mib+700), false)
	h := hold(t, d, l, "tcp", 1, kernel.Attach{Any: true, BlockSize: 4096, Timeout: 7 * time.Second, DeadTimeout: time.Hour})
	for _, attr := range []string{"size", "queue/max_sectors_kb", "queue/max_hw_sectors_kb", "queue/io_timeout", "queue/write_zeroes_max_bytes"} {
		path := filepath.Join("/sys/block", h.i.Name(), attr)
		b, err := os.ReadFile(path)
		t.Logf("%s: %q, %v", path, b, err)
	}
	if h.info.Size != 8*mib+512 {
		t.Errorf("a size of 8 MiB and 700 bytes became %d", h.info.Size)
	}
	begun := time.Now()
	t.Must(d.Reconfigure(within(t), h.i, &kernel.Change{Size: 4 * mib}), "reconfigure")
	t.Logf("another size took %v", time.Since(begun).Round(time.Microsecond))
	if info, err := d.Info(h.i); err != nil || info.Size != 4*mib {
		t.Errorf("after a resize: %+v, %v", info, err)
	}
	h.release()
	// The time limit of requests is that of the last attachment, if none is set.
	h = hold(t, d, l, "unix", 1, kernel.Attach{Any: true})
	if got := guest.Attr(t, h.i.Name(), "queue/io_timeout"); got != "30000" {
		t.Errorf("the time limit of requests is %s ms, want 30000", got)
	}
	h.release()
}

// kernelNodes makes nodes where there are none, as in containers.
func kernelNodes(t *guest.T) {
	dev := disk(t, 16*mib)
	t.Must(dev.WriteAt(t.Context(), partitionTable(2048, 4096), 0, 0), "partition table")
	l := guest.ServeLocal(t, dev, false)
	d := openDriver(t, false)
	h := hold(t, d, l, "pair", 1, kernel.Attach{Index: 3})
	t.Must(d.Rescan(within(t), 3), "rescan")
	var s kernel.System
	for _, node := range []string{"/dev/nbd3", "/dev/nbd3p1"} {
		t.Must(os.Remove(node), "remove a node")
	}
	if info, err := d.Info(3); err != nil || info.Node || info.Ready() {
		t.Errorf("without its node: %+v, %v", info, err)
	}
	t.Must(s.MakeNode(3), "make nodes")
	t.Must(s.MakeNode(3), "make nodes that are there")
	if info, err := d.Info(3); err != nil || !info.Ready() {
		t.Errorf("with its node: %+v, %v", info, err)
	}
	if got := guest.Size(t, "/dev/nbd3p1"); got != 4096*512 {
		t.Errorf("the partition has %d bytes", got)
	}
	t.Must(os.Remove("/dev/nbd3p1"), "remove a node") // devtmpfs removes only its own
	h.release()
}
