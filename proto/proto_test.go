package proto

import (
	"bytes"
	"encoding/hex"
	"errors"
	"math"
	"reflect"
	"strings"
	"testing"
	"unicode/utf8"
)

// unhex reads golden bytes; spaces separate fields.
func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// codecs has one entry for each message: its value, its bytes as written by hand
// from the specification, and its two functions. parse gets exactly one message.
var codecs = []struct {
	name   string
	golden string
	value  any
	append func(b []byte, v any) []byte
	parse  func(b []byte) (any, error)
	fixed  bool // its length is fixed, and parse may rely on it
	any    bool // a shorter message may be a whole one, because its end is a string or a list
}{
	{
		name: "greeting", golden: "4e42444d41474943 49484156454f5054 0003", value: FlagFixedNewstyle | FlagNoZeroes,
		append: func(b []byte, v any) []byte { return AppendGreeting(b, v.(HandshakeFlags)) },
		parse:  func(b []byte) (any, error) { return ParseGreeting(b) },
	},
	{
		name: "client flags", golden: "00000002", value: ClientNoZeroes, fixed: true,
		append: func(b []byte, v any) []byte { return AppendClientFlags(b, v.(ClientFlags)) },
		parse:  func(b []byte) (any, error) { return ParseClientFlags(b), nil },
	},
	{
		name: "option header", golden: "49484156454f5054 00000007 00000003", value: OptionHeader{OptGo, 3}, fixed: true,
		append: func(b []byte, v any) []byte {
			h := v.(OptionHeader)
			return AppendOption(b, h.Option, make([]byte, h.Length))[:len(b)+OptionHeaderSize]
		},
		parse: func(b []byte) (any, error) { return ParseOptionHeader(b) },
	},
	{
		name: "option reply header", golden: "0003e889045565a9 00000003 80000002 00000000", fixed: true,
		value: OptionReplyHeader{OptList, RepErrPolicy, 0},
		append: func(b []byte, v any) []byte {
			h := v.(OptionReplyHeader)
			return AppendOptionReply(b, h.Option, h.Reply, nil)
		},
		parse: func(b []byte) (any, error) { return ParseOptionReplyHeader(b) },
	},
	{
		name: "export reply", golden: "0000000040000000 040d", value: ExportReply{1 << 30, FlagHasFlags | FlagSendFlush | FlagSendFUA | FlagSendCache}, fixed: true,
		append: func(b []byte, v any) []byte { return AppendExportReply(b, v.(ExportReply)) },
		parse:  func(b []byte) (any, error) { return ParseExportReply(b), nil },
	},
	{
		name: "info request", golden: "00000003 c3a478 0002 0003 0001", value: InfoRequest{"äx", []Info{InfoBlockSize, InfoName}},
		append: func(b []byte, v any) []byte { r := v.(InfoRequest); return AppendInfoRequest(b, &r) },
		parse:  func(b []byte) (any, error) { return ParseInfoRequest(b) },
	},
	{
		name: "meta context request", golden: "00000001 64 00000002 0000000f 626173653a616c6c6f636174696f6e 00000002 783a",
		value:  MetaContextRequest{"d", []string{"base:allocation", "x:"}},
		append: func(b []byte, v any) []byte { r := v.(MetaContextRequest); return AppendMetaContextRequest(b, &r) },
		parse:  func(b []byte) (any, error) { return ParseMetaContextRequest(b) },
	},
	{
		name: "server reply", golden: "00000002 6162 63", value: ServerReply{"ab", "c"}, any: true,
		append: func(b []byte, v any) []byte { r := v.(ServerReply); return AppendServerReply(b, &r) },
		parse:  func(b []byte) (any, error) { return ParseServerReply(b) },
	},
	{
		name: "meta context", golden: "00000007 783a79", value: MetaContext{7, "x:y"}, any: true,
		append: func(b []byte, v any) []byte { c := v.(MetaContext); return AppendMetaContext(b, &c) },
		parse:  func(b []byte) (any, error) { return ParseMetaContext(b) },
	},
	{
		name: "info export", golden: "0000 0000000000001000 0001", value: InfoReply{Type: InfoExport, Export: ExportReply{4096, FlagHasFlags}},
		append: func(b []byte, v any) []byte { return AppendInfoExport(b, v.(InfoReply).Export) },
		parse:  func(b []byte) (any, error) { return ParseInfoReply(b) },
	},
	{
		name: "info name", golden: "0001 6e", value: InfoReply{Type: InfoName, Text: "n"}, any: true,
		append: func(b []byte, v any) []byte { r := v.(InfoReply); return AppendInfoString(b, r.Type, r.Text) },
		parse:  func(b []byte) (any, error) { return ParseInfoReply(b) },
	},
	{
		name: "info block size", golden: "0003 00000200 00001000 02000000", value: InfoReply{Type: InfoBlockSize, BlockSize: BlockSize{512, 4096, 1 << 25}},
		append: func(b []byte, v any) []byte { return AppendInfoBlockSize(b, v.(InfoReply).BlockSize) },
		parse:  func(b []byte) (any, error) { return ParseInfoReply(b) },
	},
	{
		name: "request", golden: "25609513 0001 0001 0123456789abcdef 0000000000000200 00001000", fixed: true,
		value:  Request{CmdFlagFUA, CmdWrite, 0x0123456789abcdef, 512, 4096},
		append: func(b []byte, v any) []byte { r := v.(Request); return AppendRequest(b, &r) },
		parse:  func(b []byte) (any, error) { var r Request; return magic(&r, ParseRequest(b, &r)) },
	},
	{
		name: "extended request", golden: "21e41c71 0020 0007 fffffffffffffffe 0000000000000200 7fffffffffffffff", fixed: true,
		value:  Request{CmdFlagPayloadLen, CmdBlockStatus, math.MaxUint64 - 1, 512, math.MaxInt64},
		append: func(b []byte, v any) []byte { r := v.(Request); return AppendExtendedRequest(b, &r) },
		parse:  func(b []byte) (any, error) { var r Request; return magic(&r, ParseExtendedRequest(b, &r)) },
	},
	{
		name: "simple reply", golden: "67446698 0000001c 0123456789abcdef", value: SimpleReply{ENOSPC, 0x0123456789abcdef}, fixed: true,
		append: func(b []byte, v any) []byte { r := v.(SimpleReply); return AppendSimpleReply(b, r.Error, r.Cookie) },
		parse:  func(b []byte) (any, error) { var r SimpleReply; return magic(&r, ParseSimpleReply(b, &r)) },
	},
	{
		name: "structured chunk", golden: "668e33ef 0001 8001 0123456789abcdef 00000006", fixed: true,
		value:  Chunk{ReplyFlagDone, ChunkErrorPlain, 0x0123456789abcdef, 0, 6},
		append: func(b []byte, v any) []byte { c := v.(Chunk); return AppendChunk(b, &c) },
		parse:  func(b []byte) (any, error) { var c Chunk; return magic(&c, ParseChunk(b, &c)) },
	},
	{
		name: "extended chunk", golden: "6e8a278c 0000 0001 0123456789abcdef 0000000000001000 0000000100000008", fixed: true,
		value:  Chunk{0, ChunkOffsetData, 0x0123456789abcdef, 4096, 1<<32 + 8},
		append: func(b []byte, v any) []byte { c := v.(Chunk); return AppendExtendedChunk(b, &c) },
		parse:  func(b []byte) (any, error) { var c Chunk; return magic(&c, ParseExtendedChunk(b, &c)) },
	},
	{
		name: "hole", golden: "0000000000000200 00000400", value: [2]uint64{512, 1024},
		append: func(b []byte, v any) []byte { h := v.([2]uint64); return AppendHole(b, h[0], uint32(h[1])) },
		parse:  func(b []byte) (any, error) { off, n, err := ParseHole(b); return [2]uint64{off, uint64(n)}, err },
	},
	{
		name: "error", golden: "00000005 0002 6865", value: ErrorPayload{EIO, "he", 0},
		append: func(b []byte, v any) []byte { p := v.(ErrorPayload); return AppendErrorPayload(b, ChunkErrorPlain, &p) },
		parse:  func(b []byte) (any, error) { return ParseErrorPayload(b, ChunkErrorPlain) },
	},
	{
		name: "error offset", golden: "00000005 0002 6865 0000000000000fff", value: ErrorPayload{EIO, "he", 4095},
		append: func(b []byte, v any) []byte {
			p := v.(ErrorPayload)
			return AppendErrorPayload(b, ChunkErrorOffset, &p)
		},
		parse: func(b []byte) (any, error) { return ParseErrorPayload(b, ChunkErrorOffset) },
	},
	{
		name: "block status", golden: "00000001 00001000 00000003 00002000 00000000", any: true,
		value:  status{1, []Extent{{4096, 3}, {8192, 0}}},
		append: func(b []byte, v any) []byte { s := v.(status); return AppendBlockStatus(b, s.id, s.ext) },
		parse: func(b []byte) (any, error) {
			id, ext, err := ParseBlockStatus(b, ChunkBlockStatus, nil)
			return status{id, ext}, err
		},
	},
	{
		name: "block status ext", golden: "00000001 00000002 0000000000001000 0000000000000003 0000000100000000 0000000200000000",
		value:  status{1, []Extent{{4096, 3}, {1 << 32, 2 << 32}}},
		append: func(b []byte, v any) []byte { s := v.(status); return AppendBlockStatusExt(b, s.id, s.ext) },
		parse: func(b []byte) (any, error) {
			id, ext, err := ParseBlockStatus(b, ChunkBlockStatusExt, nil)
			return status{id, ext}, err
		},
	},
	{
		name: "status filter", golden: "0000000100000000 00000001 00000009", value: StatusFilter{1 << 32, []uint32{1, 9}}, any: true,
		append: func(b []byte, v any) []byte { f := v.(StatusFilter); return AppendStatusFilter(b, &f) },
		parse:  func(b []byte) (any, error) { return ParseStatusFilter(b, 2) },
	},
}

