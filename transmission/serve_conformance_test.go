package transmission

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"syscall"
	"testing"

	"nbd.example/nbd/backend/memory"
	"nbd.example/nbd/block"
	"nbd.example/nbd/layer/delay"
	"nbd.example/nbd/layer/fault"
	"nbd.example/nbd/proto"
)

const mib = 1 << 20

// commands are those that are answered.
var commands = []proto.Command{
	proto.CmdRead, proto.CmdWrite, proto.CmdFlush, proto.CmdTrim, proto.CmdCache, proto.CmdWriteZeroes, proto.CmdBlockStatus,
}

// valid returns a request that a rig with everything serves, and its payload.
func valid(c proto.Command) (proto.Request, []byte) {
	q := proto.Request{Command: c, Offset: 4096, Length: 4096}
	switch c {
	case proto.CmdWrite:
		return q, bytes.Repeat([]byte("ab"), 2048)
	case proto.CmdFlush:
		q.Offset, q.Length = 0, 0
	}
	return q, nil
}

func TestStatement30(t *testing.T) {
	t.Run("statement 30: a wrong magic number in a request drops the connection", func(t *testing.T) {
		forStyles(t, func(t *testing.T, s style) {
			for name, magic := range map[string]uint32{
				"zero": 0, "random": 0xdeadbeef, "reply": proto.MagicSimpleReply,
				"other style": map[bool]uint32{true: proto.MagicRequest, false: proto.MagicExtendedRequest}[s == extended],
			} {
				t.Run(name, func(t *testing.T) {
					r := serve(t, stack(t, newRAM(mib)), setup{style: s})
					r.alive()
					b := s.encode(nil, proto.Request{Command: proto.CmdRead, Length: 512}, nil)
					binary.BigEndian.PutUint32(b, magic)
					r.write(b)
					if err := r.wait(); err == nil || errors.Is(err, ErrHungUp) {
						t.Errorf("Serve: %v, want an error that blames the peer", err)
					}
					r.silent()
				})
			}
		})
	})
}

func TestStatement31(t *testing.T) {
	t.Run("statement 31: the cookie comes back bit for bit", func(t *testing.T) {
		forAll(t, mib, func(t *testing.T, s style, d *ramDisk, dev *block.Device) {
			r := serve(t, dev, setup{style: s})
			for _, cookie := range []uint64{1, 1 << 63, math.MaxUint64, 0x0102030405060708} {
				for _, c := range commands {
					if c == proto.CmdBlockStatus && s == simple {
						continue
					}
					q, payload := valid(c)
					q.Cookie = cookie
					r.want(proto.OK, q, payload)
				}
				r.want(proto.EINVAL, proto.Request{Command: 77, Cookie: cookie}, nil)
			}
			r.end()
		})
	})
	t.Run("statement 31: replies may come in another order", func(t *testing.T) {
		forStyles(t, func(t *testing.T, s style) {
			gate := delay.NewGate(func(o delay.Op) bool { return o.Off == 0 })
			r := serve(t, stack(t, newRAM(mib), delay.Layer(delay.Config{Gate: gate})), setup{style: s})
			first := r.send(proto.Request{Command: proto.CmdRead, Offset: 0, Length: 512}, nil)
			held := arrived(t, gate)
			r.want(proto.OK, proto.Request{Command: proto.CmdRead, Offset: 4096, Length: 512}, nil)
			held.Release()
			if p := r.receive(); p.cookie != first {
				t.Errorf("cookie %#x, want %#x", p.cookie, first)
			}
			r.end()
		})
	})
}

// flagsOf says which flags go with a command, all offered.
func flagsOf(c proto.Command, s style) proto.CommandFlags {
	f := proto.CmdFlagFUA
	switch c {
	case proto.CmdRead:
		if s != simple {
			f |= proto.CmdFlagDF
		}
	case proto.CmdWrite:
		if s == extended {
			f |= proto.CmdFlagPayloadLen
		}
	case proto.CmdWriteZeroes:
		f |= proto.CmdFlagNoHole | proto.CmdFlagFastZero
	case proto.CmdBlockStatus:
		f |= proto.CmdFlagReqOne
		if s == extended {
			f |= proto.CmdFlagPayloadLen
		}
	}
	return f
}

func TestStatement32(t *testing.T) {
	t.Run("statement 32: unknown commands get EINVAL, and the connection lives", func(t *testing.T) {
		forAll(t, mib, func(t *testing.T, s style, d *ramDisk, dev *block.Device) {
			r := serve(t, dev, setup{style: s})
			for _, c := range []proto.Command{proto.CmdResize, 9, 77, 0x8000, 0xffff} {
				r.want(proto.EINVAL, proto.Request{Command: c, Offset: 0, Length: 512}, nil)
			}
			r.alive()
			r.end()
		})
	})
	t.Run("statement 32: each flag that does not go with its command gets EINVAL", func(t *testing.T) {
		forAll(t, mib, func(t *testing.T, s style, d *ramDisk, dev *block.Device) {
			before := d.fill(0, mib)
			r := serve(t, dev, setup{style: s})
			for _, c := range commands {
				for bit := range 16 {
					f := proto.CommandFlags(1 << bit)
					if flagsOf(c, s)&f != 0 {
						continue
					}
					q, payload := valid(c)
					q.Flags = f
					if s == extended && f == proto.CmdFlagPayloadLen {
						payload = make([]byte, q.Length) // it has one, then
						if c == proto.CmdFlush {
							payload, q.Length = make([]byte, 16), 16
						}
					}
					r.want(proto.EINVAL, q, payload)
				}
			}
			r.alive()
			r.end()
			if !bytes.Equal(d.contents(0, mib), before) {
				t.Error("a refused request has changed the device")
			}
		})
	})
	t.Run("statement 32: what was not offered gets EINVAL", func(t *testing.T) {
		forAll(t, mib, func(t *testing.T, s style, d *ramDisk, dev *block.Device) {
			r := serve(t, dev, setup{style: s, deny: ^proto.FlagHasFlags, contexts: []proto.MetaContext{}})
			for _, c := range commands {
				q, payload := valid(c)
				want := proto.EINVAL
				if c == proto.CmdRead || c == proto.CmdWrite {
					want = proto.OK
				}
				r.want(want, q, payload)
				for f := proto.CommandFlags(1); f != 0; f <<= 1 {
					if f == proto.CmdFlagPayloadLen {
						continue
					}
					q, payload := valid(c)
					q.Flags = f
					r.want(proto.EINVAL, q, payload)
				}
			}
			r.end()
		})
	})
}

