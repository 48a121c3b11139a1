package server

import (
	"slices"
	"testing"

	"nbd.example/nbd/block"
	"nbd.example/nbd/proto"
)

func TestOfferFlags(t *testing.T) {
	all := block.Caps{Flush: block.Native, FUA: block.Emulated, Trim: block.Native, Zero: block.Emulated, FastZero: block.Emulated,
		Cache: block.Emulated, Extents: block.Native, MultiConn: true}
	none := block.Caps{Flush: block.None, FUA: block.None, Trim: block.None, Zero: block.None, FastZero: block.None, Cache: block.None}
	with := func(c block.Caps, f func(*block.Caps)) block.Caps { f(&c); return c }
	const (
		has     = proto.FlagHasFlags
		changes = proto.FlagSendFUA | proto.FlagSendTrim | proto.FlagSendWriteZeroes | proto.FlagSendFastZero
		reads   = proto.FlagSendFlush | proto.FlagSendCache
	)
	tests := []struct {
		name string
		caps block.Caps
		x    Export
		want proto.TransmissionFlags
	}{
		{"nothing", none, Export{}, has},
		{"everything", all, Export{}, has | changes | reads | proto.FlagCanMultiConn},
		{"private", all, Export{Private: true}, has | changes | reads},
		{"read-only export", all, Export{ReadOnly: true}, has | reads | proto.FlagReadOnly | proto.FlagCanMultiConn},
		{"read-only device", with(none, func(c *block.Caps) { c.ReadOnly = true }), Export{}, has | proto.FlagReadOnly},
		{"rotational device", with(none, func(c *block.Caps) { c.Rotational = true }), Export{}, has | proto.FlagRotational},
		{"rotational export", none, Export{Rotational: true}, has | proto.FlagRotational},
		{"hidden", all, Export{Hide: proto.FlagSendFlush | proto.FlagCanMultiConn}, has | changes | proto.FlagSendCache},
		{"fast zeroes need zeroes", all, Export{Hide: proto.FlagSendWriteZeroes},
			has | reads | proto.FlagCanMultiConn | proto.FlagSendFUA | proto.FlagSendTrim},
		{"what cannot be hidden", with(all, func(c *block.Caps) { c.ReadOnly = true }), Export{Hide: 0xffff}, has | proto.FlagReadOnly},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if got := offerFlags(&tt.caps, &tt.x); got != tt.want {
				t.Errorf("got %v, want %v", got, tt.want)
			}
		})
	}
}

func TestOfferBlockSize(t *testing.T) {
	tests := []struct {
		preferred  int64
		minBlock   uint32
		maxPayload int
		want       proto.BlockSize
	}{
		{4096, 0, 0, proto.BlockSize{Minimum: 1, Preferred: 4096, MaxPayload: 64 << 20}},
		{512, 512, 0, proto.BlockSize{Minimum: 512, Preferred: 4096, MaxPayload: 64 << 20}},
		{4096, 65536, 32 << 20, proto.BlockSize{Minimum: 65536, Preferred: 65536, MaxPayload: 32 << 20}},
		{5000, 0, 0, proto.BlockSize{Minimum: 1, Preferred: 8192, MaxPayload: 64 << 20}},
		{1 << 40, 0, 40 << 20, proto.BlockSize{Minimum: 1, Preferred: 32 << 20, MaxPayload: 40 << 20}},
		{0, 0, 1<<31 - 1, proto.BlockSize{Minimum: 1, Preferred: 4096, MaxPayload: 1<<31 - 1}},
	}
	for _, tt := range tests {
		got := offerBlockSize(&block.Caps{BlockSize: block.BlockSize{Preferred: tt.preferred}}, &Export{MinBlock: tt.minBlock}, tt.maxPayload)
		if got != tt.want {
			t.Errorf("preferred %d, minimum %d: got %+v, want %+v", tt.preferred, tt.minBlock, got, tt.want)
		}
		if err := got.Check(); err != nil {
			t.Error(err)
		}
	}
}

func TestOfferContexts(t *testing.T) {
	tests := []struct {
		caps block.Caps
		want []string
	}{
		{block.Caps{Extents: block.None, Instance: "i"}, []string{"x-nbd-instance:i"}},
		{block.Caps{Extents: block.Emulated, Instance: "i"}, []string{"base:allocation", "x-nbd-instance:i"}},
		{block.Caps{Extents: block.Native, Depth: true, Instance: "i"}, []string{"base:allocation", "qemu:allocation-depth", "x-nbd-instance:i"}},
	}
	for _, tt := range tests {
		if got := offerContexts(&tt.caps); !slices.Equal(got, tt.want) {
			t.Errorf("got %v, want %v", got, tt.want)
		}
	}
}