type status struct {
	id  uint32
	ext []Extent
}

func magic[T any](v *T, ok bool) (any, error) {
	if !ok {
		return *v, ErrMalformed
	}
	return *v, nil
}

func TestGolden(t *testing.T) {
	for _, c := range codecs {
		t.Run(c.name, func(t *testing.T) {
			want := unhex(t, c.golden)
			got := c.append([]byte("before"), c.value)
			if !bytes.Equal(got, append([]byte("before"), want...)) {
				t.Errorf("written:\n% x, want\n% x", got[6:], want)
			}
			v, err := c.parse(want)
			if err != nil || !reflect.DeepEqual(v, c.value) {
				t.Errorf("read: %+v, %v, want %+v", v, err, c.value)
			}
		})
	}
}

// TestTruncated cuts each message at each byte, and adds one.
func TestTruncated(t *testing.T) {
	for _, c := range codecs {
		if c.fixed { // whoever calls it has counted
			continue
		}
		t.Run(c.name, func(t *testing.T) {
			whole := unhex(t, c.golden)
			for n := range whole {
				v, err := c.parse(whole[:n:n])
				switch {
				case err == nil && c.any && !reflect.DeepEqual(v, c.value):
				case err == nil:
					t.Errorf("%d of %d bytes: %+v", n, len(whole), v)
				case !errors.Is(err, ErrMalformed):
					t.Errorf("%d of %d bytes: %v", n, len(whole), err)
				}
			}
			if v, err := c.parse(append(whole, 'x')); err == nil && reflect.DeepEqual(v, c.value) && c.name != "greeting" && !strings.HasPrefix(c.name, "error") {
				t.Errorf("a byte too many: %+v", v)
			}
		})
	}
}