func TestStatement33(t *testing.T) {
	t.Run("statement 33: FUA goes with every command once it was offered", func(t *testing.T) {
		forAll(t, mib, func(t *testing.T, s style, d *ramDisk, dev *block.Device) {
			r := serve(t, dev, setup{style: s})
			for _, c := range commands {
				if c == proto.CmdBlockStatus && s == simple {
					continue
				}
				q, payload := valid(c)
				q.Flags = proto.CmdFlagFUA
				r.want(proto.OK, q, payload)
			}
			r.end()
		})
	})
}

func TestStatement34(t *testing.T) {
	big := make([]byte, 300<<10) // more than is read at once
	readOnly := newRAM(mib)
	readOnly.caps.ReadOnly = true
	readOnly.caps.FUA = block.Auto
	for _, x := range []struct {
		name    string
		disk    *ramDisk
		setup   setup
		request proto.Request
		want    proto.Errno
	}{
		{"read-only", readOnly, setup{}, proto.Request{Offset: 0}, proto.EPERM},
		{"beyond the end", newRAM(mib), setup{}, proto.Request{Offset: mib - 511}, proto.ENOSPC},
		{"not aligned", newRAM(mib), setup{minBlock: 512}, proto.Request{Offset: 1}, proto.EINVAL},
		{"unknown flag", newRAM(mib), setup{}, proto.Request{Flags: 1 << 9}, proto.EINVAL},
		{"FUA not offered", newRAM(mib), setup{deny: proto.FlagSendFUA}, proto.Request{Flags: proto.CmdFlagFUA}, proto.EINVAL},
	} {
		t.Run("statement 34: a refused WRITE still consumes its payload: "+x.name, func(t *testing.T) {
			forStyles(t, func(t *testing.T, s style) {
				x.setup.style = s
				r := serve(t, stack(t, x.disk), x.setup)
				x.request.Command = proto.CmdWrite
				for _, n := range []int{512, 4096, len(big)} {
					x.request.Length = 0
					r.want(x.want, x.request, big[:n])
					r.alive()
				}
				r.end()
			})
		})
	}
	t.Run("statement 34: a WRITE over the maximum payload is refused and drained", func(t *testing.T) {
		for _, s := range []style{simple, structured} {
			r := serve(t, stack(t, newRAM(mib)), setup{style: s})
			r.send(proto.Request{Command: proto.CmdWrite, Length: 65 * mib}, []byte{})
			for range 65 {
				r.write(make([]byte, mib))
			}
			if p := r.receive(); p.errno != proto.ENOSPC && p.errno != proto.EINVAL {
				t.Errorf("%v", p.errno)
			}
			r.alive()
			r.end()
		}
	})
}

func TestStatement35(t *testing.T) {
	const size = mib + 512
	for _, c := range commands {
		if c == proto.CmdFlush {
			continue
		}
		want := proto.EINVAL
		if c == proto.CmdWrite || c == proto.CmdWriteZeroes {
			want = proto.ENOSPC
		}
		t.Run(fmt.Sprintf("statement 35: past the end %v gets %v", c, want), func(t *testing.T) {
			forAll(t, size, func(t *testing.T, s style, d *ramDisk, dev *block.Device) {
				if c == proto.CmdBlockStatus && s == simple {
					t.Skip("there is no block status without structured replies")
				}
				r := serve(t, dev, setup{style: s})
				for _, at := range []struct{ off, n uint64 }{
					{size, 1}, {size - 511, 512}, {size + 1, 1}, {0, size + 1}, {1 << 63, 512},
					{math.MaxUint64, 1}, {math.MaxUint64 - 511, 512}, {math.MaxUint64 - 511, 513}, {math.MaxUint64, 4096},
					{0, math.MaxUint32}, {math.MaxUint64 - math.MaxUint32 + 1, math.MaxUint32},
				} {
					q := proto.Request{Command: c, Offset: at.off, Length: at.n}
					var payload []byte
					if c == proto.CmdWrite {
						if at.n > size {
							continue
						}
						payload = make([]byte, at.n)
					}
					r.want(want, q, payload)
				}
				if s == extended && c != proto.CmdWrite {
					for _, n := range []uint64{1 << 32, 1 << 63, math.MaxUint64, math.MaxUint64 - 4095} {
						r.want(want, proto.Request{Command: c, Offset: 4096, Length: n}, nil)
					}
				}
				r.alive()
				r.end()
			})
		})
	}
}

func TestStatement36(t *testing.T) {
	for _, c := range []proto.Command{proto.CmdWrite, proto.CmdTrim, proto.CmdWriteZeroes} {
		t.Run(fmt.Sprintf("statement 36 read-only: %v EPERM", c), func(t *testing.T) {
			forStyles(t, func(t *testing.T, s style) {
				byFlag := newRAM(mib)
				byDevice := newRAM(mib)
				byDevice.caps.ReadOnly, byDevice.caps.FUA = true, block.Auto
				for name, x := range map[string]struct {
					d *ramDisk
					s setup
				}{
					"flag":                    {byFlag, setup{style: s, add: proto.FlagReadOnly}},
					"device":                  {byDevice, setup{style: s}},
					"device, nothing offered": {byDevice, setup{style: s, deny: proto.FlagSendTrim | proto.FlagSendWriteZeroes | proto.FlagSendFastZero}},
				} {
					before := x.d.fill(0, mib)
					r := serve(t, stack(t, x.d), x.s)
					q, payload := valid(c)
					r.want(proto.EPERM, q, payload)
					q.Length = 0
					r.want(proto.EPERM, q, payload)
					r.alive()
					r.end()
					if !bytes.Equal(before, x.d.contents(0, mib)) {
						t.Errorf("%s: changed", name)
					}
				}
			})
		})
	}
}

