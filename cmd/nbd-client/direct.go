package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"time"

	"nbd.example/nbd/handshake"
	"nbd.example/nbd/kernel"
	"nbd.example/nbd/proto"
	"nbd.example/nbd/supervise"
	"nbd.example/nbd/uri"
)

// attachAlone attaches a device that nobody keeps: what the reference does.
func (p *program) attachAlone(ctx context.Context, spec *supervise.Spec) int {
	u, err := uri.Parse(spec.URIs[0])
	if err == nil && u.TLS {
		err = errors.New("--no-supervise: TLS needs a process that stays, to encrypt and decrypt")
	}
	if err == nil && u.Transport == uri.VSock {
		err = errors.New("--no-supervise: vsock needs a process that stays, since the kernel takes only TCP and unix sockets")
	}
	if err == nil && p.flags.NoNetlink {
		err = errors.New("-preinit with -nonetlink is not supported: by ioctl, a device lives in the process that keeps it")
	}
	if err != nil {
		return p.fail(ctx, err)
	}
	driver, err := p.driver(ctx)
	if err != nil {
		return p.fail(ctx, err)
	}
	defer driver.Close()
	i, err := p.connectAlone(ctx, driver, spec, u)
	if err != nil {
		return p.fail(ctx, err)
	}
	n := newNotifier(p)
	if err := p.printDevice(i.Path()); err != nil || n == nil {
		return p.tell(err)
	}
	defer n.end()
	signals, stop := p.signals()
	defer stop()
	return p.stay(ctx, driver, i, n, signals, func() (text string, ok bool) { return i.Path() + ": kept by no process", true })
}

// connectAlone makes the connections and hands them to the kernel.
func (p *program) connectAlone(ctx context.Context, driver kernel.Driver, spec *supervise.Spec, u *uri.URI) (kernel.Index, error) {
	a := &kernel.Attach{
		Any: spec.Device == "", Size: spec.Size, BlockSize: spec.BlockSize, Client: spec.Client, Identifier: spec.Identifier,
		DeadTimeout: spec.OnFailure.Limit, Timeout: max(spec.Timeout, 0),
	}
	if a.Identifier == "" {
		plain := *u
		plain.User = ""
		a.Identifier = plain.String()
	}
	if spec.Device != "" {
		i, err := kernel.ParseIndex(spec.Device)
		if err != nil {
			return 0, err
		}
		a.Index = i
	}
	want, most := max(spec.Connections, 1), uint32(0)
	for len(a.Sockets) < want {
		f, info, err := p.socketFor(ctx, spec, u)
		if err != nil {
			closeAll(a.Sockets)
			return 0, err
		}
		a.Sockets = append(a.Sockets, f)
		if len(a.Sockets) > 1 || info == nil {
			continue
		}
		if want, err = p.describe(a, spec, info, want); err != nil {
			closeAll(a.Sockets)
			return 0, err
		}
		if info.BlockSizeTold {
			most = info.BlockSize.MaxPayload
		}
	}
	defer closeAll(a.Sockets)
	if spec.ReadOnly { // also where no server has said anything
		a.Flags |= proto.FlagReadOnly | proto.FlagHasFlags
	}
	i, err := driver.Connect(ctx, a)
	if err == nil {
		if _, _, err := kernel.SuitRequests(ctx, driver, i, most); err != nil {
			p.log.Warn("long requests will fail: " + err.Error())
		}
		p.scan(ctx, driver, i, spec.Client)
	}
	return i, err
}

// scanLimit is how long a device's partition table is waited for.
const scanLimit = 5 * time.Second

// scan has the kernel look for partitions. Where udev runs they are found anyway.
func (p *program) scan(ctx context.Context, driver kernel.Driver, i kernel.Index, client kernel.ClientFlags) {
	if client&kernel.DisconnectOnClose != 0 {
		return // who looks would be the last one to close it
	}
	ctx, cancel := context.WithTimeout(ctx, scanLimit)
	defer cancel()
	if err := driver.Rescan(ctx, i); err != nil {
		p.log.Debug("the partition table was not read", "device", i.Path(), "error", err)
	}
}

// describe fills in what the server has told. It returns how many connections may be made.
func (p *program) describe(a *kernel.Attach, spec *supervise.Spec, info *handshake.ExportInfo, want int) (int, error) {
	if info.Size > 1<<63-1 {
		return 0, fmt.Errorf("peer sent an export size of %d bytes, over the limit of 2^63-1", info.Size)
	}
	switch {
	case spec.Size > int64(info.Size):
		return 0, fmt.Errorf("the server's export has %d bytes, fewer than the %d that are wanted", info.Size, spec.Size)
	case spec.Size == 0:
		a.Size = int64(info.Size) - int64(info.Size)%kernel.SectorSize
	}
	if a.BlockSize == 0 && info.BlockSizeTold {
		a.BlockSize = max(kernel.SectorSize, int64(info.BlockSize.Minimum))
	}
	a.Flags = info.Flags
	if want > 1 && info.Flags&proto.FlagCanMultiConn == 0 {
		p.log.Warn("the server does not offer several connections (NBD_FLAG_CAN_MULTI_CONN); one is made")
		want = 1
	}
	return want, nil
}

// socketFor connects, negotiates, and returns the socket. With -preinit there is nothing
// to negotiate, and nothing is known of the export.
func (p *program) socketFor(ctx context.Context, spec *supervise.Spec, u *uri.URI) (*os.File, *handshake.ExportInfo, error) {
	limit := spec.ConnectTimeout
	if limit == 0 {
		limit = 10 * time.Second
	}
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("no answer in %v", limit))
	defer cancel()
	network, address := u.Dial()
	conn, err := new(net.Dialer).DialContext(ctx, network, address)
	if err != nil {
		return nil, nil, fmt.Errorf("connect to %v: %w", u, err)
	}
	if p.flags.PreInit {
		f, err := fileOf(conn)
		return f, nil, err
	}
	// Servers of before 2011 speak before they are asked, and have no names.
	setup := handshake.Setup{Oldstyle: u.Export == ""}
	h, err := setup.Client(ctx, conn)
	if err != nil {
		conn.Close()
		return nil, nil, fmt.Errorf("connect to %v: %w", u, err)
	}
	var a *handshake.Agreement
	if spec.ExportName && !h.Oldstyle() {
		a, err = h.ExportName(ctx, u.Export)
	} else {
		a, err = h.Negotiate(ctx, handshake.ClientConfig{Export: u.Export, NoExtended: true, NoStructured: true})
	}
	if err != nil {
		conn.Close()
		return nil, nil, fmt.Errorf("connect to %v: %w", u, err)
	}
	if len(a.Early) > 0 {
		conn.Close()
		return nil, nil, fmt.Errorf("connect to %v: peer sent %d bytes before it was asked for anything", u, len(a.Early))
	}
	f, err := fileOf(conn)
	return f, &a.Export, err
}

// fileOf takes the socket out of a connection.
func fileOf(conn net.Conn) (*os.File, error) {
	defer conn.Close()
	c, ok := conn.(interface{ File() (*os.File, error) })
	if !ok {
		return nil, fmt.Errorf("a connection of type %T has no socket", conn)
	}
	return c.File()
}

func closeAll(files []*os.File) {
	for _, f := range files {
		f.Close()
	}
}