func TestOptionsWithData(t *testing.T) {
	if got, want := AppendOption(nil, OptExportName, []byte("ab")), unhex(t, "49484156454f5054 00000001 00000002 6162"); !bytes.Equal(got, want) {
		t.Errorf("% x", got)
	}
	if got, want := AppendOptionReply(nil, OptAbort, RepAck, []byte("ab")), unhex(t, "0003e889045565a9 00000002 00000001 00000002 6162"); !bytes.Equal(got, want) {
		t.Errorf("% x", got)
	}
}

func TestMalformed(t *testing.T) {
	long := strings.Repeat("00", MaxString+1)
	a := strings.Repeat("61", MaxString)
	for _, tt := range []struct {
		name, in string
		parse    func([]byte) error
	}{
		{"oldstyle", "4e42444d41474943 0000420281861253 0000", func(b []byte) error { _, err := ParseGreeting(b); return err }},
		{"no NBD server", "485454502f312e31 20343030 0000000000000000", func(b []byte) error { _, err := ParseGreeting(b); return err }},
		{"strange newstyle", "4e42444d41474943 4e42444d41474943 0000", func(b []byte) error { _, err := ParseGreeting(b); return err }},
		{"option's magic", "49484156454f5055 00000007 00000003", func(b []byte) error { _, err := ParseOptionHeader(b); return err }},
		{"option reply's magic", "0003e889045565aa 00000003 80000002 00000000", func(b []byte) error { _, err := ParseOptionReplyHeader(b); return err }},
		{"name with NUL", "00000001 00 0000", infoRequest},
		{"name not UTF-8", "00000001 ff 0000", infoRequest},
		{"name of 2^32-1 bytes", "ffffffff 0000", infoRequest},
		{"name over the limit", "00001001" + a + "61 0000", infoRequest},
		{"name over the end", "00000003 6161 0000", infoRequest},
		{"too many requests", "00000000 0002 0000", infoRequest},
		{"too few requests", "00000000 0001 0000 0001", infoRequest},
		{"half a request", "00000000 0001 00", infoRequest},
		{"2^32-1 queries", "00000000 ffffffff 00000000", metaRequest},
		{"bytes behind the queries", "00000000 00000001 00000000 00", metaRequest},
		{"query over the end", "00000000 00000001 00000002 61", metaRequest},
		{"query with NUL", "00000000 00000001 00000001 00", metaRequest},
		{"description with NUL", "00000000 00", func(b []byte) error { _, err := ParseServerReply(b); return err }},
		{"description over the limit", "00000000" + long, func(b []byte) error { _, err := ParseServerReply(b); return err }},
		{"context over the limit", "00000000" + long, func(b []byte) error { _, err := ParseMetaContext(b); return err }},
		{"minimum 0", "0003 00000000 00001000 02000000", infoReply},
		{"minimum 3", "0003 00000003 00001000 02000000", infoReply},
		{"minimum over 64 KiB", "0003 00020000 00020000 02000000", infoReply},
		{"preferred below 512", "0003 00000001 00000100 02000000", infoReply},
		{"preferred below minimum", "0003 00001000 00000200 02000000", infoReply},
		{"maximum below preferred", "0003 00000200 00001000 00000800", infoReply},
		{"hole of nothing", "0000000000000200 00000000", func(b []byte) error { _, _, err := ParseHole(b); return err }},
		{"error 0", "00000000 0000", errorPayload},
		{"message over the end", "00000005 0003 6865", errorPayload},
		{"message over the limit", "00000005 1001" + a + "61", errorPayload},
		{"extent of nothing", "00000001 00000000 00000003", func(b []byte) error { _, _, err := ParseBlockStatus(b, ChunkBlockStatus, nil); return err }},
		{"no extent", "00000001", func(b []byte) error { _, _, err := ParseBlockStatus(b, ChunkBlockStatus, nil); return err }},
		{"wrong count of extents", "00000001 00000002 0000000000001000 0000000000000003", func(b []byte) error { _, _, err := ParseBlockStatus(b, ChunkBlockStatusExt, nil); return err }},
		{"too long a filter", "0000000100000000 00000001 00000009 0000000a", func(b []byte) error { _, err := ParseStatusFilter(b, 2); return err }},
	} {
		if err := tt.parse(unhex(t, tt.in)); !errors.Is(err, ErrMalformed) {
			t.Errorf("%s: %v", tt.name, err)
		} else if len(err.Error()) > 300 {
			t.Errorf("%s: an error of %d bytes", tt.name, len(err.Error()))
		}
	}
}