func TestStatement37(t *testing.T) {
	for _, c := range commands {
		if c == proto.CmdFlush {
			continue
		}
		t.Run(fmt.Sprintf("statement 37: %v unaligned to an advertised minimum gets EINVAL", c), func(t *testing.T) {
			forAll(t, mib, func(t *testing.T, s style, d *ramDisk, dev *block.Device) {
				if c == proto.CmdBlockStatus && s == simple {
					t.Skip("there is no block status without structured replies")
				}
				before := d.fill(0, mib)
				r := serve(t, dev, setup{style: s, minBlock: 4096})
				for _, at := range []struct{ off, n uint64 }{{512, 4096}, {4096, 512}, {1, 4095}, {4095, 1}, {4096, 4097}} {
					q := proto.Request{Command: c, Offset: at.off, Length: at.n}
					var payload []byte
					if c == proto.CmdWrite {
						payload = make([]byte, at.n)
					}
					r.want(proto.EINVAL, q, payload)
				}
				if c == proto.CmdBlockStatus && s == extended {
					for _, at := range []struct{ off, n uint64 }{{512, 4096}, {4096, 512}} {
						f := proto.AppendStatusFilter(nil, &proto.StatusFilter{Length: at.n, Contexts: []uint32{idAllocation}})
						r.want(proto.EINVAL, proto.Request{Command: c, Flags: proto.CmdFlagPayloadLen, Offset: at.off}, f)
					}
				}
				q, payload := valid(c)
				if bytes.Equal(before, d.contents(0, mib)) {
					r.want(proto.OK, q, payload)
				} else {
					t.Error("a refused request has changed the device")
				}
				r.end()
			})
		})
	}
}

func TestStatements38to40(t *testing.T) {
	// readReply fails on simple replies where others were agreed, on others where
	// not, on a chunk after DONE (it would begin the next reply), and on NONE with
	// a payload or without DONE. Here are the exact bytes.
	cookie := uint64(0xfedcba9876543210)
	d := newRAM(mib)
	data := d.fill(0, mib)[4096:4608]
	read := proto.Request{Command: proto.CmdRead, Cookie: cookie, Offset: 4096, Length: 512}
	early := proto.Request{Command: proto.CmdRead, Cookie: cookie, Offset: 4096, Length: 512, Flags: 1 << 15}
	be := binary.BigEndian
	chunk := func(flags, typ uint16, n int) []byte {
		b := be.AppendUint32(nil, 0x668e33ef)
		b = be.AppendUint16(be.AppendUint16(b, flags), typ)
		return be.AppendUint32(be.AppendUint64(b, cookie), uint32(n))
	}
	long := func(flags, typ uint16, n int) []byte {
		b := be.AppendUint32(nil, 0x6e8a278c)
		b = be.AppendUint16(be.AppendUint16(b, flags), typ)
		return be.AppendUint64(be.AppendUint64(be.AppendUint64(b, cookie), 4096), uint64(n))
	}
	offset := be.AppendUint64(nil, 4096)
	sum := func(parts ...[]byte) []byte { return slices.Concat(parts...) }
	reply := func(e uint32) []byte {
		return be.AppendUint64(be.AppendUint32(be.AppendUint32(nil, 0x67446698), e), cookie)
	}
	write := proto.Request{Command: proto.CmdWrite, Cookie: cookie, Offset: 4096, Length: 512}
	longWrite := write
	longWrite.Flags = proto.CmdFlagPayloadLen
	for _, x := range []struct {
		name    string
		style   style
		request proto.Request
		payload []byte
		want    []byte
		prefix  bool // a text of any length follows
	}{
		{"39 simple READ", simple, read, nil, sum(reply(0), data), false},
		{"39 simple READ, refused", simple, early, nil, reply(22), false},
		{"39 simple WRITE", simple, write, data, reply(0), false},
		{"39 simple BLOCK_STATUS", simple, proto.Request{Command: proto.CmdBlockStatus, Cookie: cookie, Length: 512}, nil, reply(22), false},
		{"38, 40 structured READ", structured, read, nil, sum(chunk(1, 1, 8+512), offset, data), false},
		{"38 structured READ, refused", structured, early, nil, chunk(1, 0x8001, 0)[:16], true},
		{"40 structured WRITE", structured, write, data, chunk(1, 0, 0), false},
		{"60 extended READ", extended, read, nil, sum(long(1, 1, 8+512), offset, data), false},
		{"60 extended READ, refused", extended, early, nil, long(1, 0x8001, 0)[:24], true},
		{"60 extended WRITE", extended, longWrite, data, long(1, 0, 0), false},
	} {
		t.Run("statement "+x.name+": exact bytes", func(t *testing.T) {
			for name, layers := range map[string][]block.Layer{"direct": nil, "layered": {passThrough()}} {
				r := serve(t, stack(t, d, layers...), setup{style: x.style})
				r.write(x.style.encode(nil, x.request, x.payload))
				if got := r.raw(len(x.want)); !bytes.Equal(got, x.want) {
					t.Errorf("%s: got  %x\nwant %x", name, got, x.want)
				}
				if !x.prefix {
					r.end()
					continue
				}
				// length, error, length of the text, text
				var n uint64
				if x.style == structured {
					n = uint64(be.Uint32(r.raw(4)))
				} else {
					n = be.Uint64(r.raw(8))
				}
				p := r.raw(int(n))
				if e, text := be.Uint32(p), be.Uint16(p[4:]); e != 22 || int(text) != len(p)-6 || text == 0 {
					t.Errorf("%s: payload %q", name, p)
				}
				r.end()
			}
		})
	}
	t.Run("statement 39: a session that asked for nothing gets simple replies to all", func(t *testing.T) {
		r := serve(t, stack(t, newRAM(mib)), setup{style: simple})
		for _, c := range commands {
			q, payload := valid(c)
			if p := r.do(q, payload); (p.errno == proto.OK) == (c == proto.CmdBlockStatus) {
				t.Errorf("%v: %v", c, p.errno)
			}
		}
		r.end()
	})
}

