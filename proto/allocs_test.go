package proto

import "testing"

// hot are the codecs that run for each request, or each reply. They must not allocate.
func hot() map[string]func() {
	var (
		out = make([]byte, 0, 256)
		ext = make([]Extent, 0, 8)

		request  Request
		reply    SimpleReply
		chunk    Chunk
		r        = Request{Command: CmdRead, Cookie: 1, Offset: 4096, Length: 4096}
		c        = Chunk{Flags: ReplyFlagDone, Type: ChunkOffsetData, Cookie: 1, Offset: 4096, Length: 4104}
		failure  = ErrorPayload{Error: EIO, Message: "the disk has a bad sector", Offset: 4096}
		extents  = []Extent{{4096, 3}, {8192, 0}, {512, 3}}
		inShort  = AppendRequest(nil, &r)
		inLong   = AppendExtendedRequest(nil, &r)
		inSimple = AppendSimpleReply(nil, OK, 1)
		inChunk  = AppendChunk(nil, &c)
		inExt    = AppendExtendedChunk(nil, &c)
		inHole   = AppendHole(nil, 4096, 8192)
		inStatus = AppendBlockStatus(nil, 1, extents)
		inWide   = AppendBlockStatusExt(nil, 1, extents)
	)
	return map[string]func(){
		"AppendRequest":         func() { out = AppendRequest(out[:0], &r) },
		"AppendExtendedRequest": func() { out = AppendExtendedRequest(out[:0], &r) },
		"ParseRequest":          func() { ParseRequest(inShort, &request) },
		"ParseExtendedRequest":  func() { ParseExtendedRequest(inLong, &request) },
		"AppendSimpleReply":     func() { out = AppendSimpleReply(out[:0], OK, 1) },
		"ParseSimpleReply":      func() { ParseSimpleReply(inSimple, &reply) },
		"AppendChunk":           func() { out = AppendChunk(out[:0], &c) },
		"AppendExtendedChunk":   func() { out = AppendExtendedChunk(out[:0], &c) },
		"ParseChunk":            func() { ParseChunk(inChunk, &chunk) },
		"ParseExtendedChunk":    func() { ParseExtendedChunk(inExt, &chunk) },
		"AppendHole":            func() { out = AppendHole(out[:0], 4096, 8192) },
		"ParseHole":             func() { ParseHole(inHole) },
		"AppendErrorPayload":    func() { out = AppendErrorPayload(out[:0], ChunkErrorOffset, &failure) },
		"AppendBlockStatus":     func() { out = AppendBlockStatus(out[:0], 1, extents) },
		"AppendBlockStatusExt":  func() { out = AppendBlockStatusExt(out[:0], 1, extents) },
		"ParseBlockStatus":      func() { _, ext, _ = ParseBlockStatus(inStatus, ChunkBlockStatus, ext[:0]) },
		"ParseBlockStatus ext":  func() { _, ext, _ = ParseBlockStatus(inWide, ChunkBlockStatusExt, ext[:0]) },
	}
}

func TestNoAllocations(t *testing.T) {
	for name, f := range hot() {
		if n := testing.AllocsPerRun(100, f); n > 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func BenchmarkCodec(b *testing.B) {
	for name, f := range hot() {
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				f()
			}
		})
	}
}