func infoRequest(b []byte) error  { _, err := ParseInfoRequest(b); return err }
func metaRequest(b []byte) error  { _, err := ParseMetaContextRequest(b); return err }
func infoReply(b []byte) error    { _, err := ParseInfoReply(b); return err }
func errorPayload(b []byte) error { _, err := ParseErrorPayload(b, ChunkErrorPlain); return err }

// TestLimitsAreAllowed has the longest and the most that is still right.
func TestLimitsAreAllowed(t *testing.T) {
	name := strings.Repeat("n", MaxString)
	if r, err := ParseInfoRequest(AppendInfoRequest(nil, &InfoRequest{Export: name})); err != nil || r.Export != name {
		t.Error(err)
	}
	if p, err := ParseErrorPayload(AppendErrorPayload(nil, ChunkErrorOffset, &ErrorPayload{EIO, name, 1}), ChunkErrorOffset); err != nil || p.Message != name {
		t.Error(err)
	}
	if err := (BlockSize{MaxMinBlock, MaxMinBlock, math.MaxUint32}).Check(); err != nil {
		t.Error(err)
	}
	if err := DefaultBlockSize.Check(); err != nil {
		t.Error(err)
	}
	if _, err := ParseInfoReply([]byte{0x12, 0x34, 1, 2, 3}); err != nil {
		t.Errorf("an unknown information type: %v", err)
	}
}