func TestStatement41(t *testing.T) {
	// readReply checks that content lies inside the request, does not overlap,
	// and covers all of it.
	t.Run("statement 41: a sparse read has holes, data and an end", func(t *testing.T) {
		for _, s := range []style{structured, extended} {
			forPaths(t, func() *ramDisk { return newRAM(mib) }, func(t *testing.T, d *ramDisk, dev *block.Device) {
				d.fill(128<<10, 64<<10)
				d.fill(300<<10, 8<<10)
				r := serve(t, dev, setup{style: s})
				p := r.want(proto.OK, proto.Request{Command: proto.CmdRead, Offset: 0, Length: mib}, nil)
				if !bytes.Equal(p.data, d.contents(0, mib)) {
					t.Error("other data than the device has")
				}
				want := []proto.ChunkType{
					proto.ChunkOffsetHole, proto.ChunkOffsetData, proto.ChunkOffsetHole, proto.ChunkOffsetData, proto.ChunkOffsetHole, proto.ChunkNone,
				}
				if got := p.types(); !slices.Equal(got, want) {
					t.Errorf("chunks %v, want %v", got, want)
				}
				// Odd borders.
				p = r.want(proto.OK, proto.Request{Command: proto.CmdRead, Offset: 127<<10 + 77, Length: 200<<10 + 11}, nil)
				if !bytes.Equal(p.data, d.contents(127<<10+77, 200<<10+11)) {
					t.Error("other data than the device has")
				}
				r.end()
			})
		}
	})
	t.Run("statement 41: a read of nothing but a hole", func(t *testing.T) {
		for _, s := range []style{structured, extended} {
			r := serve(t, stack(t, newRAM(64*mib), passThrough()), setup{style: s})
			p := r.want(proto.OK, proto.Request{Command: proto.CmdRead, Offset: 0, Length: 64 * mib}, nil)
			if want := []proto.ChunkType{proto.ChunkOffsetHole, proto.ChunkNone}; !slices.Equal(p.types(), want) {
				t.Errorf("chunks %v, want %v", p.types(), want)
			}
			r.end()
		}
	})
}

func TestStatement42(t *testing.T) {
	for _, s := range []style{structured, extended} {
		t.Run(fmt.Sprintf("statement 42 DF: one content chunk, style %d", s), func(t *testing.T) {
			forPaths(t, func() *ramDisk { return newRAM(48 * mib) }, func(t *testing.T, d *ramDisk, dev *block.Device) {
				d.fill(128<<10, 64<<10)
				r := serve(t, dev, setup{style: s, cfg: Config{MaxPayload: 32 * mib}})
				for _, n := range []uint64{1, 512, 65536, 65537, mib, 32 * mib} {
					p := r.want(proto.OK, proto.Request{Command: proto.CmdRead, Flags: proto.CmdFlagDF, Offset: 100 << 10, Length: n}, nil)
					if !bytes.Equal(p.data, d.contents(100<<10, int64(n))) {
						t.Errorf("%d bytes: other data than the device has", n)
					}
					if i := slices.Index(p.types(), proto.ChunkOffsetData); i != 0 {
						t.Errorf("%d bytes: chunks %v", n, p.types())
					}
				}
				for _, n := range []uint64{32*mib + 1, 40 * mib} {
					for _, f := range []proto.CommandFlags{0, proto.CmdFlagDF} {
						p := r.want(proto.EOVERFLOW, proto.Request{Command: proto.CmdRead, Flags: f, Length: n}, nil)
						if len(p.chunks) != 1 {
							t.Errorf("%d bytes: chunks %v", n, p.types())
						}
					}
				}
				r.alive()
				r.end()
			})
		})
	}
	t.Run("statement 42: DF that was not offered gets EINVAL", func(t *testing.T) {
		r := serve(t, stack(t, newRAM(mib)), setup{style: structured, deny: proto.FlagSendDF})
		r.want(proto.EINVAL, proto.Request{Command: proto.CmdRead, Flags: proto.CmdFlagDF, Length: 512}, nil)
		r.end()
	})
	t.Run("statement 42: without structured replies a read over the maximum gets EINVAL", func(t *testing.T) {
		r := serve(t, stack(t, newRAM(48*mib)), setup{style: simple, cfg: Config{MaxPayload: 32 * mib}})
		r.want(proto.EINVAL, proto.Request{Command: proto.CmdRead, Length: 32*mib + 1}, nil)
		r.want(proto.OK, proto.Request{Command: proto.CmdRead, Length: 32 * mib}, nil)
		r.end()
	})
}

func TestStatement43(t *testing.T) {
	// A simple reply whose data cannot be sent whole is in serve_file_linux_test.go.
	t.Run("statement 43: a bad sector is an error with its place, and no content", func(t *testing.T) {
		forStyles(t, func(t *testing.T, s style) {
			d := newRAM(mib)
			d.fill(0, mib)
			const bad = 200<<10 + 512
			r := serve(t, stack(t, d, faulty(t, fmt.Sprintf("read@%d+512=EIO", bad))), setup{style: s})
			for _, n := range []uint64{100 << 10, 4096} {
				off := uint64(bad-512) &^ 4095
				p := r.want(proto.EIO, proto.Request{Command: proto.CmdRead, Offset: off, Length: n}, nil)
				if s == simple {
					continue
				}
				last := p.chunks[len(p.chunks)-1]
				if last.Type != proto.ChunkErrorOffset || p.at != bad || p.text == "" {
					t.Errorf("%v at %d: %q, want ERROR_OFFSET at %d", last.Type, p.at, p.text, bad)
				}
			}
			r.alive()
			r.end()
		})
	})
}

