package nbdnl

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mdlayher/genetlink"
	"github.com/mdlayher/genetlink/genltest"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"nbd.example/nbd/kernel"
)

// family is the driver's, as a kernel may have it.
var family = genetlink.Family{ID: 33, Version: 1, Name: familyName, Groups: []genetlink.MulticastGroup{{ID: 9, Name: groupName}}}

// fake is a driver on a kernel that answers by f, and whose /sys/block is made of the
// names.
func fake(t *testing.T, f genltest.Func, files map[string]string) *Driver {
	t.Helper()
	root := t.TempDir()
	for name, text := range files {
		path := filepath.Join(root, "sys/block", name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(filepath.Join(root, "sys/module/nbd"), 0o755); err != nil {
		t.Fatal(err)
	}
	dial := func() (*genetlink.Conn, error) { return genltest.Dial(genltest.ServeFamily(family, f)), nil }
	d, err := open(dial, kernel.System{Root: root})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { d.Close() })
	return d
}

// failing answers with an error number.
func failing(errno unix.Errno) genltest.Func {
	return func(genetlink.Message, netlink.Message) ([]genetlink.Message, error) {
		return nil, genltest.Error(int(errno))
	}
}

// stream returns one end of a connection.
func stream(t *testing.T) *os.File {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		t.Cleanup(func() { unix.Close(fd) })
	}
	fd, err := unix.Dup(fds[0])
	if err != nil {
		t.Fatal(err)
	}
	f := os.NewFile(uintptr(fd), "socket")
	t.Cleanup(func() { f.Close() })
	return f
}

func TestConnect(t *testing.T) {
	d := fake(t, func(g genetlink.Message, n netlink.Message) ([]genetlink.Message, error) {
		if n.Header.Type != 33 || n.Header.Flags != netlink.Request || g.Header.Command != uint8(cmdConnect) || g.Header.Version != 1 {
			t.Errorf("the kernel got %+v %+v", n.Header, g.Header)
		}
		b, err := encodeIndex(11)
		return []genetlink.Message{{Header: g.Header, Data: b}}, err
	}, nil)
	i, err := d.Connect(t.Context(), &kernel.Attach{Any: true, Size: 4096, Sockets: []*os.File{stream(t)}})
	if err != nil || i != 11 {
		t.Errorf("got %d, %v", i, err)
	}
}

// TestConnectSilent has a device that was read-only before, and a server that answers
// nothing: the device's node does not open.
func TestConnectSilent(t *testing.T) {
	d := fake(t, func(g genetlink.Message, _ netlink.Message) ([]genetlink.Message, error) {
		b, err := encodeIndex(1)
		return []genetlink.Message{{Header: g.Header, Data: b}}, err
	}, map[string]string{"nbd1/ro": "1\n"})
	node := d.system.Node(1)
	if err := errors.Join(os.Mkdir(filepath.Dir(node), 0o755), unix.Mkfifo(node, 0o600)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // whoever still opens it ends
		if f, err := os.OpenFile(node, os.O_RDWR, 0); err == nil {
			f.Close()
		}
	})
	d.patience = time.Millisecond
	if i, err := d.Connect(t.Context(), &kernel.Attach{Index: 1, Size: 4096, Sockets: []*os.File{stream(t)}}); err != nil || i != 1 {
		t.Errorf("got %d, %v", i, err)
	}
}

// TestErrors wants the kernel's numbers to become errors that say something.
func TestErrors(t *testing.T) {
	attached := map[string]string{"nbd1/pid": "1\n", "nbd1/backend": "abc\n", "nbd2/size": "0\n"}
	connect := func(d *Driver) error {
		_, err := d.Connect(t.Context(), &kernel.Attach{Index: 1, Size: 4096, Sockets: []*os.File{stream(t)}})
		return err
	}
	reconfigure := func(i kernel.Index, id string) func(*Driver) error {
		return func(d *Driver) error {
			return d.Reconfigure(t.Context(), i, &kernel.Change{Identifier: id, Size: 4096})
		}
	}
	disconnect := func(i kernel.Index) func(*Driver) error {
		return func(d *Driver) error { return d.Disconnect(t.Context(), i) }
	}
	for name, tt := range map[string]struct {
		errno unix.Errno
		call  func(*Driver) error
		want  error
		text  string
	}{
		"permission":            {unix.EPERM, connect, kernel.ErrPermission, "nbd1"},
		"busy":                  {unix.EBUSY, connect, kernel.ErrBusy, "process 1 has attached it"},
		"invalid":               {unix.EINVAL, connect, unix.EINVAL, "kernel's log"},
		"memory":                {unix.ENOMEM, connect, unix.ENOMEM, ""},
		"identifier":            {unix.EINVAL, reconfigure(1, "xyz"), kernel.ErrIdentifier, `"abc", not "xyz"`},
		"reconfigure nothing":   {unix.EINVAL, reconfigure(2, ""), kernel.ErrNotConnected, "nbd2"},
		"reconfigure no device": {unix.EINVAL, reconfigure(3, ""), kernel.ErrNoDevice, "nbd3"},
		"by ioctl":              {unix.EINVAL, reconfigure(1, "abc"), kernel.ErrNotConnected, "not attached by netlink"},
		"disconnect nothing":    {0, disconnect(2), kernel.ErrNotConnected, "nbd2"},
		"disconnect no device":  {0, disconnect(3), kernel.ErrNoDevice, "nbd3"},
		"going away":            {unix.EINVAL, disconnect(1), kernel.ErrNotConnected, "going away"},
	} {
		err := tt.call(fake(t, failing(tt.errno), attached))
		if !errors.Is(err, tt.want) || !strings.Contains(err.Error(), tt.text) {
			t.Errorf("%s: got %v, want %v with %q", name, err, tt.want, tt.text)
		}
	}
}

