package client_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"

	"nbd.example/nbd/block"
	"nbd.example/nbd/client"
	"nbd.example/nbd/handshake"
	"nbd.example/nbd/proto"
	"nbd.example/nbd/transmission"
)

const (
	newstyle = proto.FlagFixedNewstyle | proto.FlagNoZeroes
	allFlags = proto.FlagHasFlags | proto.FlagSendFlush | proto.FlagSendFUA | proto.FlagSendTrim | proto.FlagSendWriteZeroes |
		proto.FlagSendDF | proto.FlagCanMultiConn | proto.FlagSendCache | proto.FlagSendFastZero
)

// The names of these tests are the numbers of the conformance statements about
// clients; the quoted texts are theirs.

// "One option at a time; GO -> EXPORT_NAME on ERR_UNSUP; unknown info, flags and
// order tolerated." proto.md, "Fixed newstyle negotiation"; NBD_OPT_GO.
func TestStatement55(t *testing.T) {
	t.Run("falls back to EXPORT_NAME", func(t *testing.T) {
		for _, greeting := range []proto.HandshakeFlags{newstyle, proto.FlagFixedNewstyle} {
			f := &fake{greeting: greeting, size: 1 << 20, flags: proto.FlagHasFlags, transmission: serveDisk([]byte("disk")),
				answer: map[proto.Option][]fakeReply{
					proto.OptGo: {{reply: proto.RepErrUnsup}}, proto.OptStructuredReply: {{reply: proto.RepErrUnsup}},
				}}
			c := dial(t, f.serve(t), nil)
			got := make([]byte, 512)
			if err := c.ReadAt(t.Context(), got, 0); err != nil || string(got[:4]) != "disk" {
				t.Errorf("%v, %q", err, got[:4])
			}
			c.Close()
			seen := f.seen(t)
			if n := len(seen); n < 2 || seen[n-2] != proto.OptGo || seen[n-1] != proto.OptExportName || string(f.data[proto.OptExportName]) != "export" {
				t.Errorf("%v", seen)
			}
		}
	})
	t.Run("newstyle that is not fixed", func(t *testing.T) {
		f := &fake{greeting: 0, size: 1 << 20, flags: proto.FlagHasFlags, transmission: serveDisk(nil)}
		c := dial(t, f.serve(t), nil)
		c.Close()
		if seen := f.seen(t); !slices.Equal(seen, []proto.Option{proto.OptExportName}) {
			t.Errorf("%v", seen)
		}
	})
	t.Run("never EXPORT_NAME with extended headers", func(t *testing.T) {
		f := &fake{greeting: newstyle, answer: map[proto.Option][]fakeReply{
			proto.OptExtendedHeaders: {{reply: proto.RepAck}}, proto.OptGo: {{reply: proto.RepErrUnsup}},
		}}
		if _, err := client.Dial(t.Context(), f.serve(t), nil); !errors.Is(err, handshake.ErrUnsupported) {
			t.Error(err)
		}
		if seen := f.seen(t); slices.Contains(seen, proto.OptExportName) {
			t.Errorf("%v", seen)
		}
	})
	t.Run("unknown info and flags, any order", func(t *testing.T) {
		f := &fake{greeting: newstyle | 1<<9, size: 1 << 20, flags: proto.FlagHasFlags | 1<<15, transmission: serveDisk(nil)}
		f.info = [][]byte{
			{0x77, 0x77, 1, 2, 3},
			proto.AppendInfoBlockSize(nil, proto.BlockSize{Minimum: 4096, Preferred: 4096, MaxPayload: 1 << 20}),
			proto.AppendInfoString(nil, proto.InfoDescription, "unasked"),
			f.export(),
		}
		c := dial(t, f.serve(t), nil)
		if e := c.Export(); e.Size != 1<<20 || e.BlockSize.Minimum != 4096 {
			t.Errorf("%+v", e)
		}
		c.Close()
		f.seen(t)
	})
}