func TestStatement44(t *testing.T) {
	t.Run("statement 44: requests of no bytes do not disconnect", func(t *testing.T) {
		forAll(t, mib, func(t *testing.T, s style, d *ramDisk, dev *block.Device) {
			before := d.fill(0, mib)
			r := serve(t, dev, setup{style: s})
			for _, c := range commands {
				for _, off := range []uint64{0, 4096, 4097, mib} {
					q := proto.Request{Command: c, Offset: off}
					want := proto.OK
					switch {
					case c == proto.CmdBlockStatus:
						want = proto.EINVAL
					case c == proto.CmdWrite && s == extended:
						q.Flags = proto.CmdFlagPayloadLen
					}
					if p := r.want(want, q, nil); len(p.data) != 0 {
						t.Errorf("%v: %d bytes", c, len(p.data))
					}
				}
			}
			r.want(map[bool]proto.Errno{true: proto.EINVAL, false: proto.OK}[s == extended], proto.Request{Command: proto.CmdWrite}, nil)
			if s == extended { // a filter of no bytes is none
				r.want(proto.EINVAL, proto.Request{Command: proto.CmdBlockStatus, Flags: proto.CmdFlagPayloadLen}, nil)
			}
			r.alive()
			r.end()
			if !bytes.Equal(before, d.contents(0, mib)) {
				t.Error("changed")
			}
		})
	})
}

func TestStatement45(t *testing.T) {
	t.Run("statement 45: after FLUSH what was answered is stable", func(t *testing.T) {
		forAll(t, mib, func(t *testing.T, s style, d *ramDisk, dev *block.Device) {
			r := serve(t, dev, setup{style: s})
			data := bytes.Repeat([]byte{0xa5}, 4096)
			r.want(proto.OK, proto.Request{Command: proto.CmdWrite, Offset: 8192}, data)
			r.want(proto.OK, proto.Request{Command: proto.CmdFlush}, nil)
			if !bytes.Equal(d.stableContents(8192, 4096), data) {
				t.Error("the write is not stable")
			}
			// Offset and length of FLUSH are reserved, and ignored.
			r.want(proto.OK, proto.Request{Command: proto.CmdFlush, Offset: math.MaxUint64, Length: 77}, nil)
			r.end()
		})
	})
	t.Run("statement 45: FUA makes WRITE, WRITE_ZEROES and TRIM stable", func(t *testing.T) {
		forAll(t, mib, func(t *testing.T, s style, d *ramDisk, dev *block.Device) {
			d.fill(0, mib)
			r := serve(t, dev, setup{style: s})
			data := bytes.Repeat([]byte{0x5a}, 4096)
			r.want(proto.OK, proto.Request{Command: proto.CmdWrite, Flags: proto.CmdFlagFUA, Offset: 0}, data)
			r.want(proto.OK, proto.Request{Command: proto.CmdWriteZeroes, Flags: proto.CmdFlagFUA, Offset: 8192, Length: 4096}, nil)
			r.want(proto.OK, proto.Request{Command: proto.CmdTrim, Flags: proto.CmdFlagFUA, Offset: 16384, Length: 4096}, nil)
			zeroes := make([]byte, 4096)
			for off, want := range map[int64][]byte{0: data, 8192: zeroes, 16384: zeroes} {
				if !bytes.Equal(d.stableContents(off, 4096), want) {
					t.Errorf("the change at %d is not stable", off)
				}
			}
			r.end()
		})
	})
}

func TestStatement46(t *testing.T) {
	t.Run("statement 46: a FLUSH on one connection covers what was answered on another", func(t *testing.T) {
		forAll(t, mib, func(t *testing.T, s style, d *ramDisk, dev *block.Device) {
			group := new(Group)
			a, b := serve(t, dev, setup{style: s, group: group}), serve(t, dev, setup{style: s, group: group})
			data := bytes.Repeat([]byte{0xa5}, 4096)
			b.want(proto.OK, proto.Request{Command: proto.CmdWrite, Offset: 8192}, data)
			a.want(proto.OK, proto.Request{Command: proto.CmdFlush}, nil)
			if !bytes.Equal(d.stableContents(8192, 4096), data) {
				t.Error("the write is not stable")
			}
			if p := a.want(proto.OK, proto.Request{Command: proto.CmdRead, Offset: 8192, Length: 4096}, nil); !bytes.Equal(p.data, data) {
				t.Error("the other connection reads something else")
			}
			a.end()
			b.end()
		})
	})
}