// TestErrorMessageIsCut has a message over the limit, cut so that it stays UTF-8.
func TestErrorMessageIsCut(t *testing.T) {
	b := AppendErrorPayload(nil, ChunkErrorPlain, &ErrorPayload{Error: EIO, Message: "x" + strings.Repeat("ä", MaxString)})
	p, err := ParseErrorPayload(b, ChunkErrorPlain)
	if err != nil || len(p.Message) != MaxString-1 || !utf8.ValidString(p.Message) {
		t.Errorf("%v, %d bytes, UTF-8: %v", err, len(p.Message), utf8.ValidString(p.Message))
	}
}

func TestUnknownErrorChunk(t *testing.T) {
	b := append(AppendErrorPayload(nil, ChunkErrorPlain, &ErrorPayload{Error: EIO, Message: "m"}), 1, 2, 3)
	if p, err := ParseErrorPayload(b, ChunkError+77); err != nil || p.Message != "m" {
		t.Errorf("%+v, %v", p, err)
	}
}

func TestPayload(t *testing.T) {
	for _, tt := range []struct {
		r        Request
		extended bool
		want     uint64
	}{
		{Request{Command: CmdWrite, Length: 7}, false, 7},
		{Request{Command: CmdRead, Length: 7}, false, 0},
		{Request{Command: CmdWriteZeroes, Length: 7, Flags: CmdFlagPayloadLen}, false, 0},
		{Request{Command: CmdWrite, Length: 7, Flags: CmdFlagPayloadLen}, true, 7},
		{Request{Command: CmdWrite, Length: 7}, true, 0},
		{Request{Command: CmdBlockStatus, Length: 12, Flags: CmdFlagPayloadLen}, true, 12},
	} {
		if got := tt.r.Payload(tt.extended); got != tt.want {
			t.Errorf("%+v, extended %v: %d", tt.r, tt.extended, got)
		}
	}
}

func TestParsedExtentsAreAppended(t *testing.T) {
	ext := make([]Extent, 1, 8)
	b := AppendBlockStatus(nil, 1, []Extent{{1, 2}})
	_, got, err := ParseBlockStatus(b, ChunkBlockStatus, ext)
	if err != nil || len(got) != 2 || &got[0] != &ext[0] {
		t.Errorf("%v %v", got, err)
	}
}
