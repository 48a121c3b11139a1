package transmission

import (
	"context"
	"math"
	"slices"
	"testing"

	"nbd.example/nbd/backend/memory"
	"nbd.example/nbd/block"
	"nbd.example/nbd/proto"
)

// wantStatus compares descriptors.
func wantStatus(t *testing.T, what string, got, want []proto.Extent) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}

const (
	asHole = uint64(proto.StateHole | proto.StateZero)
	asData = uint64(0)
)

func TestStatement51(t *testing.T) {
	status := proto.Request{Command: proto.CmdBlockStatus}
	at := func(off, n uint64, f proto.CommandFlags) proto.Request {
		q := status
		q.Offset, q.Length, q.Flags = off, n, f
		return q
	}
	for _, s := range []style{structured, extended} {
		forPaths(t, func() *ramDisk {
			d := newRAM(mib)
			d.fill(64<<10, 64<<10)
			d.fill(256<<10, 4<<10)
			return d
		}, func(t *testing.T, d *ramDisk, dev *block.Device) {
			t.Run("statement 51: one chunk for each context, descriptors as they are", func(t *testing.T) {
				r := serve(t, dev, setup{style: s})
				p := r.want(proto.OK, at(0, mib, 0), nil)
				if len(p.chunks) != 3 {
					t.Fatalf("chunks %v", p.types())
				}
				wantStatus(t, "base:allocation", p.status(t, idAllocation), []proto.Extent{
					{Length: 64 << 10, Status: asHole}, {Length: 64 << 10, Status: asData}, {Length: 128 << 10, Status: asHole},
					{Length: 4 << 10, Status: asData}, {Length: mib - 260<<10, Status: asHole},
				})
				wantStatus(t, "qemu:allocation-depth", p.status(t, idDepth), []proto.Extent{
					{Length: 64 << 10, Status: 0}, {Length: 64 << 10, Status: 1}, {Length: 128 << 10, Status: 0},
					{Length: 4 << 10, Status: 1}, {Length: mib - 260<<10, Status: 0},
				})
				wantStatus(t, "instance", p.status(t, idInstance), []proto.Extent{{Length: mib}})
				r.end()
			})
			t.Run("statement 51: the first n-1 lengths sum to less than was asked", func(t *testing.T) {
				r := serve(t, dev, setup{style: s})
				for _, q := range []proto.Request{at(0, 1, 0), at(0, 64<<10, 0), at(0, 64<<10+1, 0), at(1000, 128<<10, 0), at(mib-1, 1, 0), at(65536, 512, 0)} {
					p := r.want(proto.OK, q, nil)
					for _, id := range []uint32{idAllocation, idDepth, idInstance} {
						ext := p.status(t, id)
						sum := uint64(0)
						for i, e := range ext {
							if sum >= q.Length {
								t.Errorf("%d bytes at %d: descriptor %d begins after %d", q.Length, q.Offset, i, sum)
							}
							sum += e.Length
						}
						if q.Offset+sum > mib {
							t.Errorf("%d bytes at %d: reaches to %d", q.Length, q.Offset, q.Offset+sum)
						}
					}
				}
				r.end()
			})
			t.Run("statement 51: REQ_ONE gives one, not longer than asked", func(t *testing.T) {
				r := serve(t, dev, setup{style: s})
				for _, x := range []struct{ off, n, want, status uint64 }{
					{0, mib, 64 << 10, asHole}, {0, 512, 512, asHole}, {65536, mib - 65536, 64 << 10, asData}, {70000, 100, 100, asData},
				} {
					p := r.want(proto.OK, at(x.off, x.n, proto.CmdFlagReqOne), nil)
					wantStatus(t, "base:allocation", p.status(t, idAllocation), []proto.Extent{{Length: x.want, Status: x.status}})
					if ext := p.status(t, idInstance); len(ext) != 1 || ext[0].Length > x.n {
						t.Errorf("instance: %v", ext)
					}
				}
				r.end()
			})
		})
	}
	t.Run("statement 51: a length that 32 bits cannot hold is clipped in compact replies", func(t *testing.T) {
		m, err := memory.New(memory.Config{Size: 1 << 40})
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range []style{structured, extended} {
			dev := stack(t, m)
			r := serve(t, dev, setup{style: s})
			q := at(0, math.MaxUint32, 0)
			if s == extended {
				q.Length = 1 << 40
			}
			p := r.want(proto.OK, q, nil)
			ext := p.status(t, idAllocation)
			if s == extended {
				wantStatus(t, "extended", ext, []proto.Extent{{Length: 1 << 40, Status: asHole}})
			} else if len(ext) != 1 || ext[0].Length == 0 || ext[0].Length%512 != 0 || ext[0].Length < 1<<31 || ext[0].Status != asHole {
				t.Errorf("compact: %v", ext)
			}
			r.end()
		}
	})
	t.Run("statement 51: a reply has at most 2^20 descriptors, and makes progress", func(t *testing.T) {
		for _, s := range []style{structured, extended} {
			r := serve(t, stack(t, &striped{size: 1 << 32}), setup{style: s})
			p := r.want(proto.OK, at(0, 1<<32-512, 0), nil)
			if n := len(p.status(t, idAllocation)); n == 0 || n > 1<<20 {
				t.Errorf("%d descriptors", n)
			}
			r.end()
		}
	})
	t.Run("statement 51: neighbours with the same status are one", func(t *testing.T) {
		r := serve(t, stack(t, &striped{size: mib, depth: true}), setup{style: structured})
		p := r.want(proto.OK, at(0, mib, 0), nil)
		wantStatus(t, "base:allocation", p.status(t, idAllocation), []proto.Extent{{Length: mib}})
		if n := len(p.status(t, idDepth)); n != mib/512 {
			t.Errorf("%d depths", n)
		}
		r.end()
	})
}

// striped is a device that alternates every 512 bytes: between data and holes,
// or, with depth, between two depths of data.
type striped struct {
	size  int64
	depth bool
}

func (s *striped) Caps() block.Caps { return block.Caps{Size: s.size, Depth: true} }
func (s *striped) Close() error     { return nil }
func (s *striped) ReadAt(_ context.Context, p []byte, off int64) error {
	for i := range p {
		p[i] = 0
		if at := off + int64(i); at/512%2 == 0 {
			p[i] = byte(at>>9) | 1
		}
	}
	return nil
}

func (s *striped) Extents(_ context.Context, off, n int64, _ block.Flags, add func(block.Extent) bool) error {
	for at := off; at < off+n; {
		x := block.Extent{Length: min(512-at%512, s.size-at), Depth: 1}
		if at/512%2 != 0 {
			x.State, x.Depth = block.Hole|block.Zero, 0
			if s.depth {
				x.State, x.Depth = 0, 2
			}
		}
		if !add(x) {
			return nil
		}
		at += x.Length
	}
	return nil
}

// TestSparseAlternating reads data that is mixed with holes as finely as it gets.
func TestSparseAlternating(t *testing.T) {
	dev := stack(t, &striped{size: 4 * mib})
	for _, s := range []style{structured, extended} {
		for _, transport := range []string{"unix", "tls"} {
			r := serve(t, dev, setup{style: s, transport: transport})
			p := r.want(proto.OK, proto.Request{Command: proto.CmdRead, Offset: 100, Length: 2 * mib}, nil)
			want := make([]byte, 2*mib)
			if err := dev.ReadAt(t.Context(), want, 100); err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(p.data, want) {
				t.Error("other data than the device has")
			}
			r.end()
		}
	}
}