func TestStatement47(t *testing.T) {
	const size = 5 << 30
	t.Run("statement 47: WRITE_ZEROES zeroes all of 4 GiB-1", func(t *testing.T) {
		forStyles(t, func(t *testing.T, s style) {
			m, err := memory.New(memory.Config{Size: size})
			if err != nil {
				t.Fatal(err)
			}
			r := serve(t, stack(t, m), setup{style: s})
			data := bytes.Repeat([]byte{1}, 1024)
			const off, n = 512, 1<<32 - 1
			places := []uint64{0, 64*mib - 512, 64 * mib, 1 << 31, off + n - 512, off + n - 1024}
			for _, at := range places {
				r.want(proto.OK, proto.Request{Command: proto.CmdWrite, Offset: at}, data)
			}
			r.want(proto.OK, proto.Request{Command: proto.CmdWriteZeroes, Offset: off, Length: n}, nil)
			for _, at := range places {
				p := r.want(proto.OK, proto.Request{Command: proto.CmdRead, Offset: at, Length: 1024}, nil)
				for i, b := range p.data {
					pos := at + uint64(i)
					old := pos < off || pos >= off+n
					if old != (b == 1) {
						t.Fatalf("byte %d is %d", pos, b)
					}
				}
			}
			r.end()
		})
	})
	t.Run("statement 47: NO_HOLE allocates", func(t *testing.T) {
		forAll(t, mib, func(t *testing.T, s style, d *ramDisk, dev *block.Device) {
			d.fill(0, 64<<10)
			r := serve(t, dev, setup{style: s})
			r.want(proto.OK, proto.Request{Command: proto.CmdWriteZeroes, Flags: proto.CmdFlagNoHole, Offset: 4096, Length: 4096}, nil)
			r.want(proto.OK, proto.Request{Command: proto.CmdWriteZeroes, Offset: 16384, Length: 4096}, nil)
			r.end()
			if with, without := d.allocated(4096), d.allocated(16384); !with || without {
				t.Errorf("allocated: %v with NO_HOLE, %v without", with, without)
			}
		})
	})
}

func TestStatement48(t *testing.T) {
	t.Run("statement 48: FAST_ZERO is done, or ENOTSUP with nothing changed", func(t *testing.T) {
		forAll(t, mib, func(t *testing.T, s style, d *ramDisk, dev *block.Device) {
			before := d.fill(0, mib)
			r := serve(t, dev, setup{style: s})
			fast := proto.Request{Command: proto.CmdWriteZeroes, Flags: proto.CmdFlagFastZero, Offset: 4096, Length: 4096}
			slow := fast
			slow.Flags |= proto.CmdFlagNoHole // which a ramDisk says is not fast
			r.want(proto.ENOTSUP, slow, nil)
			if !bytes.Equal(before, d.contents(0, mib)) {
				t.Error("ENOTSUP, and changed")
			}
			slow.Flags = proto.CmdFlagNoHole
			r.want(proto.OK, slow, nil)
			r.want(proto.OK, fast, nil)
			if !bytes.Equal(d.contents(4096, 4096), make([]byte, 4096)) {
				t.Error("not zero")
			}
			r.end()
		})
	})
	t.Run("statement 48: a device that can only write zeroes refuses them fast", func(t *testing.T) {
		forStyles(t, func(t *testing.T, s style) {
			d := newRAM(mib)
			d.caps.Zero = block.Emulated
			before := d.fill(0, mib)
			r := serve(t, stack(t, d), setup{style: s})
			r.want(proto.ENOTSUP, proto.Request{Command: proto.CmdWriteZeroes, Flags: proto.CmdFlagFastZero, Length: 4096}, nil)
			if !bytes.Equal(before, d.contents(0, mib)) {
				t.Error("ENOTSUP, and changed")
			}
			r.want(proto.OK, proto.Request{Command: proto.CmdWriteZeroes, Length: 4096}, nil)
			r.end()
		})
	})
	t.Run("statement 48: FAST_ZERO that was not offered gets EINVAL", func(t *testing.T) {
		r := serve(t, stack(t, newRAM(mib)), setup{style: structured, deny: proto.FlagSendFastZero})
		r.want(proto.EINVAL, proto.Request{Command: proto.CmdWriteZeroes, Flags: proto.CmdFlagFastZero, Length: 4096}, nil)
		r.end()
	})
}

func TestStatement49(t *testing.T) {
	for _, c := range []proto.Command{proto.CmdTrim, proto.CmdWriteZeroes, proto.CmdCache, proto.CmdBlockStatus} {
		t.Run(fmt.Sprintf("statement 49: %v over the maximum payload does not disconnect", c), func(t *testing.T) {
			forStyles(t, func(t *testing.T, s style) {
				if c == proto.CmdBlockStatus && s == simple {
					t.Skip("there is no block status without structured replies")
				}
				m, err := memory.New(memory.Config{Size: 6 << 30})
				if err != nil {
					t.Fatal(err)
				}
				r := serve(t, stack(t, m), setup{style: s, cfg: Config{MaxPayload: 32 * mib}})
				r.want(proto.OK, proto.Request{Command: c, Offset: 4096, Length: 200 * mib}, nil)
				r.want(proto.OK, proto.Request{Command: c, Offset: 4096, Length: 1<<32 - 4096}, nil)
				if s == extended {
					r.want(proto.OK, proto.Request{Command: c, Offset: 0, Length: 6 << 30}, nil)
				}
				r.alive()
				r.end()
			})
		})
	}
}

func TestStatement50(t *testing.T) {
	t.Run("statement 50: BLOCK_STATUS without contexts gets EINVAL", func(t *testing.T) {
		forAll(t, mib, func(t *testing.T, s style, d *ramDisk, dev *block.Device) {
			r := serve(t, dev, setup{style: s, contexts: []proto.MetaContext{}})
			r.want(proto.EINVAL, proto.Request{Command: proto.CmdBlockStatus, Length: 4096}, nil)
			if s == extended {
				f := proto.AppendStatusFilter(nil, &proto.StatusFilter{Length: 4096, Contexts: []uint32{1}})
				r.want(proto.EINVAL, proto.Request{Command: proto.CmdBlockStatus, Flags: proto.CmdFlagPayloadLen}, f)
			}
			r.alive()
			r.end()
		})
	})
}

