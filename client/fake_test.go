package client_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"sync"
	"testing"

	"nbd.example/nbd/proto"
)

// fake is a server that does what a test's script says, and notes what the
// client has sent.
type fake struct {
	greeting proto.HandshakeFlags
	size     uint64
	flags    proto.TransmissionFlags
	// info is sent, in this order, before the ACK of GO; nil means INFO_EXPORT alone.
	info [][]byte
	// answer overrides the answer to an option: its replies, the last one final.
	// A nil answer closes the connection.
	answer map[proto.Option][]fakeReply
	// transmission serves requests; nil closes the connection at once.
	transmission func(f *fake, c net.Conn)

	extended, structured bool // negotiated

	mu       sync.Mutex
	options  []proto.Option
	data     map[proto.Option][]byte
	requests []proto.Request
	cflags   proto.ClientFlags
	err      error
	done     chan struct{}
}

type fakeReply struct {
	reply proto.OptionReply
	data  []byte
}

// serve makes f serve one connection on a socket of its own.
func (f *fake) serve(t testing.TB) (uri string) {
	t.Helper()
	socket := filepath.Join(tempDir(t), "s")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	f.done = make(chan struct{})
	f.data = map[proto.Option][]byte{}
	go func() {
		defer close(f.done)
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		if err := f.handle(c); err != nil && !errors.Is(err, io.EOF) {
			f.mu.Lock()
			f.err = err
			f.mu.Unlock()
		}
	}()
	return "nbd+unix:///export?socket=" + socket
}

// seen returns the options that were sent, once the connection is over.
func (f *fake) seen(t testing.TB) []proto.Option {
	t.Helper()
	<-f.done
	if f.err != nil {
		t.Errorf("the server: %v", f.err)
	}
	return f.options
}

func (f *fake) handle(c net.Conn) error {
	if _, err := c.Write(proto.AppendGreeting(nil, f.greeting)); err != nil {
		return err
	}
	b := make([]byte, proto.ClientFlagsSize)
	if _, err := io.ReadFull(c, b); err != nil {
		return err
	}
	f.cflags = proto.ParseClientFlags(b)
	for {
		again, err := f.option(c)
		if err != nil {
			return err
		}
		if !again {
			break
		}
	}
	if f.transmission != nil {
		f.transmission(f, c)
	}
	return nil
}

// option answers one option, and reports whether the haggling goes on.
func (f *fake) option(c net.Conn) (bool, error) {
	b := make([]byte, proto.OptionHeaderSize)
	if _, err := io.ReadFull(c, b); err != nil {
		return false, err
	}
	h, err := proto.ParseOptionHeader(b)
	if err != nil || h.Length > 1<<16 {
		return false, fmt.Errorf("%+v, %v", h, err)
	}
	data := make([]byte, h.Length)
	if _, err := io.ReadFull(c, data); err != nil {
		return false, err
	}
	f.options = append(f.options, h.Option)
	f.data[h.Option] = data
	replies, scripted := f.answer[h.Option]
	if !scripted {
		replies = f.usual(h.Option, c)
	}
	if replies == nil {
		return false, nil
	}
	var out []byte
	for _, r := range replies {
		out = proto.AppendOptionReply(out, h.Option, r.reply, r.data)
	}
	ack := replies[len(replies)-1].reply == proto.RepAck
	switch {
	case ack && h.Option == proto.OptExtendedHeaders:
		f.extended = true
	case ack && h.Option == proto.OptStructuredReply:
		f.structured = true
	}
	// Byte by byte: no client may rely on how bytes are cut into packets.
	for i := range out {
		if _, err := c.Write(out[i : i+1]); err != nil {
			return false, err
		}
	}
	return !(ack && (h.Option == proto.OptGo || h.Option == proto.OptAbort)), nil
}

func (f *fake) usual(o proto.Option, c net.Conn) []fakeReply {
	switch o {
	case proto.OptExportName:
		out := proto.AppendExportReply(nil, proto.ExportReply{Size: f.size, Flags: f.flags})
		if f.cflags&proto.ClientNoZeroes == 0 {
			out = append(out, make([]byte, proto.ExportNamePadding)...)
		}
		c.Write(out)
		return nil
	case proto.OptGo:
		info := f.info
		if info == nil {
			info = [][]byte{f.export()}
		}
		var replies []fakeReply
		for _, i := range info {
			replies = append(replies, fakeReply{proto.RepInfo, i})
		}
		return append(replies, fakeReply{reply: proto.RepAck})
	case proto.OptStructuredReply, proto.OptAbort:
		return []fakeReply{{reply: proto.RepAck}}
	}
	return []fakeReply{{reply: proto.RepErrUnsup}}
}

func (f *fake) export() []byte {
	return proto.AppendInfoExport(nil, proto.ExportReply{Size: f.size, Flags: f.flags})
}

// serveDisk is a transmission that answers correctly, in the style agreed on, and
// notes the requests. disk may be shorter than the export.
func serveDisk(disk []byte) func(f *fake, c net.Conn) {
	return func(f *fake, c net.Conn) {
		for {
			r, payload, err := f.request(c)
			if err != nil || r.Command == proto.CmdDisc {
				return
			}
			var data []byte
			switch r.Command {
			case proto.CmdRead:
				data = make([]byte, r.Length)
				copy(data, disk[min(r.Offset, uint64(len(disk))):])
			case proto.CmdWrite:
				copy(disk[min(r.Offset, uint64(len(disk))):], payload)
			}
			c.Write(f.reply(r, 0, data))
		}
	}
}

func (f *fake) request(c net.Conn) (r proto.Request, payload []byte, err error) {
	b := make([]byte, proto.RequestSize)
	ok := false
	if f.extended {
		b = make([]byte, proto.ExtendedRequestSize)
	}
	if _, err := io.ReadFull(c, b); err != nil {
		return r, nil, err
	}
	if f.extended {
		ok = proto.ParseExtendedRequest(b, &r)
	} else {
		ok = proto.ParseRequest(b, &r)
	}
	if !ok {
		return r, nil, errors.New("a request with a wrong magic number")
	}
	payload = make([]byte, r.Payload(f.extended))
	_, err = io.ReadFull(c, payload)
	f.mu.Lock()
	f.requests = append(f.requests, r)
	f.mu.Unlock()
	return r, payload, err
}

// reply builds a whole reply in the style agreed on.
func (f *fake) reply(r proto.Request, e proto.Errno, data []byte) []byte {
	if !f.extended && (!f.structured || r.Command != proto.CmdRead) {
		return append(proto.AppendSimpleReply(nil, e, r.Cookie), data...)
	}
	h := proto.Chunk{Flags: proto.ReplyFlagDone, Cookie: r.Cookie, Offset: r.Offset}
	var payload []byte
	switch {
	case e != 0:
		h.Type = proto.ChunkErrorPlain
		payload = proto.AppendErrorPayload(nil, h.Type, &proto.ErrorPayload{Error: e})
	case data != nil:
		h.Type = proto.ChunkOffsetData
		payload = append(binary.BigEndian.AppendUint64(nil, r.Offset), data...)
	}
	h.Length = uint64(len(payload))
	if f.extended {
		return append(proto.AppendExtendedChunk(nil, &h), payload...)
	}
	return append(proto.AppendChunk(nil, &h), payload...)
}