// "Uses only what was offered; obeys block sizes it asked for, else 512 / 32 MiB."
// proto.md, "Size constraints".
func TestStatement56(t *testing.T) {
	t.Run("nothing offered", func(t *testing.T) {
		f := &fake{greeting: newstyle, size: 1 << 20, flags: proto.FlagHasFlags, transmission: serveDisk(nil)}
		c := dial(t, f.serve(t), nil)
		ctx := t.Context()
		for what, err := range map[string]error{
			"flush":       c.Flush(ctx),
			"trim":        c.Trim(ctx, 0, 512, 0),
			"zero":        c.WriteZeroes(ctx, 0, 512, 0),
			"cache":       c.Cache(ctx, 0, 512),
			"FUA":         c.WriteAt(ctx, make([]byte, 512), 0, block.FUA),
			"extents":     c.Extents(ctx, 0, 512, 0, func(block.Extent) bool { return true }),
			"BlockStatus": func() error { _, err := c.BlockStatus(ctx, 0, 512, false); return err }(),
		} {
			if !errors.Is(err, errors.ErrUnsupported) {
				t.Errorf("%s: %v", what, err)
			}
		}
		if err := c.WriteAt(ctx, make([]byte, 512), 0, 0); err != nil {
			t.Error(err)
		}
		c.Close()
		f.seen(t)
		for _, r := range f.requests {
			if r.Command != proto.CmdWrite && r.Command != proto.CmdDisc || r.Flags != 0 {
				t.Errorf("sent %+v", r)
			}
		}
	})
	t.Run("fast zeroes not offered", func(t *testing.T) {
		f := &fake{greeting: newstyle, size: 1 << 20, flags: allFlags &^ proto.FlagSendFastZero, transmission: serveDisk(nil)}
		c := dial(t, f.serve(t), nil)
		if err := c.WriteZeroes(t.Context(), 0, 512, block.FastZero); !errors.Is(err, errors.ErrUnsupported) {
			t.Error(err)
		}
		c.Close()
	})
	t.Run("read-only", func(t *testing.T) {
		f := &fake{greeting: newstyle, size: 1 << 20, flags: allFlags | proto.FlagReadOnly, transmission: serveDisk(nil)}
		c := dial(t, f.serve(t), nil)
		if err := c.WriteAt(t.Context(), make([]byte, 512), 0, 0); !errors.Is(err, block.ErrReadOnly) {
			t.Error(err)
		}
		c.Close()
	})
	for _, tt := range []struct {
		name string
		told *proto.BlockSize
		min  uint64
		max  uint64
	}{
		{"told", &proto.BlockSize{Minimum: 4096, Preferred: 4096, MaxPayload: 1<<20 + 1}, 4096, 1 << 20},
		{"not told", nil, 512, 32 << 20},
	} {
		t.Run("block sizes "+tt.name, func(t *testing.T) {
			f := &fake{greeting: newstyle, size: 128 << 20, flags: allFlags, transmission: serveDisk(nil)}
			f.info = [][]byte{f.export()}
			if tt.told != nil {
				f.info = append(f.info, proto.AppendInfoBlockSize(nil, *tt.told))
			}
			c := dial(t, f.serve(t), nil)
			d, err := block.New(c)
			if err != nil {
				t.Fatal(err)
			}
			if err := d.WriteAt(t.Context(), make([]byte, 33<<20), 1000, 0); err != nil {
				t.Error(err)
			}
			if err := d.ReadAt(t.Context(), make([]byte, 33<<20), 77); err != nil {
				t.Error(err)
			}
			if err := d.WriteZeroes(t.Context(), 5, 100<<20, 0); err != nil {
				t.Error(err)
			}
			if err := c.ReadAt(t.Context(), make([]byte, 100), 0); !errors.Is(err, proto.EINVAL) {
				t.Errorf("an unaligned read: %v", err)
			}
			if err := c.ReadAt(t.Context(), make([]byte, 4096), 128<<20); !errors.Is(err, block.ErrRange) {
				t.Errorf("a read past the end: %v", err)
			}
			d.Close()
			f.seen(t)
			if ask, err := proto.ParseInfoRequest(f.data[proto.OptGo]); err != nil || !slices.Contains(ask.Requests, proto.InfoBlockSize) {
				t.Errorf("block sizes were not asked for: %+v", ask)
			}
			longest := uint64(0)
			for _, r := range f.requests {
				if (r.Offset|r.Length)%tt.min != 0 {
					t.Errorf("unaligned: %+v", r)
				}
				if r.Command == proto.CmdRead || r.Command == proto.CmdWrite {
					longest = max(longest, r.Length)
				}
			}
			if longest != tt.max {
				t.Errorf("the longest payload is %d, want %d", longest, tt.max)
			}
		})
	}
}