func TestStatement52(t *testing.T) {
	for _, x := range []struct {
		name    string
		request proto.Request
	}{
		{"plain", proto.Request{}},
		{"flags", proto.Request{Flags: proto.CmdFlagFUA}},
		{"all flags", proto.Request{Flags: 0xffff}},
		{"offset and length", proto.Request{Cookie: 9, Offset: math.MaxUint64, Length: 77}},
	} {
		t.Run("statement 52 DISC: pending work is finished and answered, no reply: "+x.name, func(t *testing.T) {
			forStyles(t, func(t *testing.T, s style) {
				for _, transport := range []string{"unix", "pipe", "tls"} {
					d := newRAM(mib)
					gate := delay.NewGate(nil)
					r := serve(t, stack(t, d, delay.Layer(delay.Config{Gate: gate})), setup{style: s, transport: transport})
					data := bytes.Repeat([]byte{7}, 4096)
					w := r.send(proto.Request{Command: proto.CmdWrite, Offset: 4096}, data)
					arrived(t, gate)
					l := r.send(proto.Request{Command: proto.CmdRead, Offset: 0, Length: 512}, nil)
					arrived(t, gate)
					x.request.Command = proto.CmdDisc
					r.write(s.encode(nil, x.request, nil))
					gate.Open()
					got := map[uint64]bool{r.receive().cookie: true, r.receive().cookie: true}
					if !got[w] || !got[l] {
						t.Errorf("answered %v", got)
					}
					r.silent()
					if err := r.wait(); err != nil {
						t.Errorf("Serve: %v", err)
					}
					if !bytes.Equal(d.contents(4096, 4096), data) {
						t.Error("the write was not done")
					}
				}
			})
		})
	}
	t.Run("statement 52: what follows DISC is not read", func(t *testing.T) {
		d := newRAM(mib)
		r := serve(t, stack(t, d), setup{})
		b := simple.encode(nil, proto.Request{Command: proto.CmdDisc}, nil)
		b = simple.encode(b, proto.Request{Command: proto.CmdWrite, Length: 512}, bytes.Repeat([]byte{1}, 512))
		r.write(b)
		if err := r.wait(); err != nil {
			t.Error(err)
		}
		if d.contents(0, 1)[0] != 0 {
			t.Error("a request behind DISC was carried out")
		}
	})
}

func TestStatement53(t *testing.T) {
	t.Run("statement 53: on shutdown what was read is answered, then Serve returns", func(t *testing.T) {
		forStyles(t, func(t *testing.T, s style) {
			for _, transport := range []string{"unix", "pipe", "tls"} {
				gate := delay.NewGate(nil)
				d := newRAM(mib)
				r := serve(t, stack(t, d, delay.Layer(delay.Config{Gate: gate})), setup{style: s, transport: transport})
				a := r.send(proto.Request{Command: proto.CmdWrite, Offset: 0}, make([]byte, 512))
				arrived(t, gate)
				b := r.send(proto.Request{Command: proto.CmdRead, Offset: 4096, Length: 512}, nil)
				arrived(t, gate)
				r.cancel()
				gate.Open()
				p, q := r.receive(), r.receive()
				if p.errno != proto.OK || q.errno != proto.OK || p.cookie+q.cookie != a+b {
					t.Errorf("%#x %v, %#x %v", p.cookie, p.errno, q.cookie, q.errno)
				}
				r.silent()
				if err := r.wait(); !errors.Is(err, ErrDraining) {
					t.Errorf("Serve: %v, want ErrDraining", err)
				}
			}
		})
	})
	t.Run("statement 53: a write whose payload is not there gets no answer at all", func(t *testing.T) {
		// An error reply would be the last word; without one the client sends
		// the write again.
		for _, n := range []int{512, 4096, 100 << 10} {
			for name, layers := range map[string][]block.Layer{"direct": nil, "layered": {passThrough()}} {
				forStyles(t, func(t *testing.T, s style) {
					r := serve(t, stack(t, newRAM(mib), layers...), setup{style: s, transport: "pipe"})
					_, b := r.request(proto.Request{Command: proto.CmdWrite}, make([]byte, n))
					r.write(b[:len(b)-1]) // a pipe: when this returns all of it has been read
					r.cancel()
					r.silent()
					if err := r.wait(); !errors.Is(err, ErrDraining) {
						t.Errorf("%s, %d bytes: Serve: %v, want ErrDraining", name, n, err)
					}
				})
			}
		}
	})
	t.Run("statement 53: a connection at rest ends at once", func(t *testing.T) {
		for _, transport := range []string{"unix", "pipe", "tls"} {
			r := serve(t, stack(t, newRAM(mib)), setup{transport: transport})
			r.alive()
			r.cancel()
			if err := r.wait(); !errors.Is(err, ErrDraining) {
				t.Errorf("Serve: %v, want ErrDraining", err)
			}
		}
	})
}

func TestStatement54(t *testing.T) {
	for _, x := range []struct {
		err         error
		want        proto.Errno
		write, fast proto.Errno // 0: as want
	}{
		{err: syscall.EIO, want: proto.EIO},
		{err: syscall.EPERM, want: proto.EPERM},
		{err: syscall.EACCES, want: proto.EPERM},
		{err: syscall.EROFS, want: proto.EPERM},
		{err: syscall.ENOSPC, want: proto.ENOSPC},
		{err: syscall.EFBIG, want: proto.ENOSPC},
		{err: syscall.ENOMEM, want: proto.ENOMEM},
		{err: syscall.EINVAL, want: proto.EIO},
		{err: syscall.EOVERFLOW, want: proto.EIO},
		{err: syscall.ESHUTDOWN, want: proto.EIO},
		{err: syscall.ETIMEDOUT, want: proto.EIO},
		{err: syscall.ENODEV, want: proto.EIO},
		{err: syscall.EBADF, want: proto.EIO},
		{err: io.ErrUnexpectedEOF, want: proto.EIO},
		{err: errors.New("anything"), want: proto.EIO},
		{err: errors.ErrUnsupported, want: proto.EINVAL, fast: proto.ENOTSUP},
		{err: block.ErrReadOnly, want: proto.EPERM},
		{err: block.ErrRange, want: proto.EINVAL, write: proto.ENOSPC},
		{err: fmt.Errorf("%w: %w", block.ErrNotStable, syscall.ENOSPC), want: proto.EIO},
	} {
		t.Run(fmt.Sprintf("statement 54: only the eight error numbers: %v", x.err), func(t *testing.T) {
			forStyles(t, func(t *testing.T, s style) {
				script := &fault.Script{}
				if err := script.SetRules(fault.Rule{Kinds: fault.All, Err: x.err}); err != nil {
					t.Fatal(err)
				}
				for _, c := range commands {
					if c == proto.CmdBlockStatus && s == simple || c == proto.CmdFlush {
						continue
					}
					r := serve(t, stack(t, newRAM(mib), fault.Layer(script)), setup{style: s})
					want := x.want
					if x.write != 0 && (c == proto.CmdWrite || c == proto.CmdWriteZeroes) {
						want = x.write
					}
					if c == proto.CmdWriteZeroes && errors.Is(x.err, errors.ErrUnsupported) {
						want = proto.EINVAL // writing zeroes instead is what fails
					}
					q, payload := valid(c)
					p := r.want(want, q, payload)
					if s != simple && p.text == "" {
						t.Errorf("%v: no text", c)
					}
					if c == proto.CmdWriteZeroes && x.fast != 0 {
						q.Flags = proto.CmdFlagFastZero
						r.want(x.fast, q, payload)
					}
					r.end()
				}
			})
		})
	}
}

