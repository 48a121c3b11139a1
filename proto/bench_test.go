package proto

import "testing"

// The codecs that run for each request must not allocate.

func BenchmarkParseRequest(b *testing.B) {
	in := AppendRequest(nil, &Request{Command: CmdRead, Cookie: 1, Offset: 4096, Length: 4096})
	var r Request
	noAllocs(b, func() { ParseRequest(in, &r) })
}

func BenchmarkParseExtendedRequest(b *testing.B) {
	in := AppendExtendedRequest(nil, &Request{Command: CmdRead, Cookie: 1, Offset: 4096, Length: 4096})
	var r Request
	noAllocs(b, func() { ParseExtendedRequest(in, &r) })
}

func BenchmarkAppendRequest(b *testing.B) {
	r := Request{Command: CmdRead, Cookie: 1, Offset: 4096, Length: 4096}
	out := make([]byte, 0, 64)
	noAllocs(b, func() { out = AppendRequest(out[:0], &r) })
}

func BenchmarkAppendExtendedRequest(b *testing.B) {
	r := Request{Command: CmdRead, Cookie: 1, Offset: 4096, Length: 4096}
	out := make([]byte, 0, 64)
	noAllocs(b, func() { out = AppendExtendedRequest(out[:0], &r) })
}

func BenchmarkAppendSimpleReply(b *testing.B) {
	out := make([]byte, 0, 64)
	noAllocs(b, func() { out = AppendSimpleReply(out[:0], OK, 1) })
}

func BenchmarkParseSimpleReply(b *testing.B) {
	in := AppendSimpleReply(nil, OK, 1)
	var r SimpleReply
	noAllocs(b, func() { ParseSimpleReply(in, &r) })
}

func BenchmarkAppendChunk(b *testing.B) {
	c := Chunk{Flags: ReplyFlagDone, Type: ChunkOffsetData, Cookie: 1, Length: 4104}
	out := make([]byte, 0, 64)
	noAllocs(b, func() { out = AppendChunk(out[:0], &c) })
}

func BenchmarkAppendExtendedChunk(b *testing.B) {
	c := Chunk{Flags: ReplyFlagDone, Type: ChunkOffsetData, Cookie: 1, Offset: 4096, Length: 4104}
	out := make([]byte, 0, 64)
	noAllocs(b, func() { out = AppendExtendedChunk(out[:0], &c) })
}

func BenchmarkParseChunk(b *testing.B) {
	in := AppendChunk(nil, &Chunk{Flags: ReplyFlagDone, Type: ChunkOffsetData, Cookie: 1, Length: 4104})
	var c Chunk
	noAllocs(b, func() { ParseChunk(in, &c) })
}

func BenchmarkParseExtendedChunk(b *testing.B) {
	in := AppendExtendedChunk(nil, &Chunk{Flags: ReplyFlagDone, Type: ChunkOffsetData, Cookie: 1, Length: 4104})
	var c Chunk
	noAllocs(b, func() { ParseExtendedChunk(in, &c) })
}

func BenchmarkParseBlockStatus(b *testing.B) {
	in := AppendBlockStatus(nil, 1, []Extent{{4096, 3}, {8192, 0}, {512, 3}})
	ext := make([]Extent, 0, 8)
	noAllocs(b, func() { _, ext, _ = ParseBlockStatus(in, ChunkBlockStatus, ext[:0]) })
}

func noAllocs(b *testing.B, f func()) {
	b.ReportAllocs()
	if n := testing.AllocsPerRun(100, f); n > 0 {
		b.Errorf("%v allocations", n)
	}
	for b.Loop() {
		f()
	}
}