// "If TLS is demanded: STARTTLS first, leave if refused or if the name fails."
// proto.md, "Client-side requirements".
func TestStatement57(t *testing.T) {
	t.Run("refused", func(t *testing.T) {
		for _, r := range []proto.OptionReply{proto.RepErrUnsup, proto.RepErrPolicy} {
			f := &fake{greeting: newstyle, answer: map[proto.Option][]fakeReply{proto.OptStartTLS: {{reply: r}}}}
			if _, err := client.Dial(t.Context(), tlsURI(f.serve(t), "&tls-hostname=h"), &client.Config{TLSOptional: true}); err == nil {
				t.Error("connected in clear")
			}
			if seen := f.seen(t); !slices.Equal(seen, []proto.Option{proto.OptStartTLS, proto.OptAbort}) {
				t.Errorf("%v", seen)
			}
		}
	})
	t.Run("no fixed newstyle", func(t *testing.T) {
		f := &fake{greeting: 0}
		if _, err := client.Dial(t.Context(), tlsURI(f.serve(t), "&tls-hostname=h"), nil); err == nil {
			t.Error("connected in clear")
		}
		if seen := f.seen(t); len(seen) > 0 {
			t.Errorf("%v", seen)
		}
	})
	t.Run("no name to verify", func(t *testing.T) {
		_, err := client.Dial(t.Context(), "nbds+unix:///x?socket=/nowhere", nil)
		if err == nil || !strings.Contains(err.Error(), "tls-hostname") {
			t.Error(err)
		}
	})
	good, pool := certificate(t, "good.example")
	for _, tt := range []struct {
		name, more string
		ok         bool
	}{
		{"right name", "&tls-hostname=good.example", true},
		{"wrong name", "&tls-hostname=bad.example", false},
		{"nothing verified", "&tls-verify-peer=0", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := &handshake.Server{Mode: handshake.Forced, TLS: &tls.Config{Certificates: []tls.Certificate{good}}, Open: anyExport}
			uri := listenTLS(t, s)
			c, err := client.Dial(t.Context(), tlsURI(uri, tt.more), &client.Config{TLS: &tls.Config{RootCAs: pool}})
			if tt.ok != (err == nil) {
				t.Fatal(err)
			}
			if err == nil {
				if c.TLS() == nil {
					t.Error("in clear")
				}
				if err := c.WriteAt(t.Context(), make([]byte, 1<<20), 0, 0); err != nil {
					t.Error(err)
				}
				if err := c.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

func tlsURI(uri, more string) string { return strings.Replace(uri, "nbd+", "nbds+", 1) + more }

func anyExport(context.Context, handshake.Peer, string) (*handshake.Export, error) {
	return &handshake.Export{Size: 1 << 20, Flags: allFlags}, nil
}

// "Rebuilds chunks in any order; drops on overlap, gap, unknown chunk; unknown
// error chunk fails only that request." The details are in package transmission.
func TestStatement58(t *testing.T) {
	chunk := func(r proto.Request, typ proto.ChunkType, done bool, payload []byte) []byte {
		h := proto.Chunk{Type: typ, Cookie: r.Cookie, Length: uint64(len(payload))}
		if done {
			h.Flags = proto.ReplyFlagDone
		}
		return append(proto.AppendChunk(nil, &h), payload...)
	}
	data := func(r proto.Request, at, n int, done bool) []byte {
		p := make([]byte, 8, 8+n)
		p[6], p[7] = byte(at>>8), byte(at)
		return chunk(r, proto.ChunkOffsetData, done, append(p, bytes.Repeat([]byte{byte(at/512 + 1)}, n)...))
	}
	for _, tt := range []struct {
		name  string
		reply func(r proto.Request) [][]byte
		lost  bool
		errno proto.Errno
	}{
		{"any order", func(r proto.Request) [][]byte {
			return [][]byte{data(r, 1024, 512, false), data(r, 0, 512, false), data(r, 512, 512, true)}
		}, false, 0},
		{"overlap", func(r proto.Request) [][]byte { return [][]byte{data(r, 0, 1024, false), data(r, 512, 1024, true)} }, true, 0},
		{"gap", func(r proto.Request) [][]byte { return [][]byte{data(r, 0, 512, false), data(r, 1024, 512, true)} }, true, 0},
		{"unknown chunk", func(r proto.Request) [][]byte { return [][]byte{chunk(r, 99, true, nil)} }, true, 0},
		{"unknown error chunk", func(r proto.Request) [][]byte {
			return [][]byte{chunk(r, proto.ChunkError+99, true, []byte{0, 0, 0, 28, 0, 0, 9, 9})}
		}, false, proto.ENOSPC},
	} {
		t.Run(tt.name, func(t *testing.T) {
			f := &fake{greeting: newstyle, size: 1536, flags: allFlags, transmission: func(f *fake, c net.Conn) {
				r, _, err := f.request(c)
				if err != nil {
					return
				}
				c.Write(bytes.Join(tt.reply(r), nil))
				serveDisk(nil)(f, c)
			}}
			c := dial(t, f.serve(t), nil)
			got := make([]byte, 1536)
			err := c.ReadAt(t.Context(), got, 0)
			switch {
			case tt.lost:
				if !errors.Is(err, transmission.ErrPeer) {
					t.Error(err)
				}
			case tt.errno != 0:
				if e := (*client.Error)(nil); !errors.As(err, &e) || e.Errno != tt.errno {
					t.Error(err)
				}
			default:
				if err != nil || got[0] != 1 || got[512] != 2 || got[1535] != 3 {
					t.Errorf("%v, %v %v %v", err, got[0], got[512], got[1535])
				}
			}
			if again := c.Flush(t.Context()); (again != nil) != tt.lost {
				t.Errorf("the next request: %v", again)
			}
			c.Close()
		})
	}
}

// "Unknown error number = EINVAL; ESHUTDOWN / ERR_SHUTDOWN = soft disconnect;
// nothing after DISC, whose fields are 0; multi-conn waits for all writes before
// FLUSH." proto.md, "Error values", "Terminating the transmission phase".
func TestStatement59(t *testing.T) {
	fail := func(e proto.Errno) func(f *fake, c net.Conn) {
		return func(f *fake, c net.Conn) {
			r, _, err := f.request(c)
			if err != nil {
				return
			}
			c.Write(f.reply(r, e, nil))
			serveDisk(nil)(f, c)
		}
	}
	t.Run("unknown error number", func(t *testing.T) {
		for _, e := range []proto.Errno{2, 11, 71, 4095, 1<<32 - 1} {
			f := &fake{greeting: newstyle, size: 1 << 20, flags: allFlags, transmission: fail(e)}
			c := dial(t, f.serve(t), nil)
			if err := c.Flush(t.Context()); !errors.Is(err, proto.EINVAL) {
				t.Errorf("%d: %v", e, err)
			}
			if err := c.Flush(t.Context()); err != nil {
				t.Error(err)
			}
			c.Close()
		}
	})
	t.Run("NBD_ESHUTDOWN", func(t *testing.T) {
		f := &fake{greeting: newstyle, size: 1 << 20, flags: allFlags, transmission: fail(proto.ESHUTDOWN)}
		c := dial(t, f.serve(t), nil)
		if err := c.Flush(t.Context()); !errors.Is(err, proto.ESHUTDOWN) {
			t.Error(err)
		}
		<-f.done
		if n := len(f.requests); n != 2 || f.requests[1].Command != proto.CmdDisc {
			t.Errorf("%+v", f.requests)
		}
		if err := c.Flush(t.Context()); !errors.Is(err, transmission.ErrShuttingDown) {
			t.Error(err)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Run("NBD_REP_ERR_SHUTDOWN", func(t *testing.T) {
		f := &fake{greeting: newstyle, answer: map[proto.Option][]fakeReply{proto.OptExtendedHeaders: {{reply: proto.RepErrShutdown}}}}
		if _, err := client.Dial(t.Context(), f.serve(t), nil); !errors.Is(err, handshake.ErrShutdown) {
			t.Error(err)
		}
		if seen := f.seen(t); !slices.Equal(seen, []proto.Option{proto.OptExtendedHeaders, proto.OptAbort}) {
			t.Errorf("%v", seen)
		}
	})
	t.Run("DISC", func(t *testing.T) {
		for _, noExtended := range []bool{false, true} {
			var rest []byte
			f := &fake{greeting: newstyle, size: 1 << 20, flags: allFlags, transmission: func(f *fake, c net.Conn) {
				serveDisk(nil)(f, c)
				c.(*net.UnixConn).CloseWrite()
				b := make([]byte, 1)
				if n, _ := c.Read(b); n > 0 {
					rest = b
				}
			}, answer: map[proto.Option][]fakeReply{proto.OptExtendedHeaders: {{reply: proto.RepAck}}}}
			c := dial(t, f.serve(t), &client.Config{NoExtended: noExtended})
			if c.Extended() == noExtended {
				t.Errorf("extended: %v", c.Extended())
			}
			if err := c.Flush(t.Context()); err != nil {
				t.Error(err)
			}
			if err := c.Close(); err != nil {
				t.Error(err)
			}
			f.seen(t)
			last := f.requests[len(f.requests)-1]
			if last != (proto.Request{Command: proto.CmdDisc}) || rest != nil {
				t.Errorf("%+v, then %d bytes", last, len(rest))
			}
		}
	})
	t.Run("FLUSH covers what was answered on another connection", func(t *testing.T) {
		// A Conn's write returns when it is answered. So a caller with several
		// connections has the answers of all writes that a flush is to cover.
		release := make(chan struct{})
		f := &fake{greeting: newstyle, size: 1 << 20, flags: allFlags, transmission: func(f *fake, c net.Conn) {
			r, _, err := f.request(c)
			if err != nil {
				return
			}
			<-release
			c.Write(f.reply(r, 0, nil))
			serveDisk(nil)(f, c)
		}}
		c := dial(t, f.serve(t), nil)
		done := make(chan error, 1)
		go func() { done <- c.WriteAt(t.Context(), make([]byte, 512), 0, 0) }()
		select {
		case err := <-done:
			t.Errorf("the write returned before its answer: %v", err)
		case release <- struct{}{}:
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
		c.Close()
	})
}

// TestSmallerEffects has a server that does not like long requests without payload.
func TestSmallerEffects(t *testing.T) {
	for _, e := range []proto.Errno{proto.EOVERFLOW, proto.EINVAL} {
		t.Run(fmt.Sprint(e), func(t *testing.T) {
			f := &fake{greeting: newstyle, size: 10 << 30, flags: allFlags, transmission: func(f *fake, c net.Conn) {
				for {
					r, _, err := f.request(c)
					if err != nil || r.Command == proto.CmdDisc {
						return
					}
					if r.Length > 1<<30 {
						c.Write(f.reply(r, e, nil))
					} else {
						c.Write(f.reply(r, 0, nil))
					}
				}
			}}
			c := dial(t, f.serve(t), nil)
			if err := c.WriteZeroes(t.Context(), 512, 5<<30, block.FUA); err != nil {
				t.Error(err)
			}
			c.Close()
			f.seen(t)
			at := uint64(512)
			for _, r := range f.requests[1 : len(f.requests)-1] {
				if r.Command != proto.CmdWriteZeroes || r.Flags != proto.CmdFlagFUA || r.Offset != at || r.Length > 32<<20 {
					t.Fatalf("%+v", r)
				}
				at += r.Length
			}
			if at != 512+5<<30 {
				t.Errorf("zeroed up to %d", at)
			}
		})
	}
}