func TestStatement60(t *testing.T) {
	// The 32-byte headers and the offset in replies are checked by readReply, and
	// byte for byte above.
	t.Run("statement 60: a WRITE without PAYLOAD_LEN gets EINVAL and has no payload", func(t *testing.T) {
		r := serve(t, stack(t, newRAM(mib)), setup{style: extended})
		r.write(extended.encode(nil, proto.Request{Command: proto.CmdWrite, Cookie: 5, Length: 4096}, nil))
		r.waiting[5] = proto.Request{Command: proto.CmdWrite, Length: 4096}
		if p := r.receive(); p.errno != proto.EINVAL {
			t.Errorf("%v", p.errno)
		}
		r.alive()
		r.end()
	})
	t.Run("statement 60: a payload over the maximum disconnects, also of other commands", func(t *testing.T) {
		for _, c := range []proto.Command{proto.CmdWrite, proto.CmdRead, proto.CmdBlockStatus, 77} {
			for _, n := range []uint64{32*mib + 1, 1 << 32, math.MaxUint64} {
				r := serve(t, stack(t, newRAM(mib)), setup{style: extended, cfg: Config{MaxPayload: 32 * mib}})
				r.write(extended.encode(nil, proto.Request{Command: c, Flags: proto.CmdFlagPayloadLen, Cookie: 5, Length: n}, nil))
				if err := r.wait(); err == nil || errors.Is(err, ErrHungUp) {
					t.Errorf("%v: Serve: %v", c, err)
				}
				r.silent()
			}
		}
	})
	t.Run("statement 60: a payload that a command does not take is consumed, EINVAL", func(t *testing.T) {
		r := serve(t, stack(t, newRAM(mib)), setup{style: extended})
		for _, c := range []proto.Command{proto.CmdRead, proto.CmdFlush, proto.CmdTrim, proto.CmdCache, proto.CmdWriteZeroes, 77} {
			for _, n := range []int{1, 4096, 400 << 10} {
				r.want(proto.EINVAL, proto.Request{Command: c, Flags: proto.CmdFlagPayloadLen}, make([]byte, n))
			}
		}
		r.alive()
		r.end()
	})
	filter := func(n uint64, ids ...uint32) []byte {
		return proto.AppendStatusFilter(nil, &proto.StatusFilter{Length: n, Contexts: ids})
	}
	t.Run("statement 60: a BLOCK_STATUS payload chooses contexts", func(t *testing.T) {
		r := serve(t, stack(t, newRAM(mib)), setup{style: extended})
		q := proto.Request{Command: proto.CmdBlockStatus, Flags: proto.CmdFlagPayloadLen, Offset: 4096}
		for _, ids := range [][]uint32{{idAllocation}, {idInstance}, {idDepth, idAllocation}, {idAllocation, idDepth, idInstance}} {
			p := r.want(proto.OK, q, filter(8192, ids...))
			if len(p.chunks) != len(ids) {
				t.Errorf("%d chunks for %d contexts", len(p.chunks), len(ids))
			}
			for _, id := range ids {
				p.status(t, id)
			}
		}
		r.end()
	})
	t.Run("statement 60: a wrong BLOCK_STATUS payload is consumed, EINVAL", func(t *testing.T) {
		r := serve(t, stack(t, newRAM(mib)), setup{style: extended})
		q := proto.Request{Command: proto.CmdBlockStatus, Flags: proto.CmdFlagPayloadLen, Offset: 4096}
		for name, b := range map[string][]byte{
			"unknown id": filter(4096, 5), "one unknown id": filter(4096, idAllocation, 5), "twice": filter(4096, idDepth, idDepth),
			"too many": filter(4096, 1, 2, 3, 4), "many": filter(4096, make([]uint32, 100_000)...),
			"short": filter(4096, idDepth)[:11], "very short": {1}, "seven": make([]byte, 7),
			"no bytes of effect": filter(0, idDepth), "beyond the end": filter(mib, idDepth), "overflow": filter(math.MaxUint64, idDepth),
		} {
			if p := r.want(proto.EINVAL, q, b); t.Failed() {
				t.Fatalf("%s: %v", name, p.errno)
			}
			r.alive()
		}
		r.end()
	})
	t.Run("statement 60: a BLOCK_STATUS payload that was not offered is consumed, EINVAL", func(t *testing.T) {
		r := serve(t, stack(t, newRAM(mib)), setup{style: extended, deny: proto.FlagBlockStatusPayload})
		r.want(proto.EINVAL, proto.Request{Command: proto.CmdBlockStatus, Flags: proto.CmdFlagPayloadLen}, filter(4096, idDepth))
		r.alive()
		r.end()
	})
}