// TestExplain wants the kernel's text to be in the error.
func TestExplain(t *testing.T) {
	err := explain(&netlink.OpError{Op: "receive", Err: unix.EBUSY, Message: "because"})
	if !errors.Is(err, kernel.ErrBusy) || !strings.Contains(err.Error(), `"because"`) {
		t.Errorf("got %v", err)
	}
}

func TestStatusCalls(t *testing.T) {
	d := fake(t, func(g genetlink.Message, _ netlink.Message) ([]genetlink.Message, error) {
		e := netlink.NewAttributeEncoder()
		e.Nested(attrDeviceList, func(list *netlink.AttributeEncoder) error {
			list.Nested(deviceItem, func(item *netlink.AttributeEncoder) error {
				item.Uint32(deviceIndex, 4)
				item.Uint8(deviceConnected, 1)
				return nil
			})
			return nil
		})
		b, err := e.Encode()
		return []genetlink.Message{{Header: g.Header, Data: b}}, err
	}, nil)
	if s, err := d.Status(t.Context(), 4); err != nil || !s.Connected {
		t.Errorf("got %+v, %v", s, err)
	}
	if _, err := d.Status(t.Context(), 5); !errors.Is(err, kernel.ErrNoDevice) {
		t.Errorf("got %v", err)
	}
	if list, err := d.StatusAll(t.Context()); err != nil || len(list) != 1 {
		t.Errorf("got %+v, %v", list, err)
	}
}

func TestNoModule(t *testing.T) {
	dial := func() (*genetlink.Conn, error) { return genltest.Dial(failing(unix.ENOENT)), nil }
	if _, err := open(dial, kernel.System{}); !errors.Is(err, kernel.ErrNoModule) {
		t.Errorf("got %v", err)
	}
}

// TestHang wants a call to end with its ctx though the kernel does not answer, other
// calls to go on, and a device that was attached after all to be detached.
func TestHang(t *testing.T) {
	begun, answer, detached := make(chan struct{}), make(chan struct{}), make(chan struct{})
	d := fake(t, func(g genetlink.Message, _ netlink.Message) ([]genetlink.Message, error) {
		switch command(g.Header.Command) {
		case cmdConnect:
			close(begun)
			<-answer
			b, err := encodeIndex(11)
			return []genetlink.Message{{Header: g.Header, Data: b}}, err
		case cmdDisconnect:
			if i, err := decodeIndex(g.Data); err != nil || i != 11 {
				t.Errorf("%d was detached, %v", i, err)
			}
			close(detached)
		}
		return []genetlink.Message{{Header: g.Header}}, nil
	}, nil)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-begun; cancel() }()
	_, err := d.Connect(ctx, &kernel.Attach{Any: true, Size: 4096, Sockets: []*os.File{stream(t)}})
	if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "does not answer") {
		t.Errorf("got %v", err)
	}
	if _, err := d.StatusAll(t.Context()); err != nil {
		t.Errorf("meanwhile: %v", err)
	}
	d.Close() // which changes nothing
	close(answer)
	<-detached
	if _, err := d.StatusAll(t.Context()); !errors.Is(err, os.ErrClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// TestMarks looks whether sockets that a kernel has taken are told from others.
func TestMarks(t *testing.T) {
	files := []*os.File{stream(t), stream(t), stream(t)}
	if err := setLimits(files, unmarked); err != nil {
		t.Fatal(err)
	}
	if n, err := countMarked(files); n != 0 || err != nil {
		t.Errorf("%d are taken, %v", n, err)
	}
	if err := setLimits(files[:2], requestTimer); err != nil { // as the kernel does
		t.Fatal(err)
	}
	if n, err := countMarked(files); n != 2 || err != nil {
		t.Errorf("%d are taken, %v", n, err)
	}
	if err := setLimits(files, 0); err != nil {
		t.Fatal(err)
	}
	if n, err := countMarked(files); n != 3 || err != nil {
		t.Errorf("%d are taken, %v", n, err)
	}
}

// TestSocketKept wants the caller's sockets to be as they were: not blocking, and his.
func TestSocketKept(t *testing.T) {
	d := fake(t, failing(unix.EBUSY), nil)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Skip(err)
	}
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	f, err := c.(*net.TCPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := d.Connect(t.Context(), &kernel.Attach{Size: 4096, Sockets: []*os.File{f}}); !errors.Is(err, kernel.ErrBusy) {
		t.Errorf("got %v", err)
	}
	err = each([]*os.File{f}, func(fd int) error {
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
		if flags&unix.O_NONBLOCK == 0 {
			t.Error("the socket blocks")
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}
